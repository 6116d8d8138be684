//! Which part of a batch of sequences is computed next: some rows and some of their tokens, so that neither long batches
//! nor wide ones keep others waiting. Pure.

use std::ops::Range;

use super::schedule::MIN_CHUNK;

/// A part of a batch that is being computed, and with it how far the batch is: the rows before it are through, and of its
/// own rows the tokens before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    rows: Range<usize>,
    tokens: Range<usize>,
}

impl Piece {
    pub(crate) fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Of every row.
    pub(crate) fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Tokens of all rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() * self.tokens.len()
    }

    /// Whether the next one has yet to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nothing is left of a batch of so many rows.
    pub(crate) fn is_last(&self, batch: usize) -> bool {
        self.rows.start == batch
    }

    /// How large the next piece of a batch of `[rows, tokens]` is if there is room for `room` tokens; 0 if it is so small
    /// that it is not worth a reading of the weights.
    pub(crate) fn next_len(&self, size: [usize; 2], room: usize) -> usize {
        let next = self.next(size, room);
        let left = match self.rows.is_empty() {
            true => (size[0] - self.rows.start) * size[1],
            false => self.rows.len() * (size[1] - self.tokens.start),
        };
        let len = if room == 0 { 0 } else { next.len() };
        if len < left && len < MIN_CHUNK { 0 } else { len }
    }

    /// Takes the next piece: up to `room` tokens, one at least.
    pub(crate) fn take(&mut self, size: [usize; 2], room: usize) {
        *self = self.next(size, room);
    }

    fn next(&self, [batch, tokens]: [usize; 2], room: usize) -> Self {
        let room = room.max(1);
        let rows = match self.rows.is_empty() {
            true => self.rows.start..batch.min(self.rows.start.saturating_add(room)),
            false => self.rows.clone(),
        };
        let each = (room / rows.len().max(1)).max(1);
        let start = self.tokens.start;
        Self {
            rows,
            tokens: start..tokens.min(start.saturating_add(each)),
        }
    }

    /// It is computed. Of every row there are so many `tokens`.
    pub(crate) fn done(&mut self, tokens: usize) {
        self.tokens = self.tokens.end..self.tokens.end;
        if self.tokens.start == tokens {
            self.rows = self.rows.end..self.rows.end;
            self.tokens = 0..0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of all pieces with this room; every token of every row is in one of them, after those before it.
    fn pieces(size: [usize; 2], room: usize) -> Vec<usize> {
        let (mut piece, mut lens, mut done) = (Piece::default(), Vec::new(), vec![0; size[0]]);
        while !piece.is_last(size[0]) {
            piece.take(size, room);
            for row in piece.rows() {
                assert_eq!(done[row], piece.tokens().start);
                done[row] = piece.tokens().end;
            }
            lens.push(piece.len());
            piece.done(size[1]);
        }
        assert!(done.iter().all(|done| *done == size[1]));
        lens
    }

    #[test]
    fn long_batches_are_cut_by_tokens_and_wide_ones_by_rows() {
        assert_eq!(pieces([2, 100], 64), [64, 64, 64, 8]);
        assert_eq!(pieces([100, 1], 64), [64, 36]);
        assert_eq!(pieces([100, 2], 64), [64, 64, 36, 36]);
        assert_eq!(pieces([3, 5], usize::MAX), [15]);
        assert_eq!(pieces([1, 3], 0), [1, 1, 1]);
    }

    #[test]
    fn a_piece_that_is_too_small_waits_unless_it_is_the_rest() {
        let mut piece = Piece::default();
        assert_eq!(piece.next_len([100, 1], MIN_CHUNK - 1), 0);
        assert_eq!(piece.next_len([100, 1], MIN_CHUNK), MIN_CHUNK);
        assert_eq!(piece.next_len([1, 3], 3), 3);
        assert_eq!(piece.next_len([1, 3], 0), 0);
        piece.take([1, 1000], 998);
        piece.done(1000);
        assert_eq!(piece.next_len([1, 1000], 64), 2);
    }
}
