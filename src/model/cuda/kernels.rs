//! The kernels: CUDA C texts, each a program of its own, and a wrapper in Rust for each family of them.

/// The programs there are: name and text.
const PROGRAMS: [(&str, &str); 0] = [];

/// The text of a program, as it is compiled; `None` if there is none of this name.
pub(super) fn text(program: &str) -> Option<String> {
    let (_, text) = PROGRAMS.iter().find(|(name, _)| *name == program)?;
    Some((*text).to_owned())
}
