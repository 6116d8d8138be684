//! The parallel region of matrix products: which thread computes which columns of which output, and how they get there.
//! What is computed is up to the caller.

use std::{cell::RefCell, ops::Range};

use super::{Engine, LANES, memory::Buffer};

/// Multiply-adds of a region below which waking other threads costs more than it saves (some 20 µs of one core).
pub(crate) const WORTH_THREADS: usize = 1 << 18;

/// Tiles per thread, so that one that is held up leaves its share to others.
const TILES_PER_THREAD: usize = 4;

/// `[tokens, rows]`, to be written by a region.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub(crate) rows: usize,
    pub(crate) data: &'a mut [f32],
    /// Whether what is computed is added to what is there.
    pub(crate) add: bool,
}

/// Some columns of one output, and memory to compute them in that is used again.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Which of the outputs.
    pub(crate) output: usize,
    /// Its rows, in panels of 16.
    pub(crate) panels: Range<usize>,
    /// `[tokens, 16 · panels]`, to be written.
    pub(crate) out: &'a mut [f32],
    pub(crate) spare: &'a mut Buffer,
    pub(crate) widened: &'a mut Buffer,
}

/// Memory of a thread.
#[derive(Default)]
struct Buffers {
    out: Buffer,
    spare: Buffer,
    widened: Buffer,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// The first of items that threads write to, each to a part of its own.
pub(super) struct Start<T>(pub(super) *mut T);

// SAFETY: it is no more than a number; whoever writes promises to write to a part of their own.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    /// `offset` is inside, or the end, of what begins here.
    pub(super) unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// Has all columns of all `outputs` computed, on all threads if that is worth it, at most `max_panels` panels at a
/// time. `depth` is how many multiply-adds a number takes.
///
/// # Panics
/// If an output is not `tokens` rows.
pub(crate) fn compute_tiles<const N: usize>(
    engine: &Engine,
    outputs: [Output<'_>; N],
    [tokens, depth]: [usize; 2],
    max_panels: usize,
    compute: &(dyn Fn(Tile<'_>) + Sync),
) {
    let rows = outputs.each_ref().map(|output| output.rows);
    let add = outputs.each_ref().map(|output| output.add);
    let starts = outputs.map(|output| {
        assert_eq!(output.data.len(), tokens * output.rows, "an output of another size");
        Start(output.data.as_mut_ptr())
    });
    let all_panels: usize = rows.iter().map(|rows| rows.div_ceil(LANES)).sum();
    let share = all_panels / (engine.pool.threads() * TILES_PER_THREAD);
    let n_panels = share.clamp(1, max_panels);
    let n_tiles = rows.map(|rows| rows.div_ceil(LANES * n_panels));
    let run = |task: usize| {
        let (mut output, mut i) = (0, task);
        while i >= n_tiles[output] {
            i -= n_tiles[output];
            output += 1;
        }
        let first = i * n_panels;
        let panels = first..(first + n_panels).min(rows[output].div_ceil(LANES));
        BUFFERS.with_borrow_mut(|buffers| {
            let width = panels.len() * LANES;
            let out = buffers.out.numbers(tokens * width);
            let columns = first * LANES..(panels.end * LANES).min(rows[output]);
            compute(Tile {
                output,
                panels,
                out,
                spare: &mut buffers.spare,
                widened: &mut buffers.widened,
            });
            for (token, numbers) in out.chunks_exact(width).enumerate() {
                // SAFETY: these columns of the output are this task's alone and inside it: columns.end <= rows, and
                // the output has `tokens` rows.
                unsafe {
                    let to = starts[output].at(token * rows[output] + columns.start);
                    if add[output] {
                        let to = std::slice::from_raw_parts_mut(to, columns.len());
                        to.iter_mut().zip(numbers).for_each(|(to, number)| *to += number);
                    } else {
                        to.copy_from_nonoverlapping(numbers.as_ptr(), columns.len());
                    }
                }
            }
        });
    };
    let n_tasks = n_tiles.iter().sum();
    if all_panels * LANES * depth * tokens < WORTH_THREADS {
        (0..n_tasks).for_each(run);
    } else {
        engine.pool.run(n_tasks, &run);
    }
}
