//! What the files of a model say about conversations: its chat templates, and the special tokens that those name. Texts
//! only; the client renders them.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value};

use super::{ModelSource, Place, ResolveError, builtin, read};
use crate::model::ConfigError;

const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// As older versions of transformers save the template of a processor.
const TEMPLATE_JSON_FILE: &str = "chat_template.json";
const TEMPLATE_FOLDER: &str = "additional_chat_templates";
/// The templates beside the default one that are looked for on the hub, where folders cannot be listed.
const NAMED: [&str; 2] = ["tool_use", "rag"];
const DEFAULT: &str = "default";

/// The chat templates of a model and what they are rendered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatFiles {
    /// By name; the usual one is called `default`.
    pub templates: Vec<(String, String)>,
    /// `bos_token`, `eos_token` and so on, as texts.
    pub special_tokens: Map<String, Value>,
}

impl ModelSource {
    /// The chat templates of the model, none if it has none. As transformers, files with templates come before
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// A file cannot be downloaded, read or understood.
    pub fn chat_files(&self) -> Result<ChatFiles, ResolveError> {
        let mut chat = self.configured()?;
        if let Place::Gguf { file, .. } = &self.place {
            // What is beside the file comes first, as with tokenizers.
            let own = file.chat_files();
            if chat.templates.is_empty() {
                chat.templates = own.templates;
            }
            for (name, token) in own.special_tokens {
                chat.special_tokens.entry(name).or_insert(token);
            }
        }
        let named = self.template_files()?;
        if !named.is_empty() {
            chat.templates = named.into_iter().collect();
        }
        Ok(chat)
    }

    fn configured(&self) -> Result<ChatFiles, ResolveError> {
        let object = |name: &'static str| -> Result<Map<String, Value>, ResolveError> {
            let Some(json) = self.optional_file(name)? else {
                return Ok(Map::new());
            };
            serde_json::from_slice(&json).map_err(|source| ResolveError::Config {
                model: self.name.clone(),
                file: name,
                source: ConfigError::Json(source),
            })
        };
        let config = object(TOKENIZER_CONFIG_FILE)?;
        let mut special_tokens = tokens(&object(SPECIAL_TOKENS_FILE)?);
        special_tokens.extend(tokens(&config));
        let mut templates = named_templates(&config);
        if templates.is_empty() {
            templates = named_templates(&object(TEMPLATE_JSON_FILE)?);
        }
        Ok(ChatFiles {
            templates,
            special_tokens,
        })
    }

    /// Templates in files of their own, by name.
    fn template_files(&self) -> Result<BTreeMap<String, String>, ResolveError> {
        let mut found = BTreeMap::new();
        let mut add = |name: &str, text: Vec<u8>| {
            found.insert(name.to_owned(), String::from_utf8_lossy(&text).into_owned());
        };
        if let Some(text) = self.optional_file(TEMPLATE_FILE)? {
            add(DEFAULT, text);
        }
        match &self.place {
            Place::Folder(folder) => {
                let entries = fs::read_dir(folder.join(TEMPLATE_FOLDER))
                    .into_iter()
                    .flatten()
                    .flatten();
                for path in entries.map(|entry| entry.path()) {
                    let name = path.file_stem().and_then(|stem| stem.to_str());
                    if let Some(name) = name.filter(|_| path.extension().is_some_and(|ext| ext == "jinja")) {
                        add(name, read(&path)?);
                    }
                }
            }
            Place::Hub(_) => {
                for name in NAMED {
                    if let Some(text) = self.optional_file(&format!("{TEMPLATE_FOLDER}/{name}.jinja"))? {
                        add(name, text);
                    }
                }
            }
            Place::BuiltIn | Place::Gguf { .. } => {}
        }
        Ok(found)
    }

    fn optional_file(&self, file: &str) -> Result<Option<Vec<u8>>, ResolveError> {
        match &self.place {
            Place::BuiltIn => Ok((file == TOKENIZER_CONFIG_FILE).then(|| builtin::TOKENIZER_CONFIG.to_vec())),
            Place::Folder(folder) => in_folder(folder, file),
            Place::Hub(repo) | Place::Gguf { repo: Some(repo), .. } => {
                repo.clone().get_optional(file)?.as_deref().map(read).transpose()
            }
            Place::Gguf { path, repo: None, .. } => in_folder(path.parent().unwrap_or(Path::new("")), file),
        }
    }
}

fn in_folder(folder: &Path, file: &str) -> Result<Option<Vec<u8>>, ResolveError> {
    let path = folder.join(file);
    path.is_file().then(|| read(&path)).transpose()
}

/// `chat_template`: one text, or a list of objects with `name` and `template`.
fn named_templates(config: &Map<String, Value>) -> Vec<(String, String)> {
    match config.get("chat_template") {
        Some(Value::String(text)) => vec![(DEFAULT.to_owned(), text.clone())],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|entry| {
                let text = |key: &str| entry.get(key)?.as_str().map(str::to_owned);
                Some((text("name")?, text("template")?))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Every `…_token` that is a text, or an object that has it as `content`.
fn tokens(config: &Map<String, Value>) -> Map<String, Value> {
    config
        .iter()
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, token)| {
            let token = token.get("content").unwrap_or(token);
            token.is_string().then(|| (name.clone(), token.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests;
