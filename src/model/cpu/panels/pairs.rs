//! Products of bf16 in pairs, for processors that have an instruction for two of them: a word of a register is two k of a row,
//! and a word of x the same two k of a token, rounded to bf16. That is what such a product costs, here as in PyTorch and
//! llama.cpp: x keeps 8 bits of each number. It takes half of the instructions, and the matrix is in memory as for any other
//! product.
//!
//! Every output is one chain of multiply-adds, as everywhere; of each pair the odd k comes first, as the instruction has it.

use half::bf16;

use super::{
    CodedPanel, Factors, GROUP, Halves, Keep, Kernels, LANES, Lanes16, MANY_AHEAD, MOST_FOR_FOUR, Stored, TOGETHER,
    coded::step_of_group,
};

/// Registers of 16 pairs. [`Lanes16::mul_add`] multiplies both numbers of each with both of the factor.
///
/// # Safety
/// As [`Lanes16`].
pub(in crate::model::cpu) trait Pairs16: Lanes16 {
    /// Of two k of a panel, `[2][16]`.
    unsafe fn load_pairs(at: *const bf16) -> Self;
    /// As [`super::Numbers16::load_codes`].
    unsafe fn load_code_pairs<const SECOND: bool>(low: *const u8, codes: *const u8, table: *const u8) -> [Self; PAIRS];
}

/// Pairs of half a group of codes.
pub(in crate::model::cpu) const PAIRS: usize = GROUP / 4;

/// A panel of bf16, `[k][16]`, of an even number of k, or what follows one of them.
#[derive(Clone, Copy, Debug)]
pub(in crate::model::cpu) struct PairPanel(pub(in crate::model::cpu) *const bf16);

impl PairPanel {
    fn at(self, pair: usize) -> *const bf16 {
        self.0.wrapping_add(pair * 2 * LANES)
    }
}

impl<L: Pairs16> Stored<L> for PairPanel {
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn prefetch(&self, k: usize, ahead: usize) {
        // SAFETY: the caller's promise.
        unsafe { L::prefetch(self.at(k).cast::<u8>().wrapping_add(ahead)) }
    }

    #[inline(always)]
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        (k, n): (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    ) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe {
                let mut weights = [L::zero(); P];
                for (p, weights) in weights.iter_mut().enumerate() {
                    *weights = L::load_pairs(panels[p].at(k + i));
                    keep.keep(p, k + i, *weights);
                }
                super::accumulate(&weights, x.at.add(i * x.k), x.token, sums);
            }
        }
    }
}

/// A panel in codes, of an even number of k.
#[derive(Clone, Copy, Debug)]
pub(in crate::model::cpu) struct CodedPairs(pub(in crate::model::cpu) CodedPanel);

impl<L: Pairs16> Halves<L, PAIRS> for CodedPairs {
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(self, group: usize) -> [L; PAIRS] {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, codes, table] = self.0.parts::<SECOND>(group);
            L::load_code_pairs::<SECOND>(low, codes, table)
        }
    }
}

impl<L: Pairs16> Stored<L> for CodedPairs {
    const STEP: usize = 2 * PAIRS;

    const FOUR_PANELS: usize = MOST_FOR_FOUR;

    const STREAM: usize = TOGETHER;

    const MANY_AHEAD: usize = MANY_AHEAD;

    #[inline(always)]
    unsafe fn prefetch(&self, k: usize, ahead: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.prefetch_group::<L>(k / (2 * PAIRS), ahead) }
    }

    #[inline(always)]
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        k: (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    ) {
        // SAFETY: the caller's promise.
        unsafe { step_of_group::<L, Self, P, M, PAIRS>(panels, k, x, keep, sums) }
    }
}

/// Calls a function of the file of a level that has pairs, where its promises hold.
macro_rules! dispatch_pairs {
    ($kernels:expr, $function:ident($($argument:expr),*)) => {
        match $kernels.level {
            #[cfg(target_arch = "x86_64")]
            $crate::model::cpu::Level::Avx512Bf16 => $crate::model::cpu::panels::avx512_bf16::$function($($argument),*),
            _ => {
                $(let _ = $argument;)*
                $crate::model::cpu::panels::no_pairs()
            }
        }
    };
}
pub(in crate::model::cpu) use dispatch_pairs;

/// What a level without pairs does with them. Unsafe like the functions that it stands beside, so that who calls any of them
/// needs the same block on every processor.
///
/// # Safety
/// There is nothing to promise.
pub(in crate::model::cpu) unsafe fn no_pairs() -> ! {
    panic!("there are no products of pairs at this level")
}

impl Kernels {
    /// Whether bf16 is multiplied in pairs where x may be rounded to it.
    pub(crate) fn has_pairs(self) -> bool {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            super::super::Level::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// Rounds x to bf16, two numbers a word of `out`: the lower half of its bits is the first.
    ///
    /// # Panics
    /// If there are not half as many words, or the level has no pairs.
    pub(crate) fn round_to_pairs(self, x: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), 2 * out.len(), "no room for the pairs");
        // SAFETY: the lengths were checked.
        unsafe { dispatch_pairs!(self, round(x, out)) }
    }
}
