//! Backward passes on the compute thread: others get in between, and whoever leaves takes nothing along.

use super::*;
use crate::server::backward::BackwardTurns;

#[tokio::test]
async fn sessions_get_in_between_while_a_block_is_differentiated() {
    let (blocks, mut rng) = (blocks(WeightDType::Bf16), StdRng::seed_from_u64(7));
    let worker = start(&blocks);
    let (one, x, gradient) = (
        random(&mut rng, 1, 1),
        random(&mut rng, 1, 300),
        random(&mut rng, 1, 300),
    );
    let work = || Work {
        chain: [2].into(),
        x: gradient.clone(),
        prompts: None,
        origin: somebody(false),
        _lease: None,
    };
    let turns = BackwardTurns::default();
    let pass = async || Backward::new(x.clone(), work(), None, 1, turns.take(false).await.unwrap());
    let mut session = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 1).await;
    let mut n_steps = 0;
    let steps = async {
        loop {
            session.step(one.clone(), None).await.unwrap();
            (session.position, n_steps) = (0, n_steps + 1);
        }
    };
    let backward = worker.backward(pass().await);
    let output = tokio::select! {
        () = steps => unreachable!("the steps never end"),
        output = backward => output.unwrap(),
    };
    // One is under way when the pass begins, and one may follow it before the block does.
    assert!(n_steps > 5, "{n_steps} steps only");
    let expected = blocks.backward(2, None, &x, &gradient).unwrap();
    assert_same_bits(&output.x.data, &expected.data);
    // Whoever leaves in the middle of a block, and whoever comes after.
    let mut session = Session::new(&worker, &blocks, &[0, 1, 2, 3], 1, 1).await;
    tokio::select! {
        _ = worker.backward(pass().await) => unreachable!("a step is shorter"),
        _ = session.step(one.clone(), None) => {}
    }
    let output = worker.backward(pass().await).await.unwrap();
    assert_same_bits(&output.x.data, &expected.data);
    worker.stop();
}
