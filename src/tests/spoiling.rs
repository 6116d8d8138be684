//! A server between the client and one of ours that spoils what goes through: the injector of faults for tests. The right
//! answers are computed by the server behind it, which clients in these tests do not see.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use sepal_protocol::{
    Message,
    compress::Compression,
    names, proto,
    record::{ServerInfo, ServerState},
    tensor::{DType, WireTensor},
};
use tokio::sync::{Notify, futures::Notified};

use super::{
    generating::client_on,
    setup::{N_BLOCKS, Node, PREFIX, Swarm, TestServer, soon},
};
use crate::{
    client::{Client, Config},
    p2p::{Handler, HandlerError, HandlerLimits, P2p, PeerId, StreamError, StreamReceiver, StreamSender},
    swarm::announce::{AnnounceConfig, Announcer},
};

/// Announced steps per second of the servers that clients try first, second and third: a step of two blocks is expected to
/// take nothing, 0.1 s and 0.2 s, so that round trips decide nothing.
pub(super) const FIRST: f64 = 1e6;
pub(super) const SECOND: f64 = 20.0;
pub(super) const THIRD: f64 = 10.0;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    Nothing,
    OtherShape,
    TwoDimensions,
    MoreTokens,
    NoTokens,
    OtherBatch,
    OtherDtype,
    Truncated,
    NoData,
    NoTensor,
    ExtraTensor,
    NotANumber,
    Infinity,
    HugeShape,
    Garbage,
    /// The answer to the step before.
    Stale,
    /// The right answer, and again.
    Twice,
    Closes,
    Says(&'static str),
    /// None, until [`Spoiler::thaw`].
    Silent,
    /// The right answer, later.
    Late(Duration),
    /// The right answer, byte by byte with this pause after each.
    Drips(Duration),
    /// Every number off by this share of itself, and no receipt.
    OffBy(f32),
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    fault: Fault,
    /// Right answers before the first wrong one.
    after: usize,
    /// Of those that follow, one in so many is wrong.
    every: usize,
    answered: usize,
}

/// Goes online with `blocks` of a model of so many.
pub(super) async fn announce(node: &Node, blocks: Range<u32>, n_model_blocks: u32, rps: f64) -> Announcer {
    let config = AnnounceConfig {
        prefix: PREFIX.to_owned(),
        peer: node.peer(),
        blocks,
        n_model_blocks,
        repository: None,
        period: Duration::from_secs(60),
        expiration: Duration::from_secs(120),
    };
    let describe = move || ServerInfo {
        inference_rps: Some(rps),
        torch_dtype: Some("float32".to_owned()),
        version: Some("sepal 0.1".to_owned()),
        ..ServerInfo::new(ServerState::Online, 100.0)
    };
    let announcer = Announcer::spawn(node.dht.clone(), config, describe, &node.tasks);
    soon("online", announcer.set_state(ServerState::Online)).await.unwrap();
    announcer
}

/// A server whose answers are spoiled as told.
pub(super) struct Spoiler {
    node: Node,
    _announcer: Announcer,
    plan: Arc<Mutex<Plan>>,
    thawed: Arc<Notify>,
}

impl Spoiler {
    /// Goes online for `blocks`, which `behind` computes. Clients prefer the one with more `rps`.
    pub(super) async fn serve(swarm: &Swarm, behind: &TestServer, blocks: Range<u32>, rps: f64) -> Self {
        let node = swarm.node().await;
        let plan = Arc::new(Mutex::new(Plan {
            fault: Fault::Nothing,
            after: 0,
            every: 1,
            answered: 0,
        }));
        let thawed = Arc::new(Notify::new());
        let relay = Relay {
            p2p: node.p2p.clone(),
            behind: behind.node.peer(),
            plan: plan.clone(),
            thawed: thawed.clone(),
        };
        let limits = HandlerLimits::default();
        let handler = Handler::stream(names::INFERENCE, limits, move |_, requests, replies| {
            relay.clone().run(requests, replies)
        });
        node.join(vec![handler]).await;
        let announcer = announce(&node, blocks, N_BLOCKS, rps).await;
        Self {
            node,
            _announcer: announcer,
            plan,
            thawed,
        }
    }

    pub(super) fn peer(&self) -> PeerId {
        self.node.peer()
    }

    /// From now on, `after` right answers and then none any more.
    pub(super) fn spoil(&self, fault: Fault, after: usize) {
        self.spoil_every(fault, after, 1);
    }

    /// From now on, `after` right answers, and then one in `every` that is not.
    pub(super) fn spoil_every(&self, fault: Fault, after: usize, every: usize) {
        *self.plan.lock().unwrap() = Plan {
            fault,
            after,
            every,
            answered: 0,
        };
    }

    /// Lets the answers go that were held back.
    pub(super) fn thaw(&self) {
        self.plan.lock().unwrap().fault = Fault::Nothing;
        self.thawed.notify_waiters();
    }

    /// Answers since it was told what to do, also spoiled ones.
    pub(super) fn answered(&self) -> usize {
        self.plan.lock().unwrap().answered
    }
}

#[derive(Clone)]
struct Relay {
    p2p: P2p,
    behind: PeerId,
    plan: Arc<Mutex<Plan>>,
    thawed: Arc<Notify>,
}

impl Relay {
    async fn run(self, mut requests: StreamReceiver, mut replies: StreamSender) -> Result<(), HandlerError> {
        let opened = self.p2p.open_stream(self.behind, names::INFERENCE, TIMEOUT).await;
        let (mut there, mut back) = opened.map_err(|error| HandlerError::new(error.to_string()))?;
        let mut before = None;
        while let Ok(Some(request)) = requests.recv().await {
            let is_goodbye = request.is_empty();
            if there.send(request).await.is_err() || is_goodbye {
                break;
            }
            let answer = match back.recv().await {
                Ok(Some(answer)) => answer,
                Err(StreamError::Remote { text }) => return Err(HandlerError::new(text)),
                Ok(None) | Err(_) => break,
            };
            // Listens before it looks, so that nothing is missed.
            let thawed = self.thawed.notified();
            let fault = self.next_fault();
            if let Fault::Drips(pause) = fault {
                drop(replies.drip(answer.clone(), 1, pause).await);
            } else {
                for answer in spoiled(fault, &answer, before.as_ref(), thawed).await? {
                    drop(replies.send(answer).await);
                }
            }
            before = Some(answer);
        }
        Ok(())
    }

    fn next_fault(&self) -> Fault {
        let mut plan = self.plan.lock().unwrap();
        let number = plan.answered;
        plan.answered += 1;
        let spoiled = number >= plan.after && (number - plan.after).is_multiple_of(plan.every);
        if spoiled { plan.fault } else { Fault::Nothing }
    }
}

/// What is sent instead of an answer.
async fn spoiled(
    fault: Fault,
    answer: &Bytes,
    before: Option<&Bytes>,
    thawed: Notified<'_>,
) -> Result<Vec<Bytes>, HandlerError> {
    let mut message = proto::ExpertResponse::decode(answer.clone()).unwrap();
    let x = WireTensor::decode(&message.tensors[0]).unwrap();
    let numbers = x.to_f32_vec();
    let tensor = |numbers: &[f32], shape: &[usize]| {
        let tensor = WireTensor::from_f32(numbers, shape, DType::F32).unwrap();
        tensor.encode(Compression::None).unwrap()
    };
    let first = &mut message.tensors[0];
    match fault {
        Fault::Nothing | Fault::Drips(_) => {}
        Fault::OtherShape => *first = tensor(&[1.0; 8], &[1, 1, 8]),
        Fault::TwoDimensions => *first = tensor(&numbers, &x.shape[1..]),
        Fault::MoreTokens => {
            let mut more = numbers;
            more.resize(more.len() + x.shape[2], 0.5);
            *first = tensor(&more, &[1, x.shape[1] + 1, x.shape[2]]);
        }
        Fault::NoTokens => *first = tensor(&[], &[1, 0, x.shape[2]]),
        Fault::OtherBatch => *first = tensor(&numbers.repeat(2), &[2, x.shape[1], x.shape[2]]),
        Fault::OtherDtype => {
            let ids = vec![1; numbers.len()];
            let ids = WireTensor::from_i64(&ids, x.shape.clone()).unwrap();
            *first = ids.encode(Compression::None).unwrap();
        }
        Fault::Truncated => first.buffer.truncate(first.buffer.len() / 2),
        Fault::NoData => first.buffer = Bytes::new(),
        Fault::NoTensor => message.tensors.clear(),
        Fault::ExtraTensor => {
            let copy = first.clone();
            message.tensors.push(copy);
        }
        Fault::NotANumber => *first = tensor(&vec![f32::NAN; numbers.len()], &x.shape),
        Fault::Infinity => *first = tensor(&vec![f32::INFINITY; numbers.len()], &x.shape),
        Fault::HugeShape => first.size = vec![1, u32::MAX, u32::MAX],
        Fault::Garbage => return Ok(vec![vec![0xff; 100].into()]),
        Fault::Stale => return Ok(vec![before.unwrap_or(answer).clone()]),
        Fault::Twice => return Ok(vec![answer.clone(), answer.clone()]),
        Fault::Closes => return Err(HandlerError::new("gone")),
        Fault::Says(text) => return Err(HandlerError::new(text)),
        Fault::Silent => thawed.await,
        Fault::Late(by) => tokio::time::sleep(by).await,
        Fault::OffBy(share) => {
            let off: Vec<f32> = numbers.iter().map(|x| x * (1.0 + share)).collect();
            *first = tensor(&off, &x.shape);
            message.metadata.clear();
        }
    }
    Ok(vec![message.encode_to_vec().into()])
}

/// A server of the first half, and four of the second: one that clients do not see computes for the three in front of it.
pub(super) struct Scene {
    swarm: Swarm,
    first_half: TestServer,
    _behind: TestServer,
    /// The first choice, and the second one.
    pub(super) faulty: [Spoiler; 2],
    /// Spoils nothing.
    spare: Spoiler,
    node: Node,
}

impl Scene {
    pub(super) async fn start() -> Self {
        let swarm = Swarm::start().await;
        let first_half = swarm.serve(0..2).await;
        let behind = swarm.serve(2..4).await;
        let faulty = [
            Spoiler::serve(&swarm, &behind, 2..4, FIRST).await,
            Spoiler::serve(&swarm, &behind, 2..4, SECOND).await,
        ];
        let spare = Spoiler::serve(&swarm, &behind, 2..4, THIRD).await;
        Self {
            first_half,
            _behind: behind,
            faulty,
            spare,
            node: swarm.caller().await,
            swarm,
        }
    }

    /// A client that knows nothing yet, verifies a share of its steps, and sees the first half and `others`.
    pub(super) async fn client(&self, verify: f64, others: &[PeerId]) -> Client {
        self.client_with(others, |config| config.verify = verify).await
    }

    /// The same, otherwise.
    pub(super) async fn client_with(&self, others: &[PeerId], change: impl FnOnce(&mut Config)) -> Client {
        let mut allowed = vec![self.first_half.node.peer()];
        allowed.extend(others);
        client_on(&self.node, &self.swarm, |config| {
            change(config);
            config.filter.allowed = Some(allowed.into_iter().collect());
        })
        .await
    }

    pub(super) fn spare(&self) -> PeerId {
        self.spare.peer()
    }

    pub(super) fn kill_spare(&self) {
        self.spare.node.tasks.token().cancel();
    }
}
