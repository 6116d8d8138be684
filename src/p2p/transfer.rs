//! How long the bytes of a message take to arrive: what a line carries. It sends nothing of its own.

use std::time::{Duration, Instant};

/// Bytes that arrived in this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// How many.
    pub bytes: usize,
    /// How long they took.
    pub time: Duration,
}

/// The first mark, bytes; each is twice the one before.
const FIRST_MARK: usize = 8 * 1024;

/// A message that is arriving: when how much of it was there.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    got: usize,
    marks: Vec<(usize, Instant)>,
}

impl Progress {
    /// Takes note of bytes that have just arrived.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.got += bytes;
        let next = self.marks.last().map_or(FIRST_MARK, |(mark, _)| 2 * mark);
        if self.got >= next {
            self.marks.push((self.got, Instant::now()));
        }
    }

    /// The message is complete. What its second half took, about: the first is slowed down by a connection that only
    /// finds out how fast it may send. `None` for a message of a few packets, which says nothing.
    pub(crate) fn end(&mut self) -> Option<Transfer> {
        let Self { got, marks } = std::mem::take(self);
        let (mark, since) = marks.into_iter().rev().find(|(mark, _)| *mark <= got / 2)?;
        Some(Transfer {
            bytes: got - mark,
            time: since.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_of_a_message_is_measured_and_a_small_one_is_not() {
        let mut progress = Progress::default();
        for _ in 0..8 {
            progress.add(FIRST_MARK);
        }
        assert_eq!(progress.end().map(|transfer| transfer.bytes), Some(4 * FIRST_MARK));
        progress.add(FIRST_MARK);
        assert_eq!(progress.end(), None);
        progress.add(100);
        assert_eq!(progress.end(), None);
    }
}
