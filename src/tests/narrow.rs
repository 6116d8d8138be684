//! Servers that move where the memory has no room for both spans, or not for those of all models: there is an outage, but a
//! short one, and after it something is served.

use std::{fs, ops::Range, path::Path, sync::Arc, time::Duration};

use futures::FutureExt;
use sepal_protocol::record::{BlockUid, ServerState};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{
    caller::{Session, Step},
    generating::{client, generate},
    setup::{Node, PREFIX, Swarm, TestServer, config, model, reference, soon, tokens, until, vectors_folder},
    swarms::{announced, recorded},
};
use crate::{
    model::{HubOptions, ModelSource},
    p2p::PeerId,
    server::{BlockChoice, Config, Server, StartError, stay},
    swarm::placement::{Habit, Place},
};

/// Another model, which has the same weights.
const OTHER: &str = "another-model";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What sessions are told when their blocks go.
const GONE: &str = "server is not serving any blocks right now";

/// A server that goes where it is needed.
fn restless() -> Config {
    Config {
        blocks: BlockChoice::Count(2),
        balance_quality: 0.5,
        mean_balance_check_period: Duration::from_millis(50),
        ..config(0..2)
    }
}

/// The model in a folder of its own.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", WEIGHTS] {
        let from = Path::new(&vectors_folder("petals/tiny-llama")).join(file);
        fs::copy(from, folder.path().join(file)).unwrap();
    }
    folder
}

/// The same without the weights of the last two blocks, which the folder says that it has.
fn half_a_folder() -> TempDir {
    let folder = folder();
    let weights = fs::read(folder.path().join(WEIGHTS)).unwrap();
    let n_bytes = u64::from_le_bytes(weights[..8].try_into().unwrap());
    let header: Map<String, Value> = serde_json::from_slice(&weights[8..][..n_bytes as usize]).unwrap();
    let files = header.keys().filter(|name| *name != "__metadata__").map(|name| {
        let is_there = !name.contains("layers.2.") && !name.contains("layers.3.");
        let file = if is_there { WEIGHTS } else { "absent.safetensors" };
        (name.clone(), Value::from(file))
    });
    let index = json!({ "weight_map": files.collect::<Map<_, _>>() });
    fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    folder
}

/// From now on nothing in the folder can be loaded, which is only found out by trying. What is loaded stays as it is.
fn spoil(folder: &TempDir) {
    let fresh = folder.path().join("fresh");
    fs::write(&fresh, b"no weights").unwrap();
    fs::rename(fresh, folder.path().join(WEIGHTS)).unwrap();
}

fn source(folder: &TempDir) -> ModelSource {
    let options = HubOptions::from_variables(|_| None);
    ModelSource::resolve(folder.path().to_str().unwrap(), &options).unwrap()
}

/// Whether a server goes to the last two blocks a moment after it tried to, if nobody has them.
fn tries_again(habit: &Habit) -> bool {
    let place = Place {
        blocks: 2..4,
        urgent: true,
    };
    habit.allows(&place, 1.0)
}

/// A step through the first two blocks.
fn step(range: Range<usize>) -> Step {
    let x = tokens(&reference().embeddings, range.clone());
    let step = match range.start {
        0 => Step::first(&x, 12),
        _ => Step::next(&x),
    };
    Step {
        uid: BlockUid::format_chain(PREFIX, 0..2),
        ..step
    }
}

/// Two servers of the first two blocks, of which the second has no room for more, and nobody who has the last two.
async fn two(swarm: &mut Swarm, folder: &TempDir) -> [TestServer; 2] {
    let other = swarm.serve(0..2).await;
    swarm.source = source(folder);
    let server = swarm.serve(0..2).await;
    server.server.set_budget(0);
    [other, server]
}

/// Reads what `peer` says of the first and the third block until `done`: at no time that both are served, or that blocks
/// come before others are gone.
async fn watch_records(reader: &Node, peer: PeerId, done: impl Future<Output = ()>) {
    tokio::pin!(done);
    let mut arriving = false;
    while (&mut done).now_or_never().is_none() {
        let states = recorded(reader, peer).await;
        // A look at all blocks takes a moment; the next one began after this one.
        assert!(!arriving || states[0] == Some(ServerState::Offline), "{states:?}");
        let here = states[2].is_some_and(|state| state != ServerState::Offline);
        assert!(here || !arriving, "{states:?}");
        arriving = here;
    }
}

#[tokio::test]
async fn where_both_spans_do_not_fit_sessions_end_and_the_records_say_one_span_after_the_other() {
    let swarm = Swarm::start().await;
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let mover = swarm.serve_with(restless()).await;
    mover.server.set_budget(0);
    let (caller, me) = (swarm.caller().await, mover.node.peer());
    announced(&caller, me, 0..2, ServerState::Online).await;
    let mut session = Session::open(&caller, me).await;
    session.step(&step(0..4)).await.output();
    fixed[1].server.shutdown().await;
    let moved = async { assert_eq!(soon("the move", mover.server.moved()).await.unwrap(), 2..4) };
    watch_records(&caller, me, moved).await;
    announced(&caller, me, 2..4, ServerState::Online).await;
    assert_eq!(session.step(&step(4..5)).await.error(), GONE);
    // Nothing lingers.
    assert_eq!(mover.server.n_spans(), 1);
    let (_node, client) = client(&swarm).await;
    let reference = reference();
    let generation = generate(&client, &reference.prompt, 4, &mut |_| {}).await.unwrap();
    assert_eq!(generation.token_ids, reference.greedy[..4]);
    assert_eq!(generation.route[1].peer, me);
}

#[tokio::test]
async fn blocks_that_cannot_be_fetched_are_not_worth_an_outage() {
    let (mut swarm, folder) = (Swarm::start().await, folder());
    let [_other, server] = two(&mut swarm, &folder).await;
    let (caller, me) = (swarm.caller().await, server.node.peer());
    let mut session = Session::open(&caller, me).await;
    let first = session.step(&step(0..4)).await.output();
    fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    assert!(!tries_again(&server.server.try_move(2..4).await.unwrap()));
    session.step(&step(4..9)).await.output();
    assert_eq!(Session::open(&caller, me).await.step(&step(0..4)).await.output(), first);
    let [old, new] = [ServerState::Online, ServerState::Offline];
    let states = recorded(&caller, me).await;
    assert_eq!(states[..2], [Some(old); 2]);
    assert!(states[2..].iter().all(|state| state.is_none_or(|state| state == new)));
}

#[tokio::test]
async fn blocks_that_cannot_be_loaded_are_left_for_the_old_ones() {
    let (mut swarm, folder) = (Swarm::start().await, half_a_folder());
    let [_other, server] = two(&mut swarm, &folder).await;
    let (caller, me) = (swarm.caller().await, server.node.peer());
    let mut session = Session::open(&caller, me).await;
    let first = session.step(&step(0..4)).await.output();
    assert!(!tries_again(&server.server.try_move(2..4).await.unwrap()));
    announced(&caller, me, 0..2, ServerState::Online).await;
    assert_eq!(session.step(&step(4..9)).await.error(), GONE);
    assert_eq!(Session::open(&caller, me).await.step(&step(0..4)).await.output(), first);
    until("idle", || server.server.is_idle()).await;
}

#[tokio::test]
async fn blocks_that_cannot_be_loaded_beside_the_others_are_not_tried_again_and_those_that_others_took_are() {
    let (mut swarm, folder) = (Swarm::start().await, half_a_folder());
    let _other = swarm.serve(0..2).await;
    let whole = swarm.serve(0..2).await;
    swarm.source = source(&folder);
    let half = swarm.serve(0..2).await;
    let (caller, me) = (swarm.caller().await, half.node.peer());
    let mut session = Session::open(&caller, me).await;
    session.step(&step(0..4)).await.output();
    assert!(!tries_again(&half.server.try_move(2..4).await.unwrap()));
    announced(&caller, me, 0..2, ServerState::Online).await;
    session.step(&step(4..9)).await.output();
    assert_eq!(half.server.n_spans(), 1);

    swarm.source = model();
    let _quicker = swarm.serve_all(&[2..4, 2..4, 2..4]).await;
    assert!(tries_again(&whole.server.try_move(2..4).await.unwrap()));
    announced(&caller, whole.node.peer(), 0..2, ServerState::Online).await;
}

#[tokio::test]
async fn memory_that_passes_have_taken_does_not_count_against_a_move() {
    let swarm = Swarm::start().await;
    let servers = swarm.serve_all(&[0..2, 0..2]).await;
    let mover = &servers[1].server;
    mover.set_budget(4);
    let _taken = mover.take_pass_memory().await;
    mover.try_move(2..4).await.unwrap();
    // There was no outage: the old blocks are there for those that have not heard of the move.
    assert_eq!(mover.n_spans(), 2);
    assert_eq!(mover.overview().blocks, Some(2..4));
}

#[tokio::test]
async fn a_server_without_a_way_back_is_gone_and_says_why() {
    let (swarm, folder) = (Swarm::start().await, folder());
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let server = Arc::new(Server::new(restless(), source(&folder), network, &node.tasks));
    server.set_budget(0);
    node.join(server.handlers()).await;
    assert_eq!(soon("online", server.bring_up()).await.unwrap(), 0..2);
    spoil(&folder);
    fixed[1].server.shutdown().await;
    let servers = [server];
    let error = soon("the end", stay(&servers, |_, span| panic!("at {span:?}"))).await;
    assert!(matches!(error, StartError::Load { start: 0, end: 2, .. }), "{error}");
    let (caller, me) = (swarm.caller().await, node.peer());
    announced(&caller, me, 0..0, ServerState::Offline).await;
}

#[tokio::test]
async fn a_model_without_a_way_back_leaves_the_others_of_its_node_alone() {
    let (swarm, folders) = (Swarm::start().await, [folder(), folder()]);
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let first = Arc::new(Server::new(restless(), source(&folders[0]), network, &node.tasks));
    let other = Config {
        prefix: OTHER.to_owned(),
        ..config(0..2)
    };
    let second = Arc::new(first.beside(other, source(&folders[1])));
    first.set_budget(0);
    node.join(first.handlers()).await;
    assert_eq!(soon("online", first.bring_up()).await.unwrap(), 0..2);
    soon("online", second.bring_up()).await.unwrap();
    folders.iter().for_each(spoil);
    let (caller, me) = (swarm.caller().await, node.peer());
    let servers = [first, second];
    let staying = stay(&servers, |prefix, span| panic!("{prefix} is at {span:?}"));
    tokio::pin!(staying);

    let mut session = Session::open(&caller, me).await;
    let other = |range: Range<usize>| Step {
        uid: BlockUid::format_chain(OTHER, 0..2),
        ..step(range)
    };
    session.step(&other(0..4)).await.output();
    fixed[1].server.shutdown().await;
    tokio::select! {
        error = &mut staying => panic!("{error}"),
        () = until("the end of one", || servers[0].n_spans() == 0) => {}
    }
    tokio::select! {
        error = &mut staying => panic!("{error}"),
        () = announced(&caller, me, 0..0, ServerState::Offline) => {}
    }
    session.step(&other(4..9)).await.output();
    assert!((&mut staying).now_or_never().is_none());
}

/// Two models of one node that go where they are needed.
async fn both(swarm: &Swarm, folders: &[TempDir; 2]) -> (Node, [Server; 2]) {
    let node = swarm.node().await;
    let network = (node.p2p.clone(), node.dht.clone());
    let first = Server::new(restless(), source(&folders[0]), network, &node.tasks);
    let other = Config {
        prefix: OTHER.to_owned(),
        ..restless()
    };
    let second = first.beside(other, source(&folders[1]));
    node.join(first.handlers()).await;
    (node, [first, second])
}

#[tokio::test]
async fn models_of_one_node_do_not_move_into_the_same_memory() {
    let (swarm, folders) = (Swarm::start().await, [folder(), folder()]);
    let mut fixed = swarm.serve_all(&[0..2, 2..4]).await;
    for blocks in [0..2, 2..4] {
        let other = Config {
            prefix: OTHER.to_owned(),
            ..config(blocks)
        };
        fixed.push(swarm.serve_with(other).await);
    }
    let (_node, [first, second]) = both(&swarm, &folders).await;
    for server in [&first, &second] {
        assert_eq!(soon("online", server.bring_up()).await.unwrap(), 0..2);
    }
    // Four are there.
    first.set_budget(6);
    fixed[1].server.shutdown().await;
    fixed[3].server.shutdown().await;
    let moves = soon("the moves", futures::future::join(first.moved(), second.moved())).await;
    assert_eq!((moves.0.unwrap(), moves.1.unwrap()), (2..4, 2..4));
    // The one that was first has its old blocks for a while.
    assert_eq!(first.n_spans() + second.n_spans(), 3);
}

#[tokio::test]
async fn a_model_stays_until_the_others_of_its_node_are_up() {
    let (swarm, folders) = (Swarm::start().await, [folder(), folder()]);
    let fixed = swarm.serve_all(&[0..2, 2..4]).await;
    let (node, [first, second]) = both(&swarm, &folders).await;
    assert_eq!(soon("online", first.bring_up()).await.unwrap(), 0..2);
    fixed[1].server.shutdown().await;
    let caller = swarm.caller().await;
    for _ in 0..30 {
        let states = recorded(&caller, node.peer()).await;
        assert_eq!((states[0], states[2]), (Some(ServerState::Online), None));
    }
    soon("online", second.bring_up()).await.unwrap();
    assert_eq!(soon("the move", first.moved()).await.unwrap(), 2..4);
}
