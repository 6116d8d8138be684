//! Norms of rows of activations: RMS and layer norm. Gemma's offset of 1 is added to the weights when they are loaded.

use super::{
    LoadError,
    config::parts::{NormConfig, NormKind},
    cpu::sum_of,
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

    /// All rows of `x`, in memory of their own.
    pub(crate) fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        self.apply_to(x, &mut out);
        out
    }

    /// `out = norm(x)`, row by row.
    #[inline(always)]
    pub(crate) fn apply_to(&self, x: &[f32], out: &mut [f32]) {
        self.each_row(x, out, |out, normed| *out = normed);
    }

    /// `x += norm(y)`, row by row.
    #[inline(always)]
    pub(crate) fn add_to(&self, y: &[f32], x: &mut [f32]) {
        self.each_row(y, x, |x, normed| *x += normed);
    }

    /// `x = norm(x)`, row by row.
    #[inline(always)]
    pub(crate) fn apply_in_place(&self, x: &mut [f32]) {
        for x in x.chunks_exact_mut(self.weight.len()) {
            let scaling = self.scaling(x);
            match &self.bias {
                None => {
                    let numbers = x.iter_mut().zip(&self.weight);
                    numbers.for_each(|(x, weight)| *x = *x * scaling.scale * weight);
                }
                Some(bias) => {
                    let numbers = x.iter_mut().zip(&self.weight).zip(bias);
                    numbers.for_each(|((x, weight), bias)| *x = (*x - scaling.mean) * scaling.scale * weight + bias);
                }
            }
        }
    }

    #[inline(always)]
    fn each_row(&self, x: &[f32], out: &mut [f32], store: impl Fn(&mut f32, f32)) {
        let width = self.weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let Scaling { mean, scale } = self.scaling(x);
            let numbers = out.iter_mut().zip(x).zip(&self.weight);
            match &self.bias {
                None => numbers.for_each(|((out, x), weight)| store(out, x * scale * weight)),
                Some(bias) => {
                    let numbers = numbers.zip(bias);
                    numbers.for_each(|(((out, x), weight), bias)| store(out, (x - mean) * scale * weight + bias));
                }
            }
        }
    }

    /// What a row is shifted and multiplied by before the weights.
    #[inline(always)]
    fn scaling(&self, x: &[f32]) -> Scaling {
        let n = x.len() as f32;
        let (mean, variance) = if self.bias.is_none() {
            (0.0, sum_of(x, |x| x * x) / n)
        } else {
            let mean = sum_of(x, |x| x) / n;
            (mean, sum_of(x, |x| (x - mean) * (x - mean)) / n)
        };
        Scaling {
            mean,
            scale: 1.0 / (variance + self.eps).sqrt(),
        }
    }
}

#[derive(Clone, Copy)]
struct Scaling {
    mean: f32,
    scale: f32,
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
