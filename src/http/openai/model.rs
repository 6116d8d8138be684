//! The models that the API serves: what of each is needed to answer requests, and how they are listed.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Api, error::ApiError};
use crate::{
    client::{ChatTemplate, Constraints, Conversations, TextCodec},
    model::{ModelSource, SamplingParams},
};

/// A model that the API answers with.
#[derive(Debug)]
pub struct ServedModel {
    pub(crate) id: String,
    pub(crate) conversations: Conversations,
    pub(crate) codec: TextCodec,
    /// `None`: it completes texts only.
    pub(crate) template: Option<ChatTemplate>,
    /// Where a request says nothing.
    pub(crate) sampling: SamplingParams,
    pub(crate) eos_token_ids: Vec<u32>,
    /// Longest prompt and answer together, in tokens; `None` if only the servers know.
    pub(crate) context_length: Option<usize>,
    pub(crate) vocab_size: usize,
    /// `None` if text of this model cannot be constrained.
    pub(crate) constraints: Option<Constraints>,
    /// The bytes of each token; empty if they are not known.
    token_bytes: Vec<Vec<u8>>,
    /// Seconds since 1970.
    created: u64,
}

/// How a model turns text into tokens and back.
#[derive(Debug)]
pub struct ModelText {
    /// Its tokenizer.
    pub codec: TextCodec,
    /// How conversations become texts, if it was made for them.
    pub template: Option<ChatTemplate>,
}

impl ServedModel {
    /// The model that `conversations` are held with, under the name that requests have for it. `context_length` overrules
    /// what its files say. Takes a moment for large vocabularies: not for asynchronous threads.
    pub fn new(
        id: String,
        source: &ModelSource,
        text: ModelText,
        conversations: Conversations,
        context_length: Option<usize>,
    ) -> Self {
        let (config, defaults) = (source.config(), source.generation_config());
        let ModelText { codec, template } = text;
        let constraints = Constraints::new(&codec, config.vocab_size, &defaults.eos_token_ids);
        if let Err(error) = &constraints {
            tracing::warn!(model = id, %error, "response_format and forced tool calls are not offered");
        }
        Self {
            conversations,
            template,
            sampling: defaults.sampling(),
            eos_token_ids: defaults.eos_token_ids.clone(),
            context_length: context_length.or_else(|| config.context_length()),
            vocab_size: config.vocab_size,
            constraints: constraints.ok(),
            token_bytes: codec.token_bytes(config.vocab_size).unwrap_or_default(),
            codec,
            id,
            created: now(),
        }
    }

    /// The name that requests have for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Longest prompt and answer together, in tokens.
    pub fn context_length(&self) -> Option<usize> {
        self.context_length
    }

    /// Whether it answers messages, not only texts.
    pub fn takes_chats(&self) -> bool {
        self.template.is_some()
    }

    /// The sessions that wait for their conversations to go on.
    pub fn conversations(&self) -> &Conversations {
        &self.conversations
    }

    /// A token as a text of its own, and its bytes where they are known. Of special tokens the name.
    pub(crate) fn token(&self, id: u32) -> (String, Option<Vec<u8>>) {
        match self.token_bytes.get(id as usize) {
            Some(bytes) => {
                // What begins a special token, so that no text can spell one.
                let bytes = bytes.strip_prefix(&[0xff]).unwrap_or(bytes);
                (String::from_utf8_lossy(bytes).into_owned(), Some(bytes.to_vec()))
            }
            None => (self.codec.decode(&[id]).unwrap_or_default(), None),
        }
    }

    /// The name of a special token, which does not appear in texts; `None` for others, and where the tokenizer does not say.
    pub(crate) fn special(&self, id: u32) -> Option<&str> {
        let name = self.token_bytes.get(id as usize)?.strip_prefix(&[0xff])?;
        str::from_utf8(name).ok()
    }

    fn description(&self) -> Value {
        json!({
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "sepal",
            // As vLLM tells it.
            "max_model_len": self.context_length,
        })
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

pub(crate) async fn list(State(api): State<Api>) -> Json<Value> {
    let models: Vec<Value> = api.models().iter().map(|model| model.description()).collect();
    Json(json!({"object": "list", "data": models}))
}

pub(crate) async fn describe(State(api): State<Api>, Path(id): Path<String>) -> Response {
    match api.model(&id) {
        Ok(model) => Json(model.description()).into_response(),
        Err(error) => error.into_response(),
    }
}

impl Api {
    /// The model of this name.
    ///
    /// # Errors
    /// It is not served.
    pub(crate) fn model(&self, id: &str) -> Result<&Arc<ServedModel>, ApiError> {
        let found = self.models().iter().find(|model| model.id == id);
        found.ok_or_else(|| {
            let served: Vec<&str> = self.models().iter().map(|model| model.id()).collect();
            ApiError::no_model(id, &served)
        })
    }
}
