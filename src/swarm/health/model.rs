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

/// Tokens per second that no machine reaches with one span. Numbers above are shown and called what they are.
const MAX_SANE_THROUGHPUT: f64 = 1e7;

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
    /// The records of all its blocks.
    pub(crate) blocks: Vec<BlockRecords>,
    /// When the last record of each server expires.
    pub(crate) expires: BTreeMap<PeerId, f64>,
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
    let n_blocks = spans::block_number(facts.blocks.len());
    let spans = spans::compute(&facts.blocks, ServerState::Offline);
    let servers: Vec<ServerView> = spans.iter().map(|span| server_view(span, facts, findings)).collect();
    let serving: Vec<Span> = spans
        .into_iter()
        .zip(&servers)
        .filter(|(_, view)| view.state == Condition::Online)
        .map(|(span, _)| span)
        .collect();
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
    };
    let route = route::shortest(&snapshot, 0..n_blocks, rtts, None, &HashSet::new()).ok()?;
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
        expires: facts.expires.get(&span.peer).copied(),
        signature: SignatureView::None,
        problems: problems(span, &facts.blocks),
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

/// What is wrong with what a server says, in words.
fn problems(span: &Span, blocks: &[BlockRecords]) -> Vec<String> {
    let n_blocks = spans::block_number(blocks.len());
    let mut problems = Vec::new();
    let claimed = span.info.start_block.zip(span.info.end_block);
    if let Some((start, end)) = claimed.filter(|(_, end)| *end > n_blocks) {
        problems.push(format!("claims blocks {start}:{end} of a model of {n_blocks} blocks"));
    }
    if span.info.throughput > MAX_SANE_THROUGHPUT {
        problems.push(format!("claims {:.0} tokens/s", span.info.throughput));
    }
    let of_server = (0..n_blocks)
        .zip(blocks)
        .filter_map(|(block, servers)| Some((block, servers.get(&span.peer)?)));
    let misplaced = of_server.clone().filter_map(|(block, info)| {
        let says = info.start_block?..info.end_block?;
        (!says.contains(&block)).then(|| format!("its record of block {block} says {}:{}", says.start, says.end))
    });
    problems.extend(misplaced.take(MAX_PROBLEMS));
    let found: HashSet<u32> = of_server.map(|(block, _)| block).collect();
    let missing = span.blocks.clone().filter(|block| !found.contains(block)).count();
    if claimed.is_some() && missing > 0 {
        let Range { start, end } = span.blocks;
        problems.push(format!(
            "{missing} blocks of its span {start}:{end} have no record of it"
        ));
    }
    problems.truncate(MAX_PROBLEMS);
    problems
}
