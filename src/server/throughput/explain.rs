//! The formula of the announced throughput in words, with the numbers in it.

use super::{BITS_PER_VALUE, ComputeRates, FORWARD_TOKENS, Load, RELAY_FACTOR, Rates, combine};
use crate::swarm::speed::Line;

/// How what a server would announce comes about, and that.
pub fn explain(compute: ComputeRates, line: Option<Line>, load: Load) -> (Rates, Vec<String>) {
    let rates = combine(compute, line, load);
    let Load {
        n_blocks,
        n_models,
        hidden_size,
        cpu_share,
        ..
    } = load;
    let (half, share) = ((n_blocks as f64 + 1.0) / 2.0, 1.0 / n_models.max(1) as f64);
    let by_compute = share * cpu_share * compute.forward_rps / half;
    let by_network = share * rates.network_rps.unwrap_or_default();
    let smaller = if by_compute <= by_network { "compute" } else { "network" };
    let bits = load.bits(line);
    let source = match line {
        Some(Line { peers, .. }) => format!("measured by an echo with {peers} peer(s)"),
        None => "assumed, since there was no peer to measure with".to_owned(),
    };
    let mut lines = vec![
        format!(
            "{:.1} tokens/s for {n_blocks} block(s): the smaller of",
            rates.throughput
        ),
        format!(
            "  compute {by_compute:.1}: {:.1} tokens/s go through one block, {FORWARD_TOKENS} at a time, and a request goes \
             through ({n_blocks} + 1) / 2 of these blocks on average",
            compute.forward_rps
        ),
        format!(
            "  network {by_network:.1}: {:.1} Mbit/s, {source}, divided by {hidden_size} numbers a token of \
             {BITS_PER_VALUE} bits each",
            bits / 1e6
        ),
        format!("  here {smaller} is what limits it"),
        format!(
            "{:.1} tokens/s behind a relay, where the network counts {RELAY_FACTOR}",
            rates.relayed_throughput
        ),
    ];
    if n_models > 1 {
        lines.push(format!(
            "the node has {n_models} models, of which each has its share of both"
        ));
    }
    (rates, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_in_the_words_are_those_of_the_formula() {
        let compute = ComputeRates {
            inference_rps: 300.0,
            forward_rps: 1000.0,
        };
        let load = Load {
            n_blocks: 9,
            n_models: 1,
            hidden_size: 1000,
            cpu_share: 1.0,
            max_bits: None,
        };
        let (rates, words) = explain(compute, None, load);
        assert_eq!(rates.throughput, 200.0);
        let text = words.join("\n");
        for part in [
            "200.0 tokens/s for 9 block(s)",
            "compute 200.0: 1000.0 tokens/s",
            "network 6250.0: 100.0 Mbit/s, assumed",
            "divided by 1000 numbers a token of 16 bits",
            "here compute is what limits it",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let line = Line {
            bits_per_second: 1e6,
            peers: 2,
        };
        let (rates, words) = explain(compute, Some(line), load);
        assert_eq!((rates.throughput, rates.relayed_throughput), (62.5, 12.5));
        assert!(words.join("\n").contains("measured by an echo with 2 peer(s)"));
        assert!(words.iter().any(|line| line.contains("here network")));
    }
}
