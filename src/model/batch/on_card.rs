//! Ragged batches on cards: which blocks of a chain are run at a call, and where the keys and values of the tokens go.

use std::ops::Range;

use super::Part;
use crate::model::{
    AdapterId, Blocks, ComputeError,
    cuda::{CardBlock, CardHeads, Stretch, Tables},
    places::Placed,
};

impl Blocks {
    /// How many blocks from the start of `chain` are best run at one call: one on the host, where others can join between
    /// any two; as many as are on cards together, because activations stay there meanwhile.
    pub fn at_a_call(&self, chain: &[u32]) -> usize {
        let is_on_card = |block: &&u32| self.held(**block).is_some_and(|held| held.place().is_some());
        chain.iter().take_while(is_on_card).count().max(1)
    }

    /// The first of `blocks`, as far as they are on the card of this place.
    pub(super) fn on_card(&self, place: usize, blocks: &[u32]) -> Vec<&CardBlock> {
        let on_card = |block: &u32| match &self.held(*block)?.block {
            Placed::Card(at, block) if *at == place => Some(&**block),
            _ => None,
        };
        blocks.iter().map_while(on_card).collect()
    }

    /// The tokens `x` of all parts through the blocks of a stretch, which begins `offset` blocks after the first; as many at a
    /// time as `max_chunk_bytes` allows and no part cut because of another.
    pub(super) fn run_on_card(
        &self,
        (place, blocks): (usize, &[&CardBlock]),
        (x, offset): (&mut [f32], usize),
        parts: &mut [Part<'_>],
        tables: &mut Tables,
    ) -> Result<(), ComputeError> {
        let width = self.config.hidden_size;
        let per_token = blocks.iter().map(|block| block.scratch_bytes_per_token()).max();
        let at_a_time = (self.max_chunk_bytes / per_token.unwrap_or(1)).max(1);
        let stretch = Stretch {
            device: &self.cards[place],
            blocks,
            heads: CardHeads {
                n_heads: self.config.n_heads,
                kv: self.shared.heads.kv,
            },
        };
        let (mut rest, mut first) = (x, 0);
        while !rest.is_empty() {
            let lengths = parts.iter().map(Part::n_tokens);
            let tokens = first..end_of_chunk(lengths, first, at_a_time);
            first = tokens.end;
            let (chunk, others) = rest.split_at_mut(tokens.len() * width);
            rest = others;
            tables.clear();
            for i in 0..blocks.len() {
                self.make_room(place, (i, offset + i), &tokens, (&mut *parts, &mut *tables))?;
            }
            let pool = &self.shared.heads.engine.pool;
            stretch.run(chunk, tables, pool).map_err(ComputeError::Card)?;
        }
        Ok(())
    }

    /// Sees to it that those of all parts' tokens that are in `tokens` have pages of their own in the `i`th block of a stretch,
    /// and notes them.
    fn make_room(
        &self,
        place: usize,
        (i, offset): (usize, usize),
        tokens: &Range<usize>,
        (parts, tables): (&mut [Part<'_>], &mut Tables),
    ) -> Result<(), ComputeError> {
        let mut first = 0;
        for part in parts.iter_mut().filter(|part| !part.tokens.is_empty()) {
            for segment in part.segments(offset)? {
                let (from, to) = (tokens.start.max(first), tokens.end.min(first + segment.tokens));
                if from < to {
                    let positions = segment.position + from - first..segment.position + to - first;
                    let room = segment.row.prepare_on_card(place, positions.clone());
                    room.map_err(ComputeError::Card)?;
                    if i == 0 {
                        let adapter = segment.adapter.map(|AdapterId(idx)| idx);
                        tables.add_sequence(positions, segment.sequence_len, adapter);
                    }
                    tables.add_pages(segment.row.pages());
                }
                first += segment.tokens;
            }
            if i == 0 {
                tables.end_step(part.tokens.len());
            }
        }
        Ok(())
    }
}

/// Behind the last of the tokens from `first` that are computed at a time, of parts with so many tokens: whole parts as far as
/// they fit. One that is too long for any chunk begins one and is cut into as many tokens as a chunk has, whatever is beside it.
fn end_of_chunk(lengths: impl Iterator<Item = usize>, first: usize, at_a_time: usize) -> usize {
    let (mut end_of_part, mut end) = (0, first);
    for length in lengths {
        end_of_part += length;
        if end_of_part <= first {
            continue;
        }
        if end_of_part - first > at_a_time {
            return if end == first { first + at_a_time } else { end };
        }
        end = end_of_part;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(lengths: &[usize], at_a_time: usize) -> Vec<usize> {
        let all = lengths.iter().sum();
        let next = |first: &usize| Some(end_of_chunk(lengths.iter().copied(), *first, at_a_time));
        let mut ends: Vec<usize> = std::iter::successors(next(&0), |end| next(end).filter(|_| *end < all)).collect();
        ends.dedup();
        ends
    }

    #[test]
    fn a_part_is_cut_only_if_it_is_too_long_and_then_as_it_is_alone() {
        assert_eq!(ends(&[3, 4], 10), [7]);
        assert_eq!(ends(&[3, 4, 5, 0, 6], 10), [7, 12, 18]);
        assert_eq!(ends(&[25], 10), [10, 20, 25]);
        assert_eq!(ends(&[3, 25, 4, 2], 10), [3, 13, 23, 32, 34]);
        assert_eq!(ends(&[1, 1, 1], 1), [1, 2, 3]);
    }
}
