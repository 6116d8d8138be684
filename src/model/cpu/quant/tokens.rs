//! Activations in 8 bit, each block of 32 with a scale of its own: what integer formats are multiplied by. A token's
//! numbers depend on nothing but the token.

/// Columns of a block.
pub(crate) const BLOCK: usize = 32;

/// Blocks per token come in multiples of this, so that the tokens fit every format.
const BLOCKS_MULTIPLE: usize = 8;

/// 32 numbers of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(crate) struct QuantBlock {
    /// The largest magnitude over 127. NaN if any of the numbers is not finite, which makes the results so.
    pub(crate) scale: f32,
    /// The sum of `q` times the scale.
    pub(crate) scaled_sum: f32,
    /// -8 and -128 times the sum of `q`.
    pub(crate) minus_8: i32,
    pub(crate) minus_128: i32,
    /// Within ±127.
    pub(crate) q: [i8; BLOCK],
}

impl QuantBlock {
    pub(super) const ZERO: Self = Self {
        scale: 0.0,
        scaled_sum: 0.0,
        minus_8: 0,
        minus_128: 0,
        q: [0; BLOCK],
    };

    #[inline(always)]
    fn new(x: &[f32; BLOCK]) -> Self {
        // As integers, magnitudes have the same order, with infinity and NaN above all numbers.
        let max = x.iter().fold(0, |max: u32, x| max.max(x.to_bits() & 0x7fff_ffff));
        let max = f32::from_bits(max);
        if !max.is_finite() {
            return Self {
                scale: f32::NAN,
                scaled_sum: f32::NAN,
                ..Self::ZERO
            };
        }
        // Below this the inverse would be infinite.
        let max = if max < 1e-36 { 0.0 } else { max };
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        let mut q = [0; BLOCK];
        let mut sum = 0;
        for (q, x) in q.iter_mut().zip(x) {
            let rounded = round(x * inverse);
            sum += rounded;
            *q = rounded as i8;
        }
        let scale = max / 127.0;
        Self {
            scale,
            scaled_sum: scale * sum as f32,
            minus_8: -8 * sum,
            minus_128: -128 * sum,
            q,
        }
    }
}

/// To the nearest, ties to even, for magnitudes up to 2^22. One addition, where the standard library's is a call.
#[inline(always)]
pub(crate) fn round(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

/// Blocks of a token of `cols` numbers.
pub(crate) fn blocks_per_token(cols: usize) -> usize {
    cols.div_ceil(BLOCK).next_multiple_of(BLOCKS_MULTIPLE)
}

/// Quantises `x`, `[tokens, cols]`, into `out`, `[tokens, blocks_per_token(cols)]`; what is missing to whole blocks is
/// zero.
#[inline(always)]
pub(super) fn quantise(x: &[f32], cols: usize, out: &mut [QuantBlock]) {
    let per_token = blocks_per_token(cols);
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(per_token)) {
        let (whole, rest) = x.as_chunks::<BLOCK>();
        let mut blocks = out.iter_mut();
        for (x, out) in whole.iter().zip(blocks.by_ref()) {
            *out = QuantBlock::new(x);
        }
        if !rest.is_empty()
            && let Some(out) = blocks.next()
        {
            let mut last = [0.0; BLOCK];
            last[..rest.len()].copy_from_slice(rest);
            *out = QuantBlock::new(&last);
        }
        blocks.for_each(|out| *out = QuantBlock::ZERO);
    }
}
