//! Kernels of the quantised formats: activations into 8 bit, and panels of weights times tokens, chosen at run time. The
//! formats are laid out in `formats.rs`; how weights get into them is none of its business.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod formats;
mod kernel;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod tokens;

use std::marker::PhantomData;

use formats::Format;
pub(crate) use formats::{Nf4, Q4_0, Q4K, Q8_0};
use kernel::Work;
use lanes::LANES;
pub(crate) use tokens::{QuantBlock, blocks_per_token, round};

use super::{Engine, feed::Feed, tiles::Start};
use crate::model::quant::WeightFormat;

/// An instruction set that there are integer kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with integer products of its own.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

/// A level this CPU was seen to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantKernels {
    level: Level,
    feed: Feed,
}

/// Panels of 16 quantised rows, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuantPanels<'a> {
    pub(crate) format: WeightFormat,
    pub(crate) bytes: &'a [u8],
    /// How many.
    pub(crate) n: usize,
    pub(crate) cols: usize,
}

/// What quantised panels are multiplied by: tokens in 8 bit.
#[derive(Debug, Default)]
pub(crate) struct QuantTokens {
    tokens: usize,
    cols: usize,
    blocks: Vec<QuantBlock>,
}

/// [`QuantTokens`] that are being written.
pub(super) struct QuantWriter<'a> {
    cols: usize,
    blocks: Start<QuantBlock>,
    data: PhantomData<&'a mut QuantTokens>,
}

impl QuantWriter<'_> {
    /// Takes the tokens `x` from number `first` on.
    ///
    /// # Safety
    /// There is room for these tokens, which nobody else writes to.
    pub(super) unsafe fn write(&self, engine: &Engine, first: usize, x: &[f32]) {
        let (per_token, tokens) = (blocks_per_token(self.cols), x.len() / self.cols);
        // SAFETY: the caller's promise; these are the blocks of `tokens` tokens.
        let out = unsafe { std::slice::from_raw_parts_mut(self.blocks.at(first * per_token), tokens * per_token) };
        engine.quant.quantise(x, self.cols, out);
    }
}

impl QuantTokens {
    /// Makes room for other tokens.
    pub(super) fn resize(&mut self, tokens: usize, cols: usize) {
        (self.tokens, self.cols) = (tokens, cols);
        self.blocks.resize(tokens * blocks_per_token(cols), QuantBlock::ZERO);
    }

    /// For threads that write to different tokens.
    pub(super) fn writer(&mut self) -> QuantWriter<'_> {
        QuantWriter {
            cols: self.cols,
            blocks: Start(self.blocks.as_mut_ptr()),
            data: PhantomData,
        }
    }

    /// Takes `x`, `[tokens, cols]`.
    #[cfg(test)]
    pub(crate) fn set(&mut self, engine: &Engine, x: &[f32], cols: usize) {
        self.resize(x.len() / cols, cols);
        // SAFETY: there is room for all, and nobody else.
        unsafe { self.writer().write(engine, 0, x) };
    }

    #[cfg(test)]
    fn tokens(&self) -> usize {
        self.tokens
    }

    #[cfg(test)]
    fn blocks(&self) -> &[QuantBlock] {
        &self.blocks
    }
}

impl QuantKernels {
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
            Level::AvxVnni => "AVX-VNNI",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => "NEON with dot products",
        }
    }

    /// Every level of this CPU with every way to take panels, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Level::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    levels.push(Level::AvxVnni);
                }
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Level::Avx512Vnni);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            levels.push(Level::Neon);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                levels.push(Level::NeonDot);
            }
        }
        let levels = levels.into_iter();
        levels
            .flat_map(|level| Feed::available().map(|feed| Self { level, feed }))
            .collect()
    }

    /// Calls `task` compiled for the instructions of this level, as far as it is inlined: for loops that vectorise by
    /// themselves.
    #[inline(always)]
    pub(crate) fn vectorise(self, task: impl FnOnce()) {
        match self.level {
            // SAFETY: `available` saw the features, here and below.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni => unsafe { avx2::call(task) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { avx512::call(task) },
            _ => task(),
        }
    }

    fn quantise(self, x: &[f32], cols: usize, out: &mut [QuantBlock]) {
        self.vectorise(|| tokens::quantise(x, cols, out));
    }

    /// `out[token][row] = Σ_k weights[row][k] · x[token][k]` for all rows of `panels`, also those that only fill them up:
    /// `out` is `[tokens, 16 · panels]`.
    ///
    /// # Panics
    /// If the lengths do not fit together, or `x` was not made for the panels' format.
    pub(crate) fn multiply(self, panels: QuantPanels<'_>, x: &QuantTokens, out: &mut [f32]) {
        let QuantPanels { format, bytes, n, cols } = panels;
        assert_eq!(cols, x.cols, "weights and activations of another width");
        assert_eq!(
            bytes.len(),
            format.bytes(n * LANES, cols),
            "not the bytes of these panels"
        );
        assert_eq!(out.len(), x.tokens * n * LANES, "no room for the products");
        if out.is_empty() {
            return;
        }
        let groups = cols.div_ceil(format.group());
        let panel_bytes = groups * format.group_bytes();
        let x_stride = blocks_per_token(cols);
        assert_eq!(x.blocks.len(), x.tokens * x_stride, "activations in another form");
        let work = Work {
            panels: bytes.as_ptr(),
            panel_bytes,
            groups,
            x: x.blocks.as_ptr(),
            x_stride,
            tokens: x.tokens,
            out: out.as_mut_ptr(),
            n_panels: n,
            feed: self.feed,
            ahead: self.feed.ahead(kernel::AHEAD),
        };
        // SAFETY: the lengths were checked above.
        unsafe {
            match format {
                WeightFormat::Q8_0 => self.multiply_blocks::<Q8_0>(work),
                WeightFormat::Q4_0 => self.multiply_blocks::<Q4_0>(work),
                WeightFormat::Q4K => self.multiply_blocks::<Q4K>(work),
                WeightFormat::Nf4 => self.multiply_blocks::<Nf4>(work),
                WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => {
                    panic!("no integer kernels for {}", format.as_str())
                }
            }
        }
    }

    unsafe fn multiply_blocks<F: Format>(self, work: Work) {
        // SAFETY: the caller's promise, and `available` saw the features.
        unsafe {
            match self.level {
                Level::Portable => portable::multiply::<F>(work),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::multiply::<F>(work),
                #[cfg(target_arch = "x86_64")]
                Level::AvxVnni => avx2::multiply_vnni::<F>(work),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Vnni => avx512::multiply::<F>(work),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::multiply::<F>(work),
                #[cfg(target_arch = "aarch64")]
                Level::NeonDot => neon::multiply_dot::<F>(work),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
