//! Texts with guesses have the distribution that they have without, to the last place; a rule that is nearly right has not.

use std::collections::HashMap;

use super::*;
use crate::model::{Sampler, SamplingParams, Seen};

const VOCAB: u32 = 5;
const LENGTH: usize = 3;
const TEXTS: u64 = 8_000;
const PROMPT: [u32; 2] = [3, 1];

/// A model of a few words: what comes next depends on the last two.
fn logits(text: &[u32]) -> Vec<f32> {
    let (a, b) = (text[text.len() - 2], text[text.len() - 1]);
    (0..VOCAB)
        .map(|token| ((a * 7 + b * 5 + token * 3 + a * b * token) % 11) as f32 * 0.3)
        .collect()
}

/// A model that is like it, as a small one is like a large one.
fn smaller(text: &[u32]) -> Vec<f32> {
    let tilt = text[text.len() - 1];
    let mut logits = logits(text);
    logits[tilt as usize] += 0.8;
    logits
}

/// Everything at once that depends on what was there before.
fn params(seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 0.9,
        top_p: 0.97,
        min_p: 0.02,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(2, 0.4)],
        seed,
        ..SamplingParams::default()
    }
}

fn sampled(text: &[u32], logits: &[f32], seed: u64) -> u32 {
    let (prompt, output) = text.split_at(PROMPT.len());
    let sampler = Sampler::new(params(seed)).unwrap();
    sampler.next(logits, Seen { prompt, output }, None).unwrap().token
}

/// A way to write one text.
type Rule = fn(seed: u64) -> Vec<u32>;

fn without_guesses(seed: u64) -> Vec<u32> {
    let mut text = PROMPT.to_vec();
    while text.len() < PROMPT.len() + LENGTH {
        text.push(sampled(&text, &logits(&text), seed));
    }
    text.split_off(PROMPT.len())
}

/// As a run does it, with these guesses.
fn with_guesses(seed: u64, guess: impl Fn(&[u32]) -> u32) -> Vec<u32> {
    let mut text = PROMPT.to_vec();
    while text.len() < PROMPT.len() + LENGTH {
        let mut draft = text.clone();
        draft.extend([guess(&draft)]);
        draft.extend([guess(&draft)]);
        let draft = &draft[text.len()..];
        // All logits are there before a token is chosen, as a step brings them.
        let ahead: Vec<Vec<f32>> = (0..=draft.len())
            .map(|n| logits(&[&text, &draft[..n]].concat()))
            .collect();
        let mut ahead = ahead.iter();
        verify(draft, || {
            let token = sampled(&text, ahead.next().unwrap(), seed);
            text.push(token);
            Ok::<_, ()>((token, false))
        })
        .unwrap();
    }
    text.truncate(PROMPT.len() + LENGTH);
    text.split_off(PROMPT.len())
}

fn with_certain_guesses(seed: u64) -> Vec<u32> {
    with_guesses(seed, |text| (text[text.len() - 1] + 1) % VOCAB)
}

fn with_a_smaller_model(seed: u64) -> Vec<u32> {
    with_guesses(seed, |text| sampled(text, &smaller(text), seed))
}

/// Takes guesses for right that are probable enough, as "typical acceptance" does.
fn taking_what_is_likely(seed: u64) -> Vec<u32> {
    let mut text = PROMPT.to_vec();
    while text.len() < PROMPT.len() + LENGTH {
        let guess = (text[text.len() - 1] + 1) % VOCAB;
        let token = if next_exact(&text[PROMPT.len()..])[guess as usize] > 0.2 {
            guess
        } else {
            sampled(&text, &logits(&text), seed)
        };
        text.push(token);
    }
    text.split_off(PROMPT.len())
}

/// Accepts a guess with its probability, and otherwise draws from everything, the guess included.
fn drawing_again_from_everything(seed: u64) -> Vec<u32> {
    let mut text = PROMPT.to_vec();
    while text.len() < PROMPT.len() + LENGTH {
        let guess = (text[text.len() - 1] + 1) % VOCAB;
        let accepted = sampled(&text, &logits(&text), seed) == guess;
        let again = sampled(&text, &logits(&text), seed ^ (1 << 40));
        text.push(if accepted { guess } else { again });
    }
    text.split_off(PROMPT.len())
}

/// The probability of each text of `LENGTH` tokens, written out from the definitions of the parameters, in f64.
fn exact() -> HashMap<Vec<u32>, f64> {
    let mut texts = HashMap::from([(Vec::new(), 1.0)]);
    for _ in 0..LENGTH {
        let mut longer = HashMap::new();
        for (text, chance) in texts {
            for (token, next) in next_exact(&text).into_iter().enumerate() {
                let text = [&text[..], &[token as u32]].concat();
                longer.insert(text, chance * next);
            }
        }
        texts = longer;
    }
    texts
}

fn next_exact(output: &[u32]) -> Vec<f64> {
    let params = params(0);
    let text = [&PROMPT, output].concat();
    let mut scores: Vec<f64> = logits(&text).into_iter().map(f64::from).collect();
    for (token, score) in scores.iter_mut().enumerate() {
        let count = |seen: &[u32]| seen.iter().filter(|seen| **seen as usize == token).count() as f64;
        if token == 2 {
            *score += f64::from(params.logit_bias[0].1);
        }
        if count(&text) > 0.0 {
            let penalty = f64::from(params.repetition_penalty);
            *score = if *score < 0.0 {
                *score * penalty
            } else {
                *score / penalty
            };
        }
        if count(output) > 0.0 {
            *score -= f64::from(params.presence_penalty) + count(output) * f64::from(params.frequency_penalty);
        }
        *score /= f64::from(params.temperature);
    }
    let mut weights: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*a].total_cmp(&weights[*b]));
    let mut tail = 0.0;
    for token in &order[..order.len() - 1] {
        tail += weights[*token] / total;
        if tail > 1.0 - f64::from(params.top_p) {
            break;
        }
        weights[*token] = 0.0;
    }
    let most = weights[order[order.len() - 1]];
    weights
        .iter_mut()
        .filter(|w| **w < f64::from(params.min_p) * most)
        .for_each(|w| *w = 0.0);
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// The G statistic of many texts against the exact distribution, and its degrees of freedom. Texts that are too rare for
/// it count as one.
fn g_statistic(rule: Rule) -> (f64, f64) {
    let mut counts: HashMap<Vec<u32>, f64> = HashMap::new();
    for seed in 0..TEXTS {
        *counts.entry(rule(seed)).or_default() += 1.0;
    }
    let (mut g, mut cells, mut rare) = (0.0, 0, (0.0, 0.0));
    let mut add = |observed: f64, expected: f64| {
        cells += 1;
        if observed > 0.0 {
            g += 2.0 * observed * (observed / expected).ln();
        }
    };
    for (text, chance) in exact() {
        let (observed, expected) = (counts.remove(&text).unwrap_or(0.0), chance * TEXTS as f64);
        if expected >= 10.0 {
            add(observed, expected);
        } else {
            rare = (rare.0 + observed, rare.1 + expected);
        }
        assert!(chance > 0.0 || observed == 0.0, "{text:?} cannot come out");
    }
    if rare.1 > 0.0 {
        add(rare.0, rare.1);
    }
    assert!(counts.is_empty());
    (g, f64::from(cells - 1))
}

/// How many standard deviations the statistic is above its mean: Wilson and Hilferty's approximation.
fn deviation(rule: Rule) -> f64 {
    let (g, freedom) = g_statistic(rule);
    let spread = 2.0 / (9.0 * freedom);
    ((g / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

#[test]
fn texts_with_guesses_have_the_exact_distribution() {
    for rule in [without_guesses as Rule, with_certain_guesses, with_a_smaller_model] {
        let deviation = deviation(rule);
        assert!(deviation < 4.0, "{deviation}");
    }
}

#[test]
fn rules_that_are_nearly_right_are_found_out() {
    for rule in [taking_what_is_likely as Rule, drawing_again_from_everything] {
        let deviation = deviation(rule);
        assert!(deviation > 10.0, "{deviation}");
    }
}

#[test]
fn each_text_is_the_one_without_guesses() {
    for seed in 0..2000 {
        let expected = without_guesses(seed);
        assert_eq!(with_certain_guesses(seed), expected);
        assert_eq!(with_a_smaller_model(seed), expected);
    }
}

#[test]
fn a_smaller_model_is_right_nearly_as_often_as_can_be() {
    let (mut right, mut possible) = (0, 0.0);
    for seed in 0..TEXTS {
        let text = PROMPT.to_vec();
        right += u32::from(sampled(&text, &logits(&text), seed) == sampled(&text, &smaller(&text), seed));
    }
    let shares = |logits: fn(&[u32]) -> Vec<f32>| {
        let mut shares = [0.0; VOCAB as usize];
        for seed in 0..TEXTS {
            shares[sampled(&PROMPT, &logits(&PROMPT), seed) as usize] += 1.0 / TEXTS as f64;
        }
        shares
    };
    for (p, q) in shares(logits).into_iter().zip(shares(smaller)) {
        possible += f64::min(p, q);
    }
    // No rule is right more often than `possible`; this one is promised at least p / (2 - p) of it.
    let right = f64::from(right) / TEXTS as f64;
    assert!(
        right <= possible + 0.01 && right >= possible / (2.0 - possible) - 0.01,
        "{right} of {possible}"
    );
}

#[test]
fn a_step_ends_with_the_first_other_choice_or_the_last_token() {
    let chosen = |draft: &[u32], text: &[(u32, bool)]| {
        let mut choices = text.iter().copied();
        let mut n = 0;
        verify(draft, || {
            n += 1;
            Ok::<_, ()>(choices.next().unwrap())
        })
        .unwrap();
        n
    };
    assert_eq!(chosen(&[], &[(1, false)]), 1);
    assert_eq!(chosen(&[1, 2], &[(1, false), (2, false), (3, false)]), 3);
    assert_eq!(chosen(&[1, 2], &[(1, false), (9, false)]), 2);
    assert_eq!(chosen(&[1, 2], &[(1, true)]), 1);
    assert_eq!(verify(&[1], || Err(7)), Err(7));
}
