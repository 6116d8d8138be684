//! What becomes of a compute thread that panics outside of the blocks, and of those who wait for it or beside it.

use super::*;
use crate::server::backward::BackwardTurns;

/// A step of a new session that breaks what computes it, behind its first block.
async fn broken_step(worker: &Worker, blocks: &Arc<Blocks>, rng: &mut StdRng) -> Step {
    let mut session = Session::new(worker, blocks, &[0, 1], 1, 8).await;
    let mut step = session.next(random(rng, 1, 2), None);
    // Prompts for one block, which no request can have for two.
    let prompts = WireTensor::from_f32(&[0.5; WIDTH], [1, 1, 1, WIDTH], DType::F32).unwrap();
    let prompts = prompts.encode(Compression::None).unwrap();
    step.work.prompts = request::prompts(&prompts, 1, &step.work.x).unwrap();
    step
}

#[tokio::test]
async fn a_defect_outside_of_the_blocks_is_noticed_and_nobody_waits_for_ever() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(8));
    let worker = start(&blocks);
    let mut waiting = Session::new(&worker, &blocks, &[0, 1], 1, 8).await;
    let step = broken_step(&worker, &blocks, &mut rng).await;
    let x = random(&mut rng, 1, 4);
    let (first, second) = tokio::join!(worker.step(step), waiting.step(x.clone(), None));
    assert!(matches!(first, Err(RequestError::NotServing)));
    // It was through before that, or it is told.
    assert!(matches!(second, Ok(_) | Err(RequestError::NotServing)));
    assert!(matches!(worker.lost().await, Some(Lost::Thread)));
    let mut late = Session::new(&worker, &blocks, &[0, 1], 1, 8).await;
    assert!(matches!(late.step(x, None).await, Err(RequestError::NotServing)));
}

#[tokio::test]
async fn a_defect_in_the_middle_of_a_way_back_is_not_taken_for_one_of_its_block() {
    let (blocks, mut rng) = (blocks(WeightDType::Bf16), StdRng::seed_from_u64(9));
    let worker = start(&blocks);
    let [x, gradient] = [(); 2].map(|()| random(&mut rng, 1, 300));
    let work = Work {
        chain: [2].into(),
        x: gradient,
        prompts: None,
        origin: somebody(false),
        _lease: None,
    };
    let turn = BackwardTurns::default().take(false).await.unwrap();
    let mut session = Session::new(&worker, &blocks, &[0, 1], 1, 1).await;
    let (one, broken) = (random(&mut rng, 1, 1), broken_step(&worker, &blocks, &mut rng).await);
    let backward = worker.backward(Backward::new(x, work, None, 1, turn));
    let steps = async {
        // Steps get in while the block is differentiated.
        session.step(one, None).await.unwrap();
        worker.step(broken).await
    };
    let (outcome, broken) = tokio::join!(backward, steps);
    assert!(matches!(outcome, Err(RequestError::NotServing)), "{outcome:?}");
    assert!(matches!(broken, Err(RequestError::NotServing)));
    assert!(matches!(worker.lost().await, Some(Lost::Thread)));
}

#[tokio::test]
async fn a_thread_that_is_lost_costs_others_no_time() {
    let (blocks, mut rng) = (blocks(WeightDType::F32), StdRng::seed_from_u64(10));
    let duty = Duty::new(0.5, Instant::now());
    let workers = [(); 2].map(|()| Worker::start(blocks.clone(), 8, Arc::default(), duty.clone()).unwrap());
    let step = broken_step(&workers[0], &blocks, &mut rng).await;
    assert!(matches!(workers[0].step(step).await, Err(RequestError::NotServing)));
    assert!(matches!(workers[0].lost().await, Some(Lost::Thread)));
    let mut session = Session::new(&workers[1], &blocks, &[0, 1], 1, 8).await;
    let x = random(&mut rng, 1, 4);
    // Not a goal, but how long a test waits for what never comes.
    let answer = timeout(Duration::from_secs(60), session.step(x, None)).await;
    answer.expect("the other model rests for ever").unwrap();
}

#[tokio::test]
async fn a_thread_that_is_stopped_is_not_lost() {
    let worker = start(&blocks(WeightDType::F32));
    worker.stop();
    assert!(worker.lost().await.is_none());
}
