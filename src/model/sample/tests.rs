//! Sampling against the processors of transformers, and against its own promises.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

/// One case of `scripts/make-sampling-vectors.py`.
#[derive(Deserialize)]
struct Case {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    #[serde(default)]
    min_p: f32,
    repetition_penalty: f32,
    #[serde(default)]
    logit_bias: Vec<(u32, f32)>,
    history: Vec<u32>,
    logits: Vec<f32>,
    greedy: u32,
    probabilities: Vec<f32>,
    #[serde(default)]
    logprobs: Vec<f32>,
}

impl Case {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: 1,
            ..SamplingParams::default()
        }
    }

    fn seen(&self) -> Seen<'_> {
        let (prompt, output) = self.history.split_at(self.history.len() / 2);
        Seen { prompt, output }
    }
}

fn cases() -> Vec<Case> {
    let files = [
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/protocol/vectors/petals/sampling.json"
        )),
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/protocol/vectors/sepal/sampling.json"
        )),
    ];
    let read = |json| serde_json::from_str::<Vectors>(json).unwrap().cases;
    files.into_iter().flat_map(read).collect()
}

/// The next token where nothing is ruled out.
fn next(sampler: &Sampler, logits: &[f32], history: &[u32]) -> Result<u32, SampleError> {
    let seen = Seen {
        prompt: history,
        output: &[],
    };
    sampler.next(logits, seen, None).map(|choice| choice.token)
}

fn probabilities(case: &Case) -> Vec<f32> {
    let mut scores = case.logits.clone();
    penalties::apply(&mut scores, case.seen(), &case.params());
    let drawn_from = candidates(&scores, &case.params());
    let weights = weights(&drawn_from);
    let total: f32 = weights.iter().sum();
    let mut found = vec![0.0; case.logits.len()];
    for (candidate, weight) in drawn_from.iter().zip(&weights) {
        found[candidate.token as usize] = weight / total;
    }
    found
}

#[test]
fn probabilities_are_those_of_transformers() {
    let mut drawn = 0;
    for (index, case) in cases().iter().enumerate().filter(|(_, case)| case.temperature > 0.0) {
        for (token, (ours, theirs)) in probabilities(case).iter().zip(&case.probabilities).enumerate() {
            assert!(
                (ours - theirs).abs() < 1e-6 && (*ours == 0.0) == (*theirs == 0.0),
                "case {index}, token {token}: {ours} instead of {theirs}"
            );
        }
        drawn += 1;
    }
    assert_eq!(drawn, 20);
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for (index, case) in cases().iter().enumerate().filter(|(_, case)| case.temperature == 0.0) {
        let sampler = Sampler::new(case.params()).unwrap();
        assert_eq!(
            next(&sampler, &case.logits, &case.history),
            Ok(case.greedy),
            "case {index}"
        );
    }
}

#[test]
fn drawn_tokens_follow_the_probabilities() {
    const DRAWS: usize = 20_000;
    let case = &cases()[13];
    let mut counts = vec![0_usize; case.logits.len()];
    for seed in 0..DRAWS as u64 {
        let sampler = Sampler::new(SamplingParams { seed, ..case.params() }).unwrap();
        counts[next(&sampler, &case.logits, &case.history).unwrap() as usize] += 1;
    }
    for (token, (&count, &expected)) in counts.iter().zip(&case.probabilities).enumerate() {
        let share = count as f32 / DRAWS as f32;
        // Five standard deviations of a share; none at all for what was filtered out.
        let allowed = 5.0 * (expected * (1.0 - expected) / DRAWS as f32).sqrt();
        assert!(
            (share - expected).abs() <= allowed,
            "token {token}: {share} instead of {expected}"
        );
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_another_seed_others() {
    let case = &cases()[4];
    let draw = |seed| {
        let sampler = Sampler::new(SamplingParams { seed, ..case.params() }).unwrap();
        (0..50)
            .map(|place| next(&sampler, &case.logits, &vec![0; place]).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn of_equal_logits_the_lowest_id_wins_when_greedy() {
    let sampler = Sampler::new(SamplingParams::default()).unwrap();
    assert_eq!(next(&sampler, &[0.5, 2.0, 2.0, -1.0], &[]), Ok(1));
}

#[test]
fn a_token_of_the_history_outside_the_vocabulary_changes_nothing() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        ..SamplingParams::default()
    };
    assert_eq!(
        next(&Sampler::new(params).unwrap(), &[1.0, 3.0, 2.0], &[1, 70_000]),
        Ok(2)
    );
}

#[test]
fn a_very_low_temperature_is_greedy_and_does_not_overflow() {
    let params = SamplingParams {
        temperature: f32::MIN_POSITIVE,
        ..SamplingParams::default()
    };
    let sampler = Sampler::new(params).unwrap();
    assert_eq!(next(&sampler, &[1.0, 30.0, 2.0], &[]), Ok(1));
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        let sampler = Sampler::new(params).unwrap();
        assert_eq!(next(&sampler, &[1.0, f32::NAN], &[]), Err(SampleError::NotANumber));
        assert_eq!(next(&sampler, &[f32::INFINITY, 1.0], &[]), Err(SampleError::NotANumber));
        assert_eq!(next(&sampler, &[], &[]), Err(SampleError::NoCandidate));
        assert_eq!(
            next(&sampler, &[f32::NEG_INFINITY; 3], &[]),
            Err(SampleError::NoCandidate)
        );
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        Sampler::new(params).map(|_| ())
    };
    assert_eq!(with(|p| p.temperature = -1.0), Err(SampleError::Temperature(-1.0)));
    assert!(with(|p| p.temperature = f32::NAN).is_err());
    assert_eq!(with(|p| p.top_p = 0.0), Err(SampleError::TopP(0.0)));
    assert_eq!(with(|p| p.top_p = 1.5), Err(SampleError::TopP(1.5)));
    assert_eq!(
        with(|p| p.repetition_penalty = 0.0),
        Err(SampleError::RepetitionPenalty(0.0))
    );
    assert_eq!(with(|p| p.min_p = -0.1), Err(SampleError::MinP(-0.1)));
    assert_eq!(with(|p| p.presence_penalty = 2.5), Err(SampleError::Penalty(2.5)));
    assert_eq!(with(|p| p.frequency_penalty = -3.0), Err(SampleError::Penalty(-3.0)));
    assert_eq!(with(|p| p.logit_bias = vec![(4, f32::NAN)]), Err(SampleError::Bias(4)));
    assert_eq!(with(|p| p.logprobs = Some(21)), Err(SampleError::Logprobs(21)));
    assert_eq!(with(|_| ()), Ok(()));
}

#[test]
fn log_probabilities_are_those_of_the_unmodified_distribution() {
    let mut compared = 0;
    for case in cases().iter().filter(|case| !case.logprobs.is_empty()) {
        let params = SamplingParams {
            logprobs: Some(5),
            ..case.params()
        };
        let choice = Sampler::new(params)
            .unwrap()
            .next(&case.logits, case.seen(), None)
            .unwrap();
        let found = choice.logprobs.unwrap();
        assert!((found.chosen - case.logprobs[choice.token as usize]).abs() < 1e-5);
        let mut ids: Vec<u32> = (0..64).collect();
        ids.sort_by(|&a, &b| {
            case.logits[b as usize]
                .total_cmp(&case.logits[a as usize])
                .then(a.cmp(&b))
        });
        let top: Vec<u32> = found.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, ids[..5]);
        for (token, logprob) in found.top {
            assert!((logprob - case.logprobs[token as usize]).abs() < 1e-5);
        }
        compared += 1;
    }
    assert_eq!(compared, 9);
}

#[test]
fn no_more_log_probabilities_than_tokens_are_told() {
    let params = SamplingParams {
        logprobs: Some(20),
        ..SamplingParams::default()
    };
    let sampler = Sampler::new(params).unwrap();
    let choice = sampler.next(&[0.0, 0.0], Seen::default(), None).unwrap();
    let half = 0.5_f32.ln();
    assert_eq!(choice.logprobs.unwrap().top, [(0, half), (1, half)]);
}

#[test]
fn presence_and_frequency_are_penalised_in_the_output_only() {
    let penalised = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        let mut scores = vec![1.0; 4];
        let seen = Seen {
            prompt: &[0, 0, 1],
            output: &[1, 2, 2, 9],
        };
        penalties::apply(&mut scores, seen, &params);
        scores
    };
    assert_eq!(penalised(|p| p.presence_penalty = 0.5), [1.0, 0.5, 0.5, 1.0]);
    assert_eq!(penalised(|p| p.frequency_penalty = 0.5), [1.0, 0.5, 0.0, 1.0]);
    let both = penalised(|p| (p.presence_penalty, p.frequency_penalty) = (-1.0, 0.25));
    assert_eq!(both, [1.0, 1.75, 1.5, 1.0]);
}

#[test]
fn tokens_that_are_ruled_out_are_never_chosen() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        let sampler = Sampler::new(params).unwrap();
        let third = sampler.next(&[5.0, 9.0, 1.0], Seen::default(), Some(&|token| token == 2));
        assert_eq!(third.unwrap().token, 2);
        let none = sampler.next(&[5.0, 9.0, 1.0], Seen::default(), Some(&|_| false));
        assert_eq!(none, Err(SampleError::NoCandidate));
    }
}
