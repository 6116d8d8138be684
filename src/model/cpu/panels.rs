//! Products of panels, the one matrix kernel of the tree: weights, cached keys and cached values all end here. A panel is
//! 16 rows of a matrix, `[k][16]`, so that a register holds 16 outputs and nothing is ever summed across lanes.
//!
//! Every output is one chain of multiply-adds, k ascending. Tiles, types of call and neighbours in a batch decide which
//! outputs share a loop, never in which order one of them is summed: so a token's bits do not depend on its company.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_bf16;
mod coded;
mod few;
mod lanes;
mod many;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
mod pairs;
pub(super) mod portable;

pub(super) use coded::{
    CodedPanel, Exception, GROUP, GROUP_BYTES, HALF, STRIDE, TABLE, TABLES_BYTES, TOGETHER, place_of,
};
use coded::{Halves, MANY_AHEAD, MOST_FOR_FOUR};
pub(super) use lanes::{Element16, Lanes16, Numbers16, Stored};
pub(super) use many::parts;
pub(super) use pairs::{CodedPairs, PairPanel, dispatch_pairs, no_pairs};

use half::{bf16, f16};

use super::{Kernels, Slice, feed::Feed};

/// Rows of a panel, and outputs of a register (or of registers that are used like one).
pub(crate) const LANES: usize = 16;

/// How far ahead of the multiplication a panel is asked for by default, in bytes.
const PREFETCH_BYTES: usize = 1024;

/// Vectors of f32 whose first numbers are `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// Vectors to write to, whose first numbers are `stride` apart.
#[derive(Debug)]
pub(crate) struct RowsMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
}

/// Chains of multiply-adds that keep a CPU's units busy.
pub(super) const fn chains<L: Lanes16>() -> usize {
    if L::SUMS > 12 { 12 } else { L::SUMS }
}

/// `steps` times as many multiply-adds as there are [`chains`], in registers only: as many as a CPU can do.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn multiply_registers<L: Lanes16>(steps: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match chains::<L>() {
            12 => multiply_chains::<L, 12>(steps),
            6 => multiply_chains::<L, 6>(steps),
            _ => multiply_chains::<L, 2>(steps),
        }
    }
}

#[inline(always)]
unsafe fn multiply_chains<L: Lanes16, const N: usize>(steps: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let factor = std::hint::black_box(0.999);
        let weight = L::load([std::hint::black_box(0.5); LANES].as_ptr());
        let mut sums = [weight; N];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = sum.mul_add(factor, weight);
            }
        }
        let mut out = [0.0; LANES];
        let mut total = 0.0;
        for sum in sums {
            sum.store(out.as_mut_ptr());
            total += out[0];
        }
        total
    }
}

/// The sum of `numbers`, as quickly as they come from memory.
///
/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn sum<L: Lanes16>(numbers: &[f32]) -> f32 {
    const LINES: usize = 8;
    // Further ahead than a product asks: nothing else is done here.
    const AHEAD: usize = 4096;
    let chunks = numbers.chunks_exact(LINES * LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    // SAFETY: the caller's promise; a chunk has that many lines, and what is prefetched need not exist.
    unsafe {
        let mut sums = [L::zero(); LINES];
        for chunk in chunks {
            for (line, sum) in sums.iter_mut().enumerate() {
                let at = chunk.as_ptr().add(line * LANES);
                L::prefetch(at.cast::<u8>().wrapping_add(AHEAD));
                *sum = L::load(at).mul_add(1.0, *sum);
            }
        }
        let mut out = [[0.0_f32; LANES]; LINES];
        for (sum, out) in sums.iter().zip(&mut out) {
            sum.store(out.as_mut_ptr());
        }
        out.as_flattened().iter().sum::<f32>() + rest
    }
}

/// The kernel compiled for one instruction set: what [`dispatch`] calls.
macro_rules! entries {
    ($lanes:ty $(, #[$feature:meta])?) => {
        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::few::multiply`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn multiply<S: super::Stored<$lanes>>(product: super::Product<'_, S>, stride: usize) {
            // SAFETY: the caller's promise, here and below.
            unsafe {
                if product.is_streamed() {
                    stream(product, stride);
                } else {
                    tiles(product, stride);
                }
            }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::few::multiply`].
        $(#[$feature])?
        unsafe fn tiles<S: super::Stored<$lanes>>(product: super::Product<'_, S>, stride: usize) {
            unsafe { super::few::multiply::<$lanes, S>(product, stride) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::few::stream`].
        $(#[$feature])?
        unsafe fn stream<S: super::Stored<$lanes>>(product: super::Product<'_, S>, stride: usize) {
            unsafe { super::few::stream::<$lanes, S>(product, stride) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::many::multiply_many`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn multiply_many<S: super::Stored<$lanes>>(
            product: super::Product<'_, S>,
            widened: *mut f32,
        ) {
            unsafe { super::many::multiply_many::<$lanes, S>(product, widened) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::many::interleave`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn interleave(x: (*const f32, usize), shape: [usize; 2], out: *mut f32) {
            unsafe { super::many::interleave::<$lanes>(x, shape, out) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::coded::add_exceptions`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn add_exceptions(
            exceptions: &[super::Exception],
            x: super::Factors,
            out: (*mut f32, usize),
            tokens: usize,
        ) {
            unsafe { super::coded::add_exceptions::<$lanes, false>(exceptions, x, out, tokens) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::coded::add_exceptions_many`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn add_exceptions_many(
            exceptions: &[super::Exception],
            x: (*const f32, usize),
            out: (*mut f32, usize),
            tokens: usize,
        ) {
            unsafe { super::coded::add_exceptions_many::<$lanes, false>(exceptions, x, out, tokens) }
        }

        /// # Safety
        /// The CPU has the instructions of this file, and as [`super::widen`].
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn widen<E: super::Element16>(from: &[E], to: &mut [f32]) {
            unsafe { super::widen::<$lanes, E>(from, to) }
        }

        /// # Safety
        /// The CPU has the instructions of this file.
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn multiply_registers(steps: usize) -> f32 {
            unsafe { super::multiply_registers::<$lanes>(steps) }
        }

        /// # Safety
        /// The CPU has the instructions of this file.
        $(#[$feature])?
        pub(in crate::model::cpu) unsafe fn sum(numbers: &[f32]) -> f32 {
            unsafe { super::sum::<$lanes>(numbers) }
        }

        pub(in crate::model::cpu) fn chains() -> usize {
            super::chains::<$lanes>()
        }
    };
}
use entries;

/// Calls a function of the file of the level. To be called where its promises hold: `Kernels::available` saw that the CPU
/// has the level.
macro_rules! dispatch {
    ($kernels:expr, $function:ident($($argument:expr),*)) => {{
        use $crate::model::cpu::{Level, panels};
        match $kernels.level {
            Level::Portable => panels::portable::$function($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => panels::avx2::$function($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => panels::avx512::$function($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => panels::neon::$function($($argument),*),
        }
    }};
}
pub(super) use dispatch;

impl Kernels {
    /// Panels times vectors: `out[m][16 p + lane] (+)= Σ_k panels[p][k][lane] · x[m][k]`, k ascending, every output one
    /// chain of multiply-adds. Panels are `[k][16]`, any number of them, all of one type and length; x are
    /// `[tokens][k]`, out is `[tokens][16 · panels]`, both with their strides. With `add` the sums start from what
    /// `out` has. A token's outputs are the same bits whatever else is computed in the call.
    ///
    /// # Panics
    /// If panels differ or lengths do not fit together.
    #[expect(
        clippy::too_many_arguments,
        reason = "a product has two factors and a result, and each is many"
    )]
    pub(crate) fn multiply_panels(self, panels: &[Slice<'_>], x: Rows<'_>, out: RowsMut<'_>, tokens: usize, add: bool) {
        let Some(first) = panels.first() else { return };
        let depth = first.len() / LANES;
        assert!(first.len().is_multiple_of(LANES), "a panel is not whole rows");
        let shape = Product::shape((panels.len(), depth), x, out, tokens, add);
        match first {
            Slice::F32(_) => self.multiply_of::<f32>(panels, shape, x.stride),
            Slice::Bf16(_) => self.multiply_of::<bf16>(panels, shape, x.stride),
            Slice::F16(_) => self.multiply_of::<f16>(panels, shape, x.stride),
            Slice::I8(_) => self.multiply_of::<i8>(panels, shape, x.stride),
        }
    }

    /// `shape` with `panels` in place of its own; the lengths of all else are checked.
    fn multiply_of<E: Element16>(self, panels: &[Slice<'_>], shape: Product<'_, ()>, x_stride: usize) {
        for (i, group) in panels.chunks(PANEL_GROUP).enumerate() {
            let mut at = [std::ptr::null(); PANEL_GROUP];
            for (at, panel) in at.iter_mut().zip(group) {
                assert_eq!(panel.len(), shape.depth * LANES, "panels of different lengths");
                *at = E::items(*panel).as_ptr();
            }
            let product = shape.group(&at[..group.len()], i);
            // SAFETY: the caller checked x and out, the loop checked the panels.
            unsafe { dispatch!(self, multiply(product, x_stride)) }
        }
    }

    /// Chains of multiply-adds that `multiply_registers` computes.
    pub(super) fn chains(self) -> usize {
        dispatch!(self, chains())
    }

    /// The numbers of a panel, or of a part of one, as f32: written to `to` unless they are f32 already.
    ///
    /// # Panics
    /// If `from` is no multiple of 16 numbers, or `to` has another length.
    pub(crate) fn widen<'a>(self, from: Slice<'a>, to: &'a mut [f32]) -> &'a [f32] {
        assert!(
            from.len().is_multiple_of(LANES) && from.len() == to.len(),
            "not a whole panel"
        );
        // SAFETY: the lengths were checked.
        unsafe {
            match from {
                Slice::F32(from) => return from,
                Slice::Bf16(from) => dispatch!(self, widen(from, to)),
                Slice::F16(from) => dispatch!(self, widen(from, to)),
                Slice::I8(from) => dispatch!(self, widen(from, to)),
            }
        }
        to
    }
}

/// Whether `n` vectors of `len` numbers, `stride` apart, lie inside `available` numbers.
pub(super) fn fits(n: usize, len: usize, stride: usize, available: usize) -> bool {
    n == 0 || ((n - 1) * stride).checked_add(len).is_some_and(|end| end <= available)
}

/// One product, lengths checked. `out[m][16 p + lane] (+)= Σ_k panels[p][k][lane] · x[m][k]`
pub(super) struct Product<'a, S> {
    pub(super) panels: &'a [S],
    pub(super) depth: usize,
    pub(super) tokens: usize,
    pub(super) x: *const f32,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether the sums start from what `out` has.
    pub(super) add: bool,
    pub(super) feed: Feed,
}

impl<S> Clone for Product<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Product<'_, S> {}

impl Product<'_, ()> {
    /// One of `panels` panels of `depth` k that are yet to be named.
    ///
    /// # Panics
    /// If lengths do not fit together.
    pub(super) fn shape(
        (panels, depth): (usize, usize),
        x: Rows<'_>,
        out: RowsMut<'_>,
        tokens: usize,
        add: bool,
    ) -> Self {
        assert!(fits(tokens, depth, x.stride, x.data.len()), "fewer x than tokens");
        let width = panels * LANES;
        assert!(
            fits(tokens, width, out.stride, out.data.len()),
            "no room for the products"
        );
        assert!(tokens <= 1 || width <= out.stride, "products overlap");
        Self {
            panels: &[],
            depth,
            tokens,
            x: x.data.as_ptr(),
            out: out.data.as_mut_ptr(),
            out_stride: out.stride,
            add,
            feed: Feed::Panels,
        }
    }

    /// This with the panels of group `i`.
    pub(super) fn group<'a, S>(&self, panels: &'a [S], i: usize) -> Product<'a, S> {
        Product {
            panels,
            depth: self.depth,
            tokens: self.tokens,
            x: self.x,
            out: self.out.wrapping_add(i * PANEL_GROUP * LANES),
            out_stride: self.out_stride,
            add: self.add,
            feed: self.feed,
        }
    }
}

/// The most tokens of a tile at any level; a multiple of the most of each.
pub(super) const MAX_TOKEN_GROUP: usize = 12;

/// Sizes of tiles, in tokens.
const TOKEN_GROUPS: [usize; 6] = [MAX_TOKEN_GROUP, 8, 6, 4, 2, 1];

/// How many tokens the next tile takes when `left` are left.
#[inline(always)]
const fn token_group<L: Lanes16>(left: usize) -> usize {
    let mut i = 0;
    while TOKEN_GROUPS[i] > left || TOKEN_GROUPS[i] > L::SUMS {
        i += 1;
    }
    TOKEN_GROUPS[i]
}

/// Panels of one [`Product`]: they stay in the cache while all tokens pass.
pub(crate) const PANEL_GROUP: usize = 4;

/// The numbers of `from` as f32.
///
/// # Safety
/// The CPU has the instructions of `L`; `from` and `to` are equally many numbers, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn widen<L: Numbers16, E: Element16>(from: &[E], to: &mut [f32]) {
    let mut at = 0;
    while at < from.len() {
        // SAFETY: at + 16 <= len of both; what is prefetched need not exist.
        unsafe {
            let source = from.as_ptr().add(at);
            L::prefetch(source.cast::<u8>().wrapping_add(PREFETCH_BYTES));
            E::load::<L>(source).store(to.as_mut_ptr().add(at));
        }
        at += LANES;
    }
}

/// Where the numbers of x are that some weights are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Those of the first k and the first token.
    pub(super) at: *const f32,
    /// From one k to the next, and from one token to the next.
    pub(super) k: usize,
    pub(super) token: usize,
}

/// What else becomes of weights that are multiplied.
pub(super) trait Keep<L> {
    /// Takes the weights of one k of panel `p` of a tile.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`, and there is room for them.
    unsafe fn keep(&self, p: usize, k: usize, weights: L);
}

/// Nothing.
impl<L> Keep<L> for () {
    #[inline(always)]
    unsafe fn keep(&self, _: usize, _: usize, _: L) {}
}

/// Adds the products of the weights of one k and `M` numbers of x, `x_token` apart.
///
/// # Safety
/// The CPU has the instructions of `L`, and the numbers exist.
#[expect(
    clippy::needless_range_loop,
    reason = "loops over constants become straight code on registers"
)]
#[inline(always)]
unsafe fn accumulate<L: Lanes16, const P: usize, const M: usize>(
    weights: &[L; P],
    x: *const f32,
    x_token: usize,
    sums: &mut [[L; P]; M],
) {
    for m in 0..M {
        // SAFETY: the caller's promise.
        unsafe {
            let x = *x.add(m * x_token);
            for p in 0..P {
                sums[m][p] = weights[p].mul_add(x, sums[m][p]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
