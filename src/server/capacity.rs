//! How many blocks fit into this machine's memory, how large the cache is, and what to say when something does not fit.
//! It counts; it reserves nothing.

use thiserror::Error;

use crate::model::{ByteSize, ModelConfig, Need, WeightDType, WeightFormat};

/// Defaults of Petals that depend on whether keys and values are shared among heads (`server/server.py`).
const CACHE_TOKENS_GROUPED: usize = 16384;
const CACHE_TOKENS_FULL: usize = 4096;
const TOKENS_GROUPED: usize = 8192;
const TOKENS_FULL: usize = 2048;

/// A cache with less than this serves nobody, so that it is no remedy.
const USEFUL_CACHE_TOKENS: u64 = 1024;

/// Cache size per block when `--attn-cache-tokens` is not given, in tokens.
pub(crate) fn default_attn_cache_tokens(config: &ModelConfig) -> usize {
    if has_grouped_heads(config) {
        CACHE_TOKENS_GROUPED
    } else {
        CACHE_TOKENS_FULL
    }
}

/// Longest session, and most tokens in a request, when the flags are not given, in tokens.
pub(crate) fn default_max_tokens(config: &ModelConfig) -> usize {
    if has_grouped_heads(config) {
        TOKENS_GROUPED
    } else {
        TOKENS_FULL
    }
}

/// Most bytes of one request: what `max_batch_size` allows in float32, twice, so that a request somewhat over it is read
/// and refused by name; deep prompts for all blocks; and the rest of the message.
pub(crate) fn request_bytes(config: &ModelConfig, max_batch_size: usize) -> usize {
    const PROMPT_TOKENS: usize = 64;
    const OVERHEAD: usize = 1 << 20;
    let tokens = max_batch_size
        .saturating_mul(2)
        .saturating_add(config.n_blocks as usize * PROMPT_TOKENS);
    tokens
        .saturating_mul(config.hidden_size * size_of::<f32>())
        .saturating_add(OVERHEAD)
}

fn has_grouped_heads(config: &ModelConfig) -> bool {
    config.n_heads > config.n_kv_heads
}

/// Bytes of the whole cache: K and V of `n_blocks` blocks. Petals counts `hidden / groups` per token whatever the head
/// size (`server/server.py`, attn_cache_bytes); so does this, or clients would misread what is announced.
pub(crate) fn cache_bytes(config: &ModelConfig, dtype: WeightDType, tokens: usize, n_blocks: usize) -> u64 {
    let per_block = 2 * config.hidden_size as u64 * tokens as u64 / config.group_size() as u64 * dtype.size() as u64;
    per_block * n_blocks as u64
}

/// Bytes of the weights of all blocks as they are published, about: what a whole download of them takes.
pub fn weight_bytes(config: &ModelConfig) -> u64 {
    let published = config.torch_dtype.unwrap_or(WeightDType::F32);
    config.numbers_per_block() * published.size() as u64 * u64::from(config.n_blocks)
}

/// How many blocks of one model are wanted, and what they cost.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// What the model is called on the command line.
    pub(crate) model: String,
    /// Blocks of the whole model.
    pub(crate) n_blocks: u32,
    /// How many to hold; `None` for as many as fit.
    pub(crate) wanted: Option<u32>,
    /// Bytes of a block's weights in each format, the most precise first, and which of them is chosen.
    pub(crate) weights: Vec<(WeightFormat, u64)>,
    pub(crate) format: WeightFormat,
    /// Tokens in the cache, and bytes of one of them in one block.
    pub(crate) cache_tokens: u64,
    pub(crate) cache_token_bytes: u64,
    /// Needed once, whatever the number of blocks.
    pub(crate) scratch: u64,
    /// What passes over whole sequences get if there is plenty; see [`pass_bytes`].
    pub(crate) passes: u64,
}

/// Bytes for passes over whole sequences through one of `n_models` models: as many as are wished for, but at most an
/// eighth of what is free, so that a machine with little memory has some left for blocks.
pub(crate) fn pass_bytes(wish: u64, free: u64, n_models: usize) -> u64 {
    wish.min(free / 8 / n_models.max(1) as u64)
}

/// The same where blocks are on cards and `free` is the host's: little else needs that.
pub(crate) fn pass_bytes_beside_cards(wish: u64, free: u64, n_models: usize) -> u64 {
    wish.min(free / 2 / n_models.max(1) as u64)
}

/// What of `free` bytes of the host may be planned with beside passes, each with so many `untaken` ones: what they were
/// promised and have not taken looks free to the system, which only sees memory that was touched.
pub(crate) fn beside_passes(free: u64, untaken: impl IntoIterator<Item = u64>) -> u64 {
    untaken.into_iter().fold(free, u64::saturating_sub)
}

/// Of `bytes` for passes through a model, those for streamed requests of which nothing is decoded yet, if one request has at
/// most `request`: a tenth for activations, and as much for deep prompts. The largest passes that fit into the rest come in
/// alone.
pub(crate) fn undecoded_bytes(bytes: u64, request: u64) -> u64 {
    2 * request.min(bytes / 10)
}

impl Want {
    /// What it comes to as one of `n_models` in `free` bytes: what passes get is needed once as well.
    pub(crate) fn settled(self, free: &[u64], n_models: usize) -> Self {
        let passes = pass_bytes(self.passes, sum(free), n_models);
        Self {
            scratch: self.scratch + passes,
            passes: 0,
            ..self
        }
    }

    fn block(&self) -> u64 {
        let chosen = self.weights.iter().find(|(format, _)| *format == self.format);
        chosen.map_or(0, |(_, bytes)| *bytes) + self.cache()
    }

    /// Bytes of the cache of a block.
    pub(crate) fn cache(&self) -> u64 {
        self.cache_tokens * self.cache_token_bytes
    }

    /// What blocks take with their caches.
    pub(crate) fn need(&self) -> Need {
        Need {
            block: self.block(),
            once: self.scratch,
        }
    }
}

/// What does not fit, and what would.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{n_blocks} {} {}, {} are free{remedy}",
    if *n_blocks == 1 { format!("block of {model} needs") } else { format!("blocks of {model} need") },
    ByteSize(*needed), ByteSize(*free)
)]
pub struct DoesNotFit {
    /// As given.
    pub model: String,
    /// How many were asked for; 1 if as many as fit.
    pub n_blocks: u32,
    /// What they take with their cache, in bytes.
    pub needed: u64,
    /// What there is for them, in bytes.
    pub free: u64,
    /// Flags with which it would fit, as the end of a sentence.
    pub remedy: String,
}

/// How many blocks of each model to hold in each place of those that have so many bytes `free`: as many as were asked for, and
/// of the other models equal shares of what is left, at least one block and at most all.
///
/// # Errors
/// The first model that does not fit beside those before it.
pub(crate) fn plan(free: &[u64], wants: &[Want]) -> Result<Vec<Vec<usize>>, DoesNotFit> {
    let mut left = free.to_vec();
    let wants = wants.iter().map(|want| want.clone().settled(free, wants.len()));
    let wants: Vec<Want> = wants.collect();
    let mut plan = vec![Vec::new(); wants.len()];
    for (want, shares) in wants.iter().zip(&mut plan) {
        if let Some(n_blocks) = want.wanted {
            *shares = take(&mut left, want, n_blocks)?;
        }
    }
    let mut open = wants.iter().filter(|want| want.wanted.is_none()).count() as u64;
    for (want, shares) in wants.iter().zip(&mut plan) {
        if want.wanted.is_none() {
            let part: Vec<u64> = left.iter().map(|left| left / open).collect();
            open -= 1;
            let n_blocks = fit(&part, want).min(want.n_blocks).max(1);
            *shares = take(&mut left, want, n_blocks)?;
        }
    }
    Ok(plan)
}

fn take(left: &mut [u64], want: &Want, n_blocks: u32) -> Result<Vec<usize>, DoesNotFit> {
    let need = want.need();
    if fit(left, want) < n_blocks {
        return Err(DoesNotFit {
            model: want.model.clone(),
            n_blocks,
            needed: need.bytes(n_blocks as usize),
            free: sum(left),
            remedy: remedy(left, want, n_blocks),
        });
    }
    let shares = need.spread(left, n_blocks as usize);
    for (left, n_blocks) in left.iter_mut().zip(&shares) {
        *left = left.saturating_sub(need.bytes(*n_blocks));
    }
    Ok(shares)
}

fn sum(bytes: &[u64]) -> u64 {
    bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// How many blocks fit into `places`.
pub(crate) fn fit(places: &[u64], want: &Want) -> u32 {
    u32::try_from(want.need().fit(places)).unwrap_or(u32::MAX)
}

/// What would fit into `places` instead: fewer blocks, smaller weights, a smaller cache.
fn remedy(places: &[u64], want: &Want, n_blocks: u32) -> String {
    let mut ways = Vec::new();
    let fitting = fit(places, want).min(n_blocks);
    if fitting > 0 {
        ways.push(format!("--num-blocks {fitting}"));
    }
    // A block is whole in one place: what is left of several does not add up.
    let fits = |weights: u64, cache_tokens: u64| {
        let need = Need {
            block: weights + cache_tokens * want.cache_token_bytes,
            once: want.scratch,
        };
        need.fit(places) >= u64::from(n_blocks)
    };
    let now = want.block() - want.cache();
    let mut smaller = want.weights.iter().filter(|(_, bytes)| *bytes < now);
    if let Some((format, _)) = smaller.find(|(_, bytes)| fits(*bytes, want.cache_tokens)) {
        ways.push(format!("--quant {}", format.as_str()));
    }
    let tokens = most(want.cache_tokens / USEFUL_CACHE_TOKENS, |n| {
        fits(now, n * USEFUL_CACHE_TOKENS)
    }) * USEFUL_CACHE_TOKENS;
    if tokens > 0 {
        ways.push(format!("--attn-cache-tokens {tokens}"));
    }
    let Some(first) = ways.first_mut() else {
        return String::new();
    };
    first.push_str(" fits");
    format!(": {}", ways.join(", or "))
}

/// The largest number up to `max` that `fits`; 0 if none does. What is smaller than one that fits does so too.
fn most(max: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut fitting, mut max) = (0, max);
    while fitting < max {
        let middle = max - (max - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            max = middle - 1;
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn want(wanted: Option<u32>) -> Want {
        Want {
            model: "org/model".into(),
            n_blocks: 32,
            wanted,
            weights: vec![
                (WeightFormat::Bf16, GIB / 2),
                (WeightFormat::Q8_0, GIB / 4),
                (WeightFormat::Q4_0, GIB / 8),
            ],
            format: WeightFormat::Bf16,
            cache_tokens: 16384,
            cache_token_bytes: GIB / 4 / 16384,
            scratch: GIB / 2,
            passes: 0,
        }
    }

    #[test]
    fn passes_get_what_they_wish_for_or_an_eighth() {
        let wants = Want {
            passes: 4 * GIB,
            ..want(None)
        };
        let planned = |free| plan(&[free], std::slice::from_ref(&wants)).unwrap();
        assert_eq!([8 * GIB, 20 * GIB, GIB * 3 / 2].map(planned), [[[8]], [[22]], [[1]]]);
        let error = plan(
            &[20 * GIB],
            &[Want {
                wanted: Some(23),
                ..wants.clone()
            }],
        )
        .unwrap_err();
        assert!(error.remedy.starts_with(": --num-blocks 22 fits"), "{error}");
        assert_eq!(pass_bytes(4 * GIB, 800 * GIB, 1), 4 * GIB);
        assert_eq!(plan(&[16 * GIB], &[wants.clone(), wants]), Ok(vec![vec![8], vec![9]]));
        assert_eq!(
            [10 * GIB, GIB].map(|bytes| undecoded_bytes(bytes, GIB / 4)),
            [GIB / 2, GIB / 10 * 2]
        );
    }

    #[test]
    fn what_passes_were_promised_is_not_planned_with_a_second_time() {
        let wants = Want {
            passes: 4 * GIB,
            ..want(None)
        };
        let planned = plan(&[20 * GIB], std::slice::from_ref(&wants)).unwrap();
        let passes = pass_bytes(wants.passes, 20 * GIB, 1);
        // Nothing that is needed once was touched yet.
        let free = 20 * GIB - planned[0][0] as u64 * wants.block();
        let again = |untaken: &[u64]| wants.need().fit(&[beside_passes(free, untaken.iter().copied())]);
        assert_eq!(again(&[passes]), 0);
        // Another model was promised so much.
        assert_eq!(again(&[passes, 40 * GIB]), 0);
        // What they have taken is not free any more.
        assert_eq!(beside_passes(free - passes, [0]), beside_passes(free, [passes]));
    }

    #[test]
    fn as_many_blocks_as_fit_are_served_and_at_most_all() {
        assert_eq!(plan(&[8 * GIB], &[want(None)]), Ok(vec![vec![10]]));
        assert_eq!(plan(&[800 * GIB], &[want(None)]), Ok(vec![vec![32]]));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let error = plan(&[8 * GIB], &[want(Some(16))]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "16 blocks of org/model need 12.5 GiB, 8.0 GiB are free: --num-blocks 10 fits, or --quant q4_0"
        );
        let error = plan(&[10 * GIB], &[want(Some(16))]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "16 blocks of org/model need 12.5 GiB, 10.0 GiB are free: --num-blocks 12 fits, or --quant q8_0, or \
             --attn-cache-tokens 6144"
        );
        let cache_alone = Want {
            weights: vec![(WeightFormat::Bf16, GIB / 2)],
            ..want(Some(1))
        };
        let error = plan(&[GIB * 9 / 8], &[cache_alone]).unwrap_err();
        assert_eq!(error.remedy, ": --attn-cache-tokens 8192 fits");
        for max in [0, 1, 5, 6, u64::MAX] {
            assert_eq!(most(max, |n| n <= 5), max.min(5));
            assert_eq!(most(max, |_| true), max);
            assert_eq!(most(max, |_| false), 0);
        }
        let error = plan(&[GIB / 2], &[want(None)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 block of org/model needs 1.2 GiB, 512.0 MiB are free"
        );
        assert_eq!(plan(&[13 * GIB], &[want(Some(16))]), Ok(vec![vec![16]]));
    }

    #[test]
    fn a_block_is_on_one_card() {
        // Two and a half blocks would fit on each.
        let cards = [GIB / 2 + 15 * GIB / 8; 2];
        assert_eq!(plan(&cards, &[want(None)]), Ok(vec![vec![2, 2]]));
        let error = plan(&cards, &[want(Some(5))]).unwrap_err();
        assert!(error.remedy.starts_with(": --num-blocks 4 fits"), "{error}");
        assert_eq!(
            plan(&cards, &[want(Some(3)), want(Some(1))]).map_err(|error| error.n_blocks),
            Err(1)
        );
    }

    #[test]
    fn what_is_recommended_for_several_cards_fits_on_them() {
        // Of Q8_0, where a block takes half a GiB, each card holds two and a half.
        let error = plan(&[GIB * 7 / 4; 2], &[want(Some(5))]).unwrap_err();
        assert_eq!(error.remedy, ": --num-blocks 2 fits, or --quant q4_0");
        // The first card holds two blocks if their caches are half as large.
        let cards = [GIB * 7 / 4, GIB * 5 / 4];
        let error = plan(&cards, &[want(Some(3))]).unwrap_err();
        let remedy = ": --num-blocks 2 fits, or --quant q8_0, or --attn-cache-tokens 8192";
        assert_eq!(error.remedy, remedy);
        let smaller = Want {
            cache_tokens: 8192,
            ..want(Some(3))
        };
        assert_eq!(plan(&cards, &[smaller]), Ok(vec![vec![2, 1]]));
    }

    #[test]
    fn several_models_share_what_those_leave_that_were_asked_for() {
        let wants = [want(None), want(Some(4)), want(None)];
        // 3.5 GiB are taken, the other two have 8 GiB each.
        assert_eq!(plan(&[39 * GIB / 2], &wants), Ok(vec![vec![10], vec![4], vec![10]]));
        let error = plan(&[4 * GIB], &wants).unwrap_err();
        assert_eq!((error.n_blocks, error.free), (1, GIB / 2));
        let both = [want(Some(4)), want(Some(4))];
        assert_eq!(plan(&[6 * GIB], &both).unwrap_err().free, 5 * GIB / 2);
    }

    #[test]
    fn what_is_planned_can_be_placed_in_any_order_on_cards_that_are_not_equal() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut planned = 0;
        for _ in 0..1000 {
            let free: Vec<u64> = (0..rng.random_range(1..5))
                .map(|_| rng.random_range(0..40) * GIB / 4)
                .collect();
            let wants: Vec<Want> = (0..rng.random_range(1..4))
                .map(|_| Want {
                    weights: vec![(WeightFormat::Bf16, rng.random_range(1..12) * GIB / 4)],
                    scratch: rng.random_range(0..4) * GIB / 4,
                    ..want(rng.random_bool(0.5).then(|| rng.random_range(1..5)))
                })
                .collect();
            let Ok(plan) = plan(&free, &wants) else { continue };
            planned += 1;
            let mut taken = vec![0; free.len()];
            for (want, shares) in wants.iter().zip(&plan) {
                let n_blocks: usize = shares.iter().sum();
                assert!(want.wanted.is_none_or(|wanted| wanted as usize == n_blocks) && n_blocks > 0);
                for (taken, n_blocks) in taken.iter_mut().zip(shares) {
                    *taken += want.need().bytes(*n_blocks);
                }
            }
            assert!(
                taken.iter().zip(&free).all(|(taken, free)| taken <= free),
                "{free:?} {plan:?}"
            );
        }
        assert!(planned > 100);
    }
}
