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

use crate::client::pace::LongStep;

/// Fewest tokens, of all rows together, of a piece: with fewer a processor does not multiply at its best.
const LEAST_TOKENS: usize = 64;
/// Most pieces that a prompt is cut into for this.
const MOST_PIECES: usize = 32;
/// The part of the time that cutting has to save; what is announced is no promise.
const LEAST_GAIN: f64 = 0.1;

/// Most tokens of a piece of a prompt of `batch` rows, by what long steps take on each hop.
pub(super) fn piece_tokens(batch: usize, tokens: usize, hops: &[LongStep]) -> usize {
    let most = (batch * tokens / LEAST_TOKENS).min(MOST_PIECES);
    let whole = seconds(1, batch * tokens, hops);
    let (mut best, mut pieces) = ((1.0 - LEAST_GAIN) * whole, 1);
    for n in 2..=most {
        let cut = seconds(n, batch * tokens, hops);
        if cut < best {
            (best, pieces) = (cut, n);
        }
    }
    tokens.div_ceil(pieces)
}

/// What a prompt in so many pieces takes until it is through: the first piece goes through all hops, the others come out
/// behind it as quickly as the slowest hop takes them.
fn seconds(pieces: usize, tokens: usize, hops: &[LongStep]) -> f64 {
    let each = hops.iter().map(|hop| hop.seconds(tokens as f64 / pieces as f64));
    let slowest = each.clone().fold(0.0, f64::max);
    each.sum::<f64>() + (pieces - 1) as f64 * slowest
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
        assert_eq!(piece_tokens(1, 1000, &hops(4, SLOW)), 1000_usize.div_ceil(15));
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
    fn pieces_save_most_of_the_time_of_a_long_chain() {
        let hops = hops(10, SLOW);
        let pieces = 2000_usize.div_ceil(piece_tokens(1, 2000, &hops));
        let (whole, cut) = (seconds(1, 2000, &hops), seconds(pieces, 2000, &hops));
        assert!(whole / cut > 6.0, "{whole} {cut}");
    }
}
