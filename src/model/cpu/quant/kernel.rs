//! Products of quantised panels with tokens, written once for every format and instruction set. They are inlined into
//! the functions of an instruction set and trust the lengths that were checked before.
//!
//! Each output is one chain of additions over the blocks in ascending order, and what a block adds is an exact integer
//! times its scales (with NF4: a chain of its own, times its scale). So how panels and tokens are cut into tiles changes
//! no bit of any output.

use super::{
    formats::{Format, Nf4},
    lanes::{LANES, Lanes},
    tokens::QuantBlock,
};

/// How far ahead weights that come from memory are asked for, in bytes of one panel.
const AHEAD: usize = 2048;

/// Bytes of 4 columns of a panel with 8 bit each, and of 8 columns with 4 bit.
const LINE: usize = 64;

/// What one call multiplies, and where the results go.
#[derive(Clone, Copy)]
pub(super) struct Work<X> {
    /// The first panel; the others follow it.
    pub(super) panels: *const u8,
    pub(super) panel_bytes: usize,
    /// Column groups of a panel.
    pub(super) groups: usize,
    /// The first token, and from one token to the next.
    pub(super) x: *const X,
    pub(super) x_stride: usize,
    pub(super) tokens: usize,
    /// `[tokens, 16 · panels]`
    pub(super) out: *mut f32,
    pub(super) n_panels: usize,
}

impl<X> Work<X> {
    unsafe fn panel(&self, panel: usize) -> *const u8 {
        // SAFETY: the caller asks for panels there are.
        unsafe { self.panels.add(panel * self.panel_bytes) }
    }

    /// Writes the sums of a panel and a token.
    #[inline(always)]
    unsafe fn store<L: Lanes>(&self, panel: usize, token: usize, sums: L::Floats) {
        // SAFETY: the caller stores what there is.
        unsafe {
            L::store(sums, self.out.add((token * self.n_panels + panel) * LANES));
        }
    }
}

/// The tokens of the next tile when `left` are, of 1, 2, 3, 4, 6, 8 and 12: as few tiles as possible, none of them
/// small. The two largest need panels that are `alone`.
#[inline(always)]
fn tile_tokens(left: usize, most: usize, alone: bool) -> usize {
    match left {
        8 | 12 if most >= 6 && alone => left,
        0..=4 => left.min(most),
        _ if most < 6 => most,
        _ if left >= 12 => most,
        5 => 3,
        7 | 8 | 11 => 4,
        _ => 6,
    }
}

/// Calls `$tile::<$($types,)* PANELS, TOKENS>(work, panel, token)` until every panel met every token. Panels stay
/// in the cache while the tokens pass.
macro_rules! for_all_tiles {
    ($work:expr, $most_tokens:expr, $most_panels:expr, $tile:ident::<$($types:ty),*>) => {{
        let work = $work;
        let mut panel = 0;
        while panel < work.n_panels {
            let step = match (work.n_panels - panel).min($most_panels) {
                // All sums of one panel fit into the registers, and it is unpacked only once.
                _ if $most_tokens >= 6 && (work.tokens == 8 || work.tokens == 12) => 1,
                3 => 2,
                step => step,
            };
            let mut token = 0;
            while token < work.tokens {
                macro_rules! tile {
                    ($m:literal) => {{
                        match step {
                            1 => $tile::<$($types,)* 1, $m>(&work, panel, token),
                            _ => $tile::<$($types,)* 2, $m>(&work, panel, token),
                        }
                        $m
                    }};
                }
                token += match tile_tokens(work.tokens - token, $most_tokens, step == 1 && token == 0) {
                    12 if $most_tokens >= 12 => tile!(12),
                    12 if $most_tokens >= 6 && step == 1 => {
                        $tile::<$($types,)* 1, 12>(&work, panel, token);
                        12
                    }
                    8 if $most_tokens >= 6 && step == 1 => {
                        $tile::<$($types,)* 1, 8>(&work, panel, token);
                        8
                    }
                    6 if $most_tokens >= 6 => tile!(6),
                    4 if $most_tokens >= 4 => tile!(4),
                    3 if $most_tokens >= 3 => tile!(3),
                    2 => tile!(2),
                    _ if step == 4 => {
                        $tile::<$($types,)* 4, 1>(&work, panel, token);
                        1
                    }
                    _ => tile!(1),
                };
            }
            panel += step;
        }
    }};
}

/// `out[token][row] = Σ_k weights[row][k] · x[token][k]` in an integer format.
///
/// # Safety
/// The CPU has the instructions of `L`; `work` describes panels in format `F`, and tokens and outputs that exist.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, F: Format>(work: Work<QuantBlock>) {
    // SAFETY: the tiles begin at panels and tokens that there are and end before the last.
    unsafe { for_all_tiles!(work, L::TOKENS, L::PANELS, tile::<L, F>) }
}

/// The same with NF4, where tokens are f32.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
pub(super) unsafe fn multiply_nf4<L: Lanes>(work: Work<f32>) {
    // SAFETY: as above.
    unsafe {
        // One token alone has too few sums to wait for in two panels.
        let panels = if work.tokens == 1 { L::NF4_PANELS } else { L::PANELS };
        for_all_tiles!(work, L::NF4_TOKENS, panels, nf4_tile::<L>)
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, F: Format, const P: usize, const M: usize>(
    work: &Work<QuantBlock>,
    panel: usize,
    token: usize,
) {
    // SAFETY: the caller's promise: P panels from `panel` and M tokens from `token` exist, and a token has as many
    // blocks as a panel.
    unsafe {
        let mut sums = [[L::splat(0.0); M]; P];
        let mut groups = [work.panels; P];
        for (p, group) in groups.iter_mut().enumerate() {
            *group = work.panel(panel + p);
        }
        let mut x = work.x.add(token * work.x_stride);
        for _ in 0..work.groups {
            for block in 0..F::BLOCKS {
                let dots = dots::<L, F, P, M>(groups, block, x, work.x_stride);
                for p in 0..P {
                    let scale = F::scale::<L>(groups[p], block);
                    let minimum = F::minimum::<L>(groups[p], block);
                    for m in 0..M {
                        let x = &*x.add(m * work.x_stride);
                        let scale = L::mul(scale, L::splat(x.scale));
                        sums[p][m] = L::mul_add(L::to_floats(dots[p][m]), scale, sums[p][m]);
                        if let Some(minimum) = minimum {
                            sums[p][m] = L::mul_sub(minimum, L::splat(x.scaled_sum), sums[p][m]);
                        }
                    }
                }
                x = x.add(1);
            }
            for group in &mut groups {
                *group = group.add(F::GROUP_BYTES);
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (m, sums) in sums.iter().enumerate() {
                work.store::<L>(panel + p, token + m, *sums);
            }
        }
    }
}

/// The exact products of one block of 32 columns.
#[inline(always)]
unsafe fn dots<L: Lanes, F: Format, const P: usize, const M: usize>(
    groups: [*const u8; P],
    block: usize,
    x: *const QuantBlock,
    x_stride: usize,
) -> [[L::Ints; M]; P] {
    // SAFETY: as `tile`; 32 columns are 8 lines of bytes or 4 of nibbles. Prefetch addresses may lie behind the weights.
    unsafe {
        let mut ints = [[L::splat_int(0); M]; P];
        if F::NIBBLES {
            let mut nibbles = [[L::begin_nibbles(0); M]; P];
            for m in 0..M {
                let begin = L::begin_nibbles(F::offset::<L>(&*x.add(m * x_stride)));
                nibbles.iter_mut().for_each(|row| row[m] = begin);
            }
            for line in 0..4 {
                let mut low = [L::zero_codes(); P];
                let mut high = low;
                for p in 0..P {
                    let at = groups[p].add(F::CODES + (block * 4 + line) * LINE);
                    L::prefetch(at.wrapping_add(AHEAD));
                    let both = L::load(at);
                    (low[p], high[p]) = (L::low(both), L::high(both));
                }
                for m in 0..M {
                    let q = (*x.add(m * x_stride)).q.as_ptr().add(line * 8);
                    for (sums, low) in nibbles.iter_mut().zip(low) {
                        sums[m] = L::dot_nibbles(sums[m], low, q);
                    }
                    for (sums, high) in nibbles.iter_mut().zip(high) {
                        sums[m] = L::dot_nibbles(sums[m], high, q.add(4));
                    }
                }
            }
            for (ints, nibbles) in ints.iter_mut().zip(nibbles) {
                for (m, (ints, nibbles)) in ints.iter_mut().zip(nibbles).enumerate() {
                    *ints = L::end_nibbles(nibbles, F::offset::<L>(&*x.add(m * x_stride)));
                }
            }
        } else {
            for m in 0..M {
                let begin = L::splat_int(F::offset::<L>(&*x.add(m * x_stride)));
                ints.iter_mut().for_each(|row| row[m] = begin);
            }
            for line in 0..8 {
                let mut codes = [L::zero_codes(); P];
                for p in 0..P {
                    let at = groups[p].add(F::CODES + (block * 8 + line) * LINE);
                    L::prefetch(at.wrapping_add(AHEAD));
                    codes[p] = L::load(at);
                }
                for m in 0..M {
                    let q = (*x.add(m * x_stride)).q.as_ptr().add(line * 4);
                    for (sums, codes) in ints.iter_mut().zip(codes) {
                        sums[m] = L::dot_bytes(sums[m], codes, q);
                    }
                }
            }
        }
        ints
    }
}

#[inline(always)]
unsafe fn nf4_tile<L: Lanes, const P: usize, const M: usize>(work: &Work<f32>, panel: usize, token: usize) {
    // SAFETY: as `tile`; a token has as many numbers as a panel has columns.
    unsafe {
        let table = L::table(&Nf4::CODEBOOK);
        let mut sums = [[L::splat(0.0); M]; P];
        let mut x = work.x.add(token * work.x_stride);
        for group in 0..work.groups {
            for block in 0..Nf4::BLOCKS {
                let mut block_sums = [[L::splat(0.0); M]; P];
                for line in 0..8 {
                    let mut codes = [L::zero_codes(); P];
                    for (p, codes) in codes.iter_mut().enumerate() {
                        let at = work.panel(panel + p).add(group * Nf4::GROUP_BYTES);
                        let at = at.add(Nf4::CODES + (block * 8 + line) * LINE);
                        L::prefetch(at.wrapping_add(AHEAD));
                        *codes = L::load(at);
                    }
                    macro_rules! columns {
                        ($($column:literal at $shift:literal),*) => {$(
                            for p in 0..P {
                                let weights = L::look_up::<$shift>(table, codes[p]);
                                for m in 0..M {
                                    let x = L::splat(*x.add(m * work.x_stride + $column));
                                    block_sums[p][m] = L::mul_add(weights, x, block_sums[p][m]);
                                }
                            }
                        )*};
                    }
                    columns!(0 at 0, 1 at 8, 2 at 16, 3 at 24, 4 at 4, 5 at 12, 6 at 20, 7 at 28);
                    x = x.add(8);
                }
                for p in 0..P {
                    let scale = Nf4::scale::<L>(work.panel(panel + p).add(group * Nf4::GROUP_BYTES), block);
                    for m in 0..M {
                        sums[p][m] = L::mul_add(block_sums[p][m], scale, sums[p][m]);
                    }
                }
            }
        }
        for (p, sums) in sums.iter().enumerate() {
            for (m, sums) in sums.iter().enumerate() {
                work.store::<L>(panel + p, token + m, *sums);
            }
        }
    }
}
