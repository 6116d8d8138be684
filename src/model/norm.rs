//! Norms of rows of activations: RMS and layer norm. Gemma's offset of 1 is added to the weights when they are loaded.

use super::{
    LoadError,
    config::parts::{NormConfig, NormKind},
    cpu::rms_norm,
    layout::NormSpec,
    load::TensorReader,
};

/// A norm of rows of `weight.len()` numbers.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    /// A layer norm if there is one, otherwise an RMS norm.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) eps: f32,
}

impl Norm {
    /// # Errors
    /// The tensors are missing or not as the configuration says.
    pub(crate) fn load(reader: &mut TensorReader<'_>, config: NormConfig, spec: &NormSpec) -> Result<Self, LoadError> {
        let mut weight = reader.vector(&spec.weight)?;
        if config.kind == NormKind::RmsUnitOffset {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(Self {
            weight,
            bias: spec.bias.as_ref().map(|bias| reader.vector(bias)).transpose()?,
            eps: config.eps,
        })
    }

    /// All rows of `x`.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let width = self.weight.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            self.apply_row(x, out);
        }
        out
    }

    fn apply_row(&self, x: &[f32], out: &mut [f32]) {
        match &self.bias {
            None => rms_norm(x, &self.weight, self.eps, out),
            Some(bias) => {
                let mean = sum(x.iter().copied()) / x.len() as f32;
                let variance = sum(x.iter().map(|x| (x - mean) * (x - mean))) / x.len() as f32;
                let scale = 1.0 / (variance + self.eps).sqrt();
                let parts = x.iter().zip(&self.weight).zip(bias);
                for (out, ((x, weight), bias)) in out.iter_mut().zip(parts) {
                    *out = (x - mean) * scale * weight + bias;
                }
            }
        }
    }
}

/// In 16 partial sums: quick, and more exact than one.
fn sum(numbers: impl Iterator<Item = f32>) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (i, number) in numbers.enumerate() {
        sums[i % 16] += number;
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_norm_has_mean_and_deviation_of_its_bias_and_weight() {
        let norm = Norm {
            weight: vec![2.0; 4],
            bias: Some(vec![1.0; 4]),
            eps: 0.0,
        };
        let out = norm.apply(&[3.0, 5.0, 3.0, 5.0, -1.0, 1.0, 1.0, -1.0]);
        assert_eq!(out, [-1.0, 3.0, -1.0, 3.0, -1.0, 3.0, 3.0, -1.0]);
    }
}
