//! Text to tokens and back: the model's own tokenizer, text that appears token by token, and stop strings. Prompts are
//! taken as they are; what is wrapped around them comes from `chat`.

mod bytes;

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;
use tokenizers::Tokenizer;

use self::bytes::Spelling;

/// How many tokens of the prompt the first output token is decoded together with.
///
/// Decoders treat the start of a text in their own way (Llama 2's drops the first space), so output must never stand at
/// the start. Five is enough for the longest UTF-8 character to be complete before the output begins.
const CONTEXT_TOKENS: usize = 5;

/// After how many tokens text that still ends in a broken character is shown as it is.
///
/// A UTF-8 character has at most 4 bytes, hence at most 4 tokens; more than that and the model wrote bytes that are no
/// character.
const MAX_PENDING_TOKENS: usize = 4;

/// What a decoder writes for bytes that are not, or not yet, a character.
const REPLACEMENT: char = '\u{fffd}';

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, Error)]
pub enum TextError {
    /// The file is not one that the `tokenizers` library reads.
    #[error("tokenizer.json cannot be used")]
    Load(#[source] tokenizers::Error),
    /// The tokenizer refuses the text.
    #[error("the prompt cannot be turned into tokens")]
    Encode(#[source] tokenizers::Error),
    /// The tokenizer refuses the tokens.
    #[error("the output cannot be turned into text")]
    Decode(#[source] tokenizers::Error),
    /// The decoder does more than put the bytes of the tokens one behind the other.
    #[error("the tokenizer does not say which bytes its tokens stand for")]
    NoBytes,
}

/// The tokenizer of a model. Clones share it.
#[derive(Clone, Debug)]
pub struct TextCodec {
    tokenizer: Arc<Tokenizer>,
    spelling: Option<Spelling>,
}

impl TextCodec {
    /// Reads the bytes of a `tokenizer.json`. Padding and truncation written in it are ignored: a prompt is one text and
    /// is sent whole.
    ///
    /// # Errors
    /// [`TextError::Load`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(TextError::Load)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(TextError::Load)?;
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            spelling: Spelling::of(bytes),
        })
    }

    /// The ids of `text` with the special tokens that the model wants around it.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(TextError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` as a chat template rendered it: the special tokens are in it already.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(TextError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.tokenizer.decode(ids, true).map_err(TextError::Decode)
    }

    /// The bytes that each of the tokens `0..vocab_size` stands for. Special tokens begin with 0xFF, ids that are no token
    /// have none.
    ///
    /// # Errors
    /// [`TextError::NoBytes`].
    pub fn token_bytes(&self, vocab_size: usize) -> Result<Vec<Vec<u8>>, TextError> {
        let spelling = self.spelling.ok_or(TextError::NoBytes)?;
        Ok(spelling.bytes(&self.tokenizer, vocab_size))
    }

    /// How the tokenizer spells its tokens, by id. Special ones, which no text spells, have no spelling.
    pub(super) fn words(&self) -> BTreeMap<u32, Option<String>> {
        let special = self.tokenizer.get_added_tokens_decoder();
        let is_special = |id: &u32| special.get(id).is_some_and(|token| token.special);
        let words = self.tokenizer.get_vocab(true).into_iter();
        words
            .map(|(word, id)| (id, (!is_special(&id)).then_some(word)))
            .collect()
    }

    /// Starts the text that follows `prompt`. It ends before the first of `stops`; empty stop strings are ignored.
    pub fn stream(&self, prompt: &[u32], stops: &[String]) -> TextStream {
        let context = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        TextStream {
            codec: self.clone(),
            shown: context.len(),
            window: context,
            stops: StopStrings::new(stops),
        }
    }
}

/// What one token added to the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Complete characters, possibly none.
    pub text: String,
    /// The stop string that was completed. It and what follows it are not part of the text.
    pub stopped: Option<String>,
}

/// Text that appears token by token. What has been handed out is never taken back, and the pieces put together are the
/// decoded output up to the first stop string.
#[derive(Clone, Debug)]
pub struct TextStream {
    codec: TextCodec,
    /// The tokens that the next ones are decoded together with: `shown` whose text is out, then those still pending.
    window: Vec<u32>,
    shown: usize,
    stops: StopStrings,
}

impl TextStream {
    /// Adds a token and returns the text that is now certain.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn push(&mut self, token: u32) -> Result<Piece, TextError> {
        self.window.push(token);
        let pending = self.window.len() - self.shown;
        let text = self.pending_text()?;
        if text.ends_with(REPLACEMENT) && pending <= MAX_PENDING_TOKENS {
            return Ok(Piece::default());
        }
        if !text.is_empty() {
            self.window.drain(..self.shown);
            self.shown = self.window.len();
        }
        Ok(self.stops.push(&text))
    }

    /// Ends the output: returns what was held back, an unfinished character as U+FFFD.
    ///
    /// # Errors
    /// [`TextError::Decode`].
    pub fn finish(mut self) -> Result<Piece, TextError> {
        let text = self.pending_text()?;
        let mut piece = self.stops.push(&text);
        piece.text.push_str(&self.stops.finish());
        Ok(piece)
    }

    /// The text that the pending tokens add to that of the shown ones.
    fn pending_text(&self) -> Result<String, TextError> {
        let before = self.codec.decode(&self.window[..self.shown])?;
        let all = self.codec.decode(&self.window)?;
        Ok(match all.strip_prefix(before.as_str()) {
            Some(added) => added.to_owned(),
            // The decoder changed what it wrote before (it cleans up spaces, or a broken character got completed).
            // Characters that stayed the same are not shown twice.
            None => all.chars().skip(before.chars().count()).collect(),
        })
    }
}

/// Finds the first stop string in a text that comes in pieces, and holds back what may be the beginning of one.
#[derive(Clone, Debug, Default)]
struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: Option<String>,
}

impl StopStrings {
    fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            ..Self::default()
        }
    }

    fn push(&mut self, text: &str) -> Piece {
        if self.stopped.is_some() {
            return Piece {
                text: String::new(),
                stopped: self.stopped.clone(),
            };
        }
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        if let Some((at, stop)) = found.min() {
            self.stopped = Some(stop.clone());
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Piece {
                text,
                stopped: self.stopped.clone(),
            };
        }
        let certain = self.certain();
        let rest = self.held.split_off(certain);
        Piece {
            text: std::mem::replace(&mut self.held, rest),
            stopped: None,
        }
    }

    /// What was held back in vain.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the start of the held text that no stop string can still claim.
    fn certain(&self) -> usize {
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests;
