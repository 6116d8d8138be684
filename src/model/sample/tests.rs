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
    repetition_penalty: f32,
    history: Vec<u32>,
    logits: Vec<f32>,
    greedy: u32,
    probabilities: Vec<f32>,
}

impl Case {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: 1,
        }
    }
}

fn cases() -> Vec<Case> {
    let json = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/protocol/vectors/petals/sampling.json"
    ));
    serde_json::from_str::<Vectors>(json).unwrap().cases
}

fn probabilities(case: &Case) -> Vec<f32> {
    let mut scores = case.logits.clone();
    penalise(&mut scores, &case.history, case.repetition_penalty);
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
    assert_eq!(drawn, 13);
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for (index, case) in cases().iter().enumerate().filter(|(_, case)| case.temperature == 0.0) {
        let mut sampler = Sampler::new(case.params()).unwrap();
        assert_eq!(
            sampler.next(&case.logits, &case.history),
            Ok(case.greedy),
            "case {index}"
        );
    }
}

#[test]
fn drawn_tokens_follow_the_probabilities() {
    const DRAWS: usize = 20_000;
    let case = &cases()[13];
    let mut sampler = Sampler::new(case.params()).unwrap();
    let mut counts = vec![0_usize; case.logits.len()];
    for _ in 0..DRAWS {
        counts[sampler.next(&case.logits, &case.history).unwrap() as usize] += 1;
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
        let mut sampler = Sampler::new(SamplingParams { seed, ..case.params() }).unwrap();
        (0..50)
            .map(|_| sampler.next(&case.logits, &case.history).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn of_equal_logits_the_lowest_id_wins_when_greedy() {
    let mut sampler = Sampler::new(SamplingParams::default()).unwrap();
    assert_eq!(sampler.next(&[0.5, 2.0, 2.0, -1.0], &[]), Ok(1));
}

#[test]
fn a_token_of_the_history_outside_the_vocabulary_changes_nothing() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        ..SamplingParams::default()
    };
    assert_eq!(
        Sampler::new(params).unwrap().next(&[1.0, 3.0, 2.0], &[1, 70_000]),
        Ok(2)
    );
}

#[test]
fn a_very_low_temperature_is_greedy_and_does_not_overflow() {
    let params = SamplingParams {
        temperature: f32::MIN_POSITIVE,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params).unwrap();
    assert_eq!(sampler.next(&[1.0, 30.0, 2.0], &[]), Ok(1));
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for temperature in [0.0, 1.0] {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params).unwrap();
        assert_eq!(sampler.next(&[1.0, f32::NAN], &[]), Err(SampleError::NotANumber));
        assert_eq!(sampler.next(&[f32::INFINITY, 1.0], &[]), Err(SampleError::NotANumber));
        assert_eq!(sampler.next(&[], &[]), Err(SampleError::NoCandidate));
        assert_eq!(
            sampler.next(&[f32::NEG_INFINITY; 3], &[]),
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
    assert_eq!(with(|_| ()), Ok(()));
}
