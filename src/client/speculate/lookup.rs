//! Prompt lookup: what followed the last time that the text ended like this? Pure, no model and no state. Texts that
//! repeat themselves (code that is edited, answers that quote, JSON, lists) are guessed well by it (Saxena 2023, "Prompt
//! lookup decoding"; the n-gram drafts of vLLM and transformers are the same).

/// Longest ending that is compared: whoever agrees in so many tokens agrees.
const LONGEST: usize = 16;

/// An earlier place where the text was as it is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Tokens that agree, at least 1.
    pub(super) len: usize,
    /// Where what followed begins.
    next: usize,
}

/// The longest match of the end of `tokens`; of several the last, because texts drift.
pub(super) fn find(tokens: &[u32]) -> Option<Match> {
    let (&last, before) = tokens.split_last()?;
    let mut best: Option<Match> = None;
    for next in (1..tokens.len()).rev().filter(|next| tokens[next - 1] == last) {
        let ending = tokens[..next - 1].iter().rev().zip(before.iter().rev());
        let len = 1 + ending.take(LONGEST - 1).take_while(|(a, b)| a == b).count();
        if best.is_none_or(|best| len > best.len) {
            best = Some(Match { len, next });
        }
        if len == LONGEST {
            break;
        }
    }
    best
}

impl Match {
    /// The `n` tokens that follow if the text goes on as it did then. A repetition that reaches the end of the text is
    /// taken to go on and on.
    pub(super) fn draft(self, tokens: &[u32], n: usize) -> Vec<u32> {
        let period = tokens.len() - self.next;
        (0..n).map(|at| tokens[self.next + at % period]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(tokens: &[u32], n: usize) -> Option<(usize, Vec<u32>)> {
        find(tokens).map(|found| (found.len, found.draft(tokens, n)))
    }

    #[test]
    fn a_text_without_repetition_gives_nothing() {
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[7]), None);
        assert_eq!(find(&[1, 2, 3, 4]), None);
    }

    #[test]
    fn the_longest_match_wins_over_a_later_shorter_one() {
        let tokens = [1, 2, 3, 10, 11, 9, 3, 20, 21, 1, 2, 3];
        assert_eq!(draft(&tokens, 2), Some((3, vec![10, 11])));
    }

    #[test]
    fn of_equally_long_matches_the_last_wins() {
        let tokens = [5, 1, 6, 5, 2, 7, 5];
        assert_eq!(draft(&tokens, 2), Some((1, vec![2, 7])));
    }

    #[test]
    fn a_repetition_goes_on_beyond_the_end_of_the_text() {
        assert_eq!(draft(&[4, 4], 3), Some((1, vec![4, 4, 4])));
        assert_eq!(draft(&[1, 2, 3, 1, 2, 3, 1], 5), Some((4, vec![2, 3, 1, 2, 3])));
    }

    #[test]
    fn no_more_than_the_longest_ending_is_compared() {
        let tokens = [0; 100];
        assert_eq!(draft(&tokens, 1), Some((LONGEST, vec![0])));
    }
}
