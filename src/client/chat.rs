//! Conversations to prompts: the model's own chat template, rendered as `apply_chat_template` of transformers does. It
//! knows no tokens and sends nothing.
//!
//! ```text
//! ChatFiles (model) ─▶ ChatTemplate ── messages, tools, documents ─▶ text ─▶ TextCodec::encode_rendered
//! ```
//!
//! What a template sees and how it is cut is `utils/chat_template_utils.py` of transformers 5: blocks eat the line break
//! after them and the space before them, values that are null are not there, reasoning stands under all its names.

mod environment;
mod json;
mod strings;

use std::sync::Arc;

use minijinja::{Environment, Value as Item, value::Serde};
use serde_json::{Map, Value};
use thiserror::Error;

pub use self::environment::LocalTime;
use self::environment::Raised;
use crate::model::ChatFiles;

/// The template that is used unless another one is asked for.
const DEFAULT: &str = "default";
/// The one that is used where there are tools, if a model has it.
const TOOL_USE: &str = "tool_use";
/// What transformers puts behind the text to be continued, to find it again.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Under which names the reasoning of a message may stand; templates read the first, that of gpt-oss the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A template that is none, or a conversation that it does not take.
#[derive(Debug, Error)]
pub enum ChatError {
    /// The model is not one that was made to chat.
    #[error(
        "the model has no chat template: give one with --chat-template FILE, or use a model that was tuned for chat"
    )]
    NoTemplate,
    /// There are several, and none of them is the usual one.
    #[error("the model has no default chat template, only {names:?}")]
    NoDefault {
        /// Those that there are.
        names: Vec<String>,
    },
    /// The template is not Jinja.
    #[error("the chat template \"{name}\" cannot be used")]
    Syntax {
        /// `default` for the only one.
        name: String,
        /// Where, and what is wrong.
        #[source]
        source: Box<minijinja::Error>,
    },
    /// The template itself refuses, in its own words.
    #[error("the model's chat template does not take this conversation: {0}")]
    Raised(String),
    /// The template fails.
    #[error("the chat template fails on this conversation")]
    Render(#[source] Box<minijinja::Error>),
    /// There is nothing to render.
    #[error("the conversation has no messages")]
    Empty,
    /// A message that is no object.
    #[error("message {0} of the conversation is no object with a role and a content")]
    NoMessage(usize),
    /// The last message has no text to continue.
    #[error("the last message has no text that could be continued")]
    NothingToContinue,
    /// The template leaves out what should be continued.
    #[error("the chat template leaves out the text that should be continued")]
    NotContinued,
}

/// How a rendered conversation ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With the last message.
    #[default]
    Closed,
    /// Where the answer of the model begins.
    GenerationPrompt,
    /// Within the last message, which the model goes on with.
    Continue,
}

/// What a template is rendered with. Messages are objects with `role` and `content`, as the chat API of OpenAI has them.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// The conversation, the oldest message first.
    pub messages: Vec<Value>,
    /// Tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// Where the text stops.
    pub ending: Ending,
    /// Anything else a template understands, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

/// The chat templates of one model. Clones share them.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    files: Arc<ChatFiles>,
}

impl ChatTemplate {
    /// Compiles the templates of a model.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`], [`ChatError::Syntax`].
    pub fn new(files: ChatFiles) -> Result<Self, ChatError> {
        if files.templates.is_empty() {
            return Err(ChatError::NoTemplate);
        }
        let mut environment = environment::new();
        for (name, text) in &files.templates {
            environment
                .add_template_owned(name.clone(), environment::without_generation_tags(text))
                .map_err(|source| ChatError::Syntax {
                    name: name.clone(),
                    source: Box::new(source),
                })?;
        }
        Ok(Self {
            environment: Arc::new(environment),
            files: Arc::new(files),
        })
    }

    /// Whether the template that is used with tools has this text in it; public templates spell out how tools are called.
    pub fn mentions(&self, text: &str) -> bool {
        let named = |wanted: &str| self.files.templates.iter().find(|(name, _)| name == wanted);
        let used = named(TOOL_USE).or_else(|| named(DEFAULT));
        used.is_some_and(|(_, template)| template.contains(text))
    }

    /// The text of a conversation. It has the special tokens in it: it is encoded without further ones. `now` is what
    /// `strftime_now` of the template tells.
    ///
    /// # Errors
    /// The conversation is empty or malformed, or the template refuses it.
    pub fn render(&self, chat: &Chat, now: &LocalTime) -> Result<String, ChatError> {
        if chat.messages.is_empty() {
            return Err(ChatError::Empty);
        }
        let mut messages = chat
            .messages
            .iter()
            .enumerate()
            .map(|(at, message)| prepared(message).ok_or(ChatError::NoMessage(at)))
            .collect::<Result<Vec<_>, _>>()?;
        let continued = match chat.ending {
            Ending::Continue => Some(mark(messages.last_mut()).ok_or(ChatError::NothingToContinue)?),
            Ending::Closed | Ending::GenerationPrompt => None,
        };
        let text = self.rendered(chat, messages, now)?;
        match continued {
            Some(continued) => cut(&text, &continued).ok_or(ChatError::NotContinued),
            None => Ok(text),
        }
    }

    fn rendered(&self, chat: &Chat, messages: Vec<Value>, now: &LocalTime) -> Result<String, ChatError> {
        let mut variables = self.files.special_tokens.clone();
        variables.extend(chat.variables.clone());
        variables.insert("messages".into(), messages.into());
        variables.insert("tools".into(), chat.tools.clone().into());
        variables.insert("documents".into(), chat.documents.clone().into());
        let prompted = chat.ending == Ending::GenerationPrompt;
        variables.insert("add_generation_prompt".into(), prompted.into());
        let now = now.clone();
        let strftime = Item::from_function(move |format: &str| now.format(format));
        let names = variables
            .iter()
            .map(|(name, value)| (name.clone(), Item::from(Serde(value))));
        let context = Item::from_pairs(names.chain([("strftime_now".to_owned(), strftime)]));
        let template = self
            .environment
            .get_template(self.template_for(chat)?)
            .map_err(|source| ChatError::Render(Box::new(source)))?;
        template.render(context).map_err(|source| match Raised::find(&source) {
            Some(message) => ChatError::Raised(message),
            None => ChatError::Render(Box::new(source)),
        })
    }

    /// As `get_chat_template` of transformers chooses.
    fn template_for(&self, chat: &Chat) -> Result<&'static str, ChatError> {
        let has = |wanted: &str| self.files.templates.iter().any(|(name, _)| name == wanted);
        if chat.tools.is_some() && has(TOOL_USE) {
            return Ok(TOOL_USE);
        }
        if has(DEFAULT) {
            return Ok(DEFAULT);
        }
        let names = self.files.templates.iter().map(|(name, _)| name.clone());
        Err(ChatError::NoDefault { names: names.collect() })
    }
}

/// A message as templates see it: what is null is not there, and reasoning stands under every name that is read.
fn prepared(message: &Value) -> Option<Value> {
    let given = message.as_object()?;
    let given: Map<String, Value> = given
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let Some(reasoning) = REASONING.iter().find_map(|name| given.get(*name)).cloned() else {
        return Some(given.into());
    };
    let mut message = Map::new();
    message.insert("thinking".into(), reasoning.clone());
    message.extend(given);
    message.insert("reasoning_content".into(), reasoning);
    Some(message.into())
}

/// Marks the end of the last text of `message`, and returns the text without the mark.
fn mark(message: Option<&mut Value>) -> Option<String> {
    let text = match message?.get_mut("content")? {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text"))?,
        content => content,
    };
    let continued = text.as_str()?.to_owned();
    *text = format!("{continued}{CONTINUE_TAG}").into();
    Some(continued)
}

/// The text up to the mark. A template that strips the message has taken the space behind the mark as well.
fn cut(text: &str, continued: &str) -> Option<String> {
    if !text.contains(continued.trim()) {
        return None;
    }
    let at = text.rfind(CONTINUE_TAG.trim_end())?;
    let before = &text[..at];
    Some(if text[at..].starts_with(CONTINUE_TAG) {
        before.to_owned()
    } else {
        before.trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests;
