//! Which records of a model are taken for true, and what is wrong with the others. Pure.
//!
//! Anyone can store anything under a block. What no server can mean is kept apart, with the reason, so that routes and
//! placement never see it and people do. Python's readers take some of it; nothing here is stricter on records that a Petals
//! server writes, the old ones without a span included (`petals/data_structures.py`, `petals/utils/dht.py`).

use std::collections::{BTreeMap, BTreeSet};

use sepal_protocol::{WireError, record::ServerInfo};
use thiserror::Error;

use crate::{
    dht::{Found, FoundEntry},
    p2p::PeerId,
    swarm::{
        directory::server_of,
        signature::Signature,
        spans::{self, BlockRecords},
    },
};

/// Most tokens per second that are believed. The fastest network cards carry 800 Gbit/s, which is less than 10⁹ times the
/// hidden state of the narrowest model in use (64 numbers of 16 bits); no device computes faster than that.
pub const MAX_TOKENS_PER_SECOND: f64 = 1e9;

/// Most free cache tokens that are believed, counted as servers do, over keys, values and blocks. Each takes several bytes:
/// this is more than a petabyte.
const MAX_CACHE_TOKENS: f64 = 1e15;

/// Longest round trip that is believed, in seconds. Petals servers wait for 5 s, and write infinity then.
const MAX_ROUND_TRIP_S: f64 = 3600.0;

/// Longest lifetime that is believed, in seconds: a week, as in the storage of our nodes. Petals servers announce for some
/// minutes; what lives for ever would show a dead server for ever.
const MAX_LIFETIME_S: f64 = 7.0 * 24.0 * 3600.0;

/// Largest record that is looked at, in bytes. Those of Petals take some hundred, and 60 more per round trip.
const MAX_RECORD_BYTES: usize = 64 << 10;

/// Most flawed records of one model that are told of.
const MAX_FLAWED: usize = 1024;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Problem {
    /// It is under something else than the id of a peer.
    #[error("is not stored under the id of a peer")]
    NoPeer,
    /// It is not of the form that Petals reads.
    #[error("cannot be read")]
    Unreadable(#[source] WireError),
    /// It is larger than any server has something to say.
    #[error("has {bytes} bytes, more than {MAX_RECORD_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Somebody else stored it in the name of this peer.
    #[error("has a signature that is not of this server")]
    Forged,
    /// Other records of this peer are signed, so this one is not from it.
    #[error("is not signed, while other records of this server are")]
    Unsigned,
    /// A span without blocks.
    #[error("claims blocks {start}:{end}, which are none")]
    NoBlocks {
        /// First block.
        start: u32,
        /// Block after the last one.
        end: u32,
    },
    /// A span that goes on after the last block of the model.
    #[error("claims blocks {start}:{end} of a model of {n_blocks} blocks")]
    BeyondModel {
        /// First block.
        start: u32,
        /// Block after the last one.
        end: u32,
        /// How many blocks the model has.
        n_blocks: u32,
    },
    /// A span that does not contain the block under which the record is.
    #[error("claims blocks {start}:{end} under block {block}")]
    Elsewhere {
        /// First block.
        start: u32,
        /// Block after the last one.
        end: u32,
        /// Where the record is.
        block: u32,
    },
    /// A number that no server can have.
    #[error("claims {field} = {value:e}, more than is possible")]
    TooMuch {
        /// Its name.
        field: &'static str,
        /// The number.
        value: f64,
    },
    /// It would be there long after its server is gone.
    #[error("expires in {days:.0} days, which is no announcement")]
    LivesTooLong {
        /// From now.
        days: f64,
    },
}

/// A record that is not taken for true.
#[derive(Clone, Debug, PartialEq)]
pub struct Flawed {
    /// In whose name it is, if in anyone's.
    pub peer: Option<PeerId>,
    /// Under which block it is.
    pub block: u32,
    /// What is wrong with it.
    pub problem: Problem,
}

/// Where what is known of a server comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Provenance {
    /// Whether it signs its records.
    pub signature: Signature,
    /// DHT time after which the last of its records is gone.
    pub expires: f64,
}

/// The records of some blocks of a model, sorted into good ones and flawed ones.
#[derive(Clone, Debug, Default)]
pub struct Sorted {
    /// The good ones, block by block.
    pub blocks: Vec<BlockRecords>,
    /// The others, at most a thousand.
    pub flawed: Vec<Flawed>,
    /// Every peer in whose name there is a record, good or flawed.
    pub provenance: BTreeMap<PeerId, Provenance>,
}

/// Whether a record under `block` can be true.
///
/// # Errors
/// What is wrong with it.
pub fn check(info: &ServerInfo, block: u32, n_blocks: u32) -> Result<(), Problem> {
    // Servers of Petals 1.x say no span: one block then, the one they are under.
    if let (Some(start), Some(end)) = (info.start_block, info.end_block) {
        if start >= end {
            return Err(Problem::NoBlocks { start, end });
        }
        if end > n_blocks {
            return Err(Problem::BeyondModel { start, end, n_blocks });
        }
        if !(start..end).contains(&block) {
            return Err(Problem::Elsewhere { start, end, block });
        }
    }
    let rates = [
        ("throughput", Some(info.throughput)),
        ("network_rps", info.network_rps),
        ("forward_rps", info.forward_rps),
        ("inference_rps", info.inference_rps),
    ];
    for (field, value) in rates {
        at_most(field, value.unwrap_or(0.0), MAX_TOKENS_PER_SECOND)?;
    }
    if let Some(tokens) = info.cache_tokens_left {
        at_most("cache_tokens_left", tokens as f64, MAX_CACHE_TOKENS)?;
    }
    let pings = info.next_pings.iter().flatten();
    for (_, rtt) in pings.filter(|(_, rtt)| rtt.is_finite()) {
        at_most("a round trip", *rtt, MAX_ROUND_TRIP_S)?;
    }
    Ok(())
}

/// Not a number is too much as well.
fn at_most(field: &'static str, value: f64, limit: f64) -> Result<(), Problem> {
    let is_possible = value <= limit;
    is_possible.then_some(()).ok_or(Problem::TooMuch { field, value })
}

/// Sorts the records of one model, block after block.
#[derive(Clone, Debug)]
pub struct Sorting {
    n_blocks: u32,
    now: f64,
    first: u32,
    sorted: Sorted,
    /// Good records without a signature: peer and block.
    unsigned: BTreeSet<(PeerId, u32)>,
}

impl Sorting {
    /// For the blocks of a model of `n_blocks` blocks from block `first` on; `now` is DHT time.
    pub fn new(first: u32, n_blocks: u32, now: f64) -> Self {
        Self {
            n_blocks,
            now,
            first,
            sorted: Sorted::default(),
            unsigned: BTreeSet::new(),
        }
    }

    /// Sorts what was found under the next block.
    pub fn add(&mut self, found: Option<Found>) {
        let block = self.first + spans::block_number(self.sorted.blocks.len());
        let mut good = BlockRecords::new();
        match found {
            Some(Found::Dictionary(servers)) => {
                for entry in &servers.entries {
                    let peer = server_of(&entry.subkey);
                    if let Some(peer) = peer {
                        let signature = if entry.proven {
                            Signature::Valid
                        } else {
                            Signature::None
                        };
                        self.note(peer, signature, entry.expiration);
                    }
                    match self.read(peer, entry, block) {
                        Ok((peer, info)) => {
                            if !entry.proven {
                                self.unsigned.insert((peer, block));
                            }
                            good.insert(peer, info);
                        }
                        Err(problem) => self.complain(peer, block, problem),
                    }
                }
                for entry in &servers.refused {
                    let peer = server_of(&entry.subkey);
                    if let Some(peer) = peer {
                        self.note(peer, Signature::Forged, entry.expiration);
                    }
                    self.complain(peer, block, Problem::Forged);
                }
            }
            Some(Found::Regular { .. }) => self.complain(None, block, Problem::NoPeer),
            None => {}
        }
        self.sorted.blocks.push(good);
    }

    fn read(&self, peer: Option<PeerId>, entry: &FoundEntry, block: u32) -> Result<(PeerId, ServerInfo), Problem> {
        let peer = peer.ok_or(Problem::NoPeer)?;
        let bytes = entry.value.len();
        if bytes > MAX_RECORD_BYTES {
            return Err(Problem::TooLarge { bytes });
        }
        let lifetime = entry.expiration - self.now;
        if lifetime > MAX_LIFETIME_S {
            let days = lifetime / (24.0 * 3600.0);
            return Err(Problem::LivesTooLong { days });
        }
        let info = ServerInfo::decode(&entry.value).map_err(Problem::Unreadable)?;
        check(&info, block, self.n_blocks)?;
        Ok((peer, info))
    }

    fn note(&mut self, peer: PeerId, signature: Signature, expires: f64) {
        let known = self
            .sorted
            .provenance
            .entry(peer)
            .or_insert(Provenance { signature, expires });
        known.signature = known.signature.max(signature);
        known.expires = known.expires.max(expires);
    }

    fn complain(&mut self, peer: Option<PeerId>, block: u32, problem: Problem) {
        tracing::debug!(block, peer = ?peer.map(|peer| peer.to_string()), %problem, "left a record out");
        if self.sorted.flawed.len() < MAX_FLAWED {
            self.sorted.flawed.push(Flawed { peer, block, problem });
        }
    }

    /// The end of it. A server that signs one record signs all of them, so that others in its name are not from it.
    pub fn finish(mut self) -> Sorted {
        for (peer, block) in std::mem::take(&mut self.unsigned) {
            let signs = |known: &Provenance| known.signature == Signature::Valid;
            if !self.sorted.provenance.get(&peer).is_some_and(signs) {
                continue;
            }
            if let Some(records) = self.sorted.blocks.get_mut((block - self.first) as usize) {
                records.remove(&peer);
            }
            self.complain(Some(peer), block, Problem::Unsigned);
        }
        self.sorted
    }
}

#[cfg(test)]
mod tests;
