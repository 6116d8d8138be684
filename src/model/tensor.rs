//! Activations between blocks, and the ways to and from tensors on the wire. The only file that knows both.

use super::ComputeError;

/// Activations `[batch, tokens, width]`, row-major, always f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    /// `batch · tokens · width` numbers.
    pub data: Vec<f32>,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Numbers of each token.
    pub width: usize,
}

impl Hidden {
    /// # Errors
    /// [`ComputeError::Size`] if there are not `batch · tokens · width` numbers.
    pub fn new(data: Vec<f32>, batch: usize, tokens: usize, width: usize) -> Result<Self, ComputeError> {
        let hidden = Self {
            data,
            batch,
            tokens,
            width,
        };
        hidden.check_size()?;
        Ok(hidden)
    }

    pub(crate) fn check_size(&self) -> Result<(), ComputeError> {
        let Self {
            data,
            batch,
            tokens,
            width,
        } = self;
        let expected = batch.checked_mul(*tokens).and_then(|n| n.checked_mul(*width));
        if expected == Some(data.len()) {
            Ok(())
        } else {
            Err(ComputeError::Size {
                shape: [*batch, *tokens, *width],
                found: data.len(),
            })
        }
    }
}
