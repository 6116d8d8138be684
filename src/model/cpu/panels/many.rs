//! Products of panels with many tokens, which arithmetic limits if all that a tile multiplies comes from a cache. So k is
//! cut into parts. Of a part, the tokens of a tile stay in the first-level cache while some panels pass by, and those are in
//! the second-level one, as f32: the first tokens' tiles left them there, which read and widened them on the way.

use std::ops::Range;

use super::{Element16, LANES, Lanes16, Product, accumulate, token_group};

/// k of a part: of 12 tokens it takes more than half of a first-level cache of 32 KiB.
const DEPTH: usize = 384;

/// How far ahead of the multiplication panels are asked for, in bytes: of a cache, and of memory.
const CACHE_AHEAD: usize = 512;
const MEMORY_AHEAD: usize = 2048;

/// The same of x, for the tokens that come next.
const X_AHEAD: usize = 1536;

/// k between two requests for sums of the next tile: a core waits for a few lines at a time only.
const BETWEEN_REQUESTS: usize = 4;

/// The parts that `cols` k are cut into, of equal length but for the last.
pub(in crate::model::cpu) fn parts(cols: usize) -> impl Iterator<Item = Range<usize>> {
    let depth = cols.div_ceil(cols.div_ceil(DEPTH).max(1)).max(1);
    let starts = (0..cols).step_by(depth);
    starts.map(move |first| first..cols.min(first + depth))
}

/// The product of x as [`interleave`] leaves it, at least [`super::MAX_TOKEN_GROUP`] tokens. Panels of other types than f32 are
/// written to `widened`.
///
/// # Safety
/// The CPU has the instructions of `L`; panels have `16 · depth` numbers, `widened` has room for all that are
/// not f32, and `x` and `out` have what `tokens` and the stride say.
#[inline(always)]
pub(super) unsafe fn multiply_many<L: Lanes16, E: Element16>(product: Product<'_, E>, widened: *mut f32) {
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
                (0, 12) => by_panels::<L, E, 12, true>(part, widened),
                (0, 6) => by_panels::<L, E, 6, true>(part, widened),
                (0, _) => by_panels::<L, E, 2, true>(part, widened),
                (_, 12) => by_panels::<L, E, 12, false>(part, widened),
                (_, 8) => by_panels::<L, E, 8, false>(part, widened),
                (_, 6) => by_panels::<L, E, 6, false>(part, widened),
                (_, 4) => by_panels::<L, E, 4, false>(part, widened),
                (_, 2) => by_panels::<L, E, 2, false>(part, widened),
                _ => by_panels::<L, E, 1, false>(part, widened),
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
/// for which panels are read, or find them as f32.
#[inline(always)]
unsafe fn by_panels<L: Lanes16, E: Element16, const M: usize, const FIRST: bool>(
    product: Product<'_, E>,
    widened: *mut f32,
) {
    let mut done = 0;
    while done < product.panels.len() {
        let left = product.panels.len() - done;
        // SAFETY: the panels of a tile exist, and the caller's promise.
        unsafe {
            if left >= 4 && 4 * M <= L::SUMS {
                tiles::<L, E, 4, M, FIRST>(&product, widened, done);
                done += 4;
            } else if left >= 2 && 2 * M <= L::SUMS {
                tiles::<L, E, 2, M, FIRST>(&product, widened, done);
                done += 2;
            } else {
                tiles::<L, E, 1, M, FIRST>(&product, widened, done);
                done += 1;
            }
        }
    }
}

/// The tile of the panels `first` and after.
#[inline(always)]
unsafe fn tiles<L: Lanes16, E: Element16, const P: usize, const M: usize, const FIRST: bool>(
    product: &Product<'_, E>,
    widened: *mut f32,
    first: usize,
) {
    // SAFETY: the panels exist, and the caller's promise.
    unsafe {
        let out = product.out.add(first * LANES);
        let from = product.panels.as_ptr().add(first).cast::<[*const E; P]>().read();
        let wide: [*mut f32; P] = if E::IS_F32 {
            from.map(|panel| panel.cast_mut().cast())
        } else {
            std::array::from_fn(|p| widened.add((first + p) * product.depth * LANES))
        };
        if FIRST {
            tile::<L, E, P, M>(&Widening { from, to: wide }, product, out);
        } else {
            tile::<L, E, P, M>(&Widened(wide), product, out);
        }
    }
}

/// Where a tile's weights come from.
trait Weights<L, const P: usize> {
    /// Those of one k.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`, and `k` is inside the panels.
    unsafe fn at(&self, k: usize) -> [L; P];
}

/// Panels of f32, which only are read.
struct Widened<const P: usize>([*mut f32; P]);

/// Panels that come from memory, and are left as f32 if they were not.
struct Widening<E, const P: usize> {
    from: [*const E; P],
    to: [*mut f32; P],
}

impl<L: Lanes16, const P: usize> Weights<L, P> for Widened<P> {
    #[inline(always)]
    unsafe fn at(&self, k: usize) -> [L; P] {
        // SAFETY: the caller's promise; what is asked for need not exist.
        unsafe {
            let mut weights = [L::zero(); P];
            for (weights, panel) in weights.iter_mut().zip(&self.0) {
                let at = panel.add(k * LANES);
                L::prefetch(at.cast::<u8>().wrapping_add(CACHE_AHEAD));
                *weights = L::load_f32(at);
            }
            weights
        }
    }
}

impl<L: Lanes16, E: Element16, const P: usize> Weights<L, P> for Widening<E, P> {
    #[inline(always)]
    unsafe fn at(&self, k: usize) -> [L; P] {
        // SAFETY: as above.
        unsafe {
            let mut weights = [L::zero(); P];
            for (p, weights) in weights.iter_mut().enumerate() {
                let at = self.from[p].add(k * LANES);
                L::prefetch(at.cast::<u8>().wrapping_add(MEMORY_AHEAD));
                *weights = E::load::<L>(at);
                if !E::IS_F32 {
                    weights.store(self.to[p].add(k * LANES));
                }
            }
            weights
        }
    }
}

/// `P` panels with `M` tokens.
#[expect(
    clippy::needless_range_loop,
    reason = "loops over constants become straight code on registers"
)]
#[inline(always)]
unsafe fn tile<L: Lanes16, E: Element16, const P: usize, const M: usize>(
    weights: &impl Weights<L, P>,
    product: &Product<'_, E>,
    out: *mut f32,
) {
    let (x, stride) = (product.x, product.out_stride);
    // SAFETY: k < depth, p < P, m < M, all of which exist by the caller's promise; what is asked for need not exist.
    unsafe {
        let mut sums = [[L::zero(); P]; M];
        if product.add {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = L::load_f32(out.add(m * stride + p * LANES));
                }
            }
        }
        let mut k = 0;
        for m in 0..M {
            if k + BETWEEN_REQUESTS > product.depth {
                break;
            }
            for p in P..2 * P {
                L::prefetch(
                    out.cast::<u8>()
                        .wrapping_add((m * stride + p * LANES) * size_of::<f32>()),
                );
            }
            for _ in 0..BETWEEN_REQUESTS {
                step(&weights.at(k), x.add(k * M), &mut sums);
                k += 1;
            }
        }
        while k < product.depth {
            step(&weights.at(k), x.add(k * M), &mut sums);
            k += 1;
        }
        for m in 0..M {
            for p in 0..P {
                sums[m][p].store(out.add(m * stride + p * LANES));
            }
        }
    }
}

/// One k of a tile.
#[inline(always)]
unsafe fn step<L: Lanes16, const P: usize, const M: usize>(weights: &[L; P], x: *const f32, sums: &mut [[L; P]; M]) {
    // SAFETY: the caller's promise; what is asked for need not exist.
    unsafe {
        L::prefetch(x.cast::<u8>().wrapping_add(X_AHEAD));
        accumulate(weights, x, 1, sums);
    }
}
