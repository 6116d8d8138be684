//! The parallel region of matrix products: which thread computes which columns of which output, and how they get there.
//! What is computed is up to the caller.

use std::{
    cell::RefCell,
    ops::{Range, RangeInclusive},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{Engine, LANES, PANEL_GROUP, memory::Buffer, panels::TOGETHER};

/// Multiply-adds of a region below which waking other threads costs more than it saves (some 20 µs of one core).
pub(crate) const WORTH_THREADS: usize = 1 << 18;

/// A tile is one of so many parts of what is left of a share: few begin anew, but a thread that is held up leaves much to others,
/// and at the end none waits long for another.
const PARTS: usize = 4;

/// More threads than that begin at the share of another one.
const MOST_SHARES: usize = 64;

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

/// Has all columns of all `outputs` computed, on all threads if that is worth it, so many panels at a time as `tile` says unless
/// all are few. `depth` is how many multiply-adds a number takes.
///
/// # Panics
/// If an output is not `tokens` rows.
pub(crate) fn compute_tiles<const N: usize>(
    engine: &Engine,
    outputs: [Output<'_>; N],
    [tokens, depth]: [usize; 2],
    tile: RangeInclusive<usize>,
    compute: &(dyn Fn(Tile<'_>) + Sync),
) {
    let rows = outputs.each_ref().map(|output| output.rows);
    let add = outputs.each_ref().map(|output| output.add);
    let starts = outputs.map(|output| {
        assert_eq!(output.data.len(), tokens * output.rows, "an output of another size");
        Start(output.data.as_mut_ptr())
    });
    let panels = rows.map(|rows| rows.div_ceil(LANES));
    let compute_part = |output: usize, panels: Range<usize>| {
        BUFFERS.with_borrow_mut(|buffers| {
            let width = panels.len() * LANES;
            let out = buffers.out.numbers(tokens * width);
            let columns = panels.start * LANES..(panels.end * LANES).min(rows[output]);
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
    let all_panels: usize = panels.iter().sum();
    let alone = all_panels * LANES * depth * tokens < WORTH_THREADS;
    let threads = if alone { 1 } else { engine.pool.threads() };
    let shares = Shares::new(all_panels, threads, tile);
    engine.pool.run(threads, &|thread| {
        shares.take_part(thread % shares.n, |tile| of_each(panels, tile, compute_part));
    });
}

/// Calls `compute` with each of the outputs, of so many `panels`, that a tile has panels of, and with these.
fn of_each<const N: usize>(panels: [usize; N], tile: Range<usize>, compute: impl Fn(usize, Range<usize>)) {
    let mut first = 0;
    for (output, panels) in panels.into_iter().enumerate() {
        let part = tile.start.max(first)..tile.end.min(first + panels);
        if !part.is_empty() {
            compute(output, part.start - first..part.end - first);
        }
        first += panels;
    }
}

/// Which thread computes which of some panels: each those of a share of its own, in the order in which they are in memory, so that
/// a processor that fetches ahead need not begin anew; and then what others have left.
struct Shares {
    /// How many shares.
    n: usize,
    panels: usize,
    /// Panels of a tile, the least and the most.
    tile: [usize; 2],
    /// The next panel of each share.
    next: [AtomicUsize; MOST_SHARES],
}

impl Shares {
    fn new(panels: usize, threads: usize, tile: RangeInclusive<usize>) -> Self {
        let n = threads.min(MOST_SHARES);
        let most = (panels / (n * PARTS)).clamp(1, *tile.end());
        let mut shares = Self {
            n,
            panels,
            tile: [most.min(*tile.start()), most],
            next: [const { AtomicUsize::new(0) }; MOST_SHARES],
        };
        for i in 0..n {
            *shares.next[i].get_mut() = shares.bound(i);
        }
        shares
    }

    /// Where share `i` begins, and the one before it ends.
    fn bound(&self, i: usize) -> usize {
        if i == self.n {
            return self.panels;
        }
        let group = group(self.tile[1]);
        self.panels * i / self.n / group * group
    }

    /// Computes tiles until there are none, first those of one share.
    fn take_part(&self, share: usize, compute: impl Fn(Range<usize>)) {
        for share in (share..self.n).chain(0..share) {
            while let Some(tile) = self.take(share) {
                compute(tile);
            }
        }
    }

    /// The next tile of a share.
    fn take(&self, share: usize) -> Option<Range<usize>> {
        let end = self.bound(share + 1);
        let [least, most] = self.tile;
        let tile = |first: usize| {
            let panels = ((end - first) / PARTS).clamp(least, most);
            first..end.min(first + panels / group(panels) * group(panels))
        };
        let next = |first: usize| (first < end).then(|| tile(first).end);
        self.next[share].fetch_update(Relaxed, Relaxed, next).ok().map(tile)
    }
}

/// Of so many panels tiles and shares are a multiple that have so many at least: groups of the kernel, or of panels that lie
/// together.
fn group(panels: usize) -> usize {
    match panels {
        0..TOGETHER => 1,
        TOGETHER..PANEL_GROUP => TOGETHER,
        _ => PANEL_GROUP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_is_computed_once() {
        for threads in [1, 2, 3, 7, MOST_SHARES, MOST_SHARES + 5] {
            for panels in [0, 1, 5, 64, 127, 1000] {
                for tile in [1..=1, 4..=4, 3..=9, 5..=500] {
                    let most = *tile.end();
                    let shares = Shares::new(panels, threads, tile);
                    let computed: Vec<AtomicUsize> = (0..panels).map(|_| AtomicUsize::new(0)).collect();
                    let compute = |tile: Range<usize>| {
                        assert!((1..=most).contains(&tile.len()));
                        tile.for_each(|panel| {
                            computed[panel].fetch_add(1, Relaxed);
                        });
                    };
                    std::thread::scope(|scope| {
                        for thread in 0..threads {
                            let (shares, compute) = (&shares, &compute);
                            scope.spawn(move || shares.take_part(thread % shares.n, compute));
                        }
                    });
                    let times: Vec<usize> = computed.into_iter().map(AtomicUsize::into_inner).collect();
                    assert_eq!(times, vec![1; panels], "{threads} threads, tiles of {most}");
                }
            }
        }
    }

    #[test]
    fn a_thread_alone_computes_the_shares_of_all() {
        let shares = Shares::new(100, 4, 4..=8);
        let mut tiles = std::sync::Mutex::new(Vec::new());
        shares.take_part(2, |tile| tiles.lock().unwrap().push(tile));
        let tiles = tiles.get_mut().unwrap();
        assert_eq!(tiles[0].start, shares.bound(2), "its own comes first");
        assert!(tiles[0].end == tiles[1].start, "one after the other");
        assert_eq!(tiles.iter().map(ExactSizeIterator::len).sum::<usize>(), 100);
    }

    #[test]
    fn tiles_of_a_share_become_smaller() {
        let shares = Shares::new(1000, 2, 8..=100);
        let mut tiles = Vec::new();
        while let Some(tile) = shares.take(0) {
            tiles.push(tile.len());
        }
        assert_eq!(tiles, [100, 100, 72, 56, 40, 32, 24, 16, 12, 12, 8, 8, 8, 8, 4]);
    }
}
