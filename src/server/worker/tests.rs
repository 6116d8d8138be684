//! The compute thread alone: who rides along changes nothing, nobody starves, and a defect ends what it hit.

mod breathing;
mod defects;

use std::time::Duration;

use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sepal_protocol::{
    compress::Compression,
    tensor::{DType, WireTensor},
};
use tokio::time::timeout;

use super::*;
use crate::{
    model::{
        ModelFiles, Precision, WeightDType, WeightFormat,
        testing::{assert_same_bits, engine},
    },
    p2p::PeerId,
    server::{memory::Memory, request},
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
    start_with(blocks, 1024, 1.0)
}

/// At most so many jobs, in so much of the time.
fn start_with(blocks: &Arc<Blocks>, limit: usize, share: f64) -> Worker {
    Worker::start(blocks.clone(), limit, Arc::default(), Duty::new(share, Instant::now())).unwrap()
}

/// A stranger, or the person who runs the node.
fn somebody(own: bool) -> Origin {
    let peer = PeerId::random();
    Origin { peer, own }
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
    origin: Origin,
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
            origin: somebody(false),
        }
    }

    fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    fn next(&mut self, x: Hidden, rows: Option<Vec<usize>>) -> Step {
        let work = Work {
            chain: self.chain.clone(),
            x,
            prompts: None,
            origin: self.origin,
            _lease: None,
        };
        Step {
            work,
            cache: self.cache.take().unwrap(),
            position: self.position,
            rows,
            traced: Traced::waits(),
        }
    }

    async fn step(&mut self, x: Hidden, rows: Option<Vec<usize>>) -> Result<Hidden, RequestError> {
        let tokens = x.tokens;
        let step = self.next(x, rows);
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
        origin: somebody(false),
        _lease: None,
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
        origin: somebody(false),
        _lease: None,
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
        origin: somebody(false),
        _lease: None,
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
    stream_as(worker, blocks, one, somebody(false)).await;
}

async fn stream_as(worker: &Worker, blocks: &Blocks, one: &Hidden, origin: Origin) {
    let mut session = Session::new(worker, blocks, &[0, 1, 2, 3], 1, 1).await.of(origin);
    loop {
        session.step(one.clone(), None).await.unwrap();
        session.position = 0;
    }
}

#[tokio::test]
async fn own_steps_go_first_and_strangers_are_not_starved_by_them() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(5));
    let worker = start(&blocks);
    let (one, prompt) = (random(&mut rng, 1, 1), random(&mut rng, 1, 100));
    let owner = somebody(true);
    // A stranger's long prompt and its passes, while the owner never pauses.
    let mut stranger = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 100).await;
    let pass = |origin| Work {
        chain: [0, 1, 2, 3].into(),
        x: prompt.clone(),
        prompts: None,
        origin,
        _lease: None,
    };
    let owners = join_all((0..4).map(|_| stream_as(&worker, &blocks, &one, owner)));
    let strangers = async {
        let passes = worker.forward(pass(stranger.origin), None);
        tokio::join!(stranger.step(prompt.clone(), None), passes)
    };
    tokio::select! {
        _ = owners => unreachable!("a stream never ends"),
        done = timeout(Duration::from_secs(60), strangers) => {
            let (step, pass) = done.unwrap();
            assert_eq!((step.unwrap().tokens, pass.unwrap().tokens), (100, 100));
        }
    }
    // Both wait for their turn behind something long: the owner, who came last, is done first.
    let mut busy = Session::new(&worker, &blocks, &[0; 40], 1, 64).await;
    let mut late = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 64).await.of(owner);
    let mut early = Session::new(&worker, &blocks, &[0; 40], 1, 100).await;
    let (x, y) = (random(&mut rng, 1, 64), random(&mut rng, 1, 64));
    let order = std::sync::Mutex::new(Vec::new());
    let note = |who| order.lock().unwrap().push(who);
    tokio::join!(
        async { note(busy.step(x.clone(), None).await.map(|_| "busy").unwrap()) },
        async { note(early.step(prompt.clone(), None).await.map(|_| "early").unwrap()) },
        async { note(late.step(y, None).await.map(|_| "late").unwrap()) },
    );
    assert_eq!(order.into_inner().unwrap()[0], "late");
    worker.stop();
}

#[tokio::test]
async fn a_peer_with_many_prompts_does_not_keep_another_one_waiting_for_all_of_them() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(6));
    let worker = start(&blocks);
    let crowd = somebody(false);
    let mut sessions = Vec::new();
    for _ in 0..8 {
        let session = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 150).await;
        sessions.push(session.of(crowd));
    }
    let mut single = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 150).await;
    let prompt = random(&mut rng, 1, 150);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let prompts = join_all(sessions.iter_mut().map(|session| async {
        session.step(prompt.clone(), None).await.unwrap();
        done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let other = async {
        single.step(prompt.clone(), None).await.unwrap();
        done.load(std::sync::atomic::Ordering::Relaxed)
    };
    let (_, before) = tokio::join!(prompts, other);
    assert!(
        before <= 4,
        "{before} of 8 prompts of one peer were done before the first of another"
    );
    worker.stop();
}

type Answer = oneshot::Receiver<Result<StepOutput, RequestError>>;

/// First steps over all blocks, for whom and of how many rows and tokens, that wait for a thread that there is not: the
/// test has them computed, turn by turn.
async fn waiting(steps: &[(Origin, usize, usize)]) -> (Compute, Vec<Answer>) {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(9));
    let (worker, mut compute) = Worker::prepare(blocks.clone(), steps.len(), Arc::default(), Duty::unlimited());
    let mut answers = Vec::new();
    for (origin, batch, tokens) in steps {
        let session = Session::new(&worker, &blocks, &[0, 1, 2, 3], *batch, *tokens).await;
        let step = session.of(*origin).next(random(&mut rng, *batch, *tokens), None);
        let (reply, answer) = oneshot::channel();
        worker
            .submit(Kind::Step { step, reply }, (Class::Inference, *origin))
            .unwrap();
        answers.push(answer);
    }
    compute.queue.collect(&mut compute.arrived, 0);
    compute.admit();
    (compute, answers)
}

/// The block that each step is at.
fn places(compute: &Compute) -> Vec<u32> {
    compute.steps.iter().map(|step| step.place().block).collect()
}

#[tokio::test]
async fn of_prompts_that_waited_long_enough_one_goes_at_a_time_and_before_the_others() {
    let [short, late, first, second, third] = std::array::from_fn(|_| somebody(false));
    let steps = [(short, 1), (late, 150), (first, 150), (second, 150), (third, 150)];
    let (mut compute, answers) = waiting(&steps.map(|(origin, tokens)| (origin, 1, tokens))).await;
    for step in &mut compute.steps[2..] {
        // As many block runs of others as its chain has blocks.
        step.blocks_ran(4);
    }
    compute.run_steps(false);
    assert_eq!(places(&compute), [1, 0, 1, 0, 0]);
    while !compute.steps.is_empty() {
        compute.run_steps(false);
    }
    for answer in join_all(answers).await {
        answer.unwrap().unwrap();
    }
}

#[tokio::test]
async fn strangers_ride_along_with_the_owner_for_as_long_as_that_costs_next_to_nothing() {
    let (owner, crowd, few) = (somebody(true), somebody(false), somebody(false));
    let (mut compute, _answers) = waiting(&[(crowd, 40, 1), (few, 8, 1), (owner, 1, 150)]).await;
    compute.run_steps(true);
    assert_eq!(places(&compute), [0, 1, 1]);
    compute.run_steps(false);
    assert_eq!(places(&compute), [1, 1, 1], "on their own turn all go");
}

#[tokio::test]
async fn overload_is_answered_at_once_and_the_owner_still_finds_room() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(7));
    let worker = start_with(&blocks, 2, 1.0);
    let endless: Vec<u32> = vec![0; 100_000];
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(Session::new(&worker, &blocks, &endless, 1, 64).await);
    }
    let x = random(&mut rng, 1, 64);
    let mut refused = Session::new(&worker, &blocks, &[0], 1, 64).await;
    let mut owner = Session::new(&worker, &blocks, &[0], 1, 64).await.of(somebody(true));
    let steps = join_all(waiting.iter_mut().map(|session| session.step(x.clone(), None)));
    let others = async {
        while worker.queued() < 2 {
            tokio::task::yield_now().await;
        }
        let waits = Waits {
            sessions: 2,
            ..Waits::default()
        };
        assert_eq!(worker.waits(), waits);
        let error = refused.step(x.clone(), None).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "server is overloaded: 2 tasks are waiting, the limit is 2"
        );
        owner.step(x.clone(), None).await.unwrap();
        worker.stop();
    };
    let (ended, ()) = tokio::join!(steps, others);
    assert!(ended.iter().all(|step| matches!(step, Err(RequestError::NotServing))));
    while worker.waits() != Waits::default() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_session_alone_is_not_refused_by_a_queue_for_one() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(10));
    let worker = start_with(&blocks, 1, 1.0);
    let mut session = Session::new(&worker, &blocks, &[0], 1, 512).await;
    for tokens in (0..400).map(|step| step % 2) {
        session.step(random(&mut rng, 1, tokens), None).await.unwrap();
    }
    worker.stop();
}

#[tokio::test]
async fn a_worker_that_rests_most_of_the_time_computes_the_same_and_ends_at_once() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(8));
    let (all, some) = (start(&blocks), start_with(&blocks, 8, 0.1));
    let x = random(&mut rng, 1, 40);
    let mut outputs = Vec::new();
    for worker in [&all, &some] {
        let mut session = Session::new(worker, &blocks, &[0, 1, 2, 3], 1, 64).await;
        outputs.push(session.step(x.clone(), None).await.unwrap());
    }
    assert_same_bits(&outputs[0].data, &outputs[1].data);
    // It owes a long rest, and neither who leaves nor the end waits for that.
    let long: Vec<u32> = vec![0; 100_000];
    let mut leaves = Session::new(&some, &blocks, &long, 1, 64).await;
    assert!(
        timeout(Duration::from_millis(30), leaves.step(x.clone(), None))
            .await
            .is_err()
    );
    while some.queued() > 0 {
        tokio::task::yield_now().await;
    }
    let mut stays = Session::new(&some, &blocks, &long, 1, 64).await;
    let (ended, ()) = tokio::join!(stays.step(x, None), async { some.stop() });
    assert!(matches!(ended, Err(RequestError::NotServing)));
    all.stop();
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

#[tokio::test]
async fn wide_batches_go_in_pieces_and_come_out_as_if_they_went_whole() {
    let blocks = blocks(WeightDType::F32);
    let (chain, mut rng) = ([0, 1, 2, 3], StdRng::seed_from_u64(12));
    let (wide, one) = (random(&mut rng, 300, 2), random(&mut rng, 300, 1));
    let (mut alone, mut expected) = (blocks.new_cache(4, 300, 3), [wide.clone(), one.clone()]);
    for (position, x) in [0, 2].into_iter().zip(&mut expected) {
        for block in chain {
            blocks.step(block, &mut alone, block as usize, x, position).unwrap();
        }
    }
    let counters = Arc::<Counters>::default();
    let duty = Duty::new(1.0, Instant::now());
    let worker = Worker::start(blocks.clone(), 8, counters.clone(), duty).unwrap();
    let mut session = Session::new(&worker, &blocks, &chain, 300, 3).await;
    for (x, expected) in [&wide, &one].into_iter().zip(&expected) {
        let out = session.step(x.clone(), None).await.unwrap();
        assert_same_bits(&out.data, &expected.data);
    }
    let work = Work {
        chain: chain.into(),
        x: wide,
        prompts: None,
        origin: somebody(false),
        _lease: None,
    };
    let out = worker.forward(work, None).await.unwrap();
    assert_same_bits(&out.data, &expected[0].data);
    // The first piece is small, whatever is measured later.
    let stats = counters.read(Waits::default(), blocks.cache_counts());
    assert!(stats.block_runs > 2 * 4, "{}", stats.block_runs);
}
