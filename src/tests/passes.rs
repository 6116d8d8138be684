//! Backward passes as a client sees them: what they return, and what they refuse. That the numbers are Petals' is shown in
//! `replay`, that they are gradients in `model/grad`.

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    metadata::StepMetadata,
    names, proto,
    record::BlockUid,
    tensor::{DType, Joiner, WireTensor, split},
};

use super::{
    caller::{Session, call, empty},
    setup::{N_BLOCKS, Node, PREFIX, Swarm, TestServer, WIDTH, assert_close, reference, soon, tokens, until},
};
use crate::model::Hidden;

struct Scene {
    swarm: Swarm,
    server: TestServer,
    node: Node,
}

async fn scene() -> Scene {
    let swarm = Swarm::start().await;
    let (server, node) = (swarm.serve(0..N_BLOCKS).await, swarm.caller().await);
    Scene { swarm, server, node }
}

/// A request over all blocks.
fn request(tensors: &[&WireTensor], metadata: &StepMetadata) -> proto::ExpertRequest {
    let encoded = tensors.iter().map(|tensor| tensor.encode(Compression::None).unwrap());
    proto::ExpertRequest {
        uid: BlockUid::format_chain(PREFIX, 0..N_BLOCKS),
        tensors: encoded.collect(),
        metadata: metadata.encode(),
    }
}

fn decoded(answer: Bytes) -> Vec<WireTensor> {
    let answer = proto::ExpertResponse::decode(answer).unwrap();
    let tensors = answer.tensors.iter();
    tensors.map(|tensor| WireTensor::decode(tensor).unwrap()).collect()
}

/// Two rows: beginnings of the recorded prompt.
fn rows() -> Hidden {
    let embeddings = reference().embeddings;
    let two = [tokens(&embeddings, 0..5), tokens(&embeddings, 1..6)].map(|row| row.data);
    Hidden::new(two.concat(), 2, 5, WIDTH).unwrap()
}

/// Numbers around zero that are no pattern of the model's.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect()
}

impl Scene {
    async fn backward(&self, tensors: &[&WireTensor], metadata: &StepMetadata) -> Result<Vec<WireTensor>, String> {
        let request = request(tensors, metadata).encode_to_vec();
        let answer = call(&self.node, self.server.node.peer(), names::BACKWARD, request).await;
        answer.map(decoded)
    }
}

#[tokio::test]
async fn every_row_gets_its_own_gradient_by_prompts_that_all_rows_share() {
    let scene = scene().await;
    let x = rows().to_wire(DType::F32).unwrap();
    let gradient = WireTensor::from_f32(&numbers(2 * 5 * WIDTH), [2, 5, WIDTH], DType::F32).unwrap();
    let one = numbers(4 * 2 * WIDTH);
    let shared = WireTensor::from_f32(&one, [4, 1, 2, WIDTH], DType::F32).unwrap();
    let doubled: Vec<f32> = one
        .chunks(2 * WIDTH)
        .flat_map(|block| [block, block].concat())
        .collect();
    let each = WireTensor::from_f32(&doubled, [4, 2, 2, WIDTH], DType::F32).unwrap();
    let metadata = StepMetadata::default();
    let got = scene.backward(&[&x, &gradient, &shared], &metadata).await.unwrap();
    let want = scene.backward(&[&x, &gradient, &each], &metadata).await.unwrap();
    assert_eq!(got[1].shape, [4, 2, 2, WIDTH]);
    assert_eq!((&got[0].shape, &got[1].shape), (&want[0].shape, &want[1].shape));
    for (got, want) in got.iter().zip(&want) {
        assert_close(&got.to_f32_vec(), &want.to_f32_vec(), 1e-5);
    }
    // Those of the first block are those by the input's first positions.
    let by_input = got[0].to_f32_vec();
    let by_prompts = got[1].to_f32_vec();
    assert_close(&by_prompts[..2 * WIDTH], &by_input[..2 * WIDTH], 0.0);
    assert_close(&by_prompts[2 * WIDTH..4 * WIDTH], &by_input[5 * WIDTH..7 * WIDTH], 0.0);
    scene.server.idle().await;
}

#[tokio::test]
async fn the_encoding_of_each_gradient_can_be_wished_for() {
    let scene = scene().await;
    let x = rows().to_wire(DType::F32).unwrap();
    let prompts = WireTensor::from_f32(&numbers(4 * WIDTH), [4, 1, 1, WIDTH], DType::F32).unwrap();
    let wish = |codes: &[i64]| StepMetadata {
        output_compression: Some(codes.to_vec()),
        ..StepMetadata::default()
    };
    let (none, half) = (i64::from(Compression::None.id()), i64::from(Compression::Float16.id()));
    let body = request(&[&x, &x, &prompts], &wish(&[half, none])).encode_to_vec();
    let answer = call(&scene.node, scene.server.node.peer(), names::BACKWARD, body).await;
    let answer = proto::ExpertResponse::decode(answer.unwrap()).unwrap();
    let codes: Vec<i64> = answer.tensors.iter().map(|tensor| tensor.compression.into()).collect();
    assert_eq!(codes, [half, none]);
    let no_prompts = empty(DType::F32);
    for (prompts, codes, text) in [
        (&prompts, &[none][..], "output_compression should have 2 elements"),
        (&no_prompts, &[none, none], "output_compression should have 1 elements"),
    ] {
        let error = scene.backward(&[&x, &x, prompts], &wish(codes)).await.unwrap_err();
        assert_eq!(error, format!("AssertionError('{text}')"));
    }
}

#[tokio::test]
async fn a_backward_pass_that_makes_no_sense_is_refused() {
    let scene = scene().await;
    let (x, no_prompts) = (rows().to_wire(DType::F32).unwrap(), empty(DType::F32));
    let shorter = WireTensor::from_f32(&numbers(2 * 4 * WIDTH), [2, 4, WIDTH], DType::F32).unwrap();
    let metadata = StepMetadata::default();
    let error = scene.backward(&[&x, &x], &metadata).await.unwrap_err();
    assert_eq!(
        error,
        "ValueError('not enough values to unpack (expected at least 3, got 2)')"
    );
    let error = scene
        .backward(&[&x, &shorter, &no_prompts], &metadata)
        .await
        .unwrap_err();
    assert_eq!(
        error,
        "ValueError('tensor grad_outputs has shape [2, 4, 64], expected [2, 5, 64]')"
    );
    let metadata = StepMetadata {
        active_adapter: Some("foo/bar".to_owned()),
        ..metadata
    };
    let error = scene.backward(&[&x, &x, &no_prompts], &metadata).await.unwrap_err();
    assert_eq!(error, "KeyError('adapter foo/bar not found')");
    // Rows without tokens take no memory, however many there are.
    for n_rows in [2, u32::MAX as usize] {
        let nothing = WireTensor::from_f32(&[], [n_rows, 0, WIDTH], DType::F32).unwrap();
        let got = scene
            .backward(&[&nothing, &nothing, &no_prompts], &StepMetadata::default())
            .await;
        assert_eq!(got.unwrap()[0].shape, [n_rows, 0, WIDTH]);
    }
}

#[tokio::test]
async fn tensors_that_come_in_parts_are_put_together_and_gradients_follow_each_other() {
    let scene = scene().await;
    let embeddings = reference().embeddings;
    let n_tokens = 100;
    let x: Vec<f32> = embeddings
        .data
        .iter()
        .copied()
        .cycle()
        .take(3 * n_tokens * WIDTH)
        .collect();
    let x = WireTensor::from_f32(&x, [3, n_tokens, WIDTH], DType::F32).unwrap();
    let prompts = WireTensor::from_f32(&numbers(4 * WIDTH), [4, 1, 1, WIDTH], DType::F32).unwrap();
    let whole = request(&[&x, &x, &prompts], &StepMetadata::default());
    let mut stream = Session::open_named(&scene.node, scene.server.node.peer(), names::BACKWARD_STREAM).await;
    for tensor in whole.tensors.clone() {
        for part in split(tensor, 10_000) {
            let message = proto::ExpertRequest {
                tensors: vec![part],
                ..whole.clone()
            };
            stream.send_bytes(message.encode_to_vec()).await;
        }
    }
    stream.finish().await;
    let mut joiner = Joiner::new(64 << 20, 4);
    let mut gradients = Vec::new();
    while let Some(message) = soon("a part", stream.receive()).await.unwrap() {
        for part in proto::ExpertResponse::decode(message).unwrap().tensors {
            gradients.extend(joiner.push(part).unwrap());
        }
    }
    gradients.extend(joiner.finish().unwrap());
    let shapes: Vec<_> = gradients.iter().map(|tensor| tensor.size.clone()).collect();
    assert_eq!(shapes, [vec![3, 100, 64], vec![4, 3, 1, 64]]);
    drop(scene.swarm);
}

#[tokio::test]
async fn a_pass_that_could_never_fit_is_refused_at_once_with_the_limit() {
    let scene = scene().await;
    let x = Hidden::new(vec![0.0; 8192 * WIDTH], 1, 8192, WIDTH).unwrap();
    let x = x.to_wire(DType::Bf16).unwrap();
    let mut request = request(&[&x, &x, &empty(DType::F32)], &StepMetadata::default());
    request.uid = vec![format!("{PREFIX}.0"); 1024].join(" ");
    // Not even those that wait for memory delay that.
    let _taken = scene.server.server.take_pass_memory().await;
    let error = call(
        &scene.node,
        scene.server.node.peer(),
        names::BACKWARD,
        request.encode_to_vec(),
    )
    .await
    .unwrap_err();
    assert!(
        error.starts_with("AllocationFailed('a pass of 8192 tokens through 1024 blocks needs "),
        "{error}"
    );
    assert!(
        error.ends_with(" that this server keeps for passes; send fewer tokens or blocks at a time')"),
        "{error}"
    );
}

#[tokio::test]
async fn passes_wait_for_memory_before_anything_of_them_is_decoded() {
    let scene = scene().await;
    let x = rows().to_wire(DType::F32).unwrap();
    let no_prompts = empty(DType::F32);
    let taken = scene.server.server.take_pass_memory().await;
    let metadata = StepMetadata::default();
    let tensors = [&x, &x, &no_prompts];
    let mut given_up = Box::pin(scene.backward(&tensors, &metadata));
    let mut patient = Box::pin(scene.backward(&tensors, &metadata));
    // The second waits for the turn that the first has.
    let waiting = async {
        tokio::select! {
            answer = &mut given_up => panic!("{answer:?}"),
            answer = &mut patient => panic!("{answer:?}"),
            () = until("both wait", || scene.server.server.n_waiting_passes() == 1) => (),
        }
    };
    waiting.await;
    // What makes no sense is not looked at yet.
    let nonsense = WireTensor::new(DType::I64, [1, 1, 8], vec![0; 64].into()).unwrap();
    let nonsense = request(&[&nonsense, &no_prompts], &metadata).encode_to_vec();
    let forward = call(&scene.node, scene.server.node.peer(), names::FORWARD, nonsense);
    let mut forward = Box::pin(forward);
    tokio::select! {
        answer = &mut forward => panic!("{answer:?}"),
        () = until("it waits as well", || scene.server.server.n_waiting_passes() == 2) => (),
    }
    drop(given_up);
    drop(taken);
    assert!(soon("the refusal", forward).await.unwrap_err().contains("torch.int64"));
    assert_eq!(soon("the gradient", patient).await.unwrap().len(), 1);
    scene.server.idle().await;
}
