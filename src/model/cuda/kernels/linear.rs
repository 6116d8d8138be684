//! y = x · Wᵀ + b on a card. For short steps by kernels of our own, which are bound by reading the weights: a token's y are
//! the same bits however many tokens there are. For each long one by cuBLAS, or a tiled kernel where there is none, with
//! weights and x in one type of 16 bits (f32 stays f32); sums are f32. So a step's y do not depend on what is beside it.
//! Quantised weights are widened for that to the type that the card is fast with.
//!
//! Of the short steps of many sessions groups of 16 tokens run side by side and find the weights that they have in common in
//! the cache; what limits is arithmetic.

use std::{ffi::c_int, sync::Arc};

use super::{
    matrix::{CardMatrix, MAX_ROWS},
    pack::Layout,
    thread_per_item,
};
use crate::model::{
    WeightDType, WeightFormat,
    cpu::Engine,
    cuda::{
        CudaError,
        blas::Gemm,
        device::Device,
        launch::{Argument, Grid},
        memory::{Buffer, View, ViewMut},
        steps::{Piece, Rows},
    },
    linear::Linear,
};

/// Threads, and rows of a warp, of the kernels for few tokens; as in `linear.cu`.
const THREADS: u32 = 256;
const WARPS: usize = 8;
const ROWS: usize = 4;

/// Matrices that one launch multiplies with the same x.
const MAX_MATRICES: usize = 3;

/// Groups of rows that keep a large card busy: with fewer, several warps share a row.
const ENOUGH_GROUPS: usize = 2048;

/// Bytes of quantised weights that are widened at a time: enough rows for a large product, little of the card's memory.
const WIDENED_BYTES: usize = 128 << 20;

/// Rows and tokens of a tile of our own product.
const TILE: usize = 64;

/// Rows that are widened at a time are a multiple of this: the y of those after them begin at a multiple of 16 bytes then, as
/// the fast kernels of cuBLAS need it, and fill whole tiles.
const WIDENED_ROWS: usize = 256;

/// The first cards that are fast with bf16: those before it have such units for f16 only, and are slower with bf16 than with
/// f32.
const FAST_BF16: c_int = 80;

/// A matrix and perhaps a bias, on a card.
#[derive(Debug)]
pub(crate) struct CardLinear {
    pub(crate) weight: CardMatrix,
    pub(crate) bias: Option<Buffer<f32>>,
}

/// What a product needs of its x.
enum Tokens {
    /// f32 with so many numbers per token.
    Plain { stride: usize },
    /// f32, copied with zeros after each token.
    Padded { copy: Buffer<f32>, stride: usize },
    /// In 8 bit.
    Quantised {
        codes: Buffer<u8>,
        blocks: Buffer<u32>,
        n_blocks: usize,
    },
}

impl CardLinear {
    /// The same as `linear`, of the CPU.
    ///
    /// # Errors
    /// When the card has no memory for it.
    pub(crate) fn of(linear: &Linear, engine: &Engine, device: &Arc<Device>) -> Result<Self, CudaError> {
        let bias = linear.bias.as_ref();
        Ok(Self {
            weight: CardMatrix::of(&linear.weight, engine, device)?,
            bias: bias.map(|bias| Buffer::from_slice(device, bias)).transpose()?,
        })
    }

    /// `x` is `[tokens, cols]`, of the steps that `tokens` are; `y` becomes `[tokens, rows]`.
    ///
    /// # Errors
    /// When the card refuses, or has no memory for what lies between.
    ///
    /// # Panics
    /// If `x` or `y` has another size.
    pub(crate) fn apply(&self, x: View<'_, f32>, tokens: Rows<'_>, y: ViewMut<'_, f32>) -> Result<(), CudaError> {
        multiply(&[self], (x, tokens), [y], false)
    }

    /// As [`CardLinear::apply`], but added to what is in `y`.
    ///
    /// # Errors
    /// As [`CardLinear::apply`].
    ///
    /// # Panics
    /// As [`CardLinear::apply`].
    pub(crate) fn add(&self, x: View<'_, f32>, tokens: Rows<'_>, y: ViewMut<'_, f32>) -> Result<(), CudaError> {
        multiply(&[self], (x, tokens), [y], true)
    }

    /// As [`CardLinear::apply`] of several with the same x, together if they can be.
    ///
    /// # Errors
    /// As [`CardLinear::apply`].
    ///
    /// # Panics
    /// As [`CardLinear::apply`].
    pub(crate) fn apply_each<const N: usize>(
        linears: [&Self; N],
        x: View<'_, f32>,
        tokens: Rows<'_>,
        ys: [ViewMut<'_, f32>; N],
    ) -> Result<(), CudaError> {
        let first = linears[0].weight.layout;
        let alike = |linear: &&Self| {
            let layout = linear.weight.layout;
            layout.format == first.format && layout.cols == first.cols
        };
        if N <= MAX_MATRICES && linears.iter().all(alike) {
            return multiply(&linears, (x, tokens), ys, false);
        }
        let each = linears.into_iter().zip(ys);
        each.into_iter().try_for_each(|(linear, y)| linear.apply(x, tokens, y))
    }

    fn bias(&self) -> Argument {
        self.bias.as_ref().map_or(Argument::NULL, Argument::from)
    }
}

/// At most [`MAX_MATRICES`], of one format and width.
fn multiply<const N: usize>(
    linears: &[&CardLinear; N],
    (x, all): (View<'_, f32>, Rows<'_>),
    mut ys: [ViewMut<'_, f32>; N],
    add: bool,
) -> Result<(), CudaError> {
    let layout = linears[0].weight.layout;
    assert_eq!(x.len(), all.len() * layout.cols, "activations of another size");
    for (linear, y) in linears.iter().zip(&ys) {
        assert_eq!(y.len(), all.len() * linear.weight.rows(), "room for another product");
    }
    let wide = wide(linears[0].weight.device().capability());
    for Piece { tokens, is_few } in all.pieces(layout.format) {
        let x = (
            x.part(tokens.start * layout.cols..tokens.end * layout.cols),
            tokens.len(),
        );
        let mut ys = ys.each_mut().map(|y| {
            let rows = y.len() / all.len();
            y.part(tokens.start * rows..tokens.end * rows)
        });
        if is_few {
            few(linears, x, &mut ys, add)?;
            continue;
        }
        let mut pairs = linears.iter().zip(&mut ys);
        pairs.try_for_each(|(linear, y)| linear.many(wide, x, y, add))?;
    }
    Ok(())
}

impl Tokens {
    fn new(layout: Layout, x: View<'_, f32>, tokens: usize, device: &Arc<Device>) -> Result<Self, CudaError> {
        let cols = layout.cols;
        match layout.format {
            WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4K => {
                let n_blocks = layout.stride / 32;
                let codes = Buffer::temporary(device, tokens * n_blocks * 32)?;
                let blocks = Buffer::temporary(device, tokens * n_blocks * 2)?;
                let arguments = [
                    x.into(),
                    (cols as u32).into(),
                    (n_blocks as u32).into(),
                    (&codes).into(),
                    (&blocks).into(),
                ];
                device.launch(
                    "tokens/quantise_tokens",
                    thread_per_item(n_blocks * 8, tokens),
                    &arguments,
                )?;
                Ok(Self::Quantised {
                    codes,
                    blocks,
                    n_blocks,
                })
            }
            _ => {
                // Loads of 16 bytes.
                let stride = cols.next_multiple_of(8);
                if stride == cols && x.address().is_multiple_of(16) {
                    return Ok(Self::Plain { stride });
                }
                let copy = Buffer::temporary(device, tokens * stride)?;
                copy_tokens(
                    "tokens/tokens_to_f32",
                    (x, cols, tokens),
                    (&copy).into(),
                    (stride, false),
                    device,
                )?;
                Ok(Self::Padded { copy, stride })
            }
        }
    }

    /// As the kernels take them: f32, codes, blocks, numbers and blocks of a token.
    fn arguments(&self, x: View<'_, f32>) -> [Argument; 5] {
        let none = Argument::NULL;
        match self {
            Self::Plain { stride } => [x.into(), none, none, (*stride as u32).into(), 0_u32.into()],
            Self::Padded { copy, stride } => [copy.into(), none, none, (*stride as u32).into(), 0_u32.into()],
            Self::Quantised {
                codes,
                blocks,
                n_blocks,
            } => [
                none,
                codes.into(),
                blocks.into(),
                0_u32.into(),
                (*n_blocks as u32).into(),
            ],
        }
    }
}

fn few<const N: usize>(
    linears: &[&CardLinear; N],
    (x, tokens): (View<'_, f32>, usize),
    ys: &mut [ViewMut<'_, f32>; N],
    add: bool,
) -> Result<(), CudaError> {
    let (layout, device) = (linears[0].weight.layout, linears[0].weight.device());
    let prepared = Tokens::new(layout, x, tokens, device)?;
    let groups: usize = linears.iter().map(|linear| linear.weight.rows().div_ceil(ROWS)).sum();
    let splits = splits(groups, layout.chunks);
    let (kernel, at_once) = few_kernel(layout.format, tokens);
    let mut arguments = Vec::with_capacity(6 * MAX_MATRICES + 9);
    for (linear, y) in linears.iter().zip(ys.iter()) {
        arguments.extend(linear.weight.parts());
        arguments.extend([linear.bias(), y.into(), (linear.weight.rows() as u32).into()]);
    }
    for _ in N..MAX_MATRICES {
        arguments.extend([Argument::NULL; 5]);
        arguments.push(0_u32.into());
    }
    arguments.extend(prepared.arguments(x));
    arguments.extend([tokens, layout.chunks, splits].map(|number| Argument::from(number as u32)));
    arguments.push(i32::from(add).into());
    let grid = Grid {
        blocks: [
            tokens.div_ceil(at_once) as u32,
            (groups * splits).div_ceil(WARPS) as u32,
            1,
        ],
        threads: THREADS,
        shared_bytes: 0,
    };
    device.launch(kernel, grid, &arguments)
}

/// How many warps share a row. It depends on nothing but the matrices, because it says in which order sums are made.
fn splits(groups: usize, chunks: usize) -> usize {
    let wanted = ENOUGH_GROUPS.div_ceil(groups.max(1)).next_power_of_two();
    // A warp should have something to do for each of its lanes.
    let useful = chunks.div_ceil(32).next_power_of_two();
    wanted.min(useful).min(WARPS)
}

/// The kernel for so many tokens, and how many it takes at once.
fn few_kernel(format: WeightFormat, tokens: usize) -> (&'static str, usize) {
    macro_rules! kernels {
        ($program:literal) => {
            [
                concat!($program, "/few_1"),
                concat!($program, "/few_4"),
                concat!($program, "/few_8"),
                concat!($program, "/few_16"),
            ]
        };
    }
    let kernels = match format {
        WeightFormat::F32 => kernels!("linear_f32"),
        WeightFormat::Bf16 => kernels!("linear_bf16"),
        WeightFormat::F16 => kernels!("linear_f16"),
        WeightFormat::Q8_0 => kernels!("linear_q8_0"),
        WeightFormat::Q4_0 => kernels!("linear_q4_0"),
        WeightFormat::Q4K => kernels!("linear_q4_k"),
        WeightFormat::Nf4 => kernels!("linear_nf4"),
    };
    match tokens {
        1 => (kernels[0], 1),
        2..=4 => (kernels[1], 4),
        5..=8 => (kernels[2], 8),
        _ => (kernels[3], 16),
    }
}

/// Starts to copy `x`, `[tokens, cols]`, to `out`, `[tokens, stride]`, in the order of dense weights or as it is.
fn copy_tokens(
    kernel: &'static str,
    (x, cols, tokens): (View<'_, f32>, usize, usize),
    out: Argument,
    (stride, as_weights): (usize, bool),
    device: &Device,
) -> Result<(), CudaError> {
    device.launch(
        kernel,
        thread_per_item(stride, tokens),
        &[
            x.into(),
            (cols as u32).into(),
            (stride as u32).into(),
            i32::from(as_weights).into(),
            out,
        ],
    )
}

impl CardLinear {
    /// Quantised weights are widened to `wide`, a type of 16 bits.
    fn many(
        &self,
        wide: WeightDType,
        (x, tokens): (View<'_, f32>, usize),
        y: &mut ViewMut<'_, f32>,
        add: bool,
    ) -> Result<(), CudaError> {
        let Layout {
            format,
            rows,
            cols,
            stride,
            ..
        } = self.weight.layout;
        let device = self.weight.device();
        if self.bias.is_some() {
            let arguments = [
                Argument::from(&*y),
                self.bias(),
                (rows as u32).into(),
                i32::from(add).into(),
            ];
            device.launch("tokens/begin_with_bias", thread_per_item(rows, tokens), &arguments)?;
        }
        let dtype = format.dtype().unwrap_or(wide);
        let copy = Buffer::<u8>::temporary(device, tokens * stride * dtype.size())?;
        let kernel = match dtype {
            WeightDType::F32 => "tokens/tokens_to_f32",
            WeightDType::Bf16 => "tokens/tokens_to_bf16",
            WeightDType::F16 => "tokens/tokens_to_f16",
        };
        // Numbers of 16 bits are in another order than columns.
        let as_weights = matches!(format, WeightFormat::Bf16 | WeightFormat::F16);
        copy_tokens(kernel, (x, cols, tokens), (&copy).into(), (stride, as_weights), device)?;
        let mut gemm = Gemm {
            dtype,
            weights: 0,
            x: copy.all().address(),
            y: y.address(),
            rows,
            cols: stride,
            tokens,
            y_stride: rows,
            add: add || self.bias.is_some(),
        };
        if format.dtype().is_some() {
            gemm.weights = self.weight.address();
            return start(device, gemm);
        }
        let at_once = widened_rows(stride * dtype.size()).min(rows);
        let weights = Buffer::<u16>::temporary(device, at_once * stride)?;
        for first in (0..rows).step_by(at_once) {
            gemm.rows = at_once.min(rows - first);
            self.weight.widen(dtype, (first, gemm.rows), (&weights).into())?;
            gemm.weights = weights.all().address();
            gemm.y = y.part(first..y.len()).address();
            start(device, gemm)?;
        }
        Ok(())
    }
}

/// What a card of `capability` (86 for 8.6) multiplies quantised weights with many tokens as.
fn wide(capability: c_int) -> WeightDType {
    match capability < FAST_BF16 {
        true => WeightDType::F16,
        false => WeightDType::Bf16,
    }
}

/// How many rows of so many bytes are widened at a time.
fn widened_rows(row_bytes: usize) -> usize {
    let fitting = WIDENED_BYTES / row_bytes / WIDENED_ROWS * WIDENED_ROWS;
    fitting.clamp(WIDENED_ROWS, MAX_ROWS)
}

/// With cuBLAS, or without.
fn start(device: &Device, gemm: Gemm) -> Result<(), CudaError> {
    if device.multiply(gemm)? {
        return Ok(());
    }
    own_product(device, gemm)
}

fn own_product(device: &Device, gemm: Gemm) -> Result<(), CudaError> {
    let kernel = match gemm.dtype {
        WeightDType::F32 => "product/product_f32",
        WeightDType::Bf16 => "product/product_bf16",
        WeightDType::F16 => "product/product_f16",
    };
    let grid = Grid {
        blocks: [gemm.rows.div_ceil(TILE) as u32, gemm.tokens.div_ceil(TILE) as u32, 1],
        threads: THREADS,
        shared_bytes: 0,
    };
    let sizes = [gemm.rows, gemm.cols, gemm.tokens, gemm.y_stride].map(|size| Argument::from(size as u32));
    let [rows, cols, tokens, y_stride] = sizes;
    let arguments = [
        gemm.weights.into(),
        gemm.x.into(),
        gemm.y.into(),
        rows,
        cols,
        tokens,
        y_stride,
        i32::from(gemm.add).into(),
    ];
    device.launch(kernel, grid, &arguments)
}

#[cfg(test)]
mod tests;
