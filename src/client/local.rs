//! Blocks that the client itself holds: a whole small model, or the two ends of one whose middle is the swarm's. They are
//! computed in this process, on the processor, by a thread of their own; nothing here knows the network.
//!
//! ```text
//! LocalModel::load(&ModelSource, &Engine, &LocalOptions) -> Result<LocalModel, LocalError>   waits: call it off async threads
//! LocalModel::session(&self, max_tokens: usize) -> LocalSession
//! LocalSession::logits(&mut self, tokens: &[u32]).await -> Result<Vec<f32>, LocalError>      [tokens, vocab_size]
//! LocalSession::next(&mut self, tokens: &[u32]).await -> Result<Vec<f32>, LocalError>        [vocab_size], after the last
//! LocalSession::feed(&mut self, tokens: &[u32]).await -> Result<(), LocalError>              the same without logits
//! LocalSession::rewind(&mut self, position: usize)                                           forgets what is behind
//! ```
//!
//! `Stretch` (`local/span.rs`) is blocks that follow each other, `LocalSpan` a session's way through them, `Thread`
//! (`local/thread.rs`) what computes both.

mod ends;
mod error;
mod generate;
mod span;
mod thread;

use std::sync::Arc;

pub use self::{ends::PrivateEnds, error::LocalError, generate::LocalGeneration, span::LocalOptions};
pub(super) use self::{
    ends::{OwnEnds, OwnSpans},
    span::LocalSpan,
};
use self::{
    span::{Local, Stretch, own_dtype},
    thread::Thread,
};
use crate::model::{Ends, Engine, ModelConfig, ModelSource};

/// A whole model in this process: embeddings, all blocks, head. Clones share everything.
#[derive(Clone, Debug)]
pub struct LocalModel {
    ends: Arc<Ends>,
    local: Local,
}

/// A sequence on its way through a [`LocalModel`].
#[derive(Debug)]
pub struct LocalSession {
    ends: Arc<Ends>,
    span: LocalSpan,
    position: usize,
}

impl LocalModel {
    /// Fetches what is missing, loads the model and starts the thread that computes it, together with those of `engine`.
    /// This waits for files and perhaps the network.
    ///
    /// # Errors
    /// A model that does not fit into memory, which is said before anything is fetched; weights that cannot be had or
    /// loaded.
    pub fn load(source: &ModelSource, engine: &Engine, options: &LocalOptions) -> Result<Self, LocalError> {
        refuse_too_large(source, options)?;
        let files = source
            .files_for_ends()
            .map_err(|error| LocalError::FetchEnds(Box::new(error)))?
            .with_own_formats();
        let ends = Ends::load(&files, own_dtype(source), engine);
        let ends = Arc::new(ends.map_err(|error| LocalError::LoadEnds(Box::new(error)))?);
        let stretch = Stretch::load(source, 0..source.config().n_blocks, options, None, engine)?;
        let local = Local {
            stretch: Arc::new(stretch.with_head(ends.clone())),
            thread: Thread::start()?,
        };
        Ok(Self { ends, local })
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        self.ends.config()
    }

    /// A session that can take `max_tokens` tokens. Its memory is taken as they come.
    pub fn session(&self, max_tokens: usize) -> LocalSession {
        LocalSession {
            ends: self.ends.clone(),
            span: LocalSpan::new(self.local.clone(), max_tokens),
            position: 0,
        }
    }
}

/// Embeddings and head are counted as if they were two matrices.
pub(super) fn refuse_too_large(source: &ModelSource, options: &LocalOptions) -> Result<(), LocalError> {
    let (config, free) = (source.config(), options.free());
    let ends = (2 * config.vocab_size * config.hidden_size * own_dtype(source).size()) as u64;
    let needed = ends + options.bytes(source, config.n_blocks);
    if needed <= free {
        return Ok(());
    }
    let smaller = options.smaller(source, config.n_blocks, free.saturating_sub(ends));
    Err(LocalError::DoesNotFit {
        what: "all blocks, embeddings and head".to_owned(),
        model: source.name().to_owned(),
        needed,
        free,
        remedy: smaller.map_or_else(String::new, |format| format!("; as {} they would fit", format.as_str())),
    })
}

impl LocalSession {
    /// Tokens that went through.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The scores of all tokens of the vocabulary after each of `tokens`, which come after those that went through before:
    /// `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// A token that there is not, more tokens than the session takes, a defect. Only the first of these changes nothing;
    /// after the others the session can only begin again, with [`LocalSession::rewind`] to 0.
    ///
    /// # Cancel safety
    /// None: after the future was dropped it is as after an error.
    pub async fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, LocalError> {
        self.step(tokens, tokens.len()).await
    }

    /// The same after the last of `tokens` only: `[vocab_size]`.
    ///
    /// # Errors
    /// As [`LocalSession::logits`].
    pub async fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, LocalError> {
        self.step(tokens, 1).await
    }

    /// Reads `tokens` without a word about what may come after them: for a prompt, whose logits would take much memory.
    ///
    /// # Errors
    /// As [`LocalSession::logits`].
    pub async fn feed(&mut self, tokens: &[u32]) -> Result<(), LocalError> {
        self.step(tokens, 0).await.map(drop)
    }

    /// Forgets the tokens from `position` on; there may be fewer already.
    pub fn rewind(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    async fn step(&mut self, tokens: &[u32], logits: usize) -> Result<Vec<f32>, LocalError> {
        let x = self.ends.embed(tokens)?;
        let output = self.span.go(x, self.position, logits).await?;
        self.position += tokens.len();
        Ok(output.data)
    }
}

#[cfg(test)]
mod tests;
