//! The random part of a choice: a number for each seed, place in the text and token, by a counter instead of a state.

/// SplitMix64's increment (Steele, Lea and Flood 2014): 2^64 divided by the golden ratio, made odd.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The numbers of one place: those of a SplitMix64 sequence of its own, the first for token 0, and so on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise {
    start: u64,
}

impl Noise {
    /// At the place with so many tokens before it.
    pub(super) fn new(seed: u64, place: usize) -> Self {
        Self {
            start: mixed(mixed(seed).wrapping_add((place as u64).wrapping_mul(STEP))),
        }
    }

    /// Above 0, exponentially distributed, with mean 1.
    pub(super) fn exponential(self, token: u32) -> f64 {
        let bits = mixed(self.start.wrapping_add((u64::from(token) + 1).wrapping_mul(STEP)));
        // 53 bits are what an f64 holds; the half keeps 0 and 1 out.
        let uniform = ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -uniform.ln()
    }
}

/// SplitMix64's output function.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // The first outputs for the state 1234567, as published with the generator.
        let outputs = (1..=3).map(|n| mixed(1_234_567_u64.wrapping_add(STEP.wrapping_mul(n))));
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(outputs.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn neighbouring_seeds_places_and_tokens_have_nothing_in_common() {
        type At = fn(u64) -> f64;
        let by_seed: At = |n| Noise::new(n, 5).exponential(5);
        let by_place: At = |n| Noise::new(5, n as usize).exponential(5);
        let by_token: At = |n| Noise::new(5, 5).exponential(n as u32);
        const N: u64 = 20_000;
        for at in [by_seed, by_place, by_token] {
            let mean = (0..N).map(at).sum::<f64>() / N as f64;
            let together = (0..N).map(|n| (at(n) - 1.0) * (at(n + 1) - 1.0)).sum::<f64>() / N as f64;
            // Five standard deviations of both means.
            let allowed = 5.0 / (N as f64).sqrt();
            assert!((mean - 1.0).abs() < allowed, "{mean}");
            assert!(together.abs() < allowed, "{together}");
        }
    }
}
