//! The files of a checkpoint, found but not yet read: which folder, which shards, which shard has which tensor.
//! Nothing is downloaded here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use serde::Deserialize;

use super::{
    LoadError, ModelConfig,
    gguf::Gguf,
    hub::{Lease, Local, Lock, Tensors, Want},
    layout::EndsLayout,
};

/// The index of a checkpoint in several files, as the hub names it.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// A checkpoint in one file.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
const CONFIG_FILE: &str = "config.json";

/// A checkpoint whose configuration has been read and whose weights can be. Clones share what was read.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    config: Arc<ModelConfig>,
    weights: Weights,
    /// Matrices that are stored in blocks are to be kept so.
    own_formats: bool,
    /// Files of the cache are kept for whoever uses or opens them.
    lease: Option<Arc<Lease>>,
    /// Until the files are open.
    reading: Arc<Mutex<Option<Lock>>>,
}

/// Where the weights are.
#[derive(Clone, Debug)]
pub(crate) enum Weights {
    /// In these, which together have all that is needed.
    Files(Vec<PathBuf>),
    /// In many.
    Shards {
        /// Holds the shards.
        folder: PathBuf,
        /// Which shard has which tensor.
        index: Arc<ShardIndex>,
    },
    /// In a GGUF file, with names of its own.
    Gguf {
        /// For error messages.
        path: PathBuf,
        /// Its header and content.
        file: Arc<Gguf>,
    },
    /// In the program.
    Memory(Bytes),
}

impl ModelFiles {
    /// A folder as `save_pretrained` or the hub's cache lays it out. Shards that are not needed may be absent.
    ///
    /// # Errors
    /// An unreadable or unusable `config.json`, an unreadable index, or no safetensors weights at all.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        let config_path = folder.join(CONFIG_FILE);
        let config = ModelConfig::from_json(&read(&config_path)?).map_err(|source| LoadError::Config {
            path: config_path,
            source,
        })?;
        let (index, single) = (folder.join(INDEX_FILE), folder.join(SINGLE_FILE));
        let weights = if index.is_file() {
            Weights::Shards {
                folder: folder.to_owned(),
                index: Arc::new(ShardIndex::parse(&index, &read(&index)?)?),
            }
        } else if single.is_file() {
            Weights::Files(vec![single])
        } else {
            return Err(LoadError::without_weights(folder));
        };
        Ok(Self {
            config: Arc::new(config),
            weights,
            own_formats: false,
            lease: None,
            reading: Arc::default(),
        })
    }

    /// Files of the cache.
    pub(crate) fn from_cache(config: Arc<ModelConfig>, local: Local) -> Self {
        Self {
            config,
            weights: Weights::Files(local.files),
            own_formats: false,
            lease: Some(Arc::new(local.lease)),
            reading: Arc::new(Mutex::new(local.reading)),
        }
    }

    /// A GGUF file, and what keeps it in the cache if it is there.
    pub(crate) fn from_gguf(
        config: Arc<ModelConfig>,
        (path, file): (PathBuf, Arc<Gguf>),
        lease: Option<Lease>,
    ) -> Self {
        Self {
            config,
            weights: Weights::Gguf { path, file },
            own_formats: false,
            lease: lease.map(Arc::new),
            reading: Arc::default(),
        }
    }

    /// Matrices that the files have in blocks of 8 or 4 bits stay so, whatever format is asked for: with the same codes and
    /// scales where there are kernels for them, else in the next format with more bits. All others are of the type that is
    /// asked for besides a format.
    #[must_use]
    pub fn with_own_formats(mut self) -> Self {
        self.own_formats = true;
        self
    }

    /// See [`ModelFiles::with_own_formats`].
    pub(crate) fn own_formats(&self) -> bool {
        self.own_formats
    }

    /// To be kept as long as the weights are served: other nodes do not delete the files, which a restart needs.
    pub(crate) fn lease(&self) -> Option<Arc<Lease>> {
        self.lease.clone()
    }

    /// The files are open: whoever makes room in the cache, perhaps for us, need not wait for us any more.
    pub(crate) fn opened(&self) {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A checkpoint that is part of the program. Weights are used in place where their alignment permits.
    ///
    /// # Errors
    /// An unusable configuration.
    pub fn from_bytes(config: &[u8], weights: &'static [u8]) -> Result<Self, LoadError> {
        let config = ModelConfig::from_json(config).map_err(|source| LoadError::Config {
            path: PathBuf::from(CONFIG_FILE),
            source,
        })?;
        Ok(Self::from_memory(Arc::new(config), Bytes::from_static(weights)))
    }

    /// The content of a file of safetensors.
    pub(super) fn from_memory(config: Arc<ModelConfig>, weights: Bytes) -> Self {
        Self {
            config,
            weights: Weights::Memory(weights),
            own_formats: false,
            lease: None,
            reading: Arc::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub(crate) fn shared_config(&self) -> Arc<ModelConfig> {
        Arc::clone(&self.config)
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// `model.safetensors.index.json`: which file has which tensor.
#[derive(Debug, Deserialize)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads the text of an index; `path` is for error messages only.
    ///
    /// # Errors
    /// Not an index, or one that names files outside its folder.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, LoadError> {
        let index: Self = serde_json::from_slice(json).map_err(|source| LoadError::Index {
            path: path.to_owned(),
            source,
        })?;
        for (tensor, shard) in &index.weight_map {
            if !is_plain_safetensors_name(shard) {
                return Err(LoadError::ShardName {
                    path: path.to_owned(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(index)
    }

    /// The files a server of `span` needs, sorted: those with a tensor of one of its blocks (as Petals,
    /// `server/from_pretrained.py`).
    pub fn files_for_span(&self, config: &ModelConfig, span: Range<u32>) -> Vec<String> {
        let wants = self.wants(&groups_of_span(config, span));
        let files: BTreeSet<String> = wants.into_iter().map(|want| want.file).collect();
        files.into_iter().collect()
    }

    /// For each group the files that have some of it.
    pub(crate) fn wants(&self, groups: &[(String, Tensors)]) -> Vec<Want> {
        let mut wants = Vec::new();
        for group in groups {
            let tensors = self.weight_map.iter().filter(|(tensor, _)| group.1.has(tensor));
            let files: BTreeSet<&String> = tensors.map(|(_, file)| file).collect();
            wants.extend(files.into_iter().map(|file| Want {
                file: file.clone(),
                group: Some(group.clone()),
            }));
        }
        wants
    }

    pub(crate) fn file_of(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }
}

/// What a server of `span` needs, block by block.
pub(crate) fn groups_of_span(config: &ModelConfig, span: Range<u32>) -> Vec<(String, Tensors)> {
    span.map(|block| {
        let prefixes = config.family.block_prefixes(block);
        (format!("block-{block}"), Tensors::Starting(prefixes))
    })
    .collect()
}

/// What a client needs: embeddings, norms and head, under every name that they may have.
pub(crate) fn group_of_ends(config: &ModelConfig) -> (String, Tensors) {
    let mut names = BTreeSet::new();
    for root in config.family.roots() {
        let layout = EndsLayout::new(config, &|tensor| tensor.starts_with(root));
        names.extend(layout.tensors().map(|tensor| tensor.name.clone()));
    }
    ("ends".to_owned(), Tensors::Named(names.into_iter().collect()))
}

fn is_plain_safetensors_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0', ':'])
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })
}
