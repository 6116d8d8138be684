//! A Hugging Face cache folder with the test model, as both programs find it offline by its repository name, and the
//! machine on which they run.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Context;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::place::Place;

/// A model of random weights among the fixtures.
#[derive(Debug)]
pub struct Model {
    /// The repository name under which it is found.
    pub name: &'static str,
    /// The prefix of its blocks that Petals derives from the name.
    pub prefix: &'static str,
    /// How many blocks it has.
    pub n_blocks: u32,
    /// Its folder among the fixtures.
    fixture: &'static str,
}

/// The model of most tests.
pub const LLAMA: Model = Model {
    name: MODEL,
    prefix: PREFIX,
    n_blocks: N_BLOCKS,
    fixture: "petals/tiny-llama",
};

/// BLOOM: alibi, and queries, keys and values in one matrix.
pub const BLOOM: Model = Model {
    name: "sepal/tiny-bloom",
    prefix: "sepal/tiny-bloom-petals",
    n_blocks: 2,
    fixture: "petals/tiny-bloom",
};

/// Falcon like 40B: both parts of a block beside each other.
pub const FALCON: Model = Model {
    name: "sepal/tiny-falcon-new",
    prefix: "tiny-falcon-new",
    n_blocks: 2,
    fixture: "petals/tiny-falcon-new",
};

/// The name of [`LLAMA`].
pub const MODEL: &str = "sepal/tiny-llama";

/// The prefix of [`LLAMA`].
pub const PREFIX: &str = "tiny-llama-hf";

/// The blocks of [`LLAMA`].
pub const N_BLOCKS: u32 = 4;
/// The width of its activations.
pub const HIDDEN: usize = 64;

/// A cache folder that lives as long as this value and those made from it, and where its programs run.
#[derive(Clone, Debug)]
pub struct Hub {
    folder: Arc<TempDir>,
    model: &'static Model,
    place: Place,
}

impl Hub {
    /// A cache with [`LLAMA`].
    ///
    /// # Errors
    ///
    /// As [`Hub::of`].
    pub fn new() -> anyhow::Result<Self> {
        Self::of(&LLAMA)
    }

    /// Lays out a folder with a model and a tokenizer whose words are the ids themselves: the text `17 42` is the tokens 17
    /// and 42. No token ends a text, so that lengths are exact.
    ///
    /// # Errors
    ///
    /// If the fixture is missing or the folder cannot be written.
    pub fn of(model: &'static Model) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        // Else transformers thinks that the cache is one of an old version, and converts it.
        fs::write(folder.path().join("version.txt"), "1")?;
        let hub = Self {
            folder: Arc::new(folder),
            model,
            place: Place::loopback(),
        };
        hub.add(model.name)?;
        Ok(hub)
    }

    /// Lays out the model once more, as the repository `name`.
    ///
    /// # Errors
    ///
    /// As [`Hub::of`].
    pub fn add(&self, name: &str) -> anyhow::Result<()> {
        let fixture = repository().join("protocol/vectors").join(self.model.fixture);
        let entry = self.path().join(format!("models--{}", name.replace('/', "--")));
        let snapshot = entry.join("snapshots/0000000000000000000000000000000000000001");
        fs::create_dir_all(&snapshot)?;
        fs::create_dir_all(entry.join("refs"))?;
        fs::write(entry.join("refs/main"), "0000000000000000000000000000000000000001")?;
        fs::copy(fixture.join("model.safetensors"), snapshot.join("model.safetensors"))
            .with_context(|| format!("no fixture at {}", fixture.display()))?;
        let mut vocabulary = 0;
        for name in ["generation_config.json", "config.json"] {
            let Ok(json) = fs::read(fixture.join(name)) else {
                continue;
            };
            let mut config: Value = serde_json::from_slice(&json)?;
            config["eos_token_id"] = Value::Null;
            vocabulary = config["vocab_size"].as_u64().unwrap_or_default();
            fs::write(snapshot.join(name), config.to_string())?;
        }
        fs::write(snapshot.join("tokenizer.json"), tokenizer(vocabulary).to_string())?;
        Ok(())
    }

    /// The model that programs are told to use.
    pub fn model(&self) -> &'static Model {
        self.model
    }

    /// The same for programs that run elsewhere.
    pub fn at(&self, place: &Place) -> Self {
        Self {
            place: place.clone(),
            ..self.clone()
        }
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where it is; also a place for files of a test.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A program that sees this cache and nothing else, in every spelling that programs know.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.place.command(program.as_ref());
        for name in [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "TRANSFORMERS_CACHE",
            "PETALS_CACHE",
            "XDG_CACHE_HOME",
        ] {
            command.env(name, self.path());
        }
        // Petals reads a config.yml of the working directory.
        command
            .env("HF_HUB_OFFLINE", "1")
            .env("TRANSFORMERS_OFFLINE", "1")
            .current_dir(self.path());
        command
    }
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tokenizer(vocabulary: u64) -> Value {
    let words: serde_json::Map<String, Value> = (0..vocabulary).map(|id| (id.to_string(), json!(id))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "0"},
    })
}
