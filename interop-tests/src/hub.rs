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

/// The repository name under which the model is found.
pub const MODEL: &str = "sepal/tiny-llama";

/// The prefix of its blocks that Petals derives from the name.
pub const PREFIX: &str = "tiny-llama-hf";

/// Blocks, hidden size and vocabulary of the model.
pub const N_BLOCKS: u32 = 4;
/// Width of the activations.
pub const HIDDEN: usize = 64;
const VOCABULARY: usize = 256;

/// A cache folder that lives as long as this value and those made from it, and where its programs run.
#[derive(Clone, Debug)]
pub struct Hub {
    folder: Arc<TempDir>,
    place: Place,
}

impl Hub {
    /// Lays out a folder with the model, whose weights are random, and a tokenizer whose words are the ids themselves:
    /// the text `17 42` is the tokens 17 and 42. No token ends a text, so that lengths are exact.
    ///
    /// # Errors
    ///
    /// If the fixture is missing or the folder cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        let fixture = repository().join("protocol/vectors/petals/tiny-llama");
        let entry = folder.path().join("models--sepal--tiny-llama");
        let snapshot = entry.join("snapshots/0000000000000000000000000000000000000001");
        fs::create_dir_all(&snapshot)?;
        fs::create_dir_all(entry.join("refs"))?;
        fs::write(entry.join("refs/main"), "0000000000000000000000000000000000000001")?;
        fs::copy(fixture.join("model.safetensors"), snapshot.join("model.safetensors"))
            .with_context(|| format!("no fixture at {}", fixture.display()))?;
        for name in ["config.json", "generation_config.json"] {
            let mut config: Value = serde_json::from_slice(&fs::read(fixture.join(name))?)?;
            config["eos_token_id"] = Value::Null;
            fs::write(snapshot.join(name), config.to_string())?;
        }
        fs::write(snapshot.join("tokenizer.json"), tokenizer().to_string())?;
        // Else transformers thinks that the cache is one of an old version, and converts it.
        fs::write(folder.path().join("version.txt"), "1")?;
        Ok(Self {
            folder: Arc::new(folder),
            place: Place::loopback(),
        })
    }

    /// The same for programs that run elsewhere.
    pub fn at(&self, place: &Place) -> Self {
        Self {
            folder: self.folder.clone(),
            place: place.clone(),
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

fn tokenizer() -> Value {
    let words: serde_json::Map<String, Value> = (0..VOCABULARY).map(|id| (id.to_string(), json!(id))).collect();
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
