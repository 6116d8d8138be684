//! What a node counts and measures of itself, gathered from its layers: the same for `/metrics`, wherever that is served,
//! and for all else that reads it.

mod process;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use self::process::Began;
use super::{node::Node, swarms::Swarms};
use crate::{
    control::{Reading, protocol::ApiRow},
    dht::Dht,
    http::{Api, OwnNumbers},
    jobs,
    metrics::Family,
    p2p::P2p,
    server::{Phase, Refusals, Server, Stats},
};

/// Where the numbers of a process come from.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    began: Began,
    nodes: Vec<(P2p, Dht)>,
    /// Where the first of them may have hosts of further swarms beside it.
    swarms: Option<Arc<Swarms>>,
    servers: Vec<Vec<Arc<Server>>>,
    jobs: Vec<Arc<jobs::Counts>>,
    /// Once there is one.
    api: Arc<OnceLock<Api>>,
}

impl Figures {
    /// Those of a process with this node.
    pub(super) fn of(node: &Node) -> Self {
        Self {
            began: Began::now(),
            nodes: vec![(node.p2p.clone(), node.dht.clone())],
            swarms: None,
            servers: Vec::new(),
            jobs: Vec::new(),
            api: Arc::default(),
        }
    }

    /// With another node of the process.
    pub(super) fn and(mut self, node: &Node) -> Self {
        self.nodes.push((node.p2p.clone(), node.dht.clone()));
        self
    }

    /// With the hosts that the node has in further swarms.
    pub(super) fn within(mut self, swarms: Arc<Swarms>) -> Self {
        self.swarms = Some(swarms);
        self
    }

    /// With the servers of a node, one for each model.
    pub(super) fn serving(mut self, servers: Vec<Arc<Server>>) -> Self {
        self.servers.push(servers);
        self
    }

    /// With the jobs that are worked on.
    pub(super) fn working(mut self, jobs: Vec<Arc<jobs::Counts>>) -> Self {
        self.jobs = jobs;
        self
    }

    /// Everything but what an API counts.
    pub(super) fn own(&self) -> OwnNumbers {
        let figures = self.clone();
        OwnNumbers::new(move || figures.read_own())
    }

    /// All of it, now that there is an API.
    pub(super) fn with_api(&self, api: &Api) -> OwnNumbers {
        self.api.get_or_init(|| api.clone());
        let (figures, api) = (self.clone(), api.clone());
        OwnNumbers::new(move || [figures.read_own(), api.families()].concat())
    }

    /// What the API does, once there is one, for the person who runs it.
    pub(super) fn answering(&self) -> Reading<ApiRow> {
        let api = self.api.clone();
        Reading::new(move || {
            let work = api.get().map(|api| api.metrics().work()).unwrap_or_default();
            ApiRow {
                requests: work.requests,
                refused: work.refused,
                failed: work.failed,
                running: work.running,
                waiting: work.waiting,
                prompt_tokens: work.prompt_tokens,
                cached_tokens: work.cached_tokens,
                new_tokens: work.new_tokens,
            }
        })
    }

    fn read_own(&self) -> Vec<Family> {
        let mut families = process::families(self.began);
        families.extend(self.of_nodes());
        if !self.servers.is_empty() {
            families.extend(self.of_servers());
            families.extend(self.of_models());
        }
        families.extend(self.jobs.iter().flat_map(|counts| counts.families()));
        families
    }

    /// Of several nodes of a process, all together.
    fn of_nodes(&self) -> Vec<Family> {
        let guests = self.swarms.iter().flat_map(|swarms| swarms.guests());
        let guests: Vec<(P2p, Dht)> = guests.map(|(_, p2p, dht)| (p2p, dht)).collect();
        let gauge = |name, help, value: fn(&(P2p, Dht)) -> usize| {
            let hosts = self.nodes.iter().chain(&guests);
            Family::gauge(name, help).is(hosts.map(value).sum::<usize>())
        };
        let bytes = |name, help, way: usize| {
            // What the hosts of further swarms carry is on the line of their node.
            let moved = self.nodes.iter().map(|(p2p, _)| p2p.bandwidth().moved()[way]);
            Family::counter(name, help).is(moved.sum::<u64>())
        };
        vec![
            bytes(
                "sepal_node_sent_bytes",
                "Bytes that all connections to peers carried away",
                0,
            ),
            bytes(
                "sepal_node_received_bytes",
                "Bytes that all connections to peers brought",
                1,
            ),
            gauge(
                "sepal_node_connected_peers",
                "Peers there is a connection to",
                |(p2p, _)| p2p.connected_peers().len(),
            ),
            gauge("sepal_node_dht_neighbors", "Nodes in the routing table", |(_, dht)| {
                dht.status().nodes
            }),
            gauge("sepal_node_dht_stored_keys", "Keys stored for the DHT", |(_, dht)| {
                dht.status().stored
            }),
            gauge(
                "sepal_node_dht_cached_keys",
                "Keys kept to answer faster",
                |(_, dht)| dht.status().cached,
            ),
        ]
    }

    /// Of several nodes of a process, all together; of times, the longest.
    fn of_servers(&self) -> Vec<Family> {
        // The servers of one node count together.
        let nodes = self.servers.iter().filter_map(|servers| servers.first());
        let stats: Vec<Stats> = nodes.map(|server| server.stats()).collect();
        let each = stats.iter().map(|stats| [work(stats), cache(stats)].concat());
        let both = |sum: Vec<Family>, other: Vec<Family>| sum.into_iter().zip(other).map(|(a, b)| a.and(b)).collect();
        let mut families = each.reduce(both).unwrap_or_default();
        families.extend(times(&stats));
        families
    }

    /// Of each model that is served.
    fn of_models(&self) -> Vec<Family> {
        let mut online = Family::gauge("sepal_server_online", "Servers of the model that take new sessions");
        let mut blocks = Family::gauge("sepal_server_blocks", "Blocks that are served");
        let mut sessions = Family::gauge("sepal_server_sessions", "Open sessions");
        let mut tokens = Family::counter("sepal_server_tokens", "Tokens of sessions that went through the blocks");
        let mut cache = Family::gauge(
            "sepal_server_cache_tokens",
            "Attention cache: tokens that are in it, that sessions may come to use, and all there is room for",
        );
        for overview in self.servers.iter().flatten().map(|server| server.overview()) {
            let model = [("model", overview.prefix.as_str())];
            online = online.of(&model, overview.phase == Phase::Online);
            blocks = blocks.of(&model, overview.blocks.map_or(0, |blocks| blocks.len()));
            sessions = sessions.of(&model, overview.sessions);
            tokens = tokens.of(&model, overview.tokens.total);
            for (state, n) in [
                ("used", overview.cache.used),
                ("reserved", overview.cache.reserved),
                ("total", overview.cache.total),
            ] {
                cache = cache.of(&[model[0], ("state", state)], n);
            }
        }
        vec![online, blocks, sessions, tokens, cache]
    }
}

fn work(stats: &Stats) -> Vec<Family> {
    let counter = |name, help, count: u64| Family::counter(name, help).is(count);
    vec![
        counter(
            "sepal_server_steps",
            "Steps of sessions that were computed",
            stats.steps,
        ),
        counter(
            "sepal_server_pushes_sent",
            "Outputs that the next server took",
            stats.pushes_sent,
        ),
        counter(
            "sepal_server_pushes_received",
            "Steps that came from the server before",
            stats.pushes_received,
        ),
        counter(
            "sepal_server_pushes_used",
            "Steps that came from the server before and were computed",
            stats.pushes_used,
        ),
        counter(
            "sepal_server_rejected",
            "Requests and sessions that ended with an error",
            stats.rejected,
        ),
        counter(
            "sepal_server_receipts_signed",
            "Receipts for steps that were signed",
            stats.receipts,
        ),
        counter(
            "sepal_server_block_runs",
            "Times that one block was run for steps of sessions",
            stats.block_runs,
        ),
        counter(
            "sepal_server_block_tokens",
            "Tokens that went through those blocks: divided by the runs, the size of a batch",
            stats.block_tokens,
        ),
        refused(&stats.refusals),
        Family::gauge(
            "sepal_server_queue",
            "Steps and requests that wait or are computed, by class",
        )
        .of(&[("class", "own")], stats.by_class.own)
        .of(&[("class", "sessions")], stats.by_class.sessions)
        .of(&[("class", "passes")], stats.by_class.passes),
        Family::gauge(
            "sepal_server_queue_length",
            "Steps and requests that wait or are computed",
        )
        .is(stats.queued),
    ]
}

fn refused(refusals: &Refusals) -> Family {
    let reasons = [
        ("overloaded", refusals.overloaded),
        ("paused", refusals.paused),
        ("denied", refusals.denied),
        ("sessions", refusals.sessions),
        ("tokens", refusals.tokens),
        ("cache", refusals.cache),
    ];
    let family = Family::counter(
        "sepal_server_refused",
        "Requests and sessions that were refused for what the person who runs the node wants, by reason",
    );
    reasons
        .iter()
        .fold(family, |family, (reason, n)| family.of(&[("reason", reason)], *n))
}

fn times(stats: &[Stats]) -> Vec<Family> {
    let seconds = |name, help, value: fn(&Stats) -> Duration| {
        let longest = stats.iter().map(value).max().unwrap_or_default();
        Family::gauge(name, help).is(longest.as_secs_f64())
    };
    vec![
        seconds(
            "sepal_server_wait_p50_seconds",
            "How long the last steps waited before they were begun, half of them less",
            |stats| stats.waits.p50,
        ),
        seconds(
            "sepal_server_wait_p99_seconds",
            "How long the last steps waited before they were begun, one in a hundred more",
            |stats| stats.waits.p99,
        ),
        seconds(
            "sepal_server_step_p50_seconds",
            "How long the last steps took, waiting included, half of them less",
            |stats| stats.step_times.p50,
        ),
        seconds(
            "sepal_server_step_p99_seconds",
            "How long the last steps took, waiting included, one in a hundred more",
            |stats| stats.step_times.p99,
        ),
    ]
}

/// A page is 16 tokens of one block.
fn cache(stats: &Stats) -> Vec<Family> {
    let counts = stats.cache;
    let pages = |name, help, n: usize| Family::gauge(name, help).is(n);
    vec![
        pages(
            "sepal_server_cache_pages",
            "Pages that were allocated for all caches",
            counts.total,
        ),
        pages("sepal_server_cache_pages_free", "Pages that hold nothing", counts.free),
        pages(
            "sepal_server_cache_pages_kept",
            "Pages that only hold known prefixes, and go to whoever needs them",
            counts.kept,
        ),
        pages(
            "sepal_server_cache_pages_overflow",
            "Pages beyond those that were allocated",
            counts.overflow,
        ),
        pages(
            "sepal_server_cache_pages_shared",
            "Pages that sharing saves: users of pages beyond the first of each",
            counts.shared,
        ),
        Family::counter(
            "sepal_server_cache_reused_tokens",
            "Tokens that were not computed because their prefix was known",
        )
        .is(stats.reused_tokens),
    ]
}
