//! Norms backwards.

use crate::model::norm::Norm;

impl Norm {
    /// The gradient by the rows of `x`, from that by the normed rows.
    pub(super) fn back(&self, x: &[f32], by_out: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let mut out = vec![0.0; x.len()];
        let rows = x.chunks_exact(width).zip(by_out.chunks_exact(width));
        for (out, (x, by_out)) in out.chunks_exact_mut(width).zip(rows) {
            self.back_row(x, by_out, out);
        }
        out
    }

    /// With `n = (x - mean) / deviation` and `g = weight · by_out`, the gradient is
    /// `(g - mean(g) - n · mean(g · n)) / deviation`; an RMS norm has no means of `x` and `g`.
    fn back_row(&self, x: &[f32], by_out: &[f32], out: &mut [f32]) {
        let mean_of = |f: &dyn Fn(usize) -> f32| (0..x.len()).map(|i| f64::from(f(i))).sum::<f64>() / x.len() as f64;
        let centred = self.bias.is_some();
        let mean = if centred { mean_of(&|i| x[i]) as f32 } else { 0.0 };
        let variance = mean_of(&|i| (x[i] - mean) * (x[i] - mean)) as f32;
        let scale = 1.0 / (variance + self.eps).sqrt();
        let normed = |i: usize| (x[i] - mean) * scale;
        let gradient = |i: usize| self.weight[i] * by_out[i];
        let along = mean_of(&|i| gradient(i) * normed(i)) as f32;
        let across = if centred { mean_of(&gradient) as f32 } else { 0.0 };
        for (i, out) in out.iter_mut().enumerate() {
            *out = (gradient(i) - across - normed(i) * along) * scale;
        }
    }
}
