//! What a GGUF file says about conversations: `tokenizer.chat_template`, others under their names, and the special tokens.

use serde_json::Map;

use super::{Gguf, config::texts};
use crate::model::ChatFiles;

const TEMPLATE: &str = "tokenizer.chat_template";
/// Templates with a name stand under [`TEMPLATE`] and that name; which there are says this.
const TEMPLATES: &str = "tokenizer.chat_templates";
/// What ggml calls tokens, and what transformers does.
const TOKENS: [(&str, &str); 4] = [
    ("bos", "bos_token"),
    ("eos", "eos_token"),
    ("unknown", "unk_token"),
    ("padding", "pad_token"),
];

impl Gguf {
    /// The chat templates of the file, none if it has none.
    pub(crate) fn chat_files(&self) -> ChatFiles {
        let mut templates = Vec::new();
        if let Some(text) = self.header.text(TEMPLATE) {
            templates.push(("default".to_owned(), text.to_owned()));
        }
        for name in texts(&self.header, TEMPLATES).unwrap_or_default() {
            if let Some(text) = self.header.text(&format!("{TEMPLATE}.{name}")) {
                templates.push((name.to_owned(), text.to_owned()));
            }
        }
        let words = texts(&self.header, "tokenizer.ggml.tokens").unwrap_or_default();
        let token = |name: &str| {
            let id = self.header.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
            words.get(usize::try_from(id).ok()?).copied()
        };
        let special_tokens = TOKENS
            .iter()
            .filter_map(|(ggml, name)| Some(((*name).to_owned(), token(ggml)?.into())))
            .collect::<Map<_, _>>();
        ChatFiles {
            templates,
            special_tokens,
        }
    }
}
