//! Whoever rides along in a batch changes nothing: every session gets what it gets alone, bit for bit.

use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};

use super::{super::testing::*, *};
use crate::model::{Precision, WeightDType, WeightFormat};

const N_SESSIONS: usize = 6;

/// One session: its whole sequences, and how far it is.
struct Run {
    cache: Cache,
    x: Hidden,
    out: Vec<Vec<f32>>,
    done: usize,
}

impl Run {
    fn new(blocks: &Blocks, rng: &mut StdRng) -> Self {
        let (batch, length) = (rng.random_range(1..=3), rng.random_range(1..40));
        Self {
            cache: blocks.new_cache(2, batch, length),
            x: random_hidden(rng, batch, length, blocks.config().hidden_size),
            out: vec![Vec::new(); batch],
            done: 0,
        }
    }

    /// The next tokens as a step of their own, and which of them to run first: a step may be cut.
    fn next(&self, rng: &mut StdRng) -> (Hidden, usize) {
        let left = self.x.tokens - self.done;
        let n = rng.random_range(1..=left.min(9));
        (tokens(&self.x, self.done..self.done + n), rng.random_range(1..=n))
    }

    fn keep(&mut self, step: &Hidden) {
        for (row, out) in self.out.iter_mut().enumerate() {
            out.extend(sequence(step, row).data);
        }
        self.done += step.tokens;
    }
}

/// What comes out for `x` alone, token by token.
fn alone(blocks: &Blocks, x: &Hidden) -> Vec<Vec<f32>> {
    let mut cache = blocks.new_cache(2, x.batch, x.tokens);
    let mut run = vec![Vec::new(); x.batch];
    for token in 0..x.tokens {
        let mut step = tokens(x, token..token + 1);
        for block in 0..2 {
            blocks
                .step(block, &mut cache, block as usize, &mut step, token)
                .unwrap();
        }
        for (row, out) in run.iter_mut().enumerate() {
            out.extend(sequence(&step, row).data);
        }
    }
    run
}

/// Runs the steps of some sessions together, each in two cuts.
fn run_together(blocks: &Blocks, runs: &mut [&mut Run], rng: &mut StdRng, scratch: &mut Scratch) {
    let mut steps: Vec<(Hidden, usize)> = runs.iter().map(|run| run.next(rng)).collect();
    for cut in 0..2 {
        for block in 0..2 {
            let mut parts: Vec<Part<'_>> = runs
                .iter_mut()
                .zip(&mut steps)
                .map(|(run, (x, first))| Part {
                    cache: &mut run.cache,
                    chain_idx: block as usize,
                    rows: 0..x.batch,
                    position: run.done,
                    tokens: if cut == 0 { 0..*first } else { *first..x.tokens },
                    x,
                })
                .collect();
            blocks.run_batch(&[block], &mut parts, scratch).unwrap();
        }
    }
    for (run, (step, _)) in runs.iter_mut().zip(&steps) {
        run.keep(step);
    }
}

fn random_mix_equals_each_alone(config: Value, precision: impl Into<Precision>, seed: u64) {
    let blocks = random_blocks(config, seed, precision);
    let mut rng = rng(seed);
    let mut runs: Vec<Run> = (0..N_SESSIONS).map(|_| Run::new(&blocks, &mut rng)).collect();
    let mut scratch = Scratch::default();
    loop {
        let mut open: Vec<&mut Run> = runs.iter_mut().filter(|run| run.done < run.x.tokens).collect();
        if open.is_empty() {
            break;
        }
        let mut riding: Vec<&mut Run> = Vec::new();
        for _ in 0..rng.random_range(1..=open.len()) {
            riding.push(open.swap_remove(rng.random_range(0..open.len())));
        }
        run_together(&blocks, &mut riding, &mut rng, &mut scratch);
    }
    for run in &runs {
        assert_same_bits(&run.out.concat(), &alone(&blocks, &run.x).concat());
    }
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone() {
    for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
        for seed in 0..4 {
            random_mix_equals_each_alone(json!({}), dtype, seed);
        }
    }
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone_also_from_experts() {
    let experts = json!({ "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2 });
    for dtype in [WeightDType::F32, WeightDType::Bf16] {
        random_mix_equals_each_alone(experts.clone(), dtype, 5);
    }
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone_in_every_quantised_format() {
    // More than a super-block of columns, and not a whole number of them.
    let wide = json!({ "hidden_size": 96, "intermediate_size": 320 });
    for weights in WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none()) {
        let dtype = WeightDType::Bf16;
        random_mix_equals_each_alone(wide.clone(), Precision { weights, dtype }, 6);
    }
}

#[test]
fn a_batch_with_a_part_that_does_not_fit_changes_nothing() {
    let blocks = random_blocks(json!({}), 1, WeightDType::F32);
    let mut caches = [blocks.new_cache(1, 1, 8), blocks.new_cache(1, 1, 2)];
    let x = random_hidden(&mut rng(2), 1, 3, 24);
    let mut steps = [x.clone(), x.clone()];
    let mut parts: Vec<Part<'_>> = caches
        .iter_mut()
        .zip(&mut steps)
        .map(|(cache, x)| Part {
            cache,
            chain_idx: 0,
            rows: 0..x.batch,
            x,
            position: 0,
            tokens: 0..3,
        })
        .collect();
    let error = blocks.run_batch(&[0], &mut parts, &mut Scratch::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 tokens at position 0 exceed the session's maximum of 2"
    );
    parts[1].tokens = 1..4;
    let error = blocks.run_batch(&[0], &mut parts, &mut Scratch::default()).unwrap_err();
    assert_eq!(error.to_string(), "tokens 1:4 of a step of 3 tokens were asked for");
    assert_eq!(steps, [x.clone(), x]);
}
