//! What a node tells of the swarms that it is in.

use serde::{Deserialize, Serialize};

/// A swarm that a node is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwarmRow {
    /// What this node counts it as: 1 is the one that it was started in.
    pub number: u32,
    /// What this node calls it.
    pub name: String,
    /// The nodes that it was joined through; none if this one was the first.
    pub addresses: Vec<String>,
    /// Fingerprint of its key if it is a private one.
    pub key: Option<String>,
    /// How far the node is with it.
    pub state: SwarmState,
    /// Why it is offline.
    pub reason: Option<String>,
    /// How long it has been joined.
    pub joined_s: Option<f64>,
    /// Where its nodes reach this one.
    pub listening: Vec<String>,
    /// How its nodes get to this one: direct, relay, none; `null` while that is not known.
    pub reachable: Option<String>,
    /// Nodes of its DHT that this one knows.
    pub nodes: usize,
    /// Its nodes that this one is connected to.
    pub peers: usize,
    /// What is announced there, such as `demo-hf 0:4`.
    pub blocks: Vec<String>,
    /// Sessions that are open from there.
    pub sessions: usize,
}

/// How far a node is with a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwarmState {
    /// It is not known there yet.
    #[default]
    Joining,
    /// It is in it.
    Online,
    /// It cannot get in, or nobody hears it any more; it goes on trying.
    Offline,
    /// It takes no new sessions from there, and is gone after the last one.
    Leaving,
}

impl SwarmState {
    /// As people read it, and as it is in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Leaving => "leaving",
        }
    }
}
