//! How probable tokens were, in the two shapes of OpenAI's API: that of chats and that of completions.

use serde_json::{Map, Value, json};

use super::model::ServedModel;
use crate::client::{FinishReason, Token};

/// A token of a chat with those that were as probable; `None` for a token that ends the text, which is no part of it.
pub(crate) fn of_chat(token: &Token, model: &ServedModel) -> Option<Value> {
    let logprobs = token.logprobs.as_ref().filter(|_| !is_end(token))?;
    let entry = |id: u32, logprob: f32| {
        let (text, bytes) = model.token(id);
        json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
    };
    let mut told = entry(token.id, logprobs.chosen);
    told["top_logprobs"] = logprobs.top.iter().map(|(id, logprob)| entry(*id, *logprob)).collect();
    Some(told)
}

/// The tokens of a completion, one behind the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Told {
    /// Adds a token; `offset` is where its text begins, in characters, and where the next one does afterwards.
    pub(crate) fn add(&mut self, token: &Token, model: &ServedModel, offset: &mut usize) {
        let Some(logprobs) = token.logprobs.as_ref().filter(|_| !is_end(token)) else {
            return;
        };
        let (text, _) = model.token(token.id);
        let mut top: Map<String, Value> = Map::new();
        // Of tokens with the same text the most probable one is told, and the chosen one in any case.
        for (id, logprob) in &logprobs.top {
            top.entry(model.token(*id).0).or_insert(finite(*logprob).into());
        }
        top.entry(text.clone()).or_insert(finite(logprobs.chosen).into());
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        self.tokens.push(text.into());
        self.token_logprobs.push(finite(logprobs.chosen).into());
        self.top_logprobs.push(top.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// As it stands in a choice.
    pub(crate) fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

fn is_end(token: &Token) -> bool {
    matches!(token.finish, Some(FinishReason::EndToken(_)))
}

/// JSON has no infinities; OpenAI and vLLM write this for tokens that are impossible.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
