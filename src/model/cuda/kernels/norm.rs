//! Norms of rows on a card.

use std::sync::Arc;

use crate::model::{
    cuda::{
        CudaError,
        device::Device,
        launch::{Argument, Grid},
        memory::{Buffer, View, ViewMut},
    },
    norm::Norm,
};

/// A norm of rows of as many numbers as there are weights.
#[derive(Debug)]
pub(crate) struct CardNorm {
    weight: Buffer<f32>,
    bias: Option<Buffer<f32>>,
    eps: f32,
}

impl CardNorm {
    /// The same as `norm`, of the CPU.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn of(norm: &Norm, device: &Arc<Device>) -> Result<Self, CudaError> {
        let bias = norm.bias.as_ref();
        Ok(Self {
            weight: Buffer::from_slice(device, &norm.weight)?,
            bias: bias.map(|bias| Buffer::from_slice(device, bias)).transpose()?,
            eps: norm.eps,
        })
    }

    /// All rows of `x` to `out`.
    ///
    /// # Errors
    /// When the card refuses.
    ///
    /// # Panics
    /// If `x` is not whole rows, or `out` has another size.
    pub(crate) fn apply(&self, x: View<'_, f32>, out: ViewMut<'_, f32>) -> Result<(), CudaError> {
        let width = self.weight.len();
        assert!(x.len().is_multiple_of(width), "not whole rows");
        assert_eq!(x.len(), out.len(), "room for other rows");
        // Whole warps; no more than there are numbers.
        let threads = width.div_ceil(32).next_power_of_two().min(16) * 32;
        let grid = Grid {
            blocks: [(x.len() / width) as u32, 1, 1],
            threads: threads as u32,
            shared_bytes: 0,
        };
        let arguments = [
            x.into(),
            (&self.weight).into(),
            self.bias.as_ref().map_or(Argument::NULL, Argument::from),
            self.eps.into(),
            (width as u32).into(),
            (&out).into(),
        ];
        self.weight.device().launch("norm/norm_rows", grid, &arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        cuda::kernels::testing::{card, downloaded},
        testing::{assert_close, random, rng},
    };

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn norms_of_any_width_equal_those_of_the_cpu() {
        let (device, mut rng) = (card(), rng(1));
        for width in [1, 7, 32, 64, 129, 2048] {
            for bias in [false, true] {
                let norm = Norm {
                    weight: random(&mut rng, width),
                    bias: bias.then(|| random(&mut rng, width)),
                    eps: 1e-5,
                };
                let x = random(&mut rng, 3 * width);
                let on_card = CardNorm::of(&norm, &device).unwrap();
                let buffer = Buffer::from_slice(&device, &x).unwrap();
                let mut out = Buffer::zeros(&device, x.len()).unwrap();
                on_card.apply(buffer.all(), out.all_mut()).unwrap();
                let expected: Vec<f32> = x.chunks_exact(width).flat_map(|row| exact(&norm, row)).collect();
                assert_close(&downloaded(&out), &expected, 2e-5);
            }
        }
    }

    fn exact(norm: &Norm, x: &[f32]) -> Vec<f32> {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let n = x.len() as f64;
        let mean = norm.bias.as_ref().map_or(0.0, |_| x.iter().sum::<f64>() / n);
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
        let bias = |i: usize| norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
        let out = x.iter().zip(&norm.weight).enumerate();
        out.map(|(i, (x, weight))| ((x - mean) * scale * f64::from(*weight) + bias(i)) as f32)
            .collect()
    }
}
