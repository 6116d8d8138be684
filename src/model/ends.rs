//! The parts of a model that stay with the client: token embeddings before the blocks, norm and head after them.

use std::sync::Arc;

use super::{
    ComputeError, Hidden, LoadError, ModelConfig, ModelFiles, WeightDType,
    cpu::{Kernels, rms_norm},
    linear::Linear,
    load::TensorReader,
};

/// Embeddings, final norm and head. Only their tensors are mapped.
#[derive(Debug)]
pub struct Ends {
    config: Arc<ModelConfig>,
    kernels: Kernels,
    embeddings: Linear,
    final_norm: Vec<f32>,
    /// `None`: the embeddings are the head as well.
    head: Option<Linear>,
}

impl Ends {
    /// Loads the tensors. Those that are stored as `dtype` stay in the mapped file.
    ///
    /// # Errors
    /// The first file or tensor that is missing or not as the configuration says.
    pub fn load(files: &ModelFiles, dtype: WeightDType) -> Result<Self, LoadError> {
        let config = files.shared_config();
        let names = config.family.ends();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let mut reader = TensorReader::new(files, dtype);
        let mut matrix = |name: &str| {
            Ok::<_, LoadError>(Linear {
                weight: reader.matrix(name, vocab, hidden)?,
                bias: None,
            })
        };
        let embeddings = matrix(names.embeddings)?;
        let head = (!config.tie_word_embeddings).then(|| matrix(names.head)).transpose()?;
        Ok(Self {
            kernels: Kernels::detect(),
            embeddings,
            final_norm: reader.vector(names.final_norm, hidden)?,
            head,
            config,
        })
    }

    /// The configuration of the whole model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The embeddings of one sequence, `[1, tokens, hidden]`.
    ///
    /// # Errors
    /// [`ComputeError::Token`].
    pub fn embed(&self, tokens: &[u32]) -> Result<Hidden, ComputeError> {
        let width = self.config.hidden_size;
        let rows = self.embeddings.weight.as_slice();
        let mut data = vec![0.0; tokens.len() * width];
        for (&token, out) in tokens.iter().zip(data.chunks_exact_mut(width)) {
            let idx = token as usize;
            if idx >= self.config.vocab_size {
                return Err(ComputeError::Token {
                    token,
                    vocab_size: self.config.vocab_size,
                });
            }
            rows.range(idx * width..(idx + 1) * width).widen_into(out);
        }
        Hidden::new(data, 1, tokens.len(), width)
    }

    /// The scores of all tokens of the vocabulary after each of `x`, `[n, hidden]` as the last block put them out:
    /// `[n, vocab_size]`. For one sequence give the hidden state of its last token.
    ///
    /// # Errors
    /// [`ComputeError::Width`] if `x` is not whole hidden states.
    pub fn logits(&self, x: &[f32]) -> Result<Vec<f32>, ComputeError> {
        let width = self.config.hidden_size;
        if !x.len().is_multiple_of(width) {
            return Err(ComputeError::Width {
                expected: width,
                found: x.len() % width,
            });
        }
        if x.is_empty() {
            return Ok(Vec::new());
        }
        let mut normed = vec![0.0; x.len()];
        for (x, out) in x.chunks_exact(width).zip(normed.chunks_exact_mut(width)) {
            rms_norm(x, &self.final_norm, self.config.rms_eps, out);
        }
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        Ok(head.apply(self.kernels, &normed))
    }
}

#[cfg(test)]
mod tests;
