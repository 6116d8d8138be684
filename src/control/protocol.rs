//! What a running node can be asked on its control socket, and what it answers: one JSON object a line, each way. Both
//! ends of the socket read and write exactly these types. What is not known is `null`; durations are in seconds.
//!
//! ```text
//!   {"v":1,"ask":"status"}                    {"v":1,"answer":"status","state":"online",…}
//!   {"v":1,"ask":"drain","timeout_s":60}      {"v":1,"answer":"state","before":"online","now":"draining","sessions":2,…}
//!   {"v":1,"ask":"watch","period_s":1}        {"v":1,"answer":"picture",…} every second until the line is closed
//! ```
//!
//! A later version may add requests, answers and fields; who does not know a field ignores it, and who misses one takes
//! its default: a node goes on with the program that it was started with, also when that is replaced. What strangers wrote
//! (names, programs, ids of sessions) is as they wrote it: whoever shows it on a terminal makes it harmless.

mod api;
mod jobs;
mod polite;
mod swarm;

use serde::{Deserialize, Serialize};

pub use self::{
    api::ApiRow,
    jobs::JobsRow,
    polite::{PauseRow, QueueRow, RefusedRow},
    swarm::{SwarmRow, SwarmState},
};
use crate::server::HOME;

/// The version of the protocol. A node answers requests of this one and older ones.
pub const VERSION: u32 = 1;

/// A line to the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Version of the protocol that the request is written in.
    pub v: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// A line from the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Version of the protocol that the node speaks.
    pub v: u32,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What a node can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Who is there? Answered with [`Answer::Node`].
    Who,
    /// How is the node? Answered with [`Answer::Status`].
    Status,
    /// Who is connected? Answered with [`Answer::Peers`].
    Peers,
    /// Which sessions are open? Answered with [`Answer::Sessions`].
    Sessions,
    /// All of the last three, again and again: [`Answer::Picture`], until the line is closed or something else is asked.
    Watch {
        /// Pause between two pictures.
        period_s: f64,
    },
    /// Take no new sessions. Answered, as the next three, with [`Answer::State`].
    Pause,
    /// Take new sessions again, also if the node drains.
    Resume,
    /// Pause, and stop when the open sessions are over.
    Drain {
        /// Stop after this time even if sessions are open.
        #[serde(default)]
        timeout_s: Option<f64>,
    },
    /// Do what Ctrl-C does.
    Stop,
    /// Which swarms is the node in? Answered with [`Answer::Swarms`].
    Swarms,
    /// Be in another swarm as well. Answered, as the next one, with [`Answer::Swarm`]: once it is joined, or while that
    /// takes long.
    Connect(Connect),
    /// Leave a swarm when the sessions that are open from there are over.
    Disconnect {
        /// Its name, its number, or one of its addresses.
        swarm: String,
        /// Leave after this time even if sessions are open.
        #[serde(default)]
        timeout_s: Option<f64>,
    },
    /// How much is logged; with a level, from now on. Answered with [`Answer::Log`].
    Log {
        /// A level such as `debug`, or directives such as `info,sepal::p2p=trace`.
        #[serde(default)]
        level: Option<String>,
    },
}

/// A swarm to be in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Nodes of it to join through, each address ending in /p2p/PEER_ID.
    pub addresses: Vec<String>,
    /// What to call it; the node finds a name otherwise.
    #[serde(default)]
    pub name: Option<String>,
    /// File with its key if it is a private one, as the node finds it.
    #[serde(default)]
    pub swarm_key: Option<String>,
    /// Port to listen on there; any free one otherwise.
    #[serde(default)]
    pub port: Option<u16>,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Who is there.
    Node(Who),
    /// How it is.
    Status(Box<Status>),
    /// Who is connected.
    Peers {
        /// Those of the swarm that it was started in first, of each swarm in the order of their ids.
        peers: Vec<PeerRow>,
    },
    /// What is open.
    Sessions {
        /// The oldest of each model first.
        sessions: Vec<SessionRow>,
    },
    /// Everything.
    Picture(Box<Picture>),
    /// What a request changed.
    State(Change),
    /// The swarms that the node is in.
    Swarms {
        /// The one that it was started in first.
        swarms: Vec<SwarmRow>,
    },
    /// One of them, as a request left it.
    Swarm(Box<SwarmRow>),
    /// How much is logged.
    Log {
        /// The directives that held when the request came.
        before: String,
        /// Those that hold now.
        now: String,
    },
    /// Why there is no other answer.
    Failed {
        /// For programs.
        code: FailureCode,
        /// For people.
        message: String,
    },
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// It is not one of this protocol, or too long.
    BadRequest,
    /// It is written in a later version of the protocol.
    Version,
    /// This node cannot do that.
    NotHere,
    /// Too many others ask.
    Busy,
    /// A swarm could not be joined.
    NotJoined,
}

/// A running node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Who {
    /// The name that it has on this machine: the end of its peer id.
    pub name: String,
    /// Its peer id.
    pub peer_id: String,
    /// What it runs as: serve, bootstrap, api, demo.
    pub command: String,
    /// Number of its process.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// How it is.
    pub state: State,
    /// The models that it serves or calls, by name.
    pub models: Vec<String>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has announced nothing yet.
    #[default]
    Starting,
    /// Blocks are loaded.
    Joining,
    /// All its models are served.
    Online,
    /// It runs; there is nothing that it could serve or pause.
    Running,
    /// No new sessions are taken.
    Paused,
    /// No new sessions are taken, and it stops after the last one.
    Draining,
    /// It says goodbye.
    Stopping,
}

/// How a node is, in full.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who it is.
    pub node: Who,
    /// How it is.
    pub state: State,
    /// How long it has been running.
    pub uptime_s: f64,
    /// Where others reach it.
    pub addresses: Vec<String>,
    /// How others get to it: direct, relay, none; `null` while that is not known.
    pub reachable: Option<String>,
    /// The models that it serves.
    pub models: Vec<ModelRow>,
    /// Open sessions.
    pub sessions: usize,
    /// Steps and requests that wait or are computed.
    pub queued: usize,
    /// The same, class by class, and how many there may be.
    #[serde(default)]
    pub queue: QueueRow,
    /// What was refused for what the person who runs the node wants.
    #[serde(default)]
    pub refused: RefusedRow,
    /// Why no new sessions are taken, while that is so.
    #[serde(default)]
    pub pause: Option<PauseRow>,
    /// Tokens of sessions.
    pub tokens: Tokens,
    /// What an API did so far and does now, where there is one.
    #[serde(default)]
    pub api: Option<ApiRow>,
    /// What is done of whole jobs, where there is a worker.
    #[serde(default)]
    pub jobs: Vec<JobsRow>,
    /// Connected peers.
    pub peers: usize,
    /// Those of them that are connected through a relay only.
    pub peers_relayed: usize,
    /// The swarms that it is in.
    #[serde(default)]
    pub swarms: Vec<SwarmRow>,
    /// What is logged.
    pub log: String,
    /// The last warnings and errors, the latest last.
    pub errors: Vec<LogRow>,
}

/// How many tokens came out of steps of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// Since the start.
    pub total: u64,
    /// A second, over the last ten seconds.
    pub per_second: f64,
    /// A second, since the start.
    pub per_second_mean: f64,
}

/// A model that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRow {
    /// Its name.
    pub model: String,
    /// Its name in the DHT.
    pub prefix: String,
    /// How its server is.
    pub state: State,
    /// The blocks that are served, such as 0:16.
    pub blocks: Option<String>,
    /// How many blocks the whole model has.
    pub n_blocks: u32,
    /// The format of the weights.
    pub weights: String,
    /// What is announced, in tokens per second.
    pub throughput: f64,
    /// Tokens of sessions.
    pub tokens: Tokens,
    /// Open sessions.
    pub sessions: usize,
    /// The attention cache, in tokens that are in all blocks.
    pub cache: CacheRow,
}

/// An attention cache, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheRow {
    /// That are there.
    pub used: u64,
    /// That open sessions may come to use.
    pub reserved: u64,
    /// That there is room for.
    pub total: u64,
}

/// An open session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Name of its model in the DHT.
    pub prefix: String,
    /// How many sessions of the model were opened before it.
    pub number: u64,
    /// What its client calls it, in the client's words.
    pub id: Option<String>,
    /// Who opened it.
    pub peer_id: String,
    /// Number of the swarm that it comes from.
    #[serde(default = "home")]
    pub swarm: u32,
    /// The blocks that it goes through, such as 0:16.
    pub blocks: String,
    /// Sequences in parallel.
    pub batch: usize,
    /// Tokens in its cache.
    pub position: usize,
    /// Tokens that it has reserved.
    pub max_length: usize,
    /// How long it has been open.
    pub age_s: f64,
    /// How long it has done nothing.
    pub idle_s: f64,
    /// Its tokens.
    pub tokens: Tokens,
}

/// A connected peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Who it is.
    pub peer_id: String,
    /// Number of the swarm that it is connected in.
    #[serde(default = "home")]
    pub swarm: u32,
    /// The other end of the connection; of its relay where it is relayed.
    pub address: String,
    /// Whether it is connected through a relay only.
    pub relayed: bool,
    /// Whether this node made the connection.
    pub dialed: bool,
    /// How long it has been connected.
    pub connected_s: f64,
    /// The last round trip that was measured.
    pub rtt_s: Option<f64>,
    /// What it serves, such as `demo-hf 0:4`, as far as this node looked.
    pub serves: Vec<String>,
    /// What it calls its program, in its own words.
    pub agent: Option<String>,
}

/// A line of the log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// How long ago.
    pub age_s: f64,
    /// WARN or ERROR.
    pub level: String,
    /// Where in the program.
    pub target: String,
    /// What was said.
    pub text: String,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// How the node is.
    pub status: Status,
    /// Its open sessions.
    pub sessions: Vec<SessionRow>,
    /// Who is connected.
    pub peers: Vec<PeerRow>,
}

/// What a request changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// How the node was.
    pub before: State,
    /// How it is now.
    pub now: State,
    /// Sessions that are open.
    pub sessions: usize,
    /// Whether the swarm knows already; it is being told otherwise.
    pub announced: bool,
}

impl State {
    /// As people read it, and as it is in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Joining => "joining",
            Self::Online => "online",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

impl Request {
    /// The line that asks it.
    pub fn line(&self) -> Vec<u8> {
        line(&Asked {
            v: VERSION,
            request: self.clone(),
        })
    }

    /// What a line asks.
    ///
    /// # Errors
    /// The answer to give instead.
    pub fn read(line: &[u8]) -> Result<Self, Box<Answer>> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let bad = |error: serde_json::Error| Box::new(Answer::failed(FailureCode::BadRequest, error));
        let Version { v } = serde_json::from_slice(line).map_err(bad)?;
        if v > VERSION {
            let message = format!("this node speaks version {VERSION} of the protocol, the request is of version {v}");
            return Err(Box::new(Answer::failed(FailureCode::Version, message)));
        }
        let asked: Asked = serde_json::from_slice(line).map_err(bad)?;
        Ok(asked.request)
    }
}

impl Answer {
    /// An answer that there is no other.
    pub fn failed(code: FailureCode, message: impl ToString) -> Self {
        Self::Failed {
            code,
            message: message.to_string(),
        }
    }

    /// The line that says it.
    pub fn line(&self) -> Vec<u8> {
        line(&Answered {
            v: VERSION,
            answer: self.clone(),
        })
    }
}

/// The swarm of nodes that are in one and do not say so.
fn home() -> u32 {
    HOME
}

fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_else(|error| {
        tracing::error!(%error, "a message cannot be written as JSON");
        Vec::new()
    });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
