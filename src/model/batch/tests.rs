//! Whoever rides along in a batch changes nothing: every session gets what it gets alone, bit for bit.

use half::{bf16, f16};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{super::testing::*, *};
use crate::model::{Adapter, CacheOptions, HubOptions, KvDType, Precision, WeightDType, WeightFormat};

const N_SESSIONS: usize = 6;
const CHAIN: [u32; 2] = [0, 1];
/// Most tokens of a session.
const LENGTH: usize = 40;
/// As the weights, and all there are.
const KV_DTYPES: [Option<KvDType>; 5] = [
    None,
    Some(KvDType::Int8),
    Some(KvDType::Bf16),
    Some(KvDType::F16),
    Some(KvDType::F32),
];
/// Adapters of the recorded model.
const ADAPTERS: [&str; 2] = ["everything", "queries-and-values"];

/// One session: its whole sequences, and how far it is.
struct Run {
    cache: Cache,
    x: Hidden,
    /// For each block what is added to the first tokens of every sequence before it; nothing without deep prompts.
    prompts: [Vec<f32>; CHAIN.len()],
    out: Vec<Vec<f32>>,
    done: usize,
}

/// The next tokens of a session, without those that were known.
struct Step {
    x: Hidden,
    position: usize,
    /// Which of them to run first: a step may be cut.
    first: usize,
}

impl Run {
    /// A session of any kind, whose sequences may all begin as `text` does.
    fn new(blocks: &Blocks, text: &Hidden, rng: &mut StdRng) -> Self {
        let (batch, length) = (rng.random_range(1..=3), rng.random_range(1..=LENGTH));
        let mut x = random_hidden(rng, batch, length, text.width);
        if rng.random_range(0..4) > 0 {
            let same = rng.random_range(length / 2..=length) * text.width;
            for row in x.data.chunks_exact_mut(length * text.width) {
                row[..same].copy_from_slice(&text.data[..same]);
            }
        }
        let name = ADAPTERS.choose(rng).filter(|_| rng.random_range(0..3) > 0);
        let adapter = name.and_then(|name| blocks.adapter(name));
        let mut cache = blocks.new_cache(CHAIN.len(), batch, length).with_adapter(adapter);
        blocks.share_prefixes(&mut cache, &CHAIN, adapter.and(name).copied().unwrap_or_default());
        let n_prompts = match rng.random_range(0..5) {
            0 => rng.random_range(1..=5) * text.width,
            _ => 0,
        };
        Self {
            cache,
            x,
            prompts: CHAIN.map(|_| random(rng, n_prompts)),
            out: vec![Vec::new(); batch],
            done: 0,
        }
    }

    /// Makes any of its sequences go on from what any of them was.
    fn reorder(&mut self, rng: &mut StdRng) {
        let rows: Vec<usize> = (0..self.x.batch).map(|_| rng.random_range(0..self.x.batch)).collect();
        self.cache.reorder(&rows).unwrap();
        self.out = rows.iter().map(|row| self.out[*row].clone()).collect();
        let before = self.x.clone();
        let (len, done) = (before.tokens * before.width, self.done * before.width);
        for (row, from) in self.x.data.chunks_exact_mut(len).zip(rows) {
            row[..done].copy_from_slice(&before.data[from * len..][..done]);
        }
    }

    fn begin(&mut self, blocks: &Blocks, rng: &mut StdRng) -> Step {
        let n = rng.random_range(1..=(self.x.tokens - self.done).min(9));
        let mut x = tokens(&self.x, self.done..self.done + n);
        let has_prompts = self.done * x.width < self.prompts[0].len();
        let known = blocks.begin_step(&mut self.cache, &mut x, self.done, has_prompts);
        Step {
            position: self.done + known,
            first: rng.random_range(x.tokens.min(1)..=x.tokens),
            x,
        }
    }

    fn end(&mut self, mut step: Step) {
        self.cache.end_step(&mut step.x);
        for (row, out) in self.out.iter_mut().enumerate() {
            out.extend(sequence(&step.x, row).data);
        }
        self.done += step.x.tokens;
    }
}

impl Step {
    fn range(&self, cut: usize) -> Range<usize> {
        match cut {
            0 => 0..self.first,
            _ => self.first..self.x.tokens,
        }
    }
}

/// Adds deep prompts of one block to those of the tokens `range` of `x`, a step from `position` on, that have some.
fn add_prompts(prompts: &[f32], x: &mut Hidden, position: usize, range: Range<usize>) {
    let width = x.width;
    for row in x.data.chunks_exact_mut(x.tokens * width) {
        let prompts = prompts.chunks_exact(width).skip(position + range.start);
        for (token, prompt) in row
            .chunks_exact_mut(width)
            .take(range.end)
            .skip(range.start)
            .zip(prompts)
        {
            token
                .iter_mut()
                .zip(prompt)
                .for_each(|(number, prompt)| *number += prompt);
        }
    }
}

/// What comes out for the session alone, token by token.
fn alone(blocks: &Blocks, run: &Run) -> Vec<Vec<f32>> {
    let x = &run.x;
    let cache = blocks.new_cache(CHAIN.len(), x.batch, x.tokens);
    let mut cache = cache.with_adapter(run.cache.adapter());
    let mut out = vec![Vec::new(); x.batch];
    for token in 0..x.tokens {
        let mut step = tokens(x, token..token + 1);
        for (chain_idx, block) in CHAIN.into_iter().enumerate() {
            add_prompts(&run.prompts[chain_idx], &mut step, token, 0..1);
            blocks.step(block, &mut cache, chain_idx, &mut step, token).unwrap();
        }
        for (row, out) in out.iter_mut().enumerate() {
            out.extend(sequence(&step, row).data);
        }
    }
    out
}

/// Runs the steps of some sessions together, each in two cuts. Returns how many tokens were known.
fn run_together(blocks: &Blocks, runs: &mut [&mut Run], rng: &mut StdRng, scratch: &mut Scratch) -> usize {
    let mut steps: Vec<Step> = runs.iter_mut().map(|run| run.begin(blocks, rng)).collect();
    for cut in 0..2 {
        for (chain_idx, block) in CHAIN.into_iter().enumerate() {
            let mut parts = Vec::new();
            for (run, step) in runs.iter_mut().zip(&mut steps) {
                let tokens = step.range(cut);
                if tokens.is_empty() {
                    continue;
                }
                add_prompts(&run.prompts[chain_idx], &mut step.x, step.position, tokens.clone());
                parts.push(Part {
                    cache: &mut run.cache,
                    chain_idx,
                    rows: 0..step.x.batch,
                    position: step.position,
                    tokens,
                    x: &mut step.x,
                });
            }
            if !parts.is_empty() {
                blocks.run_batch(&[block], &mut parts, scratch).unwrap();
            }
        }
    }
    let mut known = 0;
    for (run, step) in runs.iter_mut().zip(steps) {
        known += step.position - run.done;
        run.end(step);
    }
    known
}

fn rounded(mut numbers: Vec<f32>, dtype: WeightDType) -> Vec<f32> {
    for number in &mut numbers {
        *number = match dtype {
            WeightDType::F32 => *number,
            WeightDType::Bf16 => bf16::from_f32(*number).to_f32(),
            WeightDType::F16 => f16::from_f32(*number).to_f32(),
        };
    }
    numbers
}

/// Sessions of all kinds, in caches of some kind. Returns how many tokens were known.
fn random_mix_equals_each_alone(blocks: Blocks, seed: usize) -> usize {
    let mut rng = rng(seed as u64);
    let blocks = blocks
        .with_cache(CacheOptions {
            dtype: KV_DTYPES[seed % KV_DTYPES.len()],
            // None, too little, or enough.
            block_tokens: *[0, 100, 2000, 2000, 2000].choose(&mut rng).unwrap(),
            share_prefixes: rng.random_range(0..5) > 0,
        })
        .unwrap();
    let text = random_hidden(&mut rng, 1, LENGTH, blocks.config().hidden_size);
    let mut runs: Vec<Run> = (0..N_SESSIONS).map(|_| Run::new(&blocks, &text, &mut rng)).collect();
    let (mut scratch, mut known) = (Scratch::default(), 0);
    loop {
        let mut open: Vec<&mut Run> = runs.iter_mut().filter(|run| run.done < run.x.tokens).collect();
        if open.is_empty() {
            break;
        }
        let mut riding: Vec<&mut Run> = Vec::new();
        for _ in 0..rng.random_range(1..=open.len()) {
            riding.push(open.swap_remove(rng.random_range(0..open.len())));
        }
        if rng.random_range(0..3) == 0 {
            riding[0].reorder(&mut rng);
        }
        known += run_together(&blocks, &mut riding, &mut rng, &mut scratch);
    }
    for run in &runs {
        // What others computed is known as it is sent.
        let sent = |out: Vec<Vec<f32>>| rounded(out.concat(), blocks.dtype());
        assert_same_bits(&sent(run.out.clone()), &sent(alone(&blocks, run)));
    }
    known
}

/// Of a random model.
fn mix(config: &Value, precision: impl Into<Precision>, seed: usize) -> usize {
    let blocks = random_blocks(config.clone(), seed as u64, precision);
    random_mix_equals_each_alone(blocks, seed)
}

fn quantised() -> impl Iterator<Item = Precision> {
    let formats = WeightFormat::ALL.into_iter().filter(|format| format.dtype().is_none());
    formats.map(|weights| Precision {
        weights,
        dtype: WeightDType::Bf16,
    })
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone() {
    let mut known = 0;
    for dtype in [WeightDType::F32, WeightDType::Bf16, WeightDType::F16] {
        for seed in 0..10 {
            known += mix(&json!({}), dtype, seed);
        }
    }
    assert!(known > 0, "nothing was shared");
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone_also_from_experts() {
    let experts = json!({ "model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2 });
    for dtype in [WeightDType::F32, WeightDType::Bf16] {
        for seed in 5..8 {
            mix(&experts, dtype, seed);
        }
    }
    let wide = json!({
        "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2,
        "hidden_size": 96, "intermediate_size": 288,
    });
    let known: usize = quantised()
        .enumerate()
        .map(|(seed, precision)| mix(&wide, precision, seed))
        .sum();
    assert!(known > 0, "nothing was shared");
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone_in_every_quantised_format() {
    // More than a super-block of columns, and not a whole number of them.
    let wide = json!({ "hidden_size": 96, "intermediate_size": 320 });
    for (seed, precision) in quantised().enumerate() {
        mix(&wide, precision, seed + 6);
    }
}

#[test]
fn a_random_mix_of_sessions_gives_each_what_it_gets_alone_whatever_their_adapters() {
    let hub = HubOptions::from_variables(|_| None);
    let adapters = ADAPTERS.map(|name| {
        let folder = vectors("sepal/lora").join(name);
        Adapter::open(folder.to_str().unwrap(), &hub).unwrap()
    });
    let (files, _) = fixture("tiny-llama");
    let mut known = 0;
    for (i, weights) in [
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::Q8_0,
        WeightFormat::Nf4,
    ]
    .into_iter()
    .enumerate()
    {
        for seed in 2 * i..2 * i + 3 {
            let dtype = WeightDType::F32;
            let blocks = Blocks::load(&files, 0..2, Precision { weights, dtype }, engine()).unwrap();
            known += random_mix_equals_each_alone(blocks.with_adapters(&adapters).unwrap(), seed);
        }
    }
    assert!(known > 0, "nothing was shared");
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
