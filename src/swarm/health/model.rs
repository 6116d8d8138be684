//! From the records of a model, and what its servers answered, to what the map shows of it. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use sepal_protocol::record::{ServerInfo, ServerState};

use super::{
    holes::{self, Joining},
    probe::Probe,
    state::{BestRoute, Condition, ModelCondition, ModelState, RouteHop, ServerView, SignatureView},
    text,
};
use crate::{
    p2p::{PeerId, short_id},
    swarm::{
        Snapshot, Span,
        hygiene::Sorted,
        ping::RttMap,
        route,
        spans::{self, BlockRecords},
    },
};

/// Adapters and pings shown of one server. A record that announces more is a curiosity, not a server.
const MAX_ADAPTERS: usize = 32;
const MAX_PINGS: usize = 64;

/// Problems listed of one server.
const MAX_PROBLEMS: usize = 8;

/// Peers shown of which nothing is believed. Whoever can store at all can make up any number of them.
const MAX_UNBELIEVED: usize = 64;

/// What the DHT says about one model.
#[derive(Clone, Debug)]
pub(crate) struct ModelFacts {
    /// Its name in the DHT.
    pub(crate) prefix: String,
    /// What `sepal serve` is to be given, if that is known.
    pub(crate) name: Option<String>,
    /// Its page on the hub.
    pub(crate) repository: Option<String>,
    /// Whether it is in the registry.
    pub(crate) in_registry: bool,
    /// The records of all its blocks, and what is wrong with some.
    pub(crate) records: Sorted,
}

/// What this node found out by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Findings<'a> {
    /// This node.
    pub(crate) me: PeerId,
    /// Who answers.
    pub(crate) probes: &'a HashMap<PeerId, Probe>,
    /// Round trips from here.
    pub(crate) rtts: &'a RttMap,
    /// Where others join.
    pub(crate) join: Option<&'a str>,
    /// What they need besides.
    pub(crate) join_flags: &'a str,
}

/// What the map shows of a model.
pub(crate) fn model_state(facts: &ModelFacts, findings: Findings<'_>) -> ModelState {
    let n_blocks = spans::block_number(facts.records.blocks.len());
    let spans = spans::compute(&facts.records.blocks, ServerState::Offline);
    let mut servers: Vec<ServerView> = spans.iter().map(|span| server_view(span, facts, findings)).collect();
    let serving: Vec<Span> = spans
        .into_iter()
        .zip(&servers)
        .filter(|(_, view)| view.state == Condition::Online)
        .map(|(span, _)| span)
        .collect();
    servers.extend(unbelieved(facts, findings, &servers));
    let coverage = holes::coverage(&serving, n_blocks);
    let joining = Joining {
        name: facts.name.as_deref().unwrap_or(&facts.prefix),
        prefix: &facts.prefix,
        name_is_known: facts.name.is_some(),
        join: findings.join,
        join_flags: findings.join_flags,
    };
    let holes = holes::holes(&serving, &coverage, joining);
    let state = if holes.is_empty() {
        ModelCondition::Healthy
    } else {
        ModelCondition::Broken
    };
    ModelState {
        name: text::long(joining.name),
        prefix: text::long(&facts.prefix),
        repository: facts.repository.clone(),
        n_blocks,
        state,
        in_registry: facts.in_registry,
        best_route: best_route(&facts.prefix, serving, n_blocks, findings.rtts),
        coverage,
        holes,
        servers,
    }
}

/// The quickest chain of servers that answer, as a client here would find it: network delays are half the round trips
/// measured from here and announced by servers, compute is blocks / `inference_rps`, each hop costs 18 ms more; what is
/// not known is taken to be what Petals takes it to be (`route.rs`). The sum is seconds per token.
fn best_route(prefix: &str, serving: Vec<Span>, n_blocks: u32, rtts: &RttMap) -> Option<BestRoute> {
    let snapshot = Snapshot {
        prefix: prefix.to_string(),
        blocks: vec![BlockRecords::new(); n_blocks as usize],
        spans: serving,
        ..Snapshot::default()
    };
    let route = route::shortest(&snapshot, 0..n_blocks, &rtts.clone().into(), None, &HashSet::new()).ok()?;
    let hops = route.hops.iter().map(|hop| RouteHop {
        peer_id: hop.peer.to_string(),
        start: hop.blocks.start,
        end: hop.blocks.end,
    });
    Some(BestRoute {
        hops: hops.collect(),
        tokens_per_second: 1.0 / route.seconds.max(f64::MIN_POSITIVE),
    })
}

fn server_view(span: &Span, facts: &ModelFacts, findings: Findings<'_>) -> ServerView {
    let info = &span.info;
    let probe = findings
        .probes
        .get(&span.peer)
        .filter(|_| info.state == ServerState::Online);
    let reachable = match probe {
        _ if span.peer == findings.me => Some(true),
        Some(probe) => Some(probe.error.is_none()),
        None => None,
    };
    let rtt = findings.rtts.get(&span.peer).copied().filter(|rtt| rtt.is_finite());
    let provenance = facts.records.provenance.get(&span.peer);
    let short_text = |text: &Option<String>| text.as_deref().map(text::short);
    ServerView {
        peer_id: span.peer.to_string(),
        short_id: short_id(&span.peer),
        state: condition(info.state, reachable),
        start: span.blocks.start,
        end: span.blocks.end,
        throughput: info.throughput,
        network_rps: info.network_rps,
        forward_rps: info.forward_rps,
        inference_rps: info.inference_rps,
        public_name: short_text(&info.public_name),
        version: short_text(&info.version),
        dtype: short_text(&info.torch_dtype),
        quant: short_text(&info.quant_type),
        adapters: info
            .adapters
            .iter()
            .take(MAX_ADAPTERS)
            .map(|name| text::long(name))
            .collect(),
        using_relay: info.using_relay,
        cache_tokens_left: info
            .cache_tokens_left
            .map(|left| left / (2 * u64::from(span.n_blocks().max(1)))),
        reachable,
        reach_error: probe.and_then(|probe| probe.error.clone()),
        checked: probe.map(|probe| probe.checked),
        rtt,
        pings: pings(info),
        expires: provenance.map(|known| known.expires),
        signature: provenance.map_or(SignatureView::None, |known| known.signature.into()),
        problems: problems(span, &facts.records),
        info: info.clone(),
    }
}

fn condition(state: ServerState, reachable: Option<bool>) -> Condition {
    match state {
        ServerState::Offline => Condition::Offline,
        ServerState::Joining => Condition::Joining,
        ServerState::Online if reachable == Some(false) => Condition::Unreachable,
        ServerState::Online => Condition::Online,
    }
}

/// The pings of a record that are to peers, those to the nearest first if there are too many.
fn pings(info: &ServerInfo) -> BTreeMap<String, f64> {
    let mut pings: Vec<(&String, f64)> = info
        .next_pings
        .iter()
        .flatten()
        .filter(|(peer, _)| peer.parse::<PeerId>().is_ok())
        .map(|(peer, rtt)| (peer, *rtt))
        .collect();
    pings.sort_by(|a, b| a.1.total_cmp(&b.1));
    pings.truncate(MAX_PINGS);
    pings.into_iter().map(|(peer, rtt)| (peer.clone(), rtt)).collect()
}

/// The peers in whose name there are only records that cannot be true, as servers without blocks.
fn unbelieved(facts: &ModelFacts, findings: Findings<'_>, believed: &[ServerView]) -> Vec<ServerView> {
    let shown: HashSet<&str> = believed.iter().map(|view| view.peer_id.as_str()).collect();
    let peers = facts.records.provenance.iter();
    let others = peers.filter(|(peer, _)| !shown.contains(peer.to_string().as_str()));
    let views = others.take(MAX_UNBELIEVED).map(|(peer, _)| {
        let info = ServerInfo::new(ServerState::Offline, 0.0);
        let blocks = 0..0;
        let nothing = Span {
            peer: *peer,
            blocks,
            info,
        };
        server_view(&nothing, facts, findings)
    });
    views.collect()
}

/// What is wrong with what a server says, in words.
fn problems(span: &Span, records: &Sorted) -> Vec<String> {
    let mut problems = flaws(span.peer, records);
    let missing = span.blocks.clone().filter(|block| {
        let servers = records.blocks.get(*block as usize);
        !servers.is_some_and(|servers| servers.contains_key(&span.peer))
    });
    let missing = missing.count();
    if span.info.start_block.is_some() && span.info.end_block.is_some() && missing > 0 {
        let Range { start, end } = span.blocks;
        problems.push(format!(
            "{missing} blocks of its span {start}:{end} have no record of it"
        ));
    }
    problems.truncate(MAX_PROBLEMS);
    problems
}

/// What is wrong with the records in the name of a peer, each thing once.
fn flaws(peer: PeerId, records: &Sorted) -> Vec<String> {
    let flawed = records.flawed.iter().filter(|flawed| flawed.peer == Some(peer));
    let mut flaws: Vec<String> = Vec::new();
    for flaw in flawed.map(|flawed| flawed.problem.to_string()) {
        if flaws.len() < MAX_PROBLEMS && !flaws.contains(&flaw) {
            flaws.push(flaw);
        }
    }
    flaws
}
