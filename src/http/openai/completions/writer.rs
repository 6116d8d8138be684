//! The objects of completions: `text_completion`, whole or in pieces that add up to it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{
    deliver::{Head, Usage, Writer, route_json, whole_route_json},
    logprobs::Told,
    model::ServedModel,
    params::Delivery,
};
use crate::client::{Generation, HopReport, Token};

const KIND: &str = "text_completion";

/// Makes the objects of one answer.
pub(super) struct CompletionWriter {
    head: Head,
    model: Arc<ServedModel>,
    include_usage: bool,
    wants_route: bool,
    /// Choices per prompt.
    n: usize,
    choices: Vec<Choice>,
    usage: Usage,
    route: Option<Value>,
}

/// One text on its way.
struct Choice {
    /// The prompt, until it is told.
    echo: String,
    text: String,
    has_logprobs: bool,
    /// Of all tokens, and of those that were not told yet.
    all: Told,
    new: Told,
    /// Characters before the next token.
    offset: usize,
    finish: Option<&'static str>,
}

impl CompletionWriter {
    pub(super) fn new(model: &Arc<ServedModel>, delivery: &Delivery, echoes: Vec<String>, n: usize) -> Self {
        let choice = |echo: String| Choice {
            echo,
            text: String::new(),
            has_logprobs: false,
            all: Told::default(),
            new: Told::default(),
            offset: 0,
            finish: None,
        };
        Self {
            head: Head::new("cmpl", model),
            model: model.clone(),
            include_usage: delivery.include_usage,
            wants_route: delivery.route,
            n,
            choices: echoes.into_iter().map(choice).collect(),
            usage: Usage::default(),
            route: None,
        }
    }

    fn chunk(&self, index: usize, text: &str, logprobs: Option<Value>, finish: Option<&str>) -> Value {
        let choice = json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = self.head.object(KIND, vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Choice {
    /// The text that is new, the prompt before it if that has to be.
    fn add(&mut self, text: &str) -> String {
        let mut new = std::mem::take(&mut self.echo);
        new.push_str(text);
        self.text.push_str(&new);
        new
    }

    fn new_logprobs(&mut self) -> Option<Value> {
        (!self.new.is_empty()).then(|| std::mem::take(&mut self.new).into_json())
    }
}

impl Writer for CompletionWriter {
    fn token(&mut self, index: usize, token: &Token, route: Option<&[HopReport]>) -> Vec<Value> {
        let choice = &mut self.choices[index];
        if token.logprobs.is_some() {
            choice.has_logprobs = true;
            let before = choice.offset;
            choice.new.add(token, &self.model, &mut choice.offset);
            choice.all.add(token, &self.model, &mut { before });
        }
        let text = choice.add(&token.text);
        if text.is_empty() && route.is_none() {
            return Vec::new();
        }
        let logprobs = choice.new_logprobs();
        let mut chunk = self.chunk(index, &text, logprobs, None);
        if let Some(route) = route {
            chunk["sepal"] = route_json(route);
        }
        vec![chunk]
    }

    fn end(&mut self, index: usize, generation: &Generation) -> Vec<Value> {
        self.usage.add(generation, index.is_multiple_of(self.n));
        let choice = &mut self.choices[index];
        let text = choice.add("");
        let finish = generation.finish_reason.name();
        choice.finish = Some(finish);
        let logprobs = choice.new_logprobs();
        let mut chunk = self.chunk(index, &text, logprobs, Some(finish));
        if self.wants_route {
            let route = whole_route_json(generation, &self.model);
            chunk["sepal"] = route.clone();
            self.route = Some(route);
        }
        vec![chunk]
    }

    fn last(&mut self) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.head.object(KIND, Vec::new());
            chunk["usage"] = self.usage.to_json();
            chunk
        })
    }

    fn whole(self) -> Value {
        let choice = |(index, choice): (usize, Choice)| {
            let logprobs = choice.has_logprobs.then(|| choice.all.into_json());
            json!({"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish})
        };
        let choices = self.choices.into_iter().enumerate().map(choice).collect();
        let mut answer = self.head.object(KIND, choices);
        answer["usage"] = self.usage.to_json();
        if let Some(route) = self.route {
            answer["sepal"] = route;
        }
        answer
    }
}
