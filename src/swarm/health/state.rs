//! What a health map shows, as types: the JSON of `/api/v1/swarm` and of its events is exactly their serialization.
//!
//! Times are Unix seconds, durations seconds. What is not known is `None` and becomes `null`; so does an infinite ping.

use std::collections::BTreeMap;

use sepal_protocol::record::ServerInfo;
use serde::Serialize;

use crate::swarm::signature::Signature;

/// A swarm, as this node saw it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HealthState {
    /// Version of this program.
    pub version: String,
    /// Who looked.
    pub peer_id: String,
    /// When this node looked last; 0 before the first look ended.
    pub updated: f64,
    /// Pause between two looks.
    pub refresh_seconds: f64,
    /// How long the last look took. Not part of the JSON.
    #[serde(skip)]
    pub took_seconds: f64,
    /// Addresses through which others join this swarm.
    pub join: Vec<String>,
    /// The nodes that this one joined through.
    pub bootstraps: Vec<Bootstrap>,
    /// Sums over all models.
    pub totals: Totals,
    /// The models, those asked for by name first, then the largest.
    pub models: Vec<ModelState>,
    /// Who holds most blocks, best first.
    pub contributors: Vec<Contributor>,
}

/// One of the nodes that this one joined through.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// The first address that was given for it.
    pub addr: String,
    /// Its peer id.
    pub peer_id: String,
    /// Whether it can be connected to and answers a ping.
    pub ok: bool,
    /// Round trip of that ping.
    pub rtt: Option<f64>,
    /// Why it is not `ok`.
    pub error: Option<String>,
}

/// Sums over all models of a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Models.
    pub models: usize,
    /// Servers in any state; one that serves two models counts twice.
    pub servers: usize,
    /// Servers that are online and answer.
    pub online: usize,
    /// Blocks that such a server holds.
    pub blocks_covered: u32,
    /// Blocks of all models.
    pub blocks: u32,
}

/// Whether a model can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelCondition {
    /// Every block is held by a server that is online and answers.
    Healthy,
    /// Some block is not.
    Broken,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelState {
    /// What people call it: what `sepal serve` takes, if that is known; else the prefix.
    pub name: String,
    /// Its name in the DHT.
    pub prefix: String,
    /// Its page, which always starts with `https://huggingface.co/`.
    pub repository: Option<String>,
    /// Number of its blocks.
    pub n_blocks: u32,
    /// Whether it can be run.
    pub state: ModelCondition,
    /// Whether its servers have put it into the public registry.
    pub in_registry: bool,
    /// For every block, how many servers hold it that are online and answer.
    pub coverage: Vec<u32>,
    /// What nobody holds.
    pub holes: Vec<Hole>,
    /// The chain that a client here would take now; none while there is a hole.
    pub best_route: Option<BestRoute>,
    /// All servers there are records of, in peer order.
    pub servers: Vec<ServerView>,
}

/// Contiguous blocks that nobody holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// First block.
    pub start: u32,
    /// Block after the last one.
    pub end: u32,
    /// The command that would fill it on a machine with room for it.
    pub fill: String,
    /// Servers that could hold it instead of what they hold now, the least needed where they are first.
    pub candidates: Vec<Candidate>,
}

/// A server that could close a hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Which one.
    pub peer_id: String,
    /// Why it can leave where it is.
    pub why: String,
}

/// The chain that the routing of a client at this node's place would choose for inference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestRoute {
    /// Its hops, in the order of their blocks.
    pub hops: Vec<RouteHop>,
    /// Estimated tokens per second for one reader, one token after the other: the inverse of
    /// [`Route::seconds`](crate::swarm::route::Route::seconds).
    pub tokens_per_second: f64,
}

/// One hop of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteHop {
    /// Who runs the blocks.
    pub peer_id: String,
    /// First block.
    pub start: u32,
    /// Block after the last one.
    pub end: u32,
}

/// What a server is doing, by its own word and by what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It says that it serves, and answers (or was not asked yet).
    Online,
    /// It loads its blocks.
    Joining,
    /// It said goodbye.
    Offline,
    /// It says that it serves, and does not answer.
    Unreachable,
}

impl Condition {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Online, Self::Joining, Self::Offline, Self::Unreachable];

    /// As in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Joining => "joining",
            Self::Offline => "offline",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What is known of the signature of a server's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureView {
    /// It signs its records.
    Valid,
    /// They carry none, as all records of Python servers.
    None,
    /// There are records in its name with a wrong signature, and none with a right one.
    Forged,
}

impl From<Signature> for SignatureView {
    fn from(signature: Signature) -> Self {
        match signature {
            Signature::Valid => Self::Valid,
            Signature::None => Self::None,
            Signature::Forged => Self::Forged,
        }
    }
}

/// One server of a model. Texts are as the server wrote them, cut to a bounded length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerView {
    /// Its peer id.
    pub peer_id: String,
    /// The end of it, for people.
    pub short_id: String,
    /// What it is doing.
    pub state: Condition,
    /// First block of its span.
    pub start: u32,
    /// Block after the last one, never beyond the model.
    pub end: u32,
    /// Tokens per second through its span, by its own word.
    pub throughput: f64,
    /// Tokens per second that its network carries, by its own word.
    pub network_rps: Option<f64>,
    /// Tokens per second of forward passes through one block, by its own word.
    pub forward_rps: Option<f64>,
    /// Tokens per second of inference steps through one block, by its own word.
    pub inference_rps: Option<f64>,
    /// The name its owner gave it.
    pub public_name: Option<String>,
    /// Version of its software.
    pub version: Option<String>,
    /// Item type of its weights, such as `bfloat16`.
    pub dtype: Option<String>,
    /// Quantization of its weights, such as `nf4`.
    pub quant: Option<String>,
    /// Adapters it has loaded.
    pub adapters: Vec<String>,
    /// Whether it says that it can only be reached through a relay.
    pub using_relay: Option<bool>,
    /// Free cache in tokens of a session through its whole span.
    pub cache_tokens_left: Option<u64>,
    /// Whether it answered `rpc_info`; none if it was not asked, as when it is not online.
    pub reachable: Option<bool>,
    /// Why not.
    pub reach_error: Option<String>,
    /// When it was asked.
    pub checked: Option<f64>,
    /// Round trip from this node, smoothed; none if it does not answer pings.
    pub rtt: Option<f64>,
    /// Round trips that it measured to servers that may come after it.
    pub pings: BTreeMap<String, f64>,
    /// When the last of its records expires.
    pub expires: Option<f64>,
    /// Whether its records are signed by it.
    pub signature: SignatureView,
    /// What is wrong with what it says.
    pub problems: Vec<String>,
    /// The record as it is. Not part of the JSON.
    #[serde(skip)]
    pub info: ServerInfo,
}

/// Somebody who holds blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contributor {
    /// The name to show.
    pub name: String,
    /// Where it leads to; `http://` or `https://` only.
    pub url: Option<String>,
    /// How many blocks, over all servers of that name.
    pub blocks: u32,
}
