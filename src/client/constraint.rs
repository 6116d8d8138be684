//! Text that has to be of a certain form: JSON, JSON of a schema, or what a regular expression matches. After each token a
//! parser (`llguidance`) says which tokens may follow; the others are ruled out before one is chosen.

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};
use thiserror::Error;

use super::text::{TextCodec, TextError};

/// White space between the parts of JSON: a space, or a new line and what it is indented by. Without a bound some models
/// would write nothing else.
const WHITE_SPACE: &str = r"( |\n[ \t]{0,16})";

/// A form that cannot be kept.
#[derive(Debug, Error)]
pub enum ConstraintError {
    /// Tokens have no bytes of their own.
    #[error("constrained output does not work with this model's tokenizer")]
    Tokenizer(#[from] TextError),
    /// The model names no token that ends a text.
    #[error("constrained output needs a model with an end token")]
    NoEnd,
    /// The schema or expression is wrong, or asks for what is not supported.
    #[error("the output cannot be constrained: {0}")]
    Grammar(String),
    /// The parser gave up.
    #[error("the constraint failed: {0}")]
    Failed(String),
}

/// What constraints of one model are made with. Clones share it.
#[derive(Clone)]
pub struct Constraints {
    factory: Arc<ParserFactory>,
    end: u32,
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraints")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Constraints {
    /// For a model with so many logits, and these end tokens. Takes a moment for large vocabularies.
    ///
    /// # Errors
    /// The tokenizer does not say which bytes its tokens stand for, or there is no end token.
    pub fn new(codec: &TextCodec, vocab_size: usize, eos_token_ids: &[u32]) -> Result<Self, ConstraintError> {
        let end = *eos_token_ids.first().ok_or(ConstraintError::NoEnd)?;
        let words = codec.token_bytes(vocab_size)?;
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
        // Which tokens a text is cut into matters to this environment only where it guesses ahead, which we do not.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory =
            ParserFactory::new_simple(&environment).map_err(|error| ConstraintError::Failed(error.to_string()))?;
        factory.quiet();
        Ok(Self {
            factory: Arc::new(factory),
            end,
        })
    }

    /// JSON that is an object.
    ///
    /// # Errors
    /// None in practice.
    pub fn json_object(&self) -> Result<Constraint, ConstraintError> {
        self.json_schema(&json!({"type": "object"}))
    }

    /// JSON of this schema.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`].
    pub fn json_schema(&self, schema: &Value) -> Result<Constraint, ConstraintError> {
        let mut schema = match schema {
            Value::Bool(true) => json!({}),
            schema => schema.clone(),
        };
        if let Some(object) = schema.as_object_mut() {
            object
                .entry("x-guidance")
                .or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
        }
        self.compiled(TopLevelGrammar::from_json_schema(schema))
    }

    /// Text that this regular expression matches, from its beginning to its end.
    ///
    /// # Errors
    /// [`ConstraintError::Grammar`].
    pub fn regex(&self, pattern: &str) -> Result<Constraint, ConstraintError> {
        self.compiled(TopLevelGrammar::from_regex(pattern))
    }

    fn compiled(&self, grammar: TopLevelGrammar) -> Result<Constraint, ConstraintError> {
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            // It points at the mistake with lines of its own.
            Some(error) => Err(ConstraintError::Grammar(
                error.split_whitespace().collect::<Vec<_>>().join(" "),
            )),
            None => Ok(Constraint { matcher, end: self.end }),
        }
    }
}

/// A form, and how much of it was written.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    end: u32,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// The tokens that may come next.
#[derive(Debug)]
pub(super) struct Allowed<'a> {
    tokens: SimpleVob,
    /// Those that end the text, if it may end here.
    ends: &'a [u32],
}

impl Allowed<'_> {
    pub(super) fn has(&self, token: u32) -> bool {
        self.ends.contains(&token) || ((token as usize) < self.tokens.len() && self.tokens.is_allowed(token))
    }
}

impl Constraint {
    /// The same, for another text that shares nothing with this one.
    pub(super) fn afresh(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            end: self.end,
        }
    }

    /// Which tokens may follow; any of `ends` where the text may end.
    ///
    /// # Errors
    /// The form is too complex for the parser.
    pub(super) fn allowed<'a>(&mut self, ends: &'a [u32]) -> Result<Allowed<'a>, ConstraintError> {
        let tokens = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let may_end = tokens.is_allowed(self.end);
        Ok(Allowed {
            tokens,
            ends: if may_end { ends } else { &[] },
        })
    }

    /// Goes on behind `token`.
    ///
    /// # Errors
    /// It was not allowed.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.matcher.consume_token(token).map_err(failed)
    }

    /// Goes back before the last `n` tokens.
    ///
    /// # Errors
    /// There were fewer.
    pub(super) fn take_back(&mut self, n: usize) -> Result<(), ConstraintError> {
        self.matcher.rollback(n).map_err(failed)
    }

    /// How many of `tokens`, one after another, may follow. Nothing goes on.
    ///
    /// # Errors
    /// The form is too complex for the parser.
    pub(super) fn n_allowed(&mut self, tokens: &[u32]) -> Result<usize, ConstraintError> {
        self.matcher.validate_tokens(tokens).map_err(failed)
    }

    /// Whether nothing may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError::Failed(error.to_string())
}

#[cfg(test)]
mod tests;
