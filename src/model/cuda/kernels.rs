//! The kernels: CUDA C texts, and a wrapper in Rust for each family of them. A program is a family for one type of numbers,
//! so that only what is used is compiled.

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod elementwise;
pub(crate) mod limits;
pub(crate) mod linear;
pub(crate) mod matrix;
pub(crate) mod norm;
mod pack;
#[cfg(test)]
mod testing;

use super::launch::Grid;

const COMMON: &str = include_str!("kernels/common.cuh");
const FORMATS: &str = include_str!("kernels/formats.cuh");
const PAGES: &str = include_str!("kernels/pages.cuh");
const LINEAR: &str = include_str!("kernels/linear.cu");
const WIDEN: &str = include_str!("kernels/widen.cu");
const ATTENTION: &str = include_str!("kernels/attention.cu");

/// The programs there are: name, what is defined in front of the texts, and the texts.
const PROGRAMS: [(&str, &str, &[&str]); 17] = [
    ("norm", "", &[include_str!("kernels/norm.cu")]),
    ("elementwise", "", &[include_str!("kernels/elementwise.cu")]),
    ("tokens", "", &[include_str!("kernels/tokens.cu")]),
    ("limits", "", &[include_str!("kernels/limits.cu")]),
    ("product", "", &[include_str!("kernels/product.cu")]),
    ("cache", "", &[PAGES, include_str!("kernels/cache.cu")]),
    ("linear_f32", "#define FORMAT Dense<float>\n", &[FORMATS, LINEAR]),
    ("linear_bf16", "#define FORMAT Dense<Bf16>\n", &[FORMATS, LINEAR]),
    ("linear_f16", "#define FORMAT Dense<Half>\n", &[FORMATS, LINEAR]),
    ("linear_q8_0", "#define FORMAT Q8_0\n", &[FORMATS, LINEAR, WIDEN]),
    ("linear_q4_0", "#define FORMAT Q4_0\n", &[FORMATS, LINEAR, WIDEN]),
    ("linear_q4_k", "#define FORMAT Q4K\n", &[FORMATS, LINEAR, WIDEN]),
    ("linear_nf4", "#define FORMAT Nf4\n", &[FORMATS, LINEAR, WIDEN]),
    ("attention_f32", "#define NUMBER float\n", &[PAGES, ATTENTION]),
    ("attention_bf16", "#define NUMBER Bf16\n", &[PAGES, ATTENTION]),
    ("attention_f16", "#define NUMBER Half\n", &[PAGES, ATTENTION]),
    ("attention_i8", "#define NUMBER signed char\n", &[PAGES, ATTENTION]),
];

/// The text of a program, as it is compiled; `None` if there is none of this name.
pub(super) fn text(program: &str) -> Option<String> {
    let (_, defined, texts) = PROGRAMS.iter().find(|(name, ..)| *name == program)?;
    Some([COMMON, defined].into_iter().chain(texts.iter().copied()).collect())
}

/// Threads of a block where a kernel does not say.
const THREADS: u32 = 256;

/// Enough blocks for a thread per item, and a row of them for each of `lines`.
fn thread_per_item(items: usize, lines: usize) -> Grid {
    Grid {
        blocks: [items.div_ceil(THREADS as usize) as u32, lines as u32, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}
