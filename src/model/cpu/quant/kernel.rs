//! Products of quantised panels with tokens, written once for every format and instruction set. They are inlined into
//! the functions of an instruction set and trust the lengths that were checked before.
//!
//! Each output is one chain of additions over the blocks in ascending order, and what a block adds is an exact integer
//! times its scales. So how panels and tokens are cut into tiles changes no bit of any output.

use super::{
    formats::{Codes, Format},
    lanes::{LANES, Lanes},
    tokens::QuantBlock,
};
use crate::model::cpu::feed::{Feed, STREAM_AHEAD};

/// How far ahead weights are asked for by default, in bytes of one panel.
pub(super) const AHEAD: usize = 2048;

/// Bytes of 4 columns of a panel with 8 bit each, and of 8 columns with 4 bit.
const LINE: usize = 64;

/// What one call multiplies, and where the results go.
#[derive(Clone, Copy)]
pub(super) struct Work {
    /// The first panel; the others follow it.
    pub(super) panels: *const u8,
    pub(super) panel_bytes: usize,
    /// Column groups of a panel.
    pub(super) groups: usize,
    /// The first token, and from one token to the next.
    pub(super) x: *const QuantBlock,
    pub(super) x_stride: usize,
    pub(super) tokens: usize,
    /// `[tokens, 16 · panels]`
    pub(super) out: *mut f32,
    pub(super) n_panels: usize,
    pub(super) feed: Feed,
    /// How far ahead weights are asked for, in bytes of one panel.
    pub(super) ahead: usize,
}

impl Work {
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

/// Asks for what comes `work.ahead` bytes after `at`, if panels are `ASKED` for.
#[inline(always)]
unsafe fn prefetch<L: Lanes, const ASKED: bool>(work: &Work, at: *const u8) {
    if ASKED {
        // SAFETY: the address need not exist.
        unsafe { L::prefetch(at.wrapping_add(work.ahead)) }
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

/// `out[token][row] = Σ_k weights[row][k] · x[token][k]`. Panels stay in the cache while the tokens pass.
///
/// # Safety
/// The CPU has the instructions of `L`; `work` describes panels in format `F`, and tokens and outputs that exist.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, F: Format>(work: Work) {
    // SAFETY: the caller's promise; there are so many tokens.
    match (work.feed, work.tokens) {
        (Feed::Stream, 1) => return unsafe { stream::<L, F, false, 1>(&work) },
        (Feed::Stream, 2) => return unsafe { stream::<L, F, false, 2>(&work) },
        (Feed::FarAhead, 1) => return unsafe { stream::<L, F, true, 1>(&work) },
        (Feed::FarAhead, 2) => return unsafe { stream::<L, F, true, 2>(&work) },
        _ => {}
    }
    let mut panel = 0;
    while panel < work.n_panels {
        let step = match (work.n_panels - panel).min(L::PANELS) {
            // All sums of one panel fit into the registers, and it is unpacked only once.
            _ if L::TOKENS >= 6 && (work.tokens == 8 || work.tokens == 12) => 1,
            step => step,
        };
        let mut token = 0;
        while token < work.tokens {
            macro_rules! tile {
                ($m:literal) => {{
                    match step {
                        1 => tile::<L, F, true, 1, $m>(&work, panel, token),
                        _ => tile::<L, F, true, 2, $m>(&work, panel, token),
                    }
                    $m
                }};
            }
            // SAFETY: the tiles begin at panels and tokens that there are and end before the last.
            unsafe {
                token += match tile_tokens(work.tokens - token, L::TOKENS, step == 1 && token == 0) {
                    12 if L::TOKENS >= 6 && step == 1 => {
                        tile::<L, F, true, 1, 12>(&work, panel, token);
                        12
                    }
                    8 if L::TOKENS >= 6 && step == 1 => {
                        tile::<L, F, true, 1, 8>(&work, panel, token);
                        8
                    }
                    6 if L::TOKENS >= 6 => tile!(6),
                    4 if L::TOKENS >= 4 => tile!(4),
                    3 if L::TOKENS >= 3 => tile!(3),
                    2 => tile!(2),
                    _ => tile!(1),
                };
            }
        }
        panel += step;
    }
}

/// The same for `M` tokens, panel after panel: what comes from memory is one stream.
#[inline(always)]
unsafe fn stream<L: Lanes, F: Format, const ASKED: bool, const M: usize>(work: &Work) {
    let work = &Work {
        ahead: STREAM_AHEAD,
        ..*work
    };
    for panel in 0..work.n_panels {
        // SAFETY: the panel exists, and the caller's promise.
        unsafe { tile::<L, F, ASKED, 1, M>(work, panel, 0) }
    }
}

#[inline(always)]
unsafe fn tile<L: Lanes, F: Format, const ASKED: bool, const P: usize, const M: usize>(
    work: &Work,
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
            for group in groups {
                for line in 0..F::CODES / LINE {
                    prefetch::<L, ASKED>(work, group.add(line * LINE));
                }
            }
            for block in 0..F::BLOCKS {
                let dots = dots::<L, F, ASKED, P, M>(work, groups, block, x);
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
unsafe fn dots<L: Lanes, F: Format, const ASKED: bool, const P: usize, const M: usize>(
    work: &Work,
    groups: [*const u8; P],
    block: usize,
    x: *const QuantBlock,
) -> [[L::Ints; M]; P] {
    // SAFETY: the caller's promise.
    unsafe {
        match F::KIND {
            Codes::Bytes => dots_of_bytes::<L, F, ASKED, P, M>(work, groups, block, x),
            Codes::Nibbles => dots_of_nibbles::<L, F, ASKED, P, M>(work, groups, block, x),
            Codes::Indices => dots_of_indices::<L, F, ASKED, P, M>(work, groups, block, x),
        }
    }
}

/// What the sums of a block begin at.
#[inline(always)]
unsafe fn begin<L: Lanes, F: Format, const P: usize, const M: usize>(
    work: &Work,
    x: *const QuantBlock,
) -> [[L::Ints; M]; P] {
    // SAFETY: as `tile`.
    unsafe {
        let mut ints = [[L::splat_int(0); M]; P];
        for m in 0..M {
            let begin = L::splat_int(F::offset::<L>(&*x.add(m * work.x_stride)));
            ints.iter_mut().for_each(|row| row[m] = begin);
        }
        ints
    }
}

#[inline(always)]
unsafe fn dots_of_bytes<L: Lanes, F: Format, const ASKED: bool, const P: usize, const M: usize>(
    work: &Work,
    groups: [*const u8; P],
    block: usize,
    x: *const QuantBlock,
) -> [[L::Ints; M]; P] {
    // SAFETY: as `tile`; 32 columns are 8 lines of bytes.
    unsafe {
        let mut ints = begin::<L, F, P, M>(work, x);
        for line in 0..8 {
            let mut codes = [L::zero_codes(); P];
            for p in 0..P {
                let at = groups[p].add(F::CODES + (block * 8 + line) * LINE);
                prefetch::<L, ASKED>(work, at);
                codes[p] = L::load(at);
            }
            for m in 0..M {
                let q = (*x.add(m * work.x_stride)).q.as_ptr().add(line * 4);
                for (sums, codes) in ints.iter_mut().zip(codes) {
                    sums[m] = L::dot_bytes(sums[m], codes, q);
                }
            }
        }
        ints
    }
}

/// Line `line` of 4 of a block: 4 columns, and the 4 after these.
#[inline(always)]
unsafe fn nibbles<L: Lanes, F: Format, const ASKED: bool, const P: usize>(
    work: &Work,
    groups: [*const u8; P],
    block: usize,
    line: usize,
) -> [[L::Codes; P]; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut low = [L::zero_codes(); P];
        let mut high = low;
        for p in 0..P {
            let at = groups[p].add(F::CODES + (block * 4 + line) * LINE);
            prefetch::<L, ASKED>(work, at);
            let both = L::load(at);
            (low[p], high[p]) = (L::low(both), L::high(both));
        }
        [low, high]
    }
}

#[inline(always)]
unsafe fn dots_of_nibbles<L: Lanes, F: Format, const ASKED: bool, const P: usize, const M: usize>(
    work: &Work,
    groups: [*const u8; P],
    block: usize,
    x: *const QuantBlock,
) -> [[L::Ints; M]; P] {
    // SAFETY: as `tile`; 32 columns are 4 lines of nibbles.
    unsafe {
        let mut nibble_sums = [[L::begin_nibbles(0); M]; P];
        for m in 0..M {
            let begin = L::begin_nibbles(F::offset::<L>(&*x.add(m * work.x_stride)));
            nibble_sums.iter_mut().for_each(|row| row[m] = begin);
        }
        for line in 0..4 {
            let [low, high] = nibbles::<L, F, ASKED, P>(work, groups, block, line);
            for m in 0..M {
                let q = (*x.add(m * work.x_stride)).q.as_ptr().add(line * 8);
                for (sums, low) in nibble_sums.iter_mut().zip(low) {
                    sums[m] = L::dot_nibbles(sums[m], low, q);
                }
                for (sums, high) in nibble_sums.iter_mut().zip(high) {
                    sums[m] = L::dot_nibbles(sums[m], high, q.add(4));
                }
            }
        }
        let mut ints = [[L::splat_int(0); M]; P];
        for (ints, nibbles) in ints.iter_mut().zip(nibble_sums) {
            for (m, (ints, nibbles)) in ints.iter_mut().zip(nibbles).enumerate() {
                *ints = L::end_nibbles(nibbles, F::offset::<L>(&*x.add(m * work.x_stride)));
            }
        }
        ints
    }
}

#[inline(always)]
unsafe fn dots_of_indices<L: Lanes, F: Format, const ASKED: bool, const P: usize, const M: usize>(
    work: &Work,
    groups: [*const u8; P],
    block: usize,
    x: *const QuantBlock,
) -> [[L::Ints; M]; P] {
    // SAFETY: as `tile`; 32 columns are 4 lines of nibbles.
    unsafe {
        let table = L::table(&F::TABLE);
        let mut ints = begin::<L, F, P, M>(work, x);
        for line in 0..4 {
            let halves = nibbles::<L, F, ASKED, P>(work, groups, block, line);
            for (i, half) in halves.into_iter().enumerate() {
                let half = half.map(|codes| L::look_up(table, codes));
                for m in 0..M {
                    let q = (*x.add(m * work.x_stride)).q.as_ptr().add(line * 8 + i * 4);
                    for (sums, codes) in ints.iter_mut().zip(half) {
                        sums[m] = L::dot_bytes(sums[m], codes, q);
                    }
                }
            }
        }
        ints
    }
}
