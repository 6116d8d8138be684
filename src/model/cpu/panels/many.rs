//! Products of panels with many tokens, which arithmetic limits if all that a tile multiplies comes from a cache. So k is
//! cut into parts. Of a part, the tokens of a tile stay in the first-level cache while some panels pass by, and those are in
//! the second-level one, as words that registers take: the first tokens' tiles left them there, which read and widened them
//! on the way.

use std::ops::Range;

use super::{Factors, GROUP, Keep, LANES, Lanes16, Product, Stored, lanes::Words, token_group};

/// k of a part: of 12 tokens it takes more than half of a first-level cache of 32 KiB.
const DEPTH: usize = 384;

const _: () = assert!(DEPTH.is_multiple_of(GROUP));

/// How far ahead of the multiplication words are asked for that are in a cache, in bytes.
const CACHE_AHEAD: usize = 512;

/// The same of x, for the tokens that come next.
const X_AHEAD: usize = 1536;

/// k between two requests for sums of the next tile: a core waits for a few lines at a time only.
const BETWEEN_REQUESTS: usize = 4;

/// The parts that `cols` k are cut into.
pub(in crate::model::cpu) fn parts(cols: usize) -> impl Iterator<Item = Range<usize>> {
    let depth = part_depth(cols);
    let starts = (0..cols).step_by(depth);
    starts.map(move |first| first..cols.min(first + depth))
}

/// The length of each of these parts but the last: all are about equal, and whole groups of codes.
pub(super) fn part_depth(cols: usize) -> usize {
    let equal = cols.div_ceil(cols.div_ceil(DEPTH).max(1)).max(1);
    equal.next_multiple_of(GROUP)
}

/// The product of x as [`interleave`] leaves it, at least [`super::MAX_TOKEN_GROUP`] tokens. Panels that are no words yet are
/// written to `widened`.
///
/// # Safety
/// The CPU has the instructions of `L`; panels have `16 · depth` numbers, `widened` has room for all that are
/// no words, and `x` and `out` have what `tokens` and the stride say.
#[inline(always)]
pub(super) unsafe fn multiply_many<L: Lanes16, S: Stored<L>>(product: Product<'_, S>, widened: *mut f32) {
    let mut first = 0;
    while first < product.tokens {
        let tokens = token_group::<L>(product.tokens - first);
        // SAFETY: first + tokens <= product.tokens, the first tokens' tiles write what the others read, and the caller's
        // promise.
        unsafe {
            let part = Product {
                x: product.x.add(first * product.depth),
                out: product.out.add(first * product.out_stride),
                ..product
            };
            match (first, tokens) {
                (0, 12) => by_panels::<L, S, 12, true>(part, widened),
                (0, 6) => by_panels::<L, S, 6, true>(part, widened),
                (0, _) => by_panels::<L, S, 2, true>(part, widened),
                (_, 12) => by_panels::<L, S, 12, false>(part, widened),
                (_, 8) => by_panels::<L, S, 8, false>(part, widened),
                (_, 6) => by_panels::<L, S, 6, false>(part, widened),
                (_, 4) => by_panels::<L, S, 4, false>(part, widened),
                (_, 2) => by_panels::<L, S, 2, false>(part, widened),
                _ => by_panels::<L, S, 1, false>(part, widened),
            }
        }
        first += tokens;
    }
}

/// A part of x, `[tokens, depth]` with rows `stride` apart, as [`multiply_many`] takes it: `[group of tokens][k][token]`.
///
/// # Safety
/// The CPU has the instructions of `L`; `x` has those rows, `out` room for as many numbers.
#[inline(always)]
pub(super) unsafe fn interleave<L: Lanes16>(
    (x, stride): (*const f32, usize),
    [tokens, depth]: [usize; 2],
    out: *mut f32,
) {
    let mut first = 0;
    while first < tokens {
        let group = token_group::<L>(tokens - first);
        // SAFETY: first + group <= tokens, k < depth.
        unsafe {
            let (x, out) = (x.add(first * stride), out.add(first * depth));
            for k in 0..depth {
                for m in 0..group {
                    *out.add(k * group + m) = *x.add(m * stride + k);
                }
            }
        }
        first += group;
    }
}

/// `M` tokens with all panels of `product`, as many at a time as leave the sums in registers. These are the `FIRST` ones
/// for which panels are read, or find them as words.
#[inline(always)]
unsafe fn by_panels<L: Lanes16, S: Stored<L>, const M: usize, const FIRST: bool>(
    product: Product<'_, S>,
    widened: *mut f32,
) {
    let mut done = 0;
    while done < product.panels.len() {
        let left = product.panels.len() - done;
        // SAFETY: the panels of a tile exist, and the caller's promise.
        unsafe {
            if left >= 4 && 4 * M <= L::SUMS && (!FIRST || M <= S::FOUR_PANELS) {
                tiles::<L, S, 4, M, FIRST>(&product, widened, done);
                done += 4;
            } else if left >= 2 && 2 * M <= L::SUMS {
                tiles::<L, S, 2, M, FIRST>(&product, widened, done);
                done += 2;
            } else {
                tiles::<L, S, 1, M, FIRST>(&product, widened, done);
                done += 1;
            }
        }
    }
}

/// The tile of the panels `first` and after.
#[inline(always)]
unsafe fn tiles<L: Lanes16, S: Stored<L>, const P: usize, const M: usize, const FIRST: bool>(
    product: &Product<'_, S>,
    widened: *mut f32,
    first: usize,
) {
    // SAFETY: the panels exist, and the caller's promise.
    unsafe {
        let out = product.out.add(first * LANES);
        let from = product.panels.as_ptr().add(first).cast::<[S; P]>().read();
        let ahead = product.feed.ahead(S::MANY_AHEAD);
        // Nothing is there where panels are words.
        let to: [*mut f32; P] = std::array::from_fn(|p| widened.wrapping_add((first + p) * product.depth * LANES));
        if !FIRST {
            let wide = std::array::from_fn(|p| Words(from[p].as_words().unwrap_or(to[p]).cast_const()));
            tile::<L, _, P, M>((wide, CACHE_AHEAD), &(), product, out);
        } else if from[0].as_words().is_some() {
            tile::<L, S, P, M>((from, ahead), &(), product, out);
        } else {
            tile::<L, S, P, M>((from, ahead), &Widening(to), product, out);
        }
    }
}

/// Panels that come from memory are left as words here.
struct Widening<const P: usize>([*mut f32; P]);

impl<L: Lanes16, const P: usize> Keep<L> for Widening<P> {
    #[inline(always)]
    unsafe fn keep(&self, p: usize, k: usize, weights: L) {
        // SAFETY: the caller's promise.
        unsafe { weights.store(self.0[p].add(k * LANES)) }
    }
}

/// `P` panels, which are asked for some bytes `ahead`, with `M` tokens.
#[expect(
    clippy::needless_range_loop,
    reason = "loops over constants become straight code on registers"
)]
#[inline(always)]
unsafe fn tile<L: Lanes16, S: Stored<L>, const P: usize, const M: usize>(
    (panels, ahead): ([S; P], usize),
    keep: &impl Keep<L>,
    product: &Product<'_, impl Copy>,
    out: *mut f32,
) {
    const {
        assert!(BETWEEN_REQUESTS.is_multiple_of(S::STEP) || S::STEP.is_multiple_of(BETWEEN_REQUESTS));
    }
    let (depth, stride) = (product.depth, product.out_stride);
    let mut x = Factors {
        at: product.x,
        k: M,
        token: 1,
    };
    // SAFETY: k < depth, p < P, m < M, all of which exist by the caller's promise; what is asked for need not exist.
    unsafe {
        let mut sums = [[L::zero(); P]; M];
        if product.add {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = L::load(out.add(m * stride + p * LANES));
                }
            }
        }
        let mut k = 0;
        for m in 0..M {
            if k + BETWEEN_REQUESTS.max(S::STEP) > depth {
                break;
            }
            for p in P..2 * P {
                L::prefetch(
                    out.cast::<u8>()
                        .wrapping_add((m * stride + p * LANES) * size_of::<f32>()),
                );
            }
            for _ in 0..BETWEEN_REQUESTS.div_ceil(S::STEP) {
                step::<L, S, P, M>((&panels, ahead), &mut k, &mut x, keep, &mut sums);
            }
        }
        while k + S::STEP <= depth {
            step::<L, S, P, M>((&panels, ahead), &mut k, &mut x, keep, &mut sums);
        }
        if k < depth {
            S::step(&panels, (k, depth - k), x, keep, &mut sums);
        }
        for m in 0..M {
            for p in 0..P {
                sums[m][p].store(out.add(m * stride + p * LANES));
            }
        }
    }
}

/// As many k as are read at a time, which are then behind.
#[inline(always)]
unsafe fn step<L: Lanes16, S: Stored<L>, const P: usize, const M: usize>(
    (panels, ahead): (&[S; P], usize),
    k: &mut usize,
    x: &mut Factors,
    keep: &impl Keep<L>,
    sums: &mut [[L; P]; M],
) {
    // SAFETY: the caller's promise; what is asked for need not exist.
    unsafe {
        for i in 0..S::STEP {
            L::prefetch(x.at.add(i * M).cast::<u8>().wrapping_add(X_AHEAD));
        }
        for panel in panels {
            panel.prefetch(*k, ahead);
        }
        S::step(panels, (*k, S::STEP), *x, keep, sums);
        *k += S::STEP;
        x.at = x.at.add(S::STEP * M);
    }
}
