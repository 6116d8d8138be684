//! Whose the tokens of a call are. Kernels for few tokens and those for many give other last bits, and what is computed for
//! a step must not depend on what else is in the call: so each step alone decides which of the two its tokens go through.

use std::ops::Range;

use crate::model::WeightFormat;

/// Tokens of a step that are few for dense weights, and for quantised ones, which are widened for many.
const FEW: [usize; 2] = [16, 64];

/// Up to so many tokens of a step go through the kernels for few.
#[cfg(test)]
pub(crate) fn few_tokens(format: WeightFormat) -> usize {
    FEW[kind(format)]
}

fn kind(format: WeightFormat) -> usize {
    usize::from(format.dtype().is_none())
}

/// The tokens of a call, step after step.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    tokens: usize,
    steps: Vec<Step>,
    /// For dense weights, and for quantised ones.
    pieces: [Vec<Piece>; 2],
}

/// What one session computes at a time.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Behind its last token, among those of the call.
    end: usize,
    /// Tokens of each of its sequences.
    length: usize,
}

/// Tokens that are multiplied at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) tokens: Range<usize>,
    /// Steps that are few side by side, or otherwise those of one step.
    pub(crate) is_few: bool,
}

/// Some of the tokens of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    steps: &'a Steps,
    first: usize,
    end: usize,
}

impl Steps {
    pub(crate) fn clear(&mut self) {
        self.tokens = 0;
        self.steps.clear();
        self.pieces.iter_mut().for_each(Vec::clear);
    }

    /// Adds `tokens` of the next step, whose sequences have `length` tokens each.
    pub(crate) fn push(&mut self, tokens: usize, length: usize) {
        if tokens == 0 {
            return;
        }
        let tokens = self.tokens..self.tokens + tokens;
        self.tokens = tokens.end;
        self.steps.push(Step {
            end: tokens.end,
            length,
        });
        for (pieces, few) in self.pieces.iter_mut().zip(FEW) {
            let is_few = length.min(tokens.len()) <= few;
            match pieces.last_mut() {
                Some(last) if last.is_few && is_few => last.tokens.end = tokens.end,
                _ => pieces.push(Piece {
                    tokens: tokens.clone(),
                    is_few,
                }),
            }
        }
    }

    /// Becomes those of `all` that are `chosen`, which ascend.
    pub(crate) fn choose(&mut self, all: &Self, chosen: impl Iterator<Item = usize>) {
        self.clear();
        let mut chosen = chosen.peekable();
        for step in &all.steps {
            let tokens = std::iter::from_fn(|| chosen.next_if(|token| *token < step.end)).count();
            self.push(tokens, step.length);
        }
    }

    /// How many there are.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn all(&self) -> Rows<'_> {
        self.part(0..self.tokens)
    }

    /// # Panics
    /// If there are not as many.
    pub(crate) fn part(&self, tokens: Range<usize>) -> Rows<'_> {
        assert!(tokens.start <= tokens.end && tokens.end <= self.tokens, "other tokens");
        Rows {
            steps: self,
            first: tokens.start,
            end: tokens.end,
        }
    }
}

impl<'a> Rows<'a> {
    pub(crate) fn len(self) -> usize {
        self.end - self.first
    }

    /// Which they are.
    pub(crate) fn range(self) -> Range<usize> {
        self.first..self.end
    }

    /// Which of them, counted from the first, are multiplied at once by weights of `format`.
    pub(crate) fn pieces(self, format: WeightFormat) -> impl Iterator<Item = Piece> + use<'a> {
        let pieces = self.steps.pieces[kind(format)].iter();
        pieces.filter_map(move |piece| {
            let start = piece.tokens.start.max(self.first);
            let end = piece.tokens.end.min(self.end);
            (start < end).then(|| Piece {
                tokens: start - self.first..end - self.first,
                is_few: piece.is_few,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(of: &[(usize, usize)]) -> Steps {
        let mut steps = Steps::default();
        of.iter().for_each(|(tokens, length)| steps.push(*tokens, *length));
        steps
    }

    fn pieces(rows: Rows<'_>, format: WeightFormat) -> Vec<(Range<usize>, bool)> {
        rows.pieces(format).map(|piece| (piece.tokens, piece.is_few)).collect()
    }

    #[test]
    fn short_steps_go_together_and_long_ones_each_by_itself() {
        let dense = WeightFormat::Bf16;
        let all = steps(&[(1, 1), (40, 2), (30, 30), (17, 17), (0, 9), (16, 16), (1, 1)]);
        assert_eq!(
            pieces(all.all(), dense),
            [(0..41, true), (41..71, false), (71..88, false), (88..105, true)]
        );
        assert_eq!(pieces(all.all(), WeightFormat::Q4K), [(0..105, true)]);
        assert_eq!(
            pieces(all.part(40..90), dense),
            [(0..1, true), (1..31, false), (31..48, false), (48..50, true)]
        );
        assert_eq!(pieces(all.part(5..5), dense), []);
    }

    #[test]
    fn what_an_expert_gets_of_a_step_is_few_if_the_step_is_or_if_it_is_little() {
        let dense = WeightFormat::F32;
        let all = steps(&[(40, 2), (50, 50), (50, 50), (1, 1)]);
        let mut chosen = Steps::default();
        chosen.choose(&all, (0..30).chain(40..50).chain(90..120).chain([140]));
        assert_eq!(
            pieces(chosen.all(), dense),
            [(0..40, true), (40..70, false), (70..71, true)]
        );
        chosen.choose(&all, std::iter::empty());
        assert_eq!(chosen.tokens(), 0);
    }
}
