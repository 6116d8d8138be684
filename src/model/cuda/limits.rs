//! What cards do at best, measured: to see how near blocks on them come to it. Nothing is computed that anyone needs.

use std::{sync::Arc, time::Instant};

use super::{
    Buffer, CudaError, Device,
    blas::Gemm,
    kernels::limits::{PART, SUMS, make_noise, read_all},
};
use crate::model::{Machine, WeightDType};

/// Memory to read: more than caches hold by far, but no more than a part of what is free.
const BYTES: usize = 4 << 30;
const PART_OF_FREE: usize = 8;

/// Each measurement is the best of so many: somebody else may be computing, and the first one warms up.
const REPETITIONS: usize = if cfg!(debug_assertions) { 2 } else { 8 };

/// The same so many times before anybody waits, so that waiting takes no part in it.
const AT_A_TIME: usize = 2;

/// Tokens that a matrix is multiplied with, the best of which counts: not every size fills a card.
const TOKENS: [usize; 3] = [2048, 4096, 8192];

/// What a card reaches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CardLimits {
    /// Bytes per second, read from its memory by a kernel that adds them up. Copies would count every byte twice, and cards
    /// are slower at turning from reading to writing, which blocks that decode hardly do.
    pub read_bytes_per_second: f64,
    /// Operations on bf16 per second, a multiply-add counted as two, that cuBLAS reaches when it is called as prompts call it,
    /// with noise; `None` where there is no cuBLAS.
    pub bf16_flops_per_second: Option<f64>,
}

/// Measures each card of a machine, for less than a second: its memory, of which it takes at most an eighth of what is free,
/// and products of thousands of tokens with a matrix `[rows, cols]`.
///
/// # Errors
/// When a card is lost, or has no memory for the products.
pub fn measure_cards(machine: &Machine, shape: [usize; 2]) -> Result<Vec<CardLimits>, CudaError> {
    let measured = machine.cards.iter().map(|device| {
        Ok(CardLimits {
            read_bytes_per_second: read(device)?,
            bf16_flops_per_second: match device.has_blas() {
                true => Some(multiply(device, shape)?),
                false => None,
            },
        })
    });
    measured.collect()
}

fn read(device: &Arc<Device>) -> Result<f64, CudaError> {
    let (free, _) = device.memory()?;
    let n_parts = (free / PART_OF_FREE).min(BYTES) / (PART * size_of::<u32>());
    let n_parts = n_parts.max(1);
    let words = noise(device, n_parts * PART)?;
    let mut sums = Buffer::zeros(device, n_parts * SUMS)?;
    let seconds = best(device, || read_all(device, words.all(), &mut sums.all_mut()))?;
    Ok((words.len() * size_of::<u32>()) as f64 / seconds)
}

fn multiply(device: &Arc<Device>, [rows, cols]: [usize; 2]) -> Result<f64, CudaError> {
    let most = TOKENS.into_iter().max().unwrap_or(0);
    let [weights, x] = [noise(device, rows * cols / 2 + 1)?, noise(device, most * cols / 2 + 1)?];
    let y = Buffer::<f32>::zeros(device, most * rows)?;
    let speeds = TOKENS.map(|tokens| {
        let gemm = Gemm {
            dtype: WeightDType::Bf16,
            weights: weights.all().address(),
            x: x.all().address(),
            y: y.all().address(),
            rows,
            cols,
            tokens,
            y_stride: rows,
            add: false,
        };
        let seconds = best(device, || device.multiply(gemm).map(drop))?;
        Ok((2 * rows * cols * tokens) as f64 / seconds)
    });
    speeds
        .into_iter()
        .try_fold(0.0, |fastest: f64, speed| Ok(fastest.max(speed?)))
}

fn noise(device: &Arc<Device>, words: usize) -> Result<Buffer<u32>, CudaError> {
    let mut buffer = Buffer::zeros(device, words)?;
    make_noise(device, &mut buffer.all_mut())?;
    Ok(buffer)
}

/// Seconds that what `start` asks for takes when nothing disturbs it.
fn best(device: &Device, mut start: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut best = f64::INFINITY;
    for _ in 0..REPETITIONS {
        device.synchronize()?;
        let started = Instant::now();
        (0..AT_A_TIME).try_for_each(|_| start())?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64() / AT_A_TIME as f64);
    }
    Ok(best.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cards, Toolkit, testing::engine};

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn every_card_is_measured() {
        let machine = Machine::with_cards(engine(), &Cards::These(vec![0; 2]), &Toolkit::default()).unwrap();
        let limits = measure_cards(&machine, [48, 64]).unwrap();
        assert_eq!(limits.len(), 2);
        for limits in limits {
            let speeds = [limits.read_bytes_per_second, limits.bf16_flops_per_second.unwrap()];
            assert!(
                speeds.iter().all(|speed| speed.is_finite() && *speed > 0.0),
                "{limits:?}"
            );
        }
        assert_eq!(measure_cards(&engine().into(), [48, 64]), Ok(Vec::new()));
    }
}
