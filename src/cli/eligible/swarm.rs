//! What a swarm lacks of a model, and where this machine would help: read from its records, decided by the rule that servers
//! choose their blocks by (`swarm/placement.rs`).

use std::ops::Range;

use serde::Serialize;

use crate::swarm::{Snapshot, placement};

/// A model in a swarm, as a server with room for some blocks sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct InSwarm {
    /// Servers that are online.
    pub(super) servers: usize,
    /// Blocks that nobody serves, first and one past the last.
    pub(super) missing: Vec<(u32, u32)>,
    /// The fewest servers that any block has.
    pub(super) fewest_servers: usize,
    /// Blocks that a server here would take, first and one past the last.
    pub(super) would_serve: Option<(u32, u32)>,
    /// Blocks of these that nobody serves yet.
    pub(super) gained: u32,
}

impl InSwarm {
    /// Where a server of `n_blocks` blocks would go.
    pub(super) fn of(snapshot: &Snapshot, n_blocks: u32) -> Self {
        let all = 0..snapshot.n_blocks();
        let servers_of = |block: u32| {
            snapshot
                .spans
                .iter()
                .filter(|span| span.blocks.contains(&block))
                .count()
        };
        let would_serve = (n_blocks > 0).then(|| placement::choose(snapshot, None, n_blocks));
        let new = would_serve
            .clone()
            .unwrap_or(0..0)
            .filter(|block| servers_of(*block) == 0);
        let pair = |range: Range<u32>| (range.start, range.end);
        Self {
            servers: snapshot.spans.len(),
            missing: Snapshot::missing(&snapshot.spans, all.clone())
                .into_iter()
                .map(pair)
                .collect(),
            fewest_servers: all.map(servers_of).min().unwrap_or(0),
            gained: u32::try_from(new.count()).unwrap_or(u32::MAX),
            would_serve: would_serve.map(pair),
        }
    }

    /// In words.
    pub(super) fn adds(&self) -> String {
        let Some((start, end)) = self.would_serve else {
            return "nothing".to_owned();
        };
        let still: u32 = self.missing.iter().map(|(start, end)| end - start).sum();
        match (self.gained, still - self.gained.min(still)) {
            (0, _) => format!(
                "blocks {start}:{end} once more, some have {} server(s)",
                self.fewest_servers
            ),
            (gained, 0) => format!("blocks {start}:{end}, {gained} of them missing: whole with it"),
            (gained, left) => format!("blocks {start}:{end}, {gained} of them missing, {left} more are"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use sepal_protocol::record::ServerState;

    use super::*;
    use crate::swarm::{
        spans::BlockRecords,
        testing::{peer, server},
    };

    fn snapshot(servers: &[Range<u32>]) -> Snapshot {
        let mut blocks = vec![BlockRecords::new(); 8];
        for (id, range) in (1..).zip(servers) {
            for block in range.clone() {
                blocks[block as usize].insert(peer(id), server(ServerState::Online, range.clone()));
            }
        }
        Snapshot::new("m", blocks)
    }

    #[test]
    fn what_nobody_serves_is_what_a_server_would_take() {
        let seen = InSwarm::of(&snapshot(&[0..3, 5..8]), 2);
        assert_eq!((seen.servers, seen.missing.as_slice()), (2, [(3, 5)].as_slice()));
        assert_eq!(seen.adds(), "blocks 3:5, 2 of them missing: whole with it");
        let seen = InSwarm::of(&snapshot(slice::from_ref(&(0..3))), 2);
        assert!(
            seen.adds().ends_with("2 of them missing, 3 more are"),
            "{}",
            seen.adds()
        );
        assert_eq!(InSwarm::of(&snapshot(slice::from_ref(&(0..3))), 0).adds(), "nothing");
    }

    #[test]
    fn of_a_whole_model_the_block_with_the_fewest_servers_is_taken_once_more() {
        let seen = InSwarm::of(&snapshot(&[0..8, 2..8]), 2);
        assert_eq!(seen.adds(), "blocks 0:2 once more, some have 1 server(s)");
    }
}
