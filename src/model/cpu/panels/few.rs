//! Products of panels with few tokens, which memory limits, and of any number whose x stays in rows, as queries with cached
//! keys: a tile of panels and tokens at a time, whose sums are in registers from the first k to the last. Products with many
//! tokens, which arithmetic limits, are in `many.rs`.

use super::{Factors, LANES, Lanes16, PANEL_GROUP, PREFETCH_BYTES, Product, Stored};
use crate::model::cpu::feed::{Feed, STREAM_AHEAD};

/// The product in tiles that leave the sums in registers, of x in rows, where it is not a [stream].
///
/// # Safety
/// The CPU has the instructions of `L`; panels have `16 · depth` numbers, `x` and `out` what `tokens` and strides say.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes16, S: Stored<L>>(product: Product<'_, S>, stride: usize) {
    let mut first = 0;
    while first < product.tokens {
        let tokens = row_group(product.tokens - first, most_tokens::<L>(&product).min(L::SUMS));
        // SAFETY: first + tokens <= product.tokens, and the caller's promise.
        unsafe {
            let part = Product {
                x: product.x.add(first * stride),
                out: product.out.add(first * product.out_stride),
                ..product
            };
            match tokens {
                8 => by_panels::<L, S, 8>(part, stride),
                7 => by_panels::<L, S, 7>(part, stride),
                6 => by_panels::<L, S, 6>(part, stride),
                5 => by_panels::<L, S, 5>(part, stride),
                4 => by_panels::<L, S, 4>(part, stride),
                3 => by_panels::<L, S, 3>(part, stride),
                2 => by_panels::<L, S, 2>(part, stride),
                _ => by_panels::<L, S, 1>(part, stride),
            }
        }
        first += tokens;
    }
}

/// How many tokens of x in rows the next tile takes when `left` are left: equal parts of at most `most`.
#[inline(always)]
const fn row_group(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

/// How many tokens of x in rows a tile takes at most. More than 8 would leave too few panels to it, and x has more rows
/// than a cache has ways. Where arithmetic is the limit, fewer tokens and more panels load less for each product.
#[inline(always)]
fn most_tokens<L: Lanes16>(product: &Product<'_, impl Stored<L>>) -> usize {
    const MANY: usize = 12;
    let panels = PANEL_GROUP.min(product.panels.len());
    let balanced = L::SUMS / panels.max(1);
    if product.tokens >= MANY && balanced >= 4 {
        balanced.min(8)
    } else {
        8
    }
}

/// `M` tokens, `stride` apart, with all panels of `product`, as many at a time as leave the sums in registers.
#[inline(always)]
unsafe fn by_panels<L: Lanes16, S: Stored<L>, const M: usize>(product: Product<'_, S>, stride: usize) {
    let ahead = product.feed.ahead(PREFETCH_BYTES);
    let mut done = 0;
    // SAFETY: the panels of a tile exist, and the caller's promise.
    unsafe {
        while done < product.panels.len() {
            let left = product.panels.len() - done;
            let at = product.panels.as_ptr().add(done);
            let out = product.out.add(done * LANES);
            if left >= 4 && 4 * M <= L::SUMS && M <= S::FOUR_PANELS {
                tile::<L, S, true, 4, M>((at.cast::<[S; 4]>().read(), ahead), out, &product, stride);
                done += 4;
            } else if left >= 2 && 2 * M <= L::SUMS {
                tile::<L, S, true, 2, M>((at.cast::<[S; 2]>().read(), ahead), out, &product, stride);
                done += 2;
            } else {
                tile::<L, S, true, 1, M>(([at.read()], ahead), out, &product, stride);
                done += 1;
            }
        }
    }
}

impl<S> Product<'_, S> {
    /// Whether it is a [stream].
    pub(super) fn is_streamed(&self) -> bool {
        self.feed != Feed::Panels && matches!(self.tokens, 1 | 2)
    }
}

/// The same of one or two tokens that take panels as a stream. It is apart because each tile has memory of its own on the
/// stack where nothing is optimised, and all of them together are more than a thread may have.
///
/// # Safety
/// As [`multiply`], and that the product [is streamed](Product::is_streamed).
#[inline(always)]
pub(super) unsafe fn stream<L: Lanes16, S: Stored<L>>(product: Product<'_, S>, stride: usize) {
    // SAFETY: the caller's promise; there are so many tokens.
    unsafe {
        match (product.feed, product.tokens) {
            (Feed::FarAhead, 1) => one_stream::<L, S, true, 1>(&product, stride),
            (Feed::FarAhead, _) => one_stream::<L, S, true, 2>(&product, stride),
            (_, 1) => one_stream::<L, S, false, 1>(&product, stride),
            (_, _) => one_stream::<L, S, false, 2>(&product, stride),
        }
    }
}

/// Panel after panel, or after two that lie together: what comes from memory is one stream.
#[inline(always)]
unsafe fn one_stream<L: Lanes16, S: Stored<L>, const ASKED: bool, const M: usize>(
    product: &Product<'_, S>,
    stride: usize,
) {
    let together = if ASKED { S::ASKED_STREAM } else { S::STREAM };
    let mut done = 0;
    while done < product.panels.len() {
        // SAFETY: the panels of a tile exist, there is room for the products of each, and the caller's promise.
        unsafe {
            let at = product.panels.as_ptr().add(done);
            let out = product.out.add(done * LANES);
            if together == 2 && product.panels.len() - done >= 2 {
                tile::<L, S, ASKED, 2, M>((at.cast::<[S; 2]>().read(), STREAM_AHEAD / 2), out, product, stride);
                done += 2;
            } else {
                tile::<L, S, ASKED, 1, M>(([at.read()], STREAM_AHEAD), out, product, stride);
                done += 1;
            }
        }
    }
}

/// `P` panels with `M` tokens. If they are to be `ASKED` for, it is some bytes `ahead`.
#[expect(
    clippy::needless_range_loop,
    reason = "loops over constants become straight code on registers"
)]
#[inline(always)]
unsafe fn tile<L: Lanes16, S: Stored<L>, const ASKED: bool, const P: usize, const M: usize>(
    (panels, ahead): ([S; P], usize),
    out: *mut f32,
    product: &Product<'_, S>,
    stride: usize,
) {
    // SAFETY: k < depth, p < P, m < M, all of which exist by the caller's promise. Prefetched addresses may lie behind
    // a panel.
    unsafe {
        let mut sums = [[L::zero(); P]; M];
        if product.add {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = L::load(out.add(m * product.out_stride + p * LANES));
                }
            }
        }
        let mut x = Factors {
            at: product.x,
            k: 1,
            token: stride,
        };
        let mut k = 0;
        while k + S::STEP <= product.depth {
            if ASKED {
                for panel in &panels {
                    panel.prefetch(k, ahead);
                }
            }
            S::step(&panels, (k, S::STEP), x, &(), &mut sums);
            k += S::STEP;
            x.at = x.at.add(S::STEP);
        }
        if k < product.depth {
            S::step(&panels, (k, product.depth - k), x, &(), &mut sums);
        }
        for m in 0..M {
            for p in 0..P {
                sums[m][p].store(out.add(m * product.out_stride + p * LANES));
            }
        }
    }
}
