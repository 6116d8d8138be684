//! Servers that answer, but not what they should: each is left out and another one is used. And servers that are right to
//! refuse: they are not.

use std::{
    error::Error,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sepal_protocol::{
    Message,
    compress::Compression,
    names, proto,
    record::{ServerInfo, ServerState},
    tensor::{DType, WireTensor},
};

use super::{
    generating::{client, client_with, generate},
    setup::{N_BLOCKS, Node, PREFIX, Swarm, TestServer, config, reference, soon},
};
use crate::{
    client::ClientError,
    p2p::{Handler, HandlerError, HandlerLimits, StreamReceiver, StreamSender},
    swarm::announce::{AnnounceConfig, Announcer},
};

/// A server that does one thing wrong.
struct Faulty {
    _node: Node,
    _announcer: Announcer,
    asked: Arc<AtomicUsize>,
}

impl Faulty {
    async fn serve(swarm: &Swarm, blocks: Range<u32>, fault: &'static str) -> Self {
        let node = swarm.node().await;
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let handler = Handler::stream(
            names::INFERENCE,
            HandlerLimits::default(),
            move |_, requests, replies| {
                count.fetch_add(1, Ordering::Relaxed);
                misbehave(fault, requests, replies)
            },
        );
        node.join(vec![handler]).await;
        let config = AnnounceConfig {
            prefix: PREFIX.to_owned(),
            peer: node.peer(),
            blocks,
            n_model_blocks: N_BLOCKS,
            repository: None,
            period: Duration::from_secs(60),
            expiration: Duration::from_secs(120),
        };
        let describe = || ServerInfo::new(ServerState::Online, 100.0);
        let announcer = Announcer::spawn(node.dht.clone(), config, describe, &node.tasks);
        soon("online", announcer.set_state(ServerState::Online)).await.unwrap();
        Self {
            _node: node,
            _announcer: announcer,
            asked,
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn misbehave(
    fault: &'static str,
    mut requests: StreamReceiver,
    mut replies: StreamSender,
) -> Result<(), HandlerError> {
    while let Ok(Some(bytes)) = requests.recv().await {
        let Ok(request) = proto::ExpertRequest::decode(bytes) else {
            break;
        };
        let Some(x) = request
            .tensors
            .first()
            .and_then(|tensor| WireTensor::decode(tensor).ok())
        else {
            break;
        };
        let filled = |shape: &[usize], value: f32| {
            let values = vec![value; shape.iter().product()];
            let tensor = WireTensor::from_f32(&values, shape, DType::F32).unwrap();
            vec![tensor.encode(Compression::None).unwrap()]
        };
        let tensors = match fault {
            "another shape" => filled(&[1, 1, 8], 1.0),
            "two dimensions" => filled(&[x.shape[1], x.shape[2]], 1.0),
            "not a number" => filled(&x.shape, f32::NAN),
            "infinity" => filled(&x.shape, f32::INFINITY),
            "no tensor" => Vec::new(),
            "no data" => {
                let mut tensors = filled(&x.shape, 1.0);
                tensors[0].buffer = bytes::Bytes::new();
                tensors
            }
            "an error" => return Err(HandlerError::new("CUDA error: out of luck")),
            "an empty error" => return Err(HandlerError::new("")),
            "closing" => return Ok(()),
            "silence" => std::future::pending().await,
            "garbage" => {
                drop(replies.send(vec![0xff; 100].into()).await);
                continue;
            }
            other => panic!("unknown fault {other}"),
        };
        let answer = proto::ExpertResponse {
            tensors,
            metadata: Vec::new(),
        };
        drop(replies.send(answer.encode_to_vec().into()).await);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_something_wrong_is_left_out_for_a_while() {
    let reference = reference();
    for fault in [
        "another shape",
        "two dimensions",
        "not a number",
        "infinity",
        "no tensor",
        "no data",
        "an error",
        "an empty error",
        "closing",
        "garbage",
        "silence",
    ] {
        let swarm = Swarm::start().await;
        let _first = swarm.serve(0..2).await;
        let faulty = Faulty::serve(&swarm, 2..4, fault).await;
        let (_node, client) = client_with(&swarm, |config| {
            if fault == "silence" {
                config.request_timeout = Duration::from_secs(3);
            }
        })
        .await;
        // The client knows only the faulty one when it begins.
        let _spare = swarm.serve(2..4).await;
        for _ in 0..2 {
            let generation = generate(&client, &reference.prompt, 4, &mut |_| {}).await;
            assert_eq!(generation.unwrap().token_ids, reference.greedy[..4], "{fault}");
            assert_eq!(faulty.asked(), 1, "{fault}");
        }
    }
}

#[tokio::test]
async fn a_swarm_of_nothing_but_faulty_servers_is_given_up() {
    let swarm = Swarm::start().await;
    let mut faulty = Vec::new();
    for _ in 0..3 {
        faulty.push(Faulty::serve(&swarm, 0..4, "an error").await);
    }
    let (_node, client) = client(&swarm).await;
    let error = generate(&client, &[1, 2, 3], 4, &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::MissingBlocks { .. }), "{error}");
    let cause = error.source().and_then(Error::source).map(ToString::to_string);
    assert_eq!(
        cause.as_deref(),
        Some("the peer reports an error: CUDA error: out of luck")
    );
    let asked: usize = faulty.iter().map(Faulty::asked).sum();
    assert_eq!(asked, 3 * 4, "each once, and once after each of three pauses");
}

/// Three servers of all blocks with the same limits.
async fn limited(swarm: &Swarm, change: impl Fn(&mut crate::server::LimitChoice)) -> Vec<TestServer> {
    let mut servers = Vec::new();
    for _ in 0..3 {
        let mut config = config(0..4);
        change(&mut config.limits);
        servers.push(swarm.serve_with(config).await);
    }
    servers
}

#[tokio::test]
async fn what_no_server_would_do_is_asked_of_two_and_bans_none() {
    let reference = reference();
    type Change = fn(&mut crate::server::LimitChoice);
    let cases: [(Change, &str); 2] = [
        (
            |limits| limits.max_batch_size = Some(4),
            "Task size greater than max_batch_size (4), it can't be processed",
        ),
        (
            |limits| limits.inference_max_length = Some(8),
            "Cannot allocate KV cache for 16 tokens, max = 8",
        ),
    ];
    for (change, expected) in cases {
        let swarm = Swarm::start().await;
        let servers = limited(&swarm, change).await;
        let (_node, client) = client(&swarm).await;
        let error = generate(&client, &reference.prompt, 4, &mut |_| {}).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "{error}");
        let cause = error.source().and_then(Error::source).unwrap().to_string();
        assert_eq!(cause, format!("the peer reports an error: {expected}"));
        let rejected: u64 = servers.iter().map(|server| server.server.stats().rejected).sum();
        assert_eq!(rejected, 2);
        // All of them are still good for what they do.
        generate(&client, &reference.prompt[..3], 4, &mut |_| {}).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_of_the_only_server_is_told_without_waiting() {
    let swarm = Swarm::start().await;
    let mut config = config(0..4);
    config.limits.max_batch_size = Some(4);
    let server = swarm.serve_with(config).await;
    let (_node, client) = client_with(&swarm, |config| config.backoff.min = Duration::from_secs(3600)).await;
    let error = generate(&client, &reference().prompt, 4, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the request is refused by {}", server.node.peer())
    );
}

#[tokio::test]
async fn a_server_without_room_says_so_in_the_end() {
    let swarm = Swarm::start().await;
    let mut config = config(0..4);
    config.limits.attn_cache_tokens = Some(8);
    let _server = swarm.serve_with(config).await;
    let (_node, client) = client(&swarm).await;
    let error = generate(&client, &reference().prompt, 4, &mut |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ClientError::RetriesExhausted { attempts: 4, .. }),
        "{error}"
    );
    let cause = error.source().and_then(Error::source).unwrap().to_string();
    assert_eq!(
        cause,
        "the peer reports an error: Could not allocate 16384 bytes, max cache size = 8192 bytes"
    );
}
