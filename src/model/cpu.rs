//! What computes: the kernels, which are the only SIMD in the tree, and the threads they run on. Matrix products are
//! written once (`panels.rs`) for any kind of register (`panels/lanes.rs`), each instruction set is a small file there,
//! and this file chooses at run time. What a block consists of is not known here.
#![expect(
    unsafe_code,
    reason = "vector loads take raw pointers, and calling code for another CPU is a promise"
)]

mod coded;
mod cores;
mod dense;
mod disjoint;
mod elementwise;
mod feed;
mod input;
mod limits;
mod memory;
mod panels;
mod parts;
mod pool;
pub(crate) mod quant;
mod softmax;
mod tiles;

use std::{io, num::NonZeroUsize, sync::Arc};

use coded::CODED_BITS;
pub(crate) use coded::{Coded, Rounded};
pub(crate) use dense::{Dense, Interleaved, MANY_PANELS};
pub(crate) use disjoint::Disjoint;
pub(crate) use elementwise::{add, exp, silu_times, sum_of};
use feed::Feed;
pub(crate) use input::{Input, Source, Wanted};
pub use limits::{LargeMemory, MachineLimits, measure_limits};
pub(crate) use memory::{Buffer, Memory};
pub(crate) use panels::{LANES, PANEL_GROUP, Rows, RowsMut};
pub(crate) use parts::{AT_A_TIME, for_parts};
pub(crate) use pool::Pool;
use quant::QuantKernels;
pub(crate) use softmax::{KEY_BLOCK, Slope, Sums, View};
pub(crate) use tiles::{Output, Tile, WORTH_THREADS, compute_tiles};

use super::{WeightFormat, number::Slice};

/// An instruction set the kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What every CPU of the architecture has.
    Portable,
    /// AVX2, FMA and F16C: 8 numbers at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F and BW: 16 numbers at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same, and products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// 4 numbers at a time.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// What computes: instructions and threads. Clones share the threads.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) kernels: Kernels,
    pub(crate) quant: QuantKernels,
    pub(crate) pool: Arc<Pool>,
}

impl Engine {
    /// The best instructions of this CPU, and `threads` threads: by default one per physical core.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(threads: Option<NonZeroUsize>) -> io::Result<Self> {
        let threads = threads.map_or_else(cores::default_threads, NonZeroUsize::get);
        Ok(Self {
            kernels: Kernels::detect(),
            quant: QuantKernels::detect(),
            pool: Pool::new(threads)?,
        })
    }

    /// The instruction set in use, for people.
    pub fn instructions(&self) -> &'static str {
        self.kernels.name()
    }

    /// The instruction set that quantised weights are multiplied with, for people.
    pub fn quant_instructions(&self) -> &'static str {
        self.quant.name()
    }

    /// Whether bf16 is kept in 12 bits: by kernels for which that was measured to be quicker. Portable ones take more time for
    /// codes than memory does for the 4 bits more.
    pub(crate) fn codes_bf16(&self) -> bool {
        match self.kernels.level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// Bits that a weight takes where blocks are computed on this processor. Of bf16 those of trained weights; others may take
    /// up to 16.
    pub fn bits_per_weight(&self, format: WeightFormat) -> f64 {
        match format {
            WeightFormat::Bf16 if self.codes_bf16() => CODED_BITS,
            _ => format.bits_per_weight(),
        }
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

/// A level this CPU was seen to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    level: Level,
    feed: Feed,
}

impl Kernels {
    /// The best level of this CPU.
    pub(crate) fn detect() -> Self {
        let best = Self::available().pop();
        best.unwrap_or(Self {
            level: Level::Portable,
            feed: Feed::Panels,
        })
    }

    /// The instruction set in use, for people.
    pub(crate) fn name(self) -> &'static str {
        match self.level {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "AVX-512 BF16",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "NEON",
        }
    }

    /// Whether there are faster kernels than the portable ones for this CPU.
    pub(crate) fn are_fast(self) -> bool {
        self.level != Level::Portable
    }

    /// Every level of this CPU with every way to take panels, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Level::Avx2);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                levels.push(Level::Avx512);
                if is_x86_feature_detected!("avx512bf16") {
                    levels.push(Level::Avx512Bf16);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        let levels = levels.into_iter();
        levels
            .flat_map(|level| Feed::available().map(|feed| Self { level, feed }))
            .collect()
    }
}

/// The instructions this CPU has, among those that some kernel is made of.
pub(crate) fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("neon", true),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&'static str, bool); 0] = [];
    known
        .into_iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests;
