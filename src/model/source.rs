//! Where a model comes from: built into the program, a folder, or a hub repository. Finds its files, downloads those that
//! are asked for and missing; reads configurations, never weights. Calls may wait for the network: not for async tasks.

mod own;

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
    ConfigError, GenerationConfig, GgufError, LoadError, ModelConfig, ModelFiles, ShardIndex, WeightFormat, builtin,
    error::PICKLE_FILES,
    files::{INDEX_FILE, SINGLE_FILE, group_of_ends, groups_of_span},
    gguf::{self, Gguf, is_gguf},
    hub::{HubError, HubOptions, HubRepo, Lease, Tensors, Want},
};

mod chat;
mod gguf_file;

pub use chat::ChatFiles;
use gguf_file::{beside_gguf, gguf_at, gguf_models, unusable_gguf, without_file};

const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model whose configuration is known. Its weights are found, and downloaded if need be, when asked for.
#[derive(Clone, Debug)]
pub struct ModelSource {
    name: String,
    place: Place,
    model_type: String,
    config: Arc<ModelConfig>,
    generation: Arc<GenerationConfig>,
    own_format: Option<WeightFormat>,
}

#[derive(Clone, Debug)]
enum Place {
    BuiltIn,
    Folder(PathBuf),
    Hub(HubRepo),
    Gguf {
        /// The first of several, or the first that is here of one.
        path: PathBuf,
        /// Without tensors if it is in a repository.
        file: Arc<Gguf>,
        repo: Option<HubRepo>,
        /// Of all its files.
        names: Vec<String>,
        /// For as long as the header is of use.
        _lease: Option<Arc<Lease>>,
        /// That of the model it was made of.
        base: Option<Box<HubRepo>>,
    },
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
    /// A folder in which it is not clear what the model is.
    #[error(
        "{} has several GGUF files and no config.json: name the .gguf file, such as {}",
        folder.display(), example.display()
    )]
    SeveralGguf {
        /// As given.
        folder: PathBuf,
        /// One of the files.
        example: PathBuf,
    },
    /// A repository without the files of a checkpoint that has, or by its name may have, GGUF files.
    #[error("{model} has no {file}; it is one of its GGUF files that has to be named, such as {model}:{example}")]
    OnlyGguf {
        /// The repository, as given.
        model: String,
        /// What it lacks.
        file: &'static str,
        /// One of its GGUF files, or what stands for one.
        example: String,
        /// Why.
        #[source]
        source: Box<HubError>,
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
    /// A GGUF file whose tokenizer we cannot build, without another.
    #[error(
        "nothing turns text into tokens for {model}, and {looked} no tokenizer.json: download the file, put the model's \
         tokenizer.json beside it, and name the file by its path"
    )]
    NoTokenizerForGguf {
        /// The model, as given.
        model: String,
        /// Where else it was looked for.
        looked: String,
        /// Why it is not that of the file.
        #[source]
        source: Box<GgufError>,
    },
}

impl ModelSource {
    /// Finds the model that a user named: `demo` is the built-in one, an existing folder or GGUF file is that, everything
    /// else a hub repository `OWNER/NAME`, or a GGUF file in one, `OWNER/NAME:FILE.gguf`. A folder called `demo` is meant by
    /// `./demo`.
    ///
    /// # Errors
    /// The model or its `config.json` cannot be found, downloaded or used.
    pub fn resolve(name: &str, options: &HubOptions) -> Result<Self, ResolveError> {
        let place = if name == builtin::NAME {
            Place::BuiltIn
        } else if Path::new(name).is_dir() {
            match &gguf_models(Path::new(name))[..] {
                [] => Place::Folder(PathBuf::from(name)),
                [path] => gguf_at(path, None, options)?,
                [example, ..] => {
                    return Err(ResolveError::SeveralGguf {
                        folder: name.into(),
                        example: example.clone(),
                    });
                }
            }
        } else if is_gguf(Path::new(name)) && Path::new(name).is_file() {
            gguf_at(Path::new(name), None, options)?
        } else if let Some((repo, file)) = name.split_once(':').filter(|(_, file)| is_gguf(Path::new(file))) {
            gguf_at(Path::new(file), Some(HubRepo::open(repo, options)?), options)?
        } else if name.starts_with(['.', '/', '~', '\\']) {
            return Err(ResolveError::NoFolder { path: name.into() });
        } else {
            Place::Hub(HubRepo::open(name, options)?)
        };
        Self::read(name, place)
    }

    /// The small model that is built into the program.
    ///
    /// # Errors
    /// None that is known of: its files are as they should be.
    pub fn built_in() -> Result<Self, ResolveError> {
        Self::read(builtin::NAME, Place::BuiltIn)
    }

    /// The name that the user gave.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The repository a swarm knows the model by; a folder has none.
    pub fn repo_name(&self) -> Option<&str> {
        match &self.place {
            Place::BuiltIn => Some(builtin::REPO_NAME),
            Place::Folder(_) | Place::Gguf { .. } => None,
            Place::Hub(repo) => Some(repo.name()),
        }
    }

    /// What a model without a repository of its own calls itself, as GGUF files may.
    pub fn title(&self) -> Option<String> {
        match &self.place {
            Place::Gguf { file, .. } => file.title(),
            Place::BuiltIn | Place::Folder(_) | Place::Hub(_) => None,
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
            Place::Gguf { .. } => return self.tokenizer_of_gguf(),
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
        if let Some(files) = self.files_of_gguf(&gguf::groups_of_span(span.clone()))? {
            return Ok(files);
        }
        self.files(&groups_of_span(&self.config, span))
    }

    /// The weights that a client needs (embeddings, final norm and head), downloaded if need be.
    ///
    /// # Errors
    /// They cannot be found, downloaded or used.
    pub fn files_for_ends(&self) -> Result<ModelFiles, ResolveError> {
        if let Some(files) = self.files_of_gguf(&[gguf::group_of_ends()])? {
            return Ok(files);
        }
        self.files(&[group_of_ends(&self.config)])
    }

    fn files(&self, groups: &[(String, Tensors)]) -> Result<ModelFiles, ResolveError> {
        let repo = match &self.place {
            Place::BuiltIn => return Ok(ModelFiles::from_bytes(builtin::CONFIG, builtin::weights())?),
            Place::Folder(folder) => return Ok(ModelFiles::from_folder(folder)?),
            Place::Gguf { path, file, .. } => {
                return Ok(ModelFiles::from_gguf(
                    self.config.clone(),
                    (path.clone(), file.clone()),
                    None,
                ));
            }
            Place::Hub(repo) => repo,
        };
        let mut repo = repo.clone();
        let wants = self.wants(&mut repo, groups)?;
        let local = match repo.weights(&wants) {
            Err(error @ (HubError::NotFound { .. } | HubError::Offline { .. })) if wants[0].file == SINGLE_FILE => {
                return Err(self.without_safetensors(&repo, error));
            }
            local => local?,
        };
        debug!(model = self.name, files = local.files.len(), "weights are there");
        Ok(ModelFiles::from_cache(self.config.clone(), local))
    }

    /// The weight files of `span` that are not on this machine. Of a repository, a server would download them or what it
    /// needs of them first, and only the list of shards is fetched for this; of a folder, it could not start.
    ///
    /// # Errors
    /// The files cannot be found, or what is there cannot be used.
    pub fn missing_files(&self, span: Range<u32>) -> Result<Vec<String>, ResolveError> {
        match &self.place {
            Place::BuiltIn => Ok(Vec::new()),
            Place::Gguf { repo, .. } => {
                let wants = self.wants_of_gguf(&gguf::groups_of_span(span));
                Ok(repo.as_ref().map(|repo| repo.missing(&wants)).unwrap_or_default())
            }
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
                let wants = self.wants(&mut repo, &groups_of_span(&self.config, span))?;
                Ok(repo.missing(&wants))
            }
        }
    }

    /// An index is looked for first, as every loader of checkpoints does (Petals `server/from_pretrained.py`). It says
    /// which files have something of the groups.
    fn wants(&self, repo: &mut HubRepo, groups: &[(String, Tensors)]) -> Result<Vec<Want>, ResolveError> {
        let is_single = repo.is_cached(SINGLE_FILE) && !repo.is_cached(INDEX_FILE);
        let index = if is_single {
            None
        } else {
            repo.get_decisive(INDEX_FILE)?
        };
        let wants = match index {
            Some(path) => ShardIndex::parse(&path, &read(&path)?)?.wants(groups),
            None => Vec::new(),
        };
        if !wants.is_empty() {
            return Ok(wants);
        }
        let in_single = groups.iter().map(|group| Want {
            file: SINGLE_FILE.to_owned(),
            group: Some(group.clone()),
        });
        Ok(in_single.collect())
    }

    /// Says so if a repository has weights of other kinds only.
    fn without_safetensors(&self, repo: &HubRepo, error: HubError) -> ResolveError {
        match PICKLE_FILES.into_iter().find(|file| repo.has(file)) {
            Some(file) => LoadError::PickleOnly {
                model: self.name.clone(),
                file,
            }
            .into(),
            None => without_file(&self.name, repo, SINGLE_FILE, error),
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
                let config = repo.get(CONFIG_FILE);
                let config = config.map_err(|error| without_file(name, repo, CONFIG_FILE, error))?;
                let generation = repo.get_optional(GENERATION_CONFIG_FILE)?;
                (read(&config)?, generation.as_deref().map(read).transpose()?)
            }
            Place::Gguf { path, file, repo, .. } => {
                let generation = beside_gguf(path, repo.as_ref(), GENERATION_CONFIG_FILE)?;
                let config = file.config_json().map_err(unusable_gguf(path))?;
                (config, generation.as_deref().map(read).transpose()?)
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
        let generation = match &place {
            // Its vocabulary tells more of them than what may lie beside it.
            Place::Gguf { .. } => generation.ending_at(&config.eos_token_ids),
            Place::BuiltIn | Place::Folder(_) | Place::Hub(_) => generation,
        };
        let mut source = Self {
            name: name.to_owned(),
            place,
            model_type: model_type(&config_json).map_err(unusable(CONFIG_FILE))?,
            config: Arc::new(config),
            generation: Arc::new(generation),
            own_format: None,
        };
        source.own_format = source.find_own_format();
        Ok(source)
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
