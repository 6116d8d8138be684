//! Where a model comes from: built into the program, a folder, or a hub repository. Finds its files, downloads those that
//! are asked for and missing; reads configurations, never weights. Calls may wait for the network: not for async tasks.

use std::{
    borrow::Cow,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use thiserror::Error;
use tracing::debug;

use super::{
    ConfigError, GenerationConfig, LoadError, ModelConfig, ModelFiles, ShardIndex, builtin,
    files::{INDEX_FILE, SINGLE_FILE},
    hub::{HubError, HubOptions, HubRepo},
};

const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
/// Weights as Python objects: reading them runs whatever code they bring.
const PICKLE_FILES: [&str; 2] = ["pytorch_model.bin.index.json", "pytorch_model.bin"];

/// A model whose configuration is known. Its weights are found, and downloaded if need be, when asked for.
#[derive(Clone, Debug)]
pub struct ModelSource {
    name: String,
    place: Place,
    model_type: String,
    config: Arc<ModelConfig>,
    generation: Arc<GenerationConfig>,
}

#[derive(Clone, Debug)]
enum Place {
    BuiltIn,
    Folder(PathBuf),
    Hub(HubRepo),
}

/// A model that cannot be found or read.
#[derive(Debug, Error)]
pub enum ResolveError {
    /// A path that leads nowhere.
    #[error("there is no folder {}", path.display())]
    NoFolder {
        /// As given.
        path: PathBuf,
    },
    /// The repository or a file of it is not to be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration file is of no use.
    #[error("{file} of {model} cannot be used")]
    Config {
        /// The model, as given.
        model: String,
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The weights cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing turns text into tokens.
    #[error("{model} has no tokenizer.json; save the tokenizer with a current version of transformers to get one")]
    NoTokenizer {
        /// The model, as given.
        model: String,
    },
    /// Only weights that are programs.
    #[error(
        "{model} has no safetensors weights, only {file}: reading that file would run code that it brings, so it is refused"
    )]
    PickleOnly {
        /// The model, as given.
        model: String,
        /// The file there is.
        file: &'static str,
    },
}

impl ModelSource {
    /// Finds the model that a user named: `demo` is the built-in one, an existing folder is that folder, everything
    /// else a hub repository `OWNER/NAME`. A folder called `demo` is meant by `./demo`.
    ///
    /// # Errors
    /// The model or its `config.json` cannot be found, downloaded or used.
    pub fn resolve(name: &str, options: &HubOptions) -> Result<Self, ResolveError> {
        let place = if name == builtin::NAME {
            Place::BuiltIn
        } else if Path::new(name).is_dir() {
            Place::Folder(PathBuf::from(name))
        } else if name.starts_with(['.', '/', '~', '\\']) {
            return Err(ResolveError::NoFolder { path: name.into() });
        } else {
            Place::Hub(HubRepo::open(name, options)?)
        };
        Self::read(name, place)
    }

    /// The name that the user gave.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The repository a swarm knows the model by; a folder has none.
    pub fn repo_name(&self) -> Option<&str> {
        match &self.place {
            Place::BuiltIn => Some(builtin::REPO_NAME),
            Place::Folder(_) => None,
            Place::Hub(repo) => Some(repo.name()),
        }
    }

    /// `model_type` of `config.json`.
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How its makers want text to be generated.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// There is none, or it cannot be downloaded or read.
    pub fn tokenizer_json(&self) -> Result<Cow<'static, [u8]>, ResolveError> {
        let missing = || ResolveError::NoTokenizer {
            model: self.name.clone(),
        };
        let path = match &self.place {
            Place::BuiltIn => return Ok(Cow::Borrowed(builtin::TOKENIZER)),
            Place::Folder(folder) => folder.join(TOKENIZER_FILE),
            Place::Hub(repo) => match repo.clone().get(TOKENIZER_FILE) {
                Err(HubError::NotFound { .. }) => return Err(missing()),
                found => found?,
            },
        };
        match fs::read(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(source) => Err(ResolveError::Read { path, source }),
            Ok(bytes) => Ok(Cow::Owned(bytes)),
        }
    }

    /// The weights that a server of `span` needs, downloaded if need be.
    ///
    /// # Errors
    /// They cannot be found, downloaded or used.
    pub fn files_for_span(&self, span: Range<u32>) -> Result<ModelFiles, ResolveError> {
        self.files(|index, config| index.files_for_span(config, span))
    }

    /// The weights that a client needs (embeddings, final norm and head), downloaded if need be.
    ///
    /// # Errors
    /// They cannot be found, downloaded or used.
    pub fn files_for_ends(&self) -> Result<ModelFiles, ResolveError> {
        self.files(ShardIndex::files_for_ends)
    }

    fn files(&self, needed: impl FnOnce(&ShardIndex, &ModelConfig) -> Vec<String>) -> Result<ModelFiles, ResolveError> {
        let folder = match &self.place {
            Place::BuiltIn => return Ok(ModelFiles::from_bytes(builtin::CONFIG, builtin::weights())?),
            Place::Folder(folder) => folder.clone(),
            Place::Hub(repo) => self.download(repo.clone(), needed)?,
        };
        Ok(ModelFiles::from_folder(&folder)?)
    }

    /// The weight files of `span` that are not on this machine. Of a repository, a server would download them first, and
    /// only the list of shards is fetched for this; of a folder, it could not start.
    ///
    /// # Errors
    /// The files cannot be found, or what is there cannot be used.
    pub fn missing_files(&self, span: Range<u32>) -> Result<Vec<String>, ResolveError> {
        match &self.place {
            Place::BuiltIn => Ok(Vec::new()),
            Place::Folder(folder) => {
                let index = folder.join(INDEX_FILE);
                let mut files = if index.is_file() {
                    ShardIndex::parse(&index, &read(&index)?)?.files_for_span(&self.config, span)
                } else {
                    vec![SINGLE_FILE.to_owned()]
                };
                files.retain(|file| !folder.join(file).is_file());
                Ok(files)
            }
            Place::Hub(repo) => {
                let mut repo = repo.clone();
                let mut files = self.weight_files(&mut repo, |index, config| index.files_for_span(config, span))?;
                files.retain(|file| !repo.is_cached(file));
                Ok(files)
            }
        }
    }

    fn download(
        &self,
        mut repo: HubRepo,
        needed: impl FnOnce(&ShardIndex, &ModelConfig) -> Vec<String>,
    ) -> Result<PathBuf, ResolveError> {
        let mut weights = PathBuf::new();
        for file in self.weight_files(&mut repo, needed)? {
            weights = match repo.get(&file) {
                Err(error @ (HubError::NotFound { .. } | HubError::Offline { .. })) if file == SINGLE_FILE => {
                    return Err(self.without_safetensors(&repo, error));
                }
                found => found?,
            };
        }
        debug!(model = self.name, path = %weights.display(), "weights are there");
        Ok(weights.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// An index is looked for first, as every loader of checkpoints does (Petals `server/from_pretrained.py`). With one
    /// only the shards that are needed are fetched.
    fn weight_files(
        &self,
        repo: &mut HubRepo,
        needed: impl FnOnce(&ShardIndex, &ModelConfig) -> Vec<String>,
    ) -> Result<Vec<String>, ResolveError> {
        if repo.is_cached(SINGLE_FILE) && !repo.is_cached(INDEX_FILE) {
            return Ok(vec![SINGLE_FILE.to_owned()]);
        }
        match repo.get_optional(INDEX_FILE)? {
            Some(path) => Ok(needed(&ShardIndex::parse(&path, &read(&path)?)?, &self.config)),
            None => Ok(vec![SINGLE_FILE.to_owned()]),
        }
    }

    /// Says so if a repository has pickled weights only.
    fn without_safetensors(&self, repo: &HubRepo, error: HubError) -> ResolveError {
        match PICKLE_FILES.into_iter().find(|file| repo.has(file)) {
            Some(file) => ResolveError::PickleOnly {
                model: self.name.clone(),
                file,
            },
            None => error.into(),
        }
    }

    fn read(name: &str, mut place: Place) -> Result<Self, ResolveError> {
        let (config_json, generation_json) = match &mut place {
            Place::BuiltIn => (builtin::CONFIG.to_vec(), Some(builtin::GENERATION_CONFIG.to_vec())),
            Place::Folder(folder) => {
                let generation = folder.join(GENERATION_CONFIG_FILE);
                let generation = generation.is_file().then(|| read(&generation)).transpose()?;
                (read(&folder.join(CONFIG_FILE))?, generation)
            }
            Place::Hub(repo) => {
                let config = repo.get(CONFIG_FILE)?;
                let generation = repo.get_optional(GENERATION_CONFIG_FILE)?;
                (read(&config)?, generation.as_deref().map(read).transpose()?)
            }
        };
        let unusable = |file| {
            move |source| ResolveError::Config {
                model: name.to_owned(),
                file,
                source,
            }
        };
        let config = ModelConfig::from_json(&config_json).map_err(unusable(CONFIG_FILE))?;
        let generation = match generation_json {
            Some(json) => GenerationConfig::from_json(&json, &config).map_err(unusable(GENERATION_CONFIG_FILE))?,
            None => GenerationConfig::of_config(&config),
        };
        Ok(Self {
            name: name.to_owned(),
            place,
            model_type: model_type(&config_json).map_err(unusable(CONFIG_FILE))?,
            config: Arc::new(config),
            generation: Arc::new(generation),
        })
    }
}

fn model_type(config_json: &[u8]) -> Result<String, ConfigError> {
    #[derive(Deserialize)]
    struct Typed {
        model_type: String,
    }
    let typed: Typed = serde_json::from_slice(config_json).map_err(ConfigError::Json)?;
    Ok(typed.model_type)
}

fn read(path: &Path) -> Result<Vec<u8>, ResolveError> {
    fs::read(path).map_err(|source| ResolveError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
