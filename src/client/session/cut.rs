//! Into pieces of how many tokens a prompt is cut, so that all servers of a chain have something to compute at once. Pure;
//! how pieces go through the chain is in `pipeline`.
//!
//! ```text
//! whole        ▓▓▓▓▓▓▓▓                        in pieces   ▓▓▓▓
//! server 0     ▓▓▓▓▓▓▓▓                                    ▓▓▓▓▓▓▓▓
//! server 1             ▓▓▓▓▓▓▓▓                              ▓▓▓▓▓▓▓▓
//! server 2                     ▓▓▓▓▓▓▓▓                        ▓▓▓▓▓▓▓▓
//! ```
//!
//! A piece costs a round trip on every hop and a pass over the weights, so quick servers far away get few of them, or one.

use crate::{client::pace::LongStep, model::PAGE_TOKENS};

/// Fewest tokens, of all rows together, of a piece: with fewer a processor does not multiply at its best.
const LEAST_TOKENS: usize = 64;
/// Most pieces that a prompt is cut into for this.
const MOST_PIECES: usize = 32;
/// The part of the time that cutting has to save; what is announced is no promise.
const LEAST_GAIN: f64 = 0.1;

/// Most tokens of a piece of a prompt of `batch` rows, by what long steps take on each hop.
pub(super) fn piece_tokens(batch: usize, tokens: usize, hops: &[LongStep]) -> usize {
    let most = (batch * tokens / LEAST_TOKENS).min(MOST_PIECES);
    let least = tokens.div_ceil(MOST_PIECES).max(LEAST_TOKENS.div_ceil(batch.max(1)));
    let whole = seconds(tokens, (batch, tokens), hops);
    let (mut best, mut chosen) = ((1.0 - LEAST_GAIN) * whole, tokens);
    for n in 2..=most {
        let piece = whole_pages(tokens.div_ceil(n), least);
        let cut = seconds(piece, (batch, tokens), hops);
        if cut < best {
            (best, chosen) = (cut, piece);
        }
    }
    chosen
}

/// About as many tokens as `piece`, and not fewer than `least`, that are whole pages if they are more than one: what servers
/// know of a prompt they know by pages.
fn whole_pages(piece: usize, least: usize) -> usize {
    let down = piece - piece % PAGE_TOKENS;
    match down {
        0 => piece,
        _ if down >= least => down,
        _ => piece.next_multiple_of(PAGE_TOKENS),
    }
}

/// What a prompt in pieces of so many tokens takes until it is through: the first piece goes through all hops, the others
/// come out behind it as quickly as the slowest hop takes them.
fn seconds(piece: usize, (batch, tokens): (usize, usize), hops: &[LongStep]) -> f64 {
    let each = |tokens: usize| hops.iter().map(move |hop| hop.seconds((batch * tokens) as f64));
    let slowest = |tokens: usize| each(tokens).fold(0.0, f64::max);
    let piece = piece.clamp(1, tokens.max(1));
    let behind = (tokens / piece).saturating_sub(1) as f64 * slowest(piece);
    let last = match tokens % piece {
        0 => 0.0,
        rest => slowest(rest),
    };
    each(piece).sum::<f64>() + behind + last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(n: usize, hop: LongStep) -> Vec<LongStep> {
        vec![hop; n]
    }

    /// A processor near by: 20 ms to read the weights, 10 ms a token.
    const SLOW: LongStep = LongStep {
        at_least: 0.021,
        each_token: 0.01,
    };
    /// A card far away.
    const QUICK: LongStep = LongStep {
        at_least: 0.12,
        each_token: 0.0001,
    };

    #[test]
    fn slow_servers_get_pieces_and_quick_ones_far_away_the_whole() {
        assert_eq!(piece_tokens(1, 1000, &hops(4, SLOW)), 64);
        assert_eq!(piece_tokens(1, 1000, &hops(4, QUICK)), 1000);
        // So long that even they take seconds.
        assert!(piece_tokens(1, 100_000, &hops(4, QUICK)) < 100_000 / 4);
    }

    #[test]
    fn nothing_is_cut_for_one_server_or_for_few_tokens() {
        assert_eq!(piece_tokens(1, 1000, &hops(1, SLOW)), 1000);
        assert_eq!(piece_tokens(1, 1000, &[]), 1000);
        assert_eq!(
            piece_tokens(1, 2 * LEAST_TOKENS - 1, &hops(4, SLOW)),
            2 * LEAST_TOKENS - 1
        );
        assert_eq!(piece_tokens(1, 0, &hops(4, SLOW)), 0);
    }

    #[test]
    fn rows_count_as_tokens() {
        assert_eq!(piece_tokens(8, 32, &hops(4, SLOW)), 8);
    }

    #[test]
    fn pieces_are_whole_pages_and_neither_too_small_nor_too_many() {
        for batch in [1, 3, 8] {
            for tokens in (1..5000).step_by(37) {
                let piece = piece_tokens(batch, tokens, &hops(6, SLOW));
                assert!(piece == tokens || piece < PAGE_TOKENS || piece.is_multiple_of(PAGE_TOKENS));
                assert!(piece == tokens || batch * piece >= LEAST_TOKENS);
                assert!(tokens.div_ceil(piece) <= MOST_PIECES);
            }
        }
    }

    #[test]
    fn pieces_save_most_of_the_time_of_a_long_chain() {
        let hops = hops(10, SLOW);
        let piece = piece_tokens(1, 2000, &hops);
        let (whole, cut) = (seconds(2000, (1, 2000), &hops), seconds(piece, (1, 2000), &hops));
        assert!(whole / cut > 6.0, "{whole} {cut}");
    }
}
