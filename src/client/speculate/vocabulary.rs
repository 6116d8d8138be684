//! Are the tokens of a draft model those of the model that it guesses for? A guess is a number: it means the same to both
//! only if they cut text alike.

use thiserror::Error;

use crate::{
    client::{
        local::{LocalError, LocalOptions, refuse_too_large},
        text::{TextCodec, TextError},
    },
    model::{ModelSource, ResolveError},
};

/// A small model that guesses for a large one, computed in this process.
#[derive(Clone, Debug)]
pub struct DraftModel {
    /// Where it is.
    pub source: ModelSource,
    /// How it is kept.
    pub options: LocalOptions,
}

/// Why a model cannot guess for another one.
#[derive(Debug, Error)]
pub enum DraftError {
    /// They cut text differently.
    #[error(
        "--draft {draft} cannot guess for {model}, whose tokens are others: {id} is {} there and {} in {draft}; it has to be \
         a smaller model of the same family",
        spelled(.theirs),
        spelled(.ours)
    )]
    Vocabulary {
        /// The small model.
        draft: String,
        /// The large one.
        model: String,
        /// The first token that differs.
        id: u32,
        /// What it is in the large one.
        theirs: Option<String>,
        /// What it is in the small one.
        ours: Option<String>,
    },
    /// A model has no tokenizer to compare.
    #[error("--draft needs the tokenizers of both models")]
    Tokenizer(#[source] ResolveError),
    /// A tokenizer cannot be used.
    #[error("the tokenizer of {model} cannot be compared")]
    Text {
        /// Of which model.
        model: String,
        /// Why.
        #[source]
        source: TextError,
    },
    /// There is no room for it.
    #[error("--draft {draft} cannot be held here, --draft-quant makes it smaller")]
    Room {
        /// The small model.
        draft: String,
        /// What it needs.
        #[source]
        source: Box<LocalError>,
    },
}

fn spelled(word: &Option<String>) -> String {
    word.as_ref()
        .map_or_else(|| "none".to_owned(), |word| format!("{word:?}"))
}

impl DraftModel {
    /// Whether it can guess for `model`, and there is room for it. Takes a moment, and may fetch the tokenizers.
    ///
    /// # Errors
    /// It cannot, with the reason.
    pub fn check(&self, model: &ModelSource) -> Result<(), DraftError> {
        let (theirs, ours) = (codec(model)?, codec(&self.source)?);
        if let Some((id, theirs, ours)) = difference(&theirs, &ours) {
            return Err(DraftError::Vocabulary {
                draft: self.source.name().to_owned(),
                model: model.name().to_owned(),
                id,
                theirs,
                ours,
            });
        }
        refuse_too_large(&self.source, &self.options).map_err(|source| DraftError::Room {
            draft: self.source.name().to_owned(),
            source: Box::new(source),
        })
    }
}

fn codec(source: &ModelSource) -> Result<TextCodec, DraftError> {
    let json = source.tokenizer_json().map_err(DraftError::Tokenizer)?;
    TextCodec::from_json(&json).map_err(|error| DraftError::Text {
        model: source.name().to_owned(),
        source: error,
    })
}

/// The first token that both tokenizers have and spell differently, and how. Special tokens may differ, as they do between
/// models of a family that were tuned for different things; so may the length: GGUF files fill their vocabulary up, and some
/// models have a few tokens more. A wrong guess costs time and nothing else.
fn difference(a: &TextCodec, b: &TextCodec) -> Option<(u32, Option<String>, Option<String>)> {
    let (a, b) = (a.words(), b.words());
    let length = a.last_key_value().min(b.last_key_value()).map_or(0, |(id, _)| *id);
    (0..=length).find_map(|id| match (a.get(&id), b.get(&id)) {
        (Some(None), _) | (_, Some(None)) => None,
        (a, b) if a == b => None,
        (a, b) => Some((id, a.cloned().flatten(), b.cloned().flatten())),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::HubOptions;

    fn resolve(name: &str) -> ModelSource {
        ModelSource::resolve(name, &HubOptions::from_variables(|_| None)).unwrap()
    }

    fn words(words: &[&str], special: &[usize]) -> TextCodec {
        let vocab: serde_json::Map<String, Value> = words
            .iter()
            .zip(0..)
            .map(|(w, id)| (w.to_string(), json!(id)))
            .collect();
        let added = special.iter().map(|id| {
            json!({
                "id": id, "content": words[*id], "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": words[0]},
        });
        TextCodec::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_first_ordinary_token_that_differs_is_found() {
        let a = words(&["<unk>", "<bos>", "the", "cat"], &[0, 1]);
        assert_eq!(difference(&a, &a), None);
        let tuned = words(&["<unk>", "<|start|>", "the", "cat"], &[0, 1]);
        assert_eq!(difference(&a, &tuned), None, "special tokens may be called otherwise");
        let longer = words(&["<unk>", "<bos>", "the", "cat", "[PAD4]"], &[0, 1]);
        assert_eq!(difference(&a, &longer), None, "one may be filled up");
        let other = words(&["<unk>", "<bos>", "cat", "the"], &[0, 1]);
        let expected = Some((2, Some("the".to_owned()), Some("cat".to_owned())));
        assert_eq!(difference(&a, &other), expected);
    }

    #[test]
    fn a_model_that_cuts_text_differently_is_refused_with_the_flag_and_the_difference() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            let from = format!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/demo/{}"), file);
            std::fs::copy(from, folder.path().join(file)).unwrap();
        }
        let draft = || DraftModel {
            source: resolve(folder.path().to_str().unwrap()),
            options: LocalOptions::default(),
        };
        draft().check(&resolve("demo")).unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        (vocab["a"], vocab["b"]) = (b, a.clone());
        std::fs::write(&path, json.to_string()).unwrap();
        let error = draft().check(&resolve("demo")).unwrap_err().to_string();
        let expected = format!("{} is \"a\" there and \"b\" in ", a);
        assert!(error.starts_with("--draft ") && error.contains(&expected), "{error}");
        assert!(
            error.contains(" cannot guess for demo, whose tokens are others: "),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        let error = draft().check(&resolve("demo")).unwrap_err().to_string();
        assert_eq!(error, "--draft needs the tokenizers of both models");
    }

    #[test]
    fn a_model_without_room_is_refused_with_what_makes_it_smaller() {
        let draft = DraftModel {
            source: resolve("demo"),
            options: LocalOptions {
                memory: Some(1),
                ..LocalOptions::default()
            },
        };
        let error = draft.check(&resolve("demo")).unwrap_err().to_string();
        assert_eq!(
            error,
            "--draft demo cannot be held here, --draft-quant makes it smaller"
        );
    }
}
