//! The compute thread alone: who rides along changes nothing, nobody starves, and a defect ends what it hit.

use std::time::Duration;

use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::timeout;

use super::*;
use crate::{
    model::{
        ModelFiles, Precision, WeightDType, WeightFormat,
        testing::{assert_same_bits, engine},
    },
    server::memory::Memory,
};

const WIDTH: usize = 64;
const POISON: f32 = 12345.0;

fn blocks(precision: impl Into<Precision>) -> Arc<Blocks> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/protocol/vectors/petals/tiny-llama");
    let files = ModelFiles::from_folder(folder.as_ref()).unwrap();
    Arc::new(
        Blocks::load(&files, 0..4, precision, engine())
            .unwrap()
            .with_poison(POISON),
    )
}

fn start(blocks: &Arc<Blocks>) -> Worker {
    Worker::start(blocks.clone(), 1024, Arc::default()).unwrap()
}

fn random(rng: &mut StdRng, batch: usize, tokens: usize) -> Hidden {
    let data = (0..batch * tokens * WIDTH).map(|_| rng.random_range(-1.0..1.0));
    Hidden::new(data.collect(), batch, tokens, WIDTH).unwrap()
}

/// A session from outside: it keeps its cache between two steps, as `session.rs` does.
struct Session {
    worker: Worker,
    chain: Arc<[u32]>,
    cache: Option<SessionCache>,
    position: usize,
}

impl Session {
    async fn new(worker: &Worker, blocks: &Blocks, chain: &[u32], batch: usize, length: usize) -> Self {
        let lease = Memory::new(1).lease(1, Duration::ZERO).await.unwrap();
        let cache = blocks.new_cache(chain.len(), batch, length);
        Self {
            worker: worker.clone(),
            chain: chain.into(),
            cache: Some(SessionCache::new(cache, lease)),
            position: 0,
        }
    }

    async fn step(&mut self, x: Hidden, rows: Option<Vec<usize>>) -> Result<Hidden, RequestError> {
        let tokens = x.tokens;
        let work = Work {
            chain: self.chain.clone(),
            x,
            prompts: None,
        };
        let step = Step {
            work,
            cache: self.cache.take().unwrap(),
            position: self.position,
            rows,
        };
        let (x, cache) = self.worker.step(step).await?;
        self.cache = Some(cache);
        self.position += tokens;
        Ok(x)
    }
}

/// What a session does: its chain, its rows, and step by step its inputs and which rows they continue.
struct Script {
    chain: Vec<u32>,
    batch: usize,
    steps: Vec<(Hidden, Option<Vec<usize>>)>,
}

impl Script {
    fn random(rng: &mut StdRng) -> Self {
        let chains: [&[u32]; 5] = [&[0, 1, 2, 3], &[0, 1], &[1, 2], &[3], &[2, 0, 0]];
        let batch = rng.random_range(1..=3);
        let n_steps = rng.random_range(1..12);
        let steps = (0..n_steps).map(|step| {
            let prompt = step == 0 || rng.random_bool(0.1);
            let tokens = if prompt { rng.random_range(0..90) } else { 1 };
            let rows = rng
                .random_bool(0.2)
                .then(|| (0..batch).map(|_| rng.random_range(0..batch)).collect());
            (random(rng, batch, tokens), rows)
        });
        let steps = steps.collect();
        let chain = chains[rng.random_range(0..chains.len())].to_vec();
        Self { chain, batch, steps }
    }

    async fn play(&self, worker: &Worker, blocks: &Blocks, mut pauses: StdRng) -> Vec<f32> {
        let length = self.steps.iter().map(|(x, _)| x.tokens).sum();
        let mut session = Session::new(worker, blocks, &self.chain, self.batch, length).await;
        let mut out = Vec::new();
        for (x, rows) in &self.steps {
            for _ in 0..pauses.random_range(0..4) {
                tokio::task::yield_now().await;
            }
            out.extend(session.step(x.clone(), rows.clone()).await.unwrap().data);
        }
        out
    }
}

async fn everybody_gets_what_they_get_alone(precision: Precision, seed: u64) {
    let (blocks, mut rng) = (blocks(precision), StdRng::seed_from_u64(seed));
    let scripts: Vec<Script> = (0..9).map(|_| Script::random(&mut rng)).collect();
    let worker = start(&blocks);
    let forward = Work {
        chain: [0, 1, 2, 3].into(),
        x: random(&mut rng, 2, 100),
        prompts: None,
    };
    let forward_x = forward.x.clone();
    let plays = scripts
        .iter()
        .map(|script| script.play(&worker, &blocks, StdRng::from_rng(&mut rng)));
    let (together, forward) = tokio::join!(join_all(plays), worker.forward(forward, None));
    worker.stop();
    for (script, together) in scripts.iter().zip(&together) {
        let worker = start(&blocks);
        let alone = script.play(&worker, &blocks, StdRng::from_rng(&mut rng)).await;
        worker.stop();
        assert_same_bits(together, &alone);
    }
    let mut expected = forward_x;
    (0..4).for_each(|block| blocks.forward(block, &mut expected).unwrap());
    assert_same_bits(&forward.unwrap().data, &expected.data);
}

#[tokio::test]
async fn a_random_mix_of_sessions_gives_each_what_it_gets_alone() {
    let dtype = WeightDType::Bf16;
    let [q8_0, q4_k] = [WeightFormat::Q8_0, WeightFormat::Q4K].map(|weights| Precision { weights, dtype });
    for (seed, precision) in (0..).zip([WeightDType::F32.into(), dtype.into(), q8_0, q4_k]) {
        everybody_gets_what_they_get_alone(precision, seed).await;
    }
}

#[tokio::test]
async fn a_step_without_tokens_comes_back_as_it_is_and_rows_out_of_reach_are_refused() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(1));
    let worker = start(&blocks);
    let mut session = Session::new(&worker, &blocks, &[0, 1], 2, 4).await;
    let nothing = session.step(random(&mut rng, 2, 0), Some(vec![1, 0])).await.unwrap();
    assert_eq!((nothing.batch, nothing.tokens), (2, 0));
    let refused = session.step(random(&mut rng, 2, 1), Some(vec![2, 0])).await;
    assert!(matches!(refused, Err(RequestError::Compute(_))));
    worker.stop();
}

#[tokio::test]
async fn a_panic_ends_the_session_that_it_hit_and_no_other() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(2));
    let worker = start(&blocks);
    let mut sessions = Vec::new();
    for _ in 0..6 {
        sessions.push(Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 8).await);
    }
    let inputs: Vec<Hidden> = (0..6).map(|_| random(&mut rng, 1, 3)).collect();
    let steps = sessions.iter_mut().zip(&inputs).enumerate().map(|(i, (session, x))| {
        let mut x = x.clone();
        if i == 3 {
            x.data[70] = POISON;
        }
        session.step(x, None)
    });
    let outcomes = join_all(steps).await;
    for (i, outcome) in outcomes.into_iter().enumerate() {
        if i == 3 {
            assert!(matches!(outcome, Err(RequestError::Crashed)));
            continue;
        }
        let mut alone = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 8).await;
        let expected = alone.step(inputs[i].clone(), None).await.unwrap();
        assert_same_bits(&outcome.unwrap().data, &expected.data);
    }
    let mut poisoned = random(&mut rng, 1, 1);
    poisoned.data[0] = POISON;
    let work = Work {
        chain: [0].into(),
        x: poisoned,
        prompts: None,
    };
    assert!(matches!(worker.forward(work, None).await, Err(RequestError::Crashed)));
    worker.stop();
}

#[tokio::test]
async fn neither_a_prompt_nor_training_starves_while_others_never_pause() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(3));
    let worker = start(&blocks);
    let one = random(&mut rng, 1, 1);
    let work = Work {
        chain: [0, 1, 2, 3].into(),
        x: random(&mut rng, 4, 64),
        prompts: None,
    };
    let mut long = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 700).await;
    let prompt = random(&mut rng, 1, 700);
    let both = async { tokio::join!(long.step(prompt, None), worker.forward(work, None)) };
    let streams = join_all((0..4).map(|_| stream_of(&worker, &blocks, &one)));
    tokio::select! {
        _ = streams => unreachable!("a stream never ends"),
        done = timeout(Duration::from_secs(60), both) => {
            let (prompt, training) = done.unwrap();
            assert_eq!((prompt.unwrap().tokens, training.unwrap().tokens), (700, 64));
        }
    }
    worker.stop();
}

/// One token after the other, for ever.
async fn stream_of(worker: &Worker, blocks: &Blocks, one: &Hidden) {
    let mut session = Session::new(worker, blocks, &[0, 1, 2, 3], 1, 1).await;
    loop {
        session.step(one.clone(), None).await.unwrap();
        session.position = 0;
    }
}

#[tokio::test]
async fn a_step_whose_caller_left_is_dropped_and_the_end_is_told_to_all() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(4));
    let worker = start(&blocks);
    let endless = vec![0; 100_000];
    let mut leaves = Session::new(&worker, &blocks, &endless, 1, 64).await;
    let mut stays = Session::new(&worker, &blocks, &endless, 1, 64).await;
    let (x, y) = (random(&mut rng, 1, 64), random(&mut rng, 1, 64));
    let gone = timeout(Duration::from_millis(20), leaves.step(x, None)).await;
    assert!(gone.is_err());
    while worker.queued() > 0 {
        tokio::task::yield_now().await;
    }
    let end = async {
        while worker.queued() == 0 {
            tokio::task::yield_now().await;
        }
        worker.stop();
    };
    let (outcome, ()) = tokio::join!(stays.step(y, None), end);
    assert!(matches!(outcome, Err(RequestError::NotServing)));
}
