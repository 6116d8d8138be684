//! A server whose blocks are on a card that is lost while it serves. On the emulated card (`interop-tests/cuda`) or on a real
//! one.

use sepal_protocol::record::ServerState;

use super::{
    caller::{Answer, Session, Step},
    setup::{N_BLOCKS, Swarm, config, reference, soon, tokens},
    standing::seen,
};
use crate::{
    model::{Cards, Machine, Toolkit},
    server::{Config, StartError},
};

#[tokio::test]
#[ignore = "needs an NVIDIA card or the emulated one: scripts/test.sh cuda"]
async fn a_server_that_lost_its_card_says_so_and_goes_offline() {
    let swarm = Swarm::start().await;
    let usual = config(0..N_BLOCKS);
    let engine = usual.machine.engine().clone();
    let machine = Machine::with_cards(engine, &Cards::These(vec![0]), &Toolkit::default()).unwrap();
    let server = swarm
        .serve_with(Config {
            machine: machine.clone(),
            ..usual
        })
        .await;
    let caller = swarm.caller().await;
    let mut session = Session::open(&caller, server.node.peer()).await;
    let step = |range| tokens(&reference().embeddings, range);
    session.step(&Step::first(&step(0..4), 12)).await.output();

    machine.cards[0].lose();
    let answer = session.step(&Step::next(&step(4..5))).await;
    assert!(!matches!(answer, Answer::Output(_)), "{answer:?}");
    let error = soon("the loss is reported", server.server.moved()).await.unwrap_err();
    assert!(matches!(error, StartError::CardLost(_)), "{error:?}");

    // As every server that ends.
    soon("the end", server.server.shutdown()).await;
    let is_offline = |info: &sepal_protocol::record::ServerInfo| info.state == ServerState::Offline;
    seen(&swarm.bootstrap, server.node.peer(), is_offline).await;
}
