//! What a session of `rpc_inference` remembers and forgets: positions, steps that come twice, rows, batches.

use sepal_protocol::{
    names,
    tensor::{DType, WireTensor},
};

use super::{
    caller::{Answer, Session, Step, call},
    setup::{Node, PREFIX, Reference, Swarm, TestServer, WIDTH, assert_close, reference, tokens},
};
use crate::model::Hidden;

const TOLERANCE: f32 = 1e-4;

struct Scene {
    _swarm: Swarm,
    server: TestServer,
    node: Node,
    reference: Reference,
}

async fn scene() -> Scene {
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve(0..4).await, swarm.caller().await);
    Scene {
        _swarm: swarm,
        server,
        node,
        reference: reference(),
    }
}

impl Scene {
    async fn session(&self) -> Session {
        Session::open(&self.node, self.server.node.peer()).await
    }

    /// The output of the last block for the tokens `range` of the recorded prompt.
    fn output(&self, range: std::ops::Range<usize>) -> Hidden {
        tokens(self.reference.blocks.last().unwrap(), range)
    }

    fn input(&self, range: std::ops::Range<usize>) -> Hidden {
        tokens(&self.reference.embeddings, range)
    }
}

#[track_caller]
fn same(answer: Answer, expected: &Hidden) {
    let output = answer.output();
    assert_eq!(output.shape, [expected.batch, expected.tokens, expected.width]);
    assert_close(&output.to_f32_vec(), &expected.data, TOLERANCE);
}

#[tokio::test]
async fn a_prompt_gives_the_same_in_one_step_in_pieces_and_token_by_token() {
    let scene = scene().await;
    let cuts: [&[usize]; 3] = [&[0, 12], &[0, 5, 6, 12], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]];
    for cuts in cuts {
        let mut session = scene.session().await;
        for cut in cuts.windows(2) {
            let range = cut[0]..cut[1];
            let x = scene.input(range.clone());
            let step = if range.start == 0 {
                Step::first(&x, 12)
            } else {
                Step::next(&x)
            };
            same(session.step(&step).await, &scene.output(range));
        }
    }
    assert_eq!(scene.server.server.stats().steps, 1 + 3 + 12);
}

#[tokio::test]
async fn a_rollback_forgets_what_came_behind_it() {
    let scene = scene().await;
    let mut session = scene.session().await;
    let wrong: Vec<f32> = scene.input(0..12).data.iter().map(|value| value * -2.0).collect();
    let wrong = Hidden::new(wrong, 1, 12, WIDTH).unwrap();
    same(
        session.step(&Step::first(&scene.input(0..4), 16)).await,
        &scene.output(0..4),
    );
    session.step(&Step::next(&wrong)).await.output();
    same(
        session.step(&Step::next(&scene.input(4..9)).from(4)).await,
        &scene.output(4..9),
    );
    same(
        session.step(&Step::next(&scene.input(9..12)).from(9)).await,
        &scene.output(9..12),
    );
    same(
        session.step(&Step::next(&scene.input(0..12)).from(0)).await,
        &scene.output(0..12),
    );
    let error = session.step(&Step::next(&scene.input(0..1)).from(13)).await.error();
    assert_eq!(error, "start_from_position 13 is outside of the 12 tokens in the cache");
}

#[tokio::test]
async fn a_position_that_is_none_is_refused() {
    let scene = scene().await;
    for position in [-1, 1, i64::MAX, i64::MIN] {
        let mut session = scene.session().await;
        let error = session
            .step(&Step::first(&scene.input(0..1), 16).from(position))
            .await
            .error();
        assert_eq!(
            error,
            format!("start_from_position {position} is outside of the 0 tokens in the cache")
        );
    }
    scene.server.idle().await;
}

#[tokio::test]
async fn a_step_that_comes_twice_is_computed_and_answered_once() {
    let scene = scene().await;
    let mut session = scene.session().await;
    session.send(&Step::first(&scene.input(0..3), 12).id("a")).await;
    session.send(&Step::next(&scene.input(3..5)).id("b")).await;
    session.send(&Step::next(&scene.input(3..5)).id("b")).await;
    session.send(&Step::next(&scene.input(0..3)).id("a")).await;
    session.send(&Step::next(&scene.input(5..12)).id("c")).await;
    for range in [0..3, 3..5, 5..12] {
        same(session.answer().await, &scene.output(range));
    }
    session.finish().await;
    assert!(matches!(session.answer().await, Answer::End));
    assert_eq!(scene.server.server.stats().steps, 3);
}

#[tokio::test]
async fn rows_of_a_batch_do_not_see_each_other_and_change_places_as_told() {
    let scene = scene().await;
    let rows = |a: &Hidden, b: &Hidden| Hidden::new([&*a.data, &*b.data].concat(), 2, a.tokens, WIDTH).unwrap();
    // Two beginnings of the prompt: one right, one with its tokens in another order.
    let right = scene.input(0..4);
    let mut mixed = right.clone();
    mixed.data.rotate_left(WIDTH);
    let (next, after) = (scene.input(4..5), scene.input(5..6));
    let mut session = scene.session().await;
    let output = session.step(&Step::first(&rows(&mixed, &right), 8)).await.output();
    assert_eq!(output.shape, [2, 4, WIDTH]);
    assert_close(&output.to_f32_vec()[4 * WIDTH..], &scene.output(0..4).data, TOLERANCE);
    // The second row goes on in both.
    let output = session
        .step(&Step::next(&rows(&next, &next)).rows(&[1, 1]))
        .await
        .output();
    let expected = scene.output(4..5);
    assert_close(&output.to_f32_vec(), &rows(&expected, &expected).data, TOLERANCE);
    // And once more changing places makes no difference between equal rows.
    let output = session
        .step(&Step::next(&rows(&after, &after)).rows(&[1, 0]))
        .await
        .output();
    let expected = scene.output(5..6);
    assert_close(&output.to_f32_vec(), &rows(&expected, &expected).data, TOLERANCE);
}

#[tokio::test]
async fn rows_that_are_not_in_the_batch_are_refused() {
    let scene = scene().await;
    for rows in [&[1][..], &[-1], &[0, 0], &[i64::MAX]] {
        let mut session = scene.session().await;
        let error = session
            .step(&Step::first(&scene.input(0..1), 8).rows(rows))
            .await
            .error();
        assert_eq!(error, "hypo ids must be 1 indices from 0 to 1 (exclusive)");
    }
}

#[tokio::test]
async fn a_step_without_tokens_reserves_the_cache_and_computes_nothing() {
    let scene = scene().await;
    let mut session = scene.session().await;
    same(
        session.step(&Step::first(&scene.input(0..0), 12)).await,
        &scene.input(0..0),
    );
    assert!(!scene.server.server.is_idle(), "the cache is reserved");
    same(
        session.step(&Step::next(&scene.input(0..12))).await,
        &scene.output(0..12),
    );
    same(session.step(&Step::next(&scene.input(0..0))).await, &scene.input(0..0));
}

#[tokio::test]
async fn deep_prompts_are_added_to_the_first_positions_of_every_block() {
    let scene = scene().await;
    // A prompt that adds nothing but to the first block, where it turns the wrong embeddings into the right ones.
    let right = scene.input(0..3);
    let half: Vec<f32> = right.data.iter().map(|value| value / 2.0).collect();
    let mut deep = half.clone();
    deep.extend(std::iter::repeat_n(0.0, 3 * 3 * WIDTH));
    let mut step = Step::first(&Hidden::new(half, 1, 3, WIDTH).unwrap(), 12);
    step.prompts = WireTensor::from_f32(&deep, [4, 1, 3, WIDTH], DType::F32).unwrap();
    let mut session = scene.session().await;
    same(session.step(&step).await, &scene.output(0..3));
    // For other numbers of blocks, rows, tokens or widths there is no meaning.
    for shape in [[3, 1, 4, WIDTH], [4, 2, 1, WIDTH], [4, 1, 4, WIDTH], [4, 1, 1, 32]] {
        let mut session = scene.session().await;
        let zeros = vec![0.0; shape.iter().product()];
        step.prompts = WireTensor::from_f32(&zeros, shape, DType::F32).unwrap();
        let error = session.step(&step).await.error();
        assert!(error.starts_with("tensor prompts has shape"), "{error}");
    }
}

#[tokio::test]
async fn any_float_type_is_understood_and_answered_in_the_servers_own() {
    let scene = scene().await;
    for dtype in [DType::F16, DType::Bf16, DType::F64, DType::F32] {
        let mut step = Step::first(&scene.input(0..12), 12);
        step.x = scene.input(0..12).to_wire(dtype).unwrap();
        let output = scene.session().await.step(&step).await.output();
        assert_eq!(output.dtype, DType::F32);
        let tolerance = if dtype == DType::Bf16 { 0.1 } else { 0.01 };
        assert_close(&output.to_f32_vec(), &scene.output(0..12).data, tolerance);
    }
}

#[tokio::test]
async fn an_error_ends_the_session_and_frees_its_id() {
    let scene = scene().await;
    let mut session = scene.session().await;
    let step = Step::first(&scene.input(0..3), 4).session("mine");
    same(session.step(&step).await, &scene.output(0..3));
    let error = session.step(&Step::next(&scene.input(3..5))).await.error();
    assert_eq!(
        error,
        "Maximum length exceeded: prefix 3 + current 2 exceeds pre-allocated maximum 4"
    );
    assert!(matches!(session.answer().await, Answer::End));
    scene.server.idle().await;
    let mut again = scene.session().await;
    same(again.step(&step).await, &scene.output(0..3));
    assert_eq!(scene.server.server.stats().rejected, 1);
}

#[tokio::test]
async fn map_monitors_are_told_what_is_announced() {
    use sepal_protocol::{Message, frame::legacy, proto};

    let scene = scene().await;
    let request = proto::ExpertUid {
        uid: format!("{PREFIX}.0"),
    }
    .encode_to_vec();
    let mut stream = scene
        .node
        .p2p
        .open_raw(scene.server.node.peer(), names::LEGACY_RPC)
        .await
        .unwrap();
    futures::AsyncWriteExt::write_all(&mut stream, &legacy::message(&request))
        .await
        .unwrap();
    futures::AsyncWriteExt::close(&mut stream).await.unwrap();
    let mut answer = Vec::new();
    futures::AsyncReadExt::read_to_end(&mut stream, &mut answer)
        .await
        .unwrap();
    let (_, body) = legacy::split(answer[8..].to_vec().into()).unwrap();
    let info = proto::ExpertInfo::decode(body).unwrap();
    assert!(!info.serialized_info.is_empty());
    // The ordinary way is there as well.
    let info = call(&scene.node, scene.server.node.peer(), names::INFO, Vec::new())
        .await
        .unwrap();
    assert!(!info.is_empty());
}
