//! From records to spans: what the records of all blocks of a model say about who serves from where to where. Pure.

use std::{collections::BTreeMap, ops::Range};

use sepal_protocol::record::{ServerInfo, ServerState};

use crate::{
    p2p::PeerId,
    swarm::hygiene::{Flawed, Provenance, Sorted},
};

/// The records of one block, by the peer that stored them.
pub type BlockRecords = BTreeMap<PeerId, ServerInfo>;

/// Contiguous blocks that one peer serves (or served, or is about to: see `info.state`).
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Who serves them.
    pub peer: PeerId,
    /// Which blocks; never empty, never beyond the model.
    pub blocks: Range<u32>,
    /// The record that the span was read from.
    pub info: ServerInfo,
}

impl Span {
    /// Number of blocks.
    pub fn n_blocks(&self) -> u32 {
        self.blocks.end - self.blocks.start
    }
}

/// What somebody who wants an adapter does not get to see: servers that are ONLINE without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterGap {
    /// The adapter that is wanted.
    pub wanted: String,
    /// Adapters that servers have, in the order of their names; not necessarily all.
    pub there: Vec<String>,
}

/// What the DHT said about one model at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The model's name in the DHT.
    pub prefix: String,
    /// The records of every block, in block order.
    pub blocks: Vec<BlockRecords>,
    /// The spans of the servers that are ONLINE, in peer order: those a client may use.
    pub spans: Vec<Span>,
    /// Records that are not taken for true; none of them is in `blocks`.
    pub flawed: Vec<Flawed>,
    /// Every peer in whose name there is a record, and whether it signs.
    pub provenance: BTreeMap<PeerId, Provenance>,
    /// Set if servers are not in `blocks` only because they lack an adapter.
    pub adapter: Option<Box<AdapterGap>>,
}

impl Snapshot {
    /// Reads the spans out of the records of all blocks of the model `prefix`.
    pub fn new(prefix: impl Into<String>, blocks: Vec<BlockRecords>) -> Self {
        let spans = compute(&blocks, ServerState::Online);
        Self {
            prefix: prefix.into(),
            blocks,
            spans,
            ..Self::default()
        }
    }

    /// The same of records that were sorted; keeps what was found to be wrong with some.
    pub fn of_sorted(prefix: impl Into<String>, sorted: Sorted) -> Self {
        Self {
            flawed: sorted.flawed,
            provenance: sorted.provenance,
            ..Self::new(prefix, sorted.blocks)
        }
    }

    /// Number of blocks of the model.
    pub fn n_blocks(&self) -> u32 {
        block_number(self.blocks.len())
    }

    /// The spans of all servers whose state is at least `min_state`, in peer order. Clients want ONLINE servers, the
    /// choice of blocks counts JOINING ones, a monitor shows all.
    pub fn spans(&self, min_state: ServerState) -> Vec<Span> {
        compute(&self.blocks, min_state)
    }

    /// The round trip in seconds between two servers, if the first announces one; infinite if it got no answer.
    pub fn rtt_between(&self, from: &PeerId, to: &PeerId) -> Option<f64> {
        let span = self.spans.iter().find(|span| span.peer == *from)?;
        let to = to.to_string();
        let pings = span.info.next_pings.iter().flatten();
        pings.filter(|(peer, _)| *peer == to).map(|(_, rtt)| *rtt).next()
    }

    /// The blocks of `range` that no span in `spans` covers, as ranges in ascending order.
    pub fn missing<'a>(spans: impl IntoIterator<Item = &'a Span>, range: Range<u32>) -> Vec<Range<u32>> {
        let mut served: Vec<Range<u32>> = spans.into_iter().map(|span| span.blocks.clone()).collect();
        served.sort_by_key(|blocks| blocks.start);
        let mut gaps = Vec::new();
        let mut covered_to = range.start;
        for blocks in served {
            if covered_to >= range.end {
                break;
            }
            if blocks.start > covered_to {
                gaps.push(covered_to..blocks.start.min(range.end));
            }
            covered_to = covered_to.max(blocks.end);
        }
        if covered_to < range.end {
            gaps.push(covered_to..range.end);
        }
        gaps
    }
}

/// The spans of all servers whose state is at least `min_state`, in peer order.
///
/// One record is enough to know the whole span, because each carries it. Records of old servers do not: their span grows
/// with every block at which they are seen and ignores holes, as in `petals/utils/dht.py:compute_spans`. A record whose
/// span is empty or lies outside the model is skipped (Python would keep it as a span of no or negative length).
pub fn compute(blocks: &[BlockRecords], min_state: ServerState) -> Vec<Span> {
    let n_blocks = block_number(blocks.len());
    let mut spans: BTreeMap<PeerId, Span> = BTreeMap::new();
    for (block, servers) in (0..n_blocks).zip(blocks) {
        for (peer, info) in servers.iter().filter(|(_, info)| info.state >= min_state) {
            match spans.get_mut(peer) {
                Some(span) if span.info.state > info.state => {}
                Some(span) if span.info.state == info.state => span.blocks.end = span.blocks.end.max(block + 1),
                _ => {
                    let blocks = declared(info, block, n_blocks);
                    if blocks.is_empty() {
                        tracing::debug!(%peer, block, "skipped a record whose span is empty");
                        continue;
                    }
                    let (peer, info) = (*peer, info.clone());
                    spans.insert(peer, Span { peer, blocks, info });
                }
            }
        }
    }
    spans.into_values().collect()
}

/// The span that `info`, found at `block`, stands for.
fn declared(info: &ServerInfo, block: u32, n_blocks: u32) -> Range<u32> {
    match (info.start_block, info.end_block) {
        (Some(start), Some(end)) => start..end.min(n_blocks),
        _ => block..block + 1,
    }
}

/// A number of blocks as records carry it. No model comes near the limit.
pub(crate) fn block_number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::swarm::testing::{peer, records, server, vectors};

    #[test]
    fn spans_are_read_as_python_reads_them() {
        let cases = vectors("block_selection.json");
        let cases = cases["spans"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let min_state = match case["min_state"].as_u64() {
                Some(1) => ServerState::Joining,
                _ => ServerState::Online,
            };
            let found: BTreeMap<String, (u64, u64)> = compute(&records(case, "num_blocks"), min_state)
                .into_iter()
                .map(|span| {
                    (
                        span.peer.to_string(),
                        (span.blocks.start.into(), span.blocks.end.into()),
                    )
                })
                .collect();
            let expected = case["spans"].as_object().unwrap().iter().map(|(peer, span)| {
                let at = |i: usize| span[i].as_u64().unwrap();
                (peer.clone(), (at(0), at(1)))
            });
            assert_eq!(found, expected.collect(), "{}", case["label"]);
        }
    }

    #[test]
    fn a_higher_state_found_later_replaces_the_span() {
        let mut blocks = vec![BlockRecords::new(); 6];
        blocks[0].insert(peer(1), server(ServerState::Joining, 0..3));
        blocks[4].insert(peer(1), server(ServerState::Online, 4..6));
        blocks[5].insert(peer(1), server(ServerState::Joining, 0..3));
        let spans = compute(&blocks, ServerState::Offline);
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].blocks, 4..6);
        assert_eq!(spans[0].info.state, ServerState::Online);
    }

    #[test]
    fn a_record_whose_span_is_empty_or_outside_the_model_is_skipped() {
        #[expect(clippy::reversed_empty_ranges, reason = "what a broken record says")]
        for range in [5..5, 6..2, 9..12] {
            let mut blocks = vec![BlockRecords::new(); 6];
            blocks[2].insert(peer(1), server(ServerState::Online, range));
            assert!(compute(&blocks, ServerState::Offline).is_empty());
        }
    }

    #[test]
    fn gaps_are_named_as_ranges() {
        let mut blocks = vec![BlockRecords::new(); 20];
        for (id, range) in [(1, 2..5), (2, 4..8), (3, 12..14)] {
            blocks[range.start as usize].insert(peer(id), server(ServerState::Online, range));
        }
        let snapshot = Snapshot::new("m", blocks);
        assert_eq!(Snapshot::missing(&snapshot.spans, 0..20), [0..2, 8..12, 14..20]);
        assert_eq!(Snapshot::missing(&snapshot.spans, 3..13), slice::from_ref(&(8..12)));
        assert!(Snapshot::missing(&snapshot.spans, 4..8).is_empty());
        assert_eq!(Snapshot::missing(&[], 4..8), slice::from_ref(&(4..8)));
    }
}
