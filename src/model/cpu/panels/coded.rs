//! Panels of bf16 in 12 bits a weight, without loss. Of a weight's two bytes the lower is as it is; the higher, which is its sign
//! and most of its exponent, is one of few in any panel, and a code of 4 bits stands for it. Where a weight's high byte has
//! no code there is another weight, and what is to be added to that is an exception, listed beside. Two panels lie together: so
//! few tokens have two chains of sums, of which none waits for the other, and what comes from memory is still one stream.
//!
//! ```text
//! pair  = 16 high bytes, by code, of each panel · 32 zeros    in turn a group of 8 k of the first panel and of the second
//! group = low bytes of k 0..4 (64) · of k 4..8 (64) · codes (64): of k 0..4 in the lower halves of bytes, k 4..8 in the upper
//!         each 64 bytes: 4 times [lanes 4q..4q+4: k 0 and 1 of a lane, of the next ...] [the same of k 2 and 3]
//! ```
//!
//! So an instruction that interleaves the bytes of two registers, as all vector units have one, gives words of which two
//! are a lane's bf16 of two k. The k of the last group that a panel does not have are zeros, and never multiplied.
//!
//! Every product is the chain over all k, as of any panel, and then one multiply-add for each exception, k ascending. So it is
//! the same in any company; and the same bits as those of a panel of bf16, where a row has no exceptions.

use std::arch::asm;

use super::{
    Factors, Keep, Kernels, LANES, Lanes16, Numbers16, Product, Rows, RowsMut, Stored, dispatch, dispatch_pairs, fits,
    lanes::Words, many::part_depth, token_group,
};

/// k of a group.
pub(in crate::model::cpu) const GROUP: usize = 8;

/// Bytes of a group.
pub(in crate::model::cpu) const GROUP_BYTES: usize = 3 * HALF_BYTES;

/// Panels that lie together.
pub(in crate::model::cpu) const TOGETHER: usize = 2;

/// Bytes from a group of a panel to the next.
pub(in crate::model::cpu) const STRIDE: usize = TOGETHER * GROUP_BYTES;

/// High bytes that have codes.
pub(in crate::model::cpu) const TABLE: usize = 16;

/// Bytes of the tables of panels that lie together: a cache line, so that groups are whole ones.
pub(in crate::model::cpu) const TABLES_BYTES: usize = 64;

/// k that are loaded at a time, and bytes of their low bytes.
pub(in crate::model::cpu) const HALF: usize = GROUP / 2;
const HALF_BYTES: usize = HALF * LANES;

/// How far ahead of many tokens panels are asked for by default, in bytes: which are more k than those of other panels.
pub(super) const MANY_AHEAD: usize = 1024;

/// The most tokens with which four panels are multiplied at a time.
pub(super) const MOST_FOR_FOUR: usize = 4;

/// Where the weight of a k and a lane is among the 64 bytes of its half of a group.
#[inline(always)]
pub(in crate::model::cpu) const fn place_of(k: usize, lane: usize) -> usize {
    let k = k % HALF;
    lane / 4 * 16 + k / 2 * 8 + lane % 4 * 2 + k % 2
}

/// What a weight is more than the one in its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::model::cpu) struct Exception {
    /// `16 k + lane`
    pub(in crate::model::cpu) at: u32,
    pub(in crate::model::cpu) rest: f32,
}

impl Exception {
    /// Its k and its lane.
    fn place(self) -> (usize, usize) {
        (self.at as usize / LANES, self.at as usize % LANES)
    }
}

/// A panel, or what follows a whole number of its groups; without its exceptions.
#[derive(Clone, Copy, Debug)]
pub(in crate::model::cpu) struct CodedPanel {
    table: *const u8,
    groups: *const u8,
}

impl CodedPanel {
    /// Number `i` of the panels that lie together, from group number `first_group` on.
    pub(in crate::model::cpu) fn new(together: &[u8], i: usize, first_group: usize) -> Self {
        Self {
            table: together[i * TABLE..].as_ptr(),
            groups: together[TABLES_BYTES + first_group * STRIDE + i * GROUP_BYTES..].as_ptr(),
        }
    }

    /// Where the low bytes of half of a group are, and its codes and the table.
    ///
    /// # Safety
    /// The panel has the group.
    #[inline(always)]
    pub(super) unsafe fn parts<const SECOND: bool>(self, group: usize) -> [*const u8; 3] {
        // SAFETY: the caller's promise.
        unsafe {
            let group = self.groups.add(group * STRIDE);
            let low = if SECOND { group.add(HALF_BYTES) } else { group };
            [low, group.add(2 * HALF_BYTES), self.table]
        }
    }

    /// Asks for the group that comes about `ahead` bytes of this panel after one.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    pub(super) unsafe fn prefetch_group<L: Lanes16>(self, group: usize, ahead: usize) {
        let ahead = ahead / GROUP_BYTES;
        let at = self.groups.wrapping_add((group + ahead) * STRIDE);
        for line in 0..GROUP_BYTES / 64 {
            // SAFETY: the caller's promise.
            unsafe { L::prefetch(at.wrapping_add(line * 64)) }
        }
    }
}

/// Codes that are read into `H` registers for half of a group.
pub(super) trait Halves<L, const H: usize>: Copy {
    /// # Safety
    /// The CPU has the instructions of `L`, and the panel has the group.
    unsafe fn half<const SECOND: bool>(self, group: usize) -> [L; H];
}

impl<L: Numbers16> Halves<L, HALF> for CodedPanel {
    #[inline(always)]
    unsafe fn half<const SECOND: bool>(self, group: usize) -> [L; HALF] {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, codes, table] = self.parts::<SECOND>(group);
            L::load_codes::<SECOND>(low, codes, table)
        }
    }
}

impl<L: Numbers16> Stored<L> for CodedPanel {
    const STEP: usize = GROUP;

    const FOUR_PANELS: usize = MOST_FOR_FOUR;

    const STREAM: usize = TOGETHER;

    const MANY_AHEAD: usize = MANY_AHEAD;

    #[inline(always)]
    unsafe fn prefetch(&self, k: usize, ahead: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.prefetch_group::<L>(k / GROUP, ahead) }
    }

    #[inline(always)]
    unsafe fn step<const P: usize, const M: usize>(
        panels: &[Self; P],
        k: (usize, usize),
        x: Factors,
        keep: &impl Keep<L>,
        sums: &mut [[L; P]; M],
    ) {
        // SAFETY: the caller's promise.
        unsafe { step_of_group::<L, Self, P, M, HALF>(panels, k, x, keep, sums) }
    }
}

/// [`Stored::step`] of a group, or of the beginning of the last one, in twice `H` registers.
#[inline(always)]
pub(super) unsafe fn step_of_group<L: Lanes16, S: Halves<L, H>, const P: usize, const M: usize, const H: usize>(
    panels: &[S; P],
    (k, n): (usize, usize),
    x: Factors,
    keep: &impl Keep<L>,
    sums: &mut [[L; P]; M],
) {
    const { assert!(P == 1 || P == 2 || P == 4) }
    // SAFETY: the caller's promise; groups are whole.
    unsafe {
        if n == 2 * H {
            // A loop over panels would be too long for the compiler to make it straight code on registers.
            if P == 1 {
                groups::<L, S, P, M, 0, 1, H>(panels, k, x, keep, sums);
            } else if P == 2 {
                groups::<L, S, P, M, 0, 2, H>(panels, k, x, keep, sums);
            } else {
                groups::<L, S, P, M, 0, 1, H>(panels, k, x, keep, sums);
                groups::<L, S, P, M, 1, 1, H>(panels, k, x, keep, sums);
                groups::<L, S, P, M, 2, 1, H>(panels, k, x, keep, sums);
                groups::<L, S, P, M, 3, 1, H>(panels, k, x, keep, sums);
            }
        } else {
            let mut wide = [[0.0; GROUP * LANES]; P];
            for (panel, wide) in panels.iter().zip(&mut wide) {
                let halves = [panel.half::<false>(k / (2 * H)), panel.half::<true>(k / (2 * H))];
                for (weights, wide) in halves.as_flattened().iter().zip(wide.chunks_exact_mut(LANES)) {
                    weights.store(wide.as_mut_ptr());
                }
            }
            // Their words begin where k is 0.
            let wide = wide.each_ref().map(|wide| Words(wide.as_ptr().wrapping_sub(k * LANES)));
            Stored::step(&wide, (k, n), x, keep, sums);
        }
    }
}

/// A group of each of `N` panels, of which the first is `I`: with more of them sums would not stay in registers, with fewer
/// each number of x would be read more often.
#[inline(always)]
unsafe fn groups<
    L: Lanes16,
    S: Halves<L, H>,
    const P: usize,
    const M: usize,
    const I: usize,
    const N: usize,
    const H: usize,
>(
    panels: &[S; P],
    k: usize,
    x: Factors,
    keep: &impl Keep<L>,
    sums: &mut [[L; P]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let group = k / (2 * H);
        let mut x = Factors { at: hidden(x.at), ..x };
        let mut weights = [[L::zero(); H]; N];
        for p in 0..N {
            weights[p] = panels[I + p].half::<false>(group);
        }
        halves::<L, P, M, I, N, H>(weights, k, x, keep, sums);
        x.at = x.at.add(H * x.k);
        for p in 0..N {
            weights[p] = panels[I + p].half::<true>(group);
        }
        halves::<L, P, M, I, N, H>(weights, k + H, x, keep, sums);
    }
}

/// Half a group of each.
#[expect(
    clippy::needless_range_loop,
    reason = "loops over constants become straight code on registers"
)]
#[inline(always)]
unsafe fn halves<L: Lanes16, const P: usize, const M: usize, const I: usize, const N: usize, const H: usize>(
    weights: [[L; H]; N],
    k: usize,
    x: Factors,
    keep: &impl Keep<L>,
    sums: &mut [[L; P]; M],
) {
    for i in 0..H {
        // SAFETY: the caller's promise.
        unsafe {
            for p in 0..N {
                keep.keep(I + p, k + i, weights[p][i]);
            }
            for m in 0..M {
                let x = *x.at.add(i * x.k + m * x.token);
                for p in 0..N {
                    sums[m][I + p] = weights[p][i].mul_add(x, sums[m][I + p]);
                }
            }
        }
    }
}

/// The same address, of which the compiler does not know it: it would keep the numbers of x from panel to panel, in registers
/// that sums need.
#[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read")]
#[inline(always)]
fn hidden(mut at: *const f32) -> *const f32 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction.
    unsafe {
        asm!("/* {0} */", inout(reg) at, options(nomem, nostack, preserves_flags));
    }
    at
}

impl Kernels {
    /// Adds what the exceptions of a panel in codes make to the products of the panel with x, in `pairs` or not.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub(in crate::model::cpu) fn add_exceptions(
        self,
        (exceptions, cols, pairs): (&[Exception], usize, bool),
        x: Rows<'_>,
        out: RowsMut<'_>,
        tokens: usize,
    ) {
        assert_inside(exceptions, cols);
        let words = if pairs { cols / 2 } else { cols };
        let shape = Product::shape((1, words), x, out, tokens, true);
        let x = Factors {
            at: shape.x,
            k: 1,
            token: x.stride,
        };
        let out = (shape.out, shape.out_stride);
        // SAFETY: all lengths were checked.
        unsafe {
            if pairs {
                dispatch_pairs!(self, add_exceptions(exceptions, x, out, tokens))
            } else {
                dispatch!(self, add_exceptions(exceptions, x, out, tokens))
            }
        }
    }

    /// The same of many tokens, which are as [`super::many::interleave`] leaves them.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub(in crate::model::cpu) fn add_exceptions_many(
        self,
        (exceptions, cols, pairs): (&[Exception], usize, bool),
        x: &[f32],
        out: RowsMut<'_>,
        tokens: usize,
    ) {
        assert_inside(exceptions, cols);
        let words = if pairs { cols / 2 } else { cols };
        assert!(x.len() == tokens * words, "x is not of these tokens");
        assert!(
            fits(tokens, LANES, out.stride, out.data.len()),
            "no room for the products"
        );
        let (x, out) = ((x.as_ptr(), words), (out.data.as_mut_ptr(), out.stride));
        // SAFETY: all lengths were checked.
        unsafe {
            if pairs {
                dispatch_pairs!(self, add_exceptions_many(exceptions, x, out, tokens))
            } else {
                dispatch!(self, add_exceptions_many(exceptions, x, out, tokens))
            }
        }
    }
}

/// # Panics
/// If some are at no k of a panel of `depth`.
fn assert_inside(exceptions: &[Exception], depth: usize) {
    let inside = |exception: &Exception| (exception.at as usize) < depth * LANES;
    assert!(exceptions.iter().all(inside), "exceptions of another panel");
}

/// Adds the products of a panel's exceptions to those of its chains: `out[m][lane] += rest · x[m][k]`, `out` being of rows
/// `stride` apart.
///
/// # Safety
/// The CPU has the instructions of `L`, and the numbers of `tokens` exist.
#[inline(always)]
pub(super) unsafe fn add_exceptions<L: Lanes16, const PAIRS: bool>(
    exceptions: &[Exception],
    x: Factors,
    (out, stride): (*mut f32, usize),
    tokens: usize,
) {
    for exception in exceptions {
        let (k, lane) = exception.place();
        let (word, half) = place_in_x::<PAIRS>(k);
        // SAFETY: the caller's promise.
        unsafe {
            add_exception::<L>(
                (exception.rest, half),
                (x.at.add(word * x.k), x.token),
                (out.add(lane), stride),
                tokens,
            )
        }
    }
}

/// The same of x in parts as [`super::many::interleave`] leaves them.
///
/// # Safety
/// As [`add_exceptions`].
#[inline(always)]
pub(super) unsafe fn add_exceptions_many<L: Lanes16, const PAIRS: bool>(
    exceptions: &[Exception],
    (x, words): (*const f32, usize),
    (out, stride): (*mut f32, usize),
    tokens: usize,
) {
    let depth = part_depth(words);
    let mut first = 0;
    // Some tokens after the others, whose products stay in the first-level cache.
    while first < tokens {
        let group = token_group::<L>(tokens - first);
        let mut start = 0;
        for exception in exceptions {
            let (k, lane) = exception.place();
            let (k, half) = place_in_x::<PAIRS>(k);
            while start + depth <= k {
                start += depth;
            }
            // SAFETY: first + group <= tokens, and the caller's promise.
            unsafe {
                let depth = depth.min(words - start);
                let x = x.add(start * tokens + first * depth + (k - start) * group);
                // What the next tokens multiply.
                L::prefetch(x.wrapping_add(depth * group).cast());
                add_exception::<L>(
                    (exception.rest, half),
                    (x, 1),
                    (out.add(first * stride + lane), stride),
                    group,
                );
            }
        }
        first += group;
    }
}

/// Which half of a word of x a number is.
#[derive(Clone, Copy)]
enum Half {
    Whole,
    Lower,
    Upper,
}

/// In which word of a token the number of a k is, and where there.
#[inline(always)]
fn place_in_x<const PAIRS: bool>(k: usize) -> (usize, Half) {
    match (PAIRS, k % 2) {
        (false, _) => (k, Half::Whole),
        (true, 0) => (k / 2, Half::Lower),
        (true, _) => (k / 2, Half::Upper),
    }
}

/// One exception's, of words that are so far apart.
#[inline(always)]
unsafe fn add_exception<L: Lanes16>(
    (rest, half): (f32, Half),
    (mut x, x_stride): (*const f32, usize),
    (mut out, stride): (*mut f32, usize),
    tokens: usize,
) {
    for _ in 0..tokens {
        // SAFETY: the caller's promise, of as many words as there are tokens.
        unsafe {
            let number = match half {
                Half::Whole => *x,
                Half::Lower => f32::from_bits((*x).to_bits() << 16),
                Half::Upper => f32::from_bits((*x).to_bits() & 0xffff_0000),
            };
            *out = L::mul_add_one(rest, number, *out);
        }
        (x, out) = (x.wrapping_add(x_stride), out.wrapping_add(stride));
    }
}
