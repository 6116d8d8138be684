//! Products of panels, the one matrix kernel of the tree: weights, cached keys and cached values all end here. A panel is
//! 16 rows of a matrix, `[k][16]`, so that a register holds 16 outputs and nothing is ever summed across lanes.
//!
//! Every output is one chain of multiply-adds, k ascending. Tiles, types of call and neighbours in a batch decide which
//! outputs share a loop, never in which order one of them is summed: so a token's bits do not depend on its company.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod lanes;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod portable;

pub(super) use lanes::{Element16, Lanes16};

use half::{bf16, f16};

use super::{Kernels, Level, Slice};

/// Rows of a panel, and outputs of a register (or of registers that are used like one).
pub(crate) const LANES: usize = 16;

/// How far ahead of the multiplication a panel is asked for, in bytes.
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
        assert!(fits(tokens, depth, x.stride, x.data.len()), "fewer x than tokens");
        let width = panels.len() * LANES;
        assert!(
            fits(tokens, width, out.stride, out.data.len()),
            "no room for the products"
        );
        assert!(tokens <= 1 || width <= out.stride, "products overlap");
        let shape = Product {
            panels: &[],
            depth,
            tokens,
            x: x.data.as_ptr(),
            input: Input::Rows(x.stride),
            out: out.data.as_mut_ptr(),
            out_stride: out.stride,
            add,
        };
        match first {
            Slice::F32(_) => self.multiply_of::<f32>(panels, shape),
            Slice::Bf16(_) => self.multiply_of::<bf16>(panels, shape),
            Slice::F16(_) => self.multiply_of::<f16>(panels, shape),
            Slice::I8(_) => self.multiply_of::<i8>(panels, shape),
        }
    }

    /// `shape` with `panels` in place of its own; the lengths of all else are checked.
    fn multiply_of<E: Element16>(self, panels: &[Slice<'_>], shape: Product<'_, ()>) {
        for (group_idx, group) in panels.chunks(PANEL_GROUP).enumerate() {
            let mut at = [std::ptr::null(); PANEL_GROUP];
            for (at, panel) in at.iter_mut().zip(group) {
                assert_eq!(panel.len(), shape.depth * LANES, "panels of different lengths");
                *at = E::items(*panel).as_ptr();
            }
            let out = shape.out.wrapping_add(group_idx * PANEL_GROUP * LANES);
            // SAFETY: the caller checked x and out, the loop checked the panels.
            unsafe {
                self.run(Product {
                    out,
                    ..shape.with_panels(&at[..group.len()])
                })
            };
        }
    }

    /// # Safety
    /// As [`multiply`], except that the CPU is known to have the level.
    pub(super) unsafe fn run<E: Element16>(self, product: Product<'_, E>) {
        // SAFETY: `Kernels::available` saw the features; the rest is the caller's promise.
        unsafe {
            match self.level {
                Level::Portable => portable::run(product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::run(product),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::run(product),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::run(product),
            }
        }
    }
}

/// Whether `n` vectors of `len` numbers, `stride` apart, lie inside `available` numbers.
pub(super) fn fits(n: usize, len: usize, stride: usize, available: usize) -> bool {
    n == 0 || ((n - 1) * stride).checked_add(len).is_some_and(|end| end <= available)
}

/// Where the x of a product are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    /// `[token][k]`, tokens this many numbers apart.
    Rows(usize),
    /// `[k][token]`
    Interleaved,
}

/// One product, lengths checked. `out[m][16 p + lane] (+)= Σ_k panels[p][k][lane] · x[m][k]`
pub(super) struct Product<'a, E> {
    pub(super) panels: &'a [*const E],
    /// k runs to here.
    pub(super) depth: usize,
    pub(super) tokens: usize,
    pub(super) x: *const f32,
    pub(super) input: Input,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether the sums start from what `out` has.
    pub(super) add: bool,
}

impl<E> Clone for Product<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Product<'_, E> {}

impl<E> Product<'_, E> {
    fn with_panels<'a, F>(&self, panels: &'a [*const F]) -> Product<'a, F> {
        Product {
            panels,
            depth: self.depth,
            tokens: self.tokens,
            x: self.x,
            input: self.input,
            out: self.out,
            out_stride: self.out_stride,
            add: self.add,
        }
    }
}

/// How many tokens the next tile takes when `left` are left: a size there is a loop for.
pub(super) const fn token_group<L: Lanes16>(left: usize) -> usize {
    let sizes = [12, 8, 6, 4, 3, 2, 1];
    let mut i = 0;
    while sizes[i] > left || sizes[i] > L::SUMS {
        i += 1;
    }
    sizes[i]
}

/// Panels of one [`Product`]: they stay in the cache while all tokens pass.
pub(super) const PANEL_GROUP: usize = 4;

/// The product in tiles that leave the sums in registers.
///
/// # Safety
/// The CPU has the instructions of `L`; panels have `16 · depth` numbers, `x` and `out` what `tokens` and strides say;
/// with [`Input::Interleaved`] there are as many tokens as a [`token_group`].
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes16, E: Element16>(product: Product<'_, E>) {
    let mut first = 0;
    while first < product.tokens {
        let tokens = token_group::<L>(product.tokens - first);
        // SAFETY: first + tokens <= product.tokens, and the caller's promise.
        unsafe {
            let part = Product {
                x: match product.input {
                    Input::Rows(stride) => product.x.add(first * stride),
                    Input::Interleaved => product.x,
                },
                out: product.out.add(first * product.out_stride),
                ..product
            };
            match tokens {
                12 => by_panels::<L, E, 12>(part),
                8 => by_panels::<L, E, 8>(part),
                6 => by_panels::<L, E, 6>(part),
                4 => by_panels::<L, E, 4>(part),
                3 => by_panels::<L, E, 3>(part),
                2 => by_panels::<L, E, 2>(part),
                _ => by_panels::<L, E, 1>(part),
            }
        }
        first += tokens;
    }
}

/// `M` tokens with all panels of `product`, as many at a time as leave the sums in registers.
#[inline(always)]
unsafe fn by_panels<L: Lanes16, E: Element16, const M: usize>(product: Product<'_, E>) {
    let mut done = 0;
    // SAFETY: the panels of a tile exist, and the caller's promise.
    unsafe {
        while done < product.panels.len() {
            let left = product.panels.len() - done;
            let at = product.panels.as_ptr().add(done);
            let out = product.out.add(done * LANES);
            if left >= 4 && 4 * M <= L::SUMS {
                either_input::<L, E, 4, M>(at, out, &product);
                done += 4;
            } else if left >= 2 && 2 * M <= L::SUMS {
                either_input::<L, E, 2, M>(at, out, &product);
                done += 2;
            } else {
                either_input::<L, E, 1, M>(at, out, &product);
                done += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn either_input<L: Lanes16, E: Element16, const P: usize, const M: usize>(
    panels: *const *const E,
    out: *mut f32,
    product: &Product<'_, E>,
) {
    // SAFETY: `P` panels are there.
    unsafe {
        let panels = panels.cast::<[*const E; P]>().read();
        match product.input {
            Input::Rows(stride) => tile::<L, E, P, M>(panels, out, product, stride, 1),
            Input::Interleaved => tile::<L, E, P, M>(panels, out, product, 1, M),
        }
    }
}

/// `P` panels with `M` tokens. Number k of token m of x is at `m · x_token + k · x_depth`.
#[inline(always)]
unsafe fn tile<L: Lanes16, E: Element16, const P: usize, const M: usize>(
    panels: [*const E; P],
    out: *mut f32,
    product: &Product<'_, E>,
    x_token: usize,
    x_depth: usize,
) {
    // SAFETY: k < depth, p < P, m < M, all of which exist by the caller's promise. Prefetched addresses may lie behind
    // a panel.
    unsafe {
        let mut sums = [[L::zero(); P]; M];
        if product.add {
            for m in 0..M {
                for p in 0..P {
                    sums[m][p] = L::load_f32(out.add(m * product.out_stride + p * LANES));
                }
            }
        }
        let mut k = 0;
        // A cache line of each panel at a time.
        while k + E::PER_LINE <= product.depth {
            for panel in &panels {
                L::prefetch(panel.add(k * LANES).cast::<u8>().wrapping_add(PREFETCH_BYTES));
            }
            for ahead in 0..E::PER_LINE {
                let k = k + ahead;
                step::<L, E, P, M>(&panels, k, product.x.add(k * x_depth), x_token, &mut sums);
            }
            k += E::PER_LINE;
        }
        while k < product.depth {
            step::<L, E, P, M>(&panels, k, product.x.add(k * x_depth), x_token, &mut sums);
            k += 1;
        }
        for m in 0..M {
            for p in 0..P {
                sums[m][p].store(out.add(m * product.out_stride + p * LANES));
            }
        }
    }
}

#[inline(always)]
unsafe fn step<L: Lanes16, E: Element16, const P: usize, const M: usize>(
    panels: &[*const E; P],
    k: usize,
    x: *const f32,
    x_token: usize,
    sums: &mut [[L; P]; M],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [L::zero(); P];
        for p in 0..P {
            weights[p] = E::load::<L>(panels[p].add(k * LANES));
        }
        for m in 0..M {
            let x = *x.add(m * x_token);
            for p in 0..P {
                sums[m][p] = weights[p].mul_add(x, sums[m][p]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
