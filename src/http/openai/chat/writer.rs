//! The objects of a chat answer: `chat.completion`, or `chat.completion.chunk`s that add up to it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{
    calls::{CallFinder, Piece},
    deliver::{Head, Usage, Writer, route_json, whole_route_json},
    logprobs,
    model::ServedModel,
    params::Delivery,
    tools::Tools,
};
use crate::client::{FinishReason, Generation, HopReport, Token};

const CHUNK: &str = "chat.completion.chunk";

/// Makes the objects of one answer.
pub(super) struct ChatWriter {
    head: Head,
    model: Arc<ServedModel>,
    tools: Tools,
    include_usage: bool,
    wants_route: bool,
    choices: Vec<Choice>,
    usage: Usage,
    route: Option<Value>,
}

/// One message on its way.
struct Choice {
    finder: CallFinder,
    begun: bool,
    content: String,
    calls: Vec<Call>,
    /// Of all tokens, and how many of them are told already.
    logprobs: Option<Vec<Value>>,
    told: usize,
    finish: Option<&'static str>,
}

struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl ChatWriter {
    pub(super) fn new(model: &Arc<ServedModel>, delivery: &Delivery, tools: Tools, n: usize) -> Self {
        let choice = |_| Choice {
            finder: tools.finder(),
            begun: false,
            content: String::new(),
            calls: Vec::new(),
            logprobs: None,
            told: 0,
            finish: None,
        };
        Self {
            head: Head::new("chatcmpl", model),
            model: model.clone(),
            include_usage: delivery.include_usage,
            wants_route: delivery.route,
            choices: (0..n).map(choice).collect(),
            usage: Usage::default(),
            route: None,
            tools,
        }
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Option<Value>, finish: Option<&str>) -> Value {
        let choice = json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = self.head.object(CHUNK, vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Chunks for pieces of an answer. What is known of the tokens goes with the first of them.
    fn chunks(&mut self, index: usize, pieces: Vec<Piece>) -> Vec<Value> {
        let mut chunks = Vec::new();
        if !std::mem::replace(&mut self.choices[index].begun, true) {
            chunks.push(self.chunk(index, json!({"role": "assistant", "content": ""}), None, None));
        }
        for piece in pieces {
            let delta = self.delta(index, piece);
            let logprobs = self.choices[index].new_logprobs();
            chunks.push(self.chunk(index, delta, logprobs, None));
        }
        chunks
    }

    /// Adds a piece to the message.
    fn delta(&mut self, index: usize, piece: Piece) -> Value {
        let choice = &mut self.choices[index];
        match piece {
            Piece::Text(text) => {
                choice.content.push_str(&text);
                json!({"content": text})
            }
            Piece::Call { name } => {
                let (id, at) = (self.tools.new_id(), choice.calls.len());
                let function = json!({"name": name, "arguments": ""});
                let delta = json!({"index": at, "id": id, "type": "function", "function": function});
                choice.calls.push(Call {
                    id,
                    name,
                    arguments: String::new(),
                });
                json!({"tool_calls": [delta]})
            }
            Piece::Arguments(text) => {
                let at = choice.calls.len().saturating_sub(1);
                if let Some(call) = choice.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
                json!({"tool_calls": [{"index": at, "function": {"arguments": text}}]})
            }
        }
    }
}

impl Choice {
    /// Those that were not told yet.
    fn new_logprobs(&mut self) -> Option<Value> {
        let all = self.logprobs.as_ref()?;
        let new = &all[self.told..];
        self.told = all.len();
        (!new.is_empty()).then(|| json!({"content": new, "refusal": null}))
    }

    fn message(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.content, "refusal": null});
        if !self.calls.is_empty() {
            let call = |call: &Call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            };
            message["tool_calls"] = self.calls.iter().map(call).collect();
            if self.content.is_empty() {
                message["content"] = Value::Null;
            }
        }
        message
    }
}

impl Writer for ChatWriter {
    fn token(&mut self, index: usize, token: &Token, route: Option<&[HopReport]>) -> Vec<Value> {
        if token.logprobs.is_some() {
            let told = self.choices[index].logprobs.get_or_insert_default();
            told.extend(logprobs::of_chat(token, &self.model));
        }
        let finder = &mut self.choices[index].finder;
        let mut pieces = Vec::new();
        if !token.text.is_empty() {
            pieces.extend(finder.push(&token.text));
        }
        if let Some(name) = self.model.special(token.id) {
            pieces.extend(finder.push_special(name));
        }
        let mut chunks = self.chunks(index, pieces);
        if let Some(route) = route {
            let mut chunk = self.chunk(index, json!({}), None, None);
            chunk["sepal"] = route_json(route);
            chunks.push(chunk);
        }
        chunks
    }

    fn end(&mut self, index: usize, generation: &Generation) -> Vec<Value> {
        self.usage.add(generation, index == 0);
        let rest = self.choices[index].finder.finish();
        let mut chunks = self.chunks(index, rest);
        let choice = &mut self.choices[index];
        let reason = &generation.finish_reason;
        // OpenAI says `stop` after a call that was demanded by its name.
        let calls = choice.finder.n_calls() > 0 && !self.tools.is_named && *reason != FinishReason::Length;
        let finish = if calls { "tool_calls" } else { reason.name() };
        choice.finish = Some(finish);
        let logprobs = choice.new_logprobs();
        let mut chunk = self.chunk(index, json!({}), logprobs, Some(finish));
        if self.wants_route {
            let route = whole_route_json(generation, &self.model);
            chunk["sepal"] = route.clone();
            self.route = Some(route);
        }
        chunks.push(chunk);
        chunks
    }

    fn last(&mut self) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.head.object(CHUNK, Vec::new());
            chunk["usage"] = self.usage.to_json();
            chunk
        })
    }

    fn whole(self) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let logprobs = choice.logprobs.as_ref();
            let logprobs = logprobs.map(|told| json!({"content": told, "refusal": null}));
            json!({
                "index": index,
                "message": choice.message(),
                "logprobs": logprobs,
                "finish_reason": choice.finish,
            })
        };
        let choices = self.choices.iter().enumerate().map(choice).collect();
        let mut answer = self.head.object("chat.completion", choices);
        answer["usage"] = self.usage.to_json();
        if let Some(route) = self.route {
            answer["sepal"] = route;
        }
        answer
    }
}
