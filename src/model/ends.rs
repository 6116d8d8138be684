//! The parts of a model that stay with the client: token embeddings before the blocks, norm and head after them.

use std::{cell::RefCell, sync::Arc};

use super::{
    ComputeError, Hidden, LoadError, ModelConfig, ModelFiles, WeightDType,
    activation::tanh,
    cpu::Engine,
    hub::Lease,
    layout::{EndsLayout, NormSpec},
    linear::{Linear, Matrix},
    load::TensorReader,
    norm::Norm,
    number::Frozen,
};

/// Embeddings, final norm and head. Only their tensors are mapped; the head is packed for the kernels, also where it is
/// the embeddings.
#[derive(Debug)]
pub struct Ends {
    config: Arc<ModelConfig>,
    engine: Engine,
    embeddings: Frozen,
    /// Rounded as a model cast to the weights' type has it.
    embedding_scale: Option<f32>,
    embedding_norm: Option<Norm>,
    final_norm: Norm,
    head: Linear,
    _lease: Option<Arc<Lease>>,
}

impl Ends {
    /// Loads the tensors, to compute with `engine`. Embeddings that are stored as `dtype` stay in the mapped file.
    ///
    /// # Errors
    /// The first file or tensor that is missing or not as the configuration says.
    pub fn load(files: &ModelFiles, dtype: WeightDType, engine: &Engine) -> Result<Self, LoadError> {
        let config = files.shared_config();
        let reader = RefCell::new(TensorReader::new(files, dtype, engine).narrow());
        let layout = EndsLayout::new(&config, &|tensor| reader.borrow_mut().exists(tensor));
        let mut reader = reader.into_inner();
        let embeddings = reader.table(&layout.embeddings)?;
        let head = match &layout.head {
            Some(head) => reader.linear(head)?,
            None => tied(reader.matrix(&layout.embeddings)?),
        };
        let mut norm = |spec: &NormSpec| Norm::load(&mut reader, config.norm, spec);
        let embedding_norm = layout.embedding_norm.as_ref().map(&mut norm).transpose()?;
        let final_norm = norm(&layout.final_norm)?;
        files.opened();
        Ok(Self {
            engine: engine.clone(),
            embeddings,
            embedding_scale: config.ends.embedding_scale.map(|scale| dtype.round(scale)),
            embedding_norm,
            final_norm,
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
        let rows = self.embeddings.as_slice();
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
        let mut logits = Vec::new();
        self.head.apply(&self.engine, &self.final_norm.apply(x), &mut logits);
        if let Some(softcap) = self.config.ends.logit_softcap {
            logits
                .iter_mut()
                .for_each(|logit| *logit = softcap * tanh(*logit / softcap));
        }
        Ok(logits)
    }
}

fn tied(embeddings: Matrix) -> Linear {
    Linear {
        weight: embeddings,
        bias: None,
    }
}

#[cfg(test)]
mod tests;
