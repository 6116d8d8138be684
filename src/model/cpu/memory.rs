//! Memory for weights and scratch: zeroed, aligned to cache lines, in large pages where the system has them.

use std::io;

use bytemuck::Pod;
use memmap2::MmapMut;

/// The size of a large page, where there are such. Memory is whole ones from this size on, so that it begins at one.
const LARGE: usize = 2 << 20;

/// Bytes that begin at a page.
#[derive(Debug)]
pub(crate) struct Memory(MmapMut);

impl Memory {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(crate) fn zeroed(bytes: usize) -> io::Result<Self> {
        // No memory at all cannot be mapped.
        let map = MmapMut::map_anon(if bytes < LARGE {
            bytes.max(1)
        } else {
            bytes.next_multiple_of(LARGE)
        })?;
        #[cfg(target_os = "linux")]
        if bytes >= LARGE {
            // Systems without large pages refuse, and are slower.
            drop(map.advise(memmap2::Advice::HugePage));
        }
        Ok(Self(map))
    }

    /// The first `len` numbers.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn numbers<T: Pod>(&self, len: usize) -> &[T] {
        bytemuck::cast_slice(&self.0[..len * size_of::<T>()])
    }

    /// As [`Memory::numbers`], to write to.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn numbers_mut<T: Pod>(&mut self, len: usize) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0[..len * size_of::<T>()])
    }
}

/// Numbers to compute with, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Option<Memory>,
    /// How many it has room for.
    room: usize,
}

impl Buffer {
    /// From this size on one large page is better than many small ones, of which the caches that find pages forget some.
    const WORTH_LARGE: usize = LARGE / 8;

    /// `len` numbers, of which nobody knows what they are.
    ///
    /// # Panics
    /// When the system gives no memory.
    pub(crate) fn numbers(&mut self, len: usize) -> &mut [f32] {
        if len > self.room {
            let bytes = (len * size_of::<f32>()).next_power_of_two();
            let bytes = if bytes < Self::WORTH_LARGE {
                bytes
            } else {
                bytes.max(LARGE)
            };
            // Nothing is left of it should there be no memory for more.
            (self.memory, self.room) = (None, 0);
            let memory = Memory::zeroed(bytes).unwrap_or_else(|error| panic!("no memory to compute in: {error}"));
            (self.memory, self.room) = (Some(memory), bytes / size_of::<f32>());
        }
        self.memory.as_mut().map_or(&mut [], |memory| memory.numbers_mut(len))
    }

    /// The first `len` of them as they were left.
    ///
    /// # Panics
    /// If there never were so many.
    pub(crate) fn as_slice(&self, len: usize) -> &[f32] {
        self.memory.as_ref().map_or(&[], |memory| memory.numbers(len))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_buffer_that_could_not_grow_has_what_it_is_asked_for_next() {
        let mut buffer = Buffer::default();
        buffer.numbers(10).fill(1.0);
        let grown = catch_unwind(AssertUnwindSafe(|| buffer.numbers(1 << 50).len()));
        assert!(grown.is_err(), "there are machines with 4 PiB");
        assert_eq!(buffer.numbers(10).len(), 10);
    }
}
