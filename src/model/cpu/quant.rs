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

use std::sync::{Mutex, PoisonError};

use formats::Format;
pub(crate) use formats::{Nf4, Q4_0, Q4K, Q8_0};
use kernel::Work;
use lanes::LANES;
pub(crate) use tokens::{QuantBlock, blocks_per_token, round};

use super::Engine;
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
}

/// Tokens that are quantised by one thread at a time.
const TOKENS_OF_A_TASK: usize = 16;

/// The forms that tokens are wanted in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forms {
    /// 8 bit, for integer formats.
    pub(crate) blocks: bool,
    /// f32, for NF4.
    pub(crate) floats: bool,
}

impl Forms {
    /// What products with weights of all `formats` want.
    pub(crate) fn of(formats: impl IntoIterator<Item = WeightFormat>) -> Self {
        formats.into_iter().fold(Self::default(), |forms, format| match format {
            WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 => forms,
            WeightFormat::Nf4 => Self { floats: true, ..forms },
            WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4K => Self { blocks: true, ..forms },
        })
    }

    /// Whether any is.
    pub(crate) fn any(self) -> bool {
        self.blocks || self.floats
    }
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

/// What quantised panels are multiplied by: tokens in the form that their formats want.
#[derive(Debug, Default)]
pub(crate) struct QuantTokens {
    tokens: usize,
    cols: usize,
    blocks: Vec<QuantBlock>,
    /// `[tokens, cols to whole groups]`
    floats: Vec<f32>,
}

impl QuantTokens {
    /// Takes `x`, `[tokens, cols]`, in the forms that the weights of a product want, on all threads if it is long.
    ///
    /// # Panics
    /// If `x` is not whole tokens.
    pub(crate) fn set(&mut self, engine: &Engine, forms: Forms, x: &[f32], cols: usize) {
        assert_eq!(x.len() % cols, 0, "activations are not whole vectors");
        (self.tokens, self.cols) = (x.len() / cols, cols);
        let (padded, per_token) = (cols.next_multiple_of(WeightFormat::Nf4.group()), blocks_per_token(cols));
        self.floats.clear();
        if forms.floats {
            self.floats.resize(self.tokens * padded, 0.0);
            for (x, out) in x.chunks_exact(cols).zip(self.floats.chunks_exact_mut(padded)) {
                out[..cols].copy_from_slice(x);
            }
        }
        let n_blocks = if forms.blocks { self.tokens * per_token } else { 0 };
        self.blocks.resize(n_blocks, QuantBlock::ZERO);
        if self.tokens <= TOKENS_OF_A_TASK || n_blocks == 0 {
            return engine.quant.quantise(x, cols, &mut self.blocks);
        }
        let xs = x.chunks(TOKENS_OF_A_TASK * cols);
        let parts = xs.zip(self.blocks.chunks_mut(TOKENS_OF_A_TASK * per_token));
        let parts: Vec<_> = parts.map(Mutex::new).collect();
        engine.pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (x, out) = &mut *part;
            engine.quant.quantise(x, cols, out);
        });
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
        best.unwrap_or(Self { level: Level::Portable })
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

    /// Every level of this CPU, the best last.
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
        levels.into_iter().map(|level| Self { level }).collect()
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
        if format == WeightFormat::Nf4 {
            let x_stride = groups * format.group();
            assert_eq!(x.floats.len(), x.tokens * x_stride, "activations in another form");
            let work = Work {
                panels: bytes.as_ptr(),
                panel_bytes,
                groups,
                x: x.floats.as_ptr(),
                x_stride,
                tokens: x.tokens,
                out: out.as_mut_ptr(),
                n_panels: n,
            };
            // SAFETY: the lengths were checked above.
            return unsafe { self.multiply_nf4(work) };
        }
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
        };
        // SAFETY: as above.
        unsafe {
            match format {
                WeightFormat::Q8_0 => self.multiply_blocks::<Q8_0>(work),
                WeightFormat::Q4_0 => self.multiply_blocks::<Q4_0>(work),
                WeightFormat::Q4K => self.multiply_blocks::<Q4K>(work),
                WeightFormat::F32 | WeightFormat::Bf16 | WeightFormat::F16 | WeightFormat::Nf4 => {
                    panic!("no integer kernels for {}", format.as_str())
                }
            }
        }
    }

    unsafe fn multiply_blocks<F: Format>(self, work: Work<QuantBlock>) {
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

    unsafe fn multiply_nf4(self, work: Work<f32>) {
        // SAFETY: as above.
        unsafe {
            match self.level {
                Level::Portable => portable::multiply_nf4(work),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 | Level::AvxVnni => avx2::multiply_nf4(work),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Vnni => avx512::multiply_nf4(work),
                #[cfg(target_arch = "aarch64")]
                Level::Neon | Level::NeonDot => neon::multiply_nf4(work),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
