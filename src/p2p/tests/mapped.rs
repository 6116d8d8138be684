//! Ports of a router as the host shows them: announced while they are there, explained when they are not.

use super::{Config, LONG, host};
use crate::{
    p2p::{
        Mapper, Mapping, P2p, PortMap,
        actor::Command,
        portmap::Report,
        reachability::{Source, Verdict},
    },
    task::Tasks,
};

/// Waits until what came of asking routers is this.
async fn until(node: &P2p, wanted: &[(Mapper, Mapping)]) {
    let wanted: PortMap = wanted.iter().cloned().collect();
    let mut seen = node.port_map();
    tokio::time::timeout(LONG, seen.wait_for(|now| *now == wanted))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_port_of_the_router_is_announced_as_long_as_it_leads_here_and_counts_as_evidence() {
    let tasks = Tasks::new();
    let node = host(&tasks).await;
    let outside: super::super::Multiaddr = "/ip4/8.8.8.8/tcp/5001".parse().unwrap();
    let full = outside.clone().with_p2p(node.peer_id()).unwrap();
    let say = |mapper, report| node.command(Command::Mapping(mapper, report));

    say(Mapper::Upnp, Report::Failed(Mapping::NoGateway)).await.unwrap();
    until(&node, &[(Mapper::Upnp, Mapping::NoGateway)]).await;
    say(Mapper::NatPmp, Report::Mapped(outside.clone())).await.unwrap();
    let mapped = (Mapper::NatPmp, Mapping::Mapped(vec![outside.clone()]));
    until(&node, &[(Mapper::Upnp, Mapping::NoGateway), mapped]).await;
    assert!(node.addrs().contains(&full));
    let evidence = node.reachability().borrow().evidence.clone();
    assert!(
        evidence
            .iter()
            .any(|one| one.source == Source::PortMapping && one.verdict == Verdict::Dialable)
    );

    say(Mapper::NatPmp, Report::Lost(outside)).await.unwrap();
    say(Mapper::NatPmp, Report::Failed(Mapping::NotPublic)).await.unwrap();
    until(
        &node,
        &[(Mapper::Upnp, Mapping::NoGateway), (Mapper::NatPmp, Mapping::NotPublic)],
    )
    .await;
    assert!(!node.addrs().contains(&full));
}

#[tokio::test]
async fn what_is_configured_is_announced_instead_of_a_port_of_the_router() {
    let tasks = Tasks::new();
    let config = Config {
        announce: vec!["/ip4/8.8.4.4/tcp/1".parse().unwrap()],
        ..Config::default()
    };
    let node = P2p::bind(config, &tasks).await.unwrap();
    let outside: super::super::Multiaddr = "/ip4/8.8.8.8/tcp/5001".parse().unwrap();
    let report = Report::Mapped(outside.clone());
    node.command(Command::Mapping(Mapper::Upnp, report)).await.unwrap();
    until(&node, &[(Mapper::Upnp, Mapping::Mapped(vec![outside]))]).await;
    assert_eq!(node.addrs().len(), 1);
}
