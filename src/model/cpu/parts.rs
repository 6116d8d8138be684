//! Passes over memory in parts of equal length, each part computed by one thread.

use super::{Pool, tiles::Start};

/// Numbers of a pass below which other threads are not worth waking.
pub(super) const WORTH_SHARING: usize = 1 << 14;

/// Numbers that a thread takes at a time where any will do.
pub(crate) const AT_A_TIME: usize = 4096;

/// `task(i, part i)` for all parts of `len` items of `data`, of which the last may be shorter. On all threads if there
/// are enough `numbers` to compute.
pub(crate) fn for_parts<T: Send>(
    pool: &Pool,
    numbers: usize,
    (data, len): (&mut [T], usize),
    task: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    if numbers < WORTH_SHARING {
        return data.chunks_mut(len).enumerate().for_each(|(i, part)| task(i, part));
    }
    let (n_items, start) = (data.len(), Start(data.as_mut_ptr()));
    pool.run(n_items.div_ceil(len), &|i| {
        let first = i * len;
        // SAFETY: part i is inside `data`, and this task's alone.
        let part = unsafe { std::slice::from_raw_parts_mut(start.at(first), len.min(n_items - first)) };
        task(i, part);
    });
}
