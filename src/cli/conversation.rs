//! What a conversation with a model begins with: its chat template, or another one, and what the model is told first.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::model::Model;
use crate::client::{Chat, ChatTemplate, Ending, LocalTime};

#[derive(Clone, Debug, Default, ClapArgs)]
pub(super) struct ConversationArgs {
    /// File with a Jinja chat template to use instead of the model's own.
    #[arg(long, value_name = "FILE", alias = "chat_template")]
    chat_template: Option<PathBuf>,
    /// What the model is told before the conversation, if its template has a place for that.
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
}

impl ConversationArgs {
    /// Only another template, if there is to be one.
    pub(super) fn of_template(chat_template: Option<PathBuf>) -> Self {
        Self {
            chat_template,
            system: None,
        }
    }

    /// Whether there is any of it.
    pub(super) fn is_given(&self) -> bool {
        self.chat_template.is_some() || self.system.is_some()
    }

    /// The template that conversations with the model are rendered with.
    ///
    /// # Errors
    /// There is none, or it cannot be read or understood.
    pub(super) async fn template(&self, model: &Model) -> anyhow::Result<ChatTemplate> {
        let source = model.source.clone();
        let mut files = tokio::task::spawn_blocking(move || source.chat_files())
            .await
            .context("interrupted")??;
        if let Some(path) = &self.chat_template {
            let text = std::fs::read_to_string(path).with_context(|| format!("--chat-template {}", path.display()))?;
            files.templates = vec![("default".to_owned(), text)];
        }
        Ok(ChatTemplate::new(files)?)
    }
}

/// The text that asks the model for the message after `messages`.
///
/// # Errors
/// The template does not take them.
pub(super) fn prompt(template: &ChatTemplate, messages: Vec<Value>) -> anyhow::Result<String> {
    let chat = Chat {
        messages,
        ending: Ending::GenerationPrompt,
        ..Chat::default()
    };
    Ok(template.render(&chat, &LocalTime::now())?)
}

/// A message as chat templates have it.
pub(super) fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}
