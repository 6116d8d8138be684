//! Kernels that nobody needs the results of: what is read and multiplied to see how fast a card is at it.

use super::THREADS;
use crate::model::cuda::{
    CudaError,
    device::Device,
    launch::Grid,
    memory::{View, ViewMut},
};

/// Words that a block of threads reads: 32 loads of 16 bytes by each thread, as in `limits.cu`.
pub(crate) const PART: usize = 32 * 4 * THREADS as usize;

/// Sums that are written of each part: one by each warp.
pub(crate) const SUMS: usize = THREADS as usize / 32;

/// Blocks of threads that write noise at most.
const MAX_BLOCKS: usize = 1 << 14;

/// Starts to read all of `words`, and to write the sums of its parts.
///
/// # Errors
/// When the card refuses.
///
/// # Panics
/// If these are not whole parts, or there are other sums.
pub(crate) fn read_all(device: &Device, words: View<'_, u32>, sums: &mut ViewMut<'_, u32>) -> Result<(), CudaError> {
    assert!(words.len().is_multiple_of(PART), "not whole parts");
    let n_parts = words.len() / PART;
    assert_eq!(sums.len(), n_parts * SUMS, "room for other sums");
    let grid = Grid {
        blocks: [n_parts as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    };
    device.launch("limits/read_all", grid, &[words.into(), (&*sums).into()])
}

/// Starts to fill `words` with numbers from -1 to 1 in bf16, two in each.
///
/// # Errors
/// When the card refuses.
pub(crate) fn make_noise(device: &Device, words: &mut ViewMut<'_, u32>) -> Result<(), CudaError> {
    let grid = Grid {
        blocks: [words.len().div_ceil(THREADS as usize).min(MAX_BLOCKS) as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    };
    let n = words.len() as u64;
    device.launch("limits/make_noise", grid, &[(&*words).into(), n.into()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cuda::{
        kernels::testing::{card, downloaded},
        memory::Buffer,
    };

    #[test]
    #[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
    fn every_word_is_read_and_noise_is_numbers_of_both_signs() {
        let device = card();
        let mut words = Buffer::<u32>::zeros(&device, 3 * PART).unwrap();
        make_noise(&device, &mut words.all_mut()).unwrap();
        let mut sums = Buffer::zeros(&device, 3 * SUMS).unwrap();
        read_all(&device, words.all(), &mut sums.all_mut()).unwrap();
        let words = downloaded(&words);
        let total = |numbers: &[u32]| numbers.iter().fold(0, |sum: u32, number| sum.wrapping_add(*number));
        assert_eq!(total(&downloaded(&sums)), total(&words));
        let numbers: &[half::bf16] = bytemuck::cast_slice(&words);
        assert!(numbers.iter().all(|number| number.to_f32().abs() <= 1.0));
        let negative = numbers.iter().filter(|number| number.is_sign_negative()).count();
        assert!((0.45..0.55).contains(&(negative as f64 / numbers.len() as f64)));
    }
}
