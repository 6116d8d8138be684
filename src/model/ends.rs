//! The parts of a model that stay with the client: token embeddings before the blocks, norm and head after them.

use std::{cell::RefCell, sync::Arc};

use super::{
    ComputeError, Hidden, LoadError, ModelConfig, ModelFiles, WeightDType,
    activation::tanh,
    cpu::Kernels,
    hub::Lease,
    layout::{EndsLayout, NormSpec},
    linear::Linear,
    load::TensorReader,
    norm::Norm,
};

/// Embeddings, final norm and head. Only their tensors are mapped.
#[derive(Debug)]
pub struct Ends {
    config: Arc<ModelConfig>,
    kernels: Kernels,
    embeddings: Linear,
    /// Rounded as a model cast to the weights' type has it.
    embedding_scale: Option<f32>,
    embedding_norm: Option<Norm>,
    final_norm: Norm,
    /// `None`: the embeddings are the head as well.
    head: Option<Linear>,
    _lease: Option<Arc<Lease>>,
}

impl Ends {
    /// Loads the tensors. Those that are stored as `dtype` stay in the mapped file.
    ///
    /// # Errors
    /// The first file or tensor that is missing or not as the configuration says.
    pub fn load(files: &ModelFiles, dtype: WeightDType) -> Result<Self, LoadError> {
        let config = files.shared_config();
        let reader = RefCell::new(TensorReader::new(files, dtype));
        let layout = EndsLayout::new(&config, &|tensor| reader.borrow_mut().exists(tensor));
        let mut reader = reader.into_inner();
        let embeddings = Linear {
            weight: reader.matrix(&layout.embeddings)?,
            bias: None,
        };
        let head = layout.head.as_ref().map(|head| reader.linear(head)).transpose()?;
        let mut norm = |spec: &NormSpec| Norm::load(&mut reader, config.norm, spec);
        Ok(Self {
            kernels: Kernels::detect(),
            embeddings,
            embedding_scale: config.ends.embedding_scale.map(|scale| dtype.round(scale)),
            embedding_norm: layout.embedding_norm.as_ref().map(&mut norm).transpose()?,
            final_norm: norm(&layout.final_norm)?,
            head,
            config,
            _lease: files.lease(),
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
        if let Some(scale) = self.embedding_scale {
            data.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(norm) = &self.embedding_norm {
            data = norm.apply(&data);
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
        let head = self.head.as_ref().unwrap_or(&self.embeddings);
        let mut logits = head.apply(self.kernels, &self.final_norm.apply(x));
        if let Some(softcap) = self.config.ends.logit_softcap {
            logits
                .iter_mut()
                .for_each(|logit| *logit = softcap * tanh(*logit / softcap));
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests;
