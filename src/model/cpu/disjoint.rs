//! Outputs that tasks of one parallel region write to, each to parts of its own.

use std::{
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering},
};

/// Numbers in parts of equal length; each part is handed out once.
#[derive(Debug)]
pub(crate) struct Disjoint<'a> {
    start: *mut f32,
    part_len: usize,
    taken: &'a [AtomicBool],
    numbers: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for the `&mut [f32]` it was made from, which may be sent; parts are handed out once (`take`).
unsafe impl Send for Disjoint<'_> {}
// SAFETY: as above.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    /// `data` in parts of `part_len`. `taken` is memory that is used again.
    ///
    /// # Panics
    /// If `data` is not whole parts.
    pub(crate) fn new(data: &'a mut [f32], part_len: usize, taken: &'a mut Vec<AtomicBool>) -> Self {
        let n_parts = if data.is_empty() { 0 } else { data.len() / part_len };
        assert_eq!(n_parts * part_len, data.len(), "not whole parts");
        taken.clear();
        taken.resize_with(n_parts, AtomicBool::default);
        Self {
            start: data.as_mut_ptr(),
            part_len,
            taken,
            numbers: PhantomData,
        }
    }

    /// Part `i`.
    ///
    /// # Panics
    /// If there is none or it was taken before.
    pub(crate) fn take(&self, i: usize) -> &'a mut [f32] {
        assert!(
            !self.taken[i].swap(true, Ordering::Relaxed),
            "part {i} was taken before"
        );
        // SAFETY: there are `taken.len()` parts, `i` is one of them and nobody else has it or will get it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.part_len), self.part_len) }
    }
}
