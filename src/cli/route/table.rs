//! A route and its reasons as lines of text and as JSON. Pure.

use serde_json::{Value, json};

use super::{Measurement, Report};
use crate::{
    p2p::PeerId,
    swarm::route::{Candidate, Chain, Explanation, Hop, Verdict},
};

/// What a time is worth that is no measurement of this client.
fn origin(measured: bool) -> &'static str {
    if measured { "measured" } else { "announced" }
}

impl Report {
    /// What a person is shown.
    pub(super) fn rows(&self, why: bool) -> Vec<String> {
        let head = format!(
            "{}, {} blocks, a session of {} tokens",
            self.prefix, self.n_blocks, self.max_length
        );
        let mut rows = Vec::new();
        match self.explanation.chains.as_deref() {
            Ok([best, ..]) => {
                let hops = best.parts.len();
                rows.push(format!(
                    "{head}: about {} a token through {hops} hop(s)",
                    ms(best.seconds)
                ));
                rows.extend(parts(best));
            }
            _ => rows.push(format!("{head}: no chain")),
        }
        if let Some(measurement) = &self.measurement {
            rows.extend(measured(measurement));
        }
        rows.extend(self.avoided.iter().map(|server| format!("  {server}")));
        if why {
            rows.extend(candidates(&self.explanation));
            rows.extend(others(&self.explanation));
        }
        rows
    }

    /// What a program is given.
    pub(super) fn to_json(&self, why: bool) -> Value {
        let chains: Vec<Value> = self.explanation.chains.iter().flatten().map(chain_json).collect();
        let mut report = json!({
            "prefix": self.prefix,
            "n_blocks": self.n_blocks,
            "max_length": self.max_length,
            "route": chains.first(),
            "missing": self.explanation.chains.as_ref().err().map(ToString::to_string),
            "measured": self.measurement.as_ref().map(measured_json),
        });
        if why {
            report["alternatives"] = chains.into_iter().skip(1).collect();
            let avoided = self.avoided.iter();
            let avoided = avoided.map(|server| json!({"peer": server.peer.to_string(), "reason": server.reason}));
            report["avoided"] = avoided.collect();
            report["candidates"] = self.explanation.candidates.iter().map(candidate_json).collect();
        }
        report
    }
}

fn parts(chain: &Chain) -> Vec<String> {
    let mut rows = vec![row(["hop", "server", "blocks", "way", "server's", ""])];
    for (i, part) in chain.parts.iter().enumerate() {
        let full = if part.penalty > 0.0 {
            format!(", and {} because its cache seems full", ms(part.penalty))
        } else {
            String::new()
        };
        rows.push(row([
            &(i + 1).to_string(),
            &short(part.hop.peer),
            &blocks(&part.hop),
            &ms(part.way),
            &ms(part.own),
            &format!("{}{full}", origin(part.measured)),
        ]));
    }
    rows.push(row(["", "back", "", &ms(chain.back), "", ""]));
    rows
}

fn row(cells: [&str; 6]) -> String {
    let [hop, server, blocks, way, own, remark] = cells;
    let line = format!("  {hop:<4} {server:<8} {blocks:>9} {way:>10} {own:>10}  {remark}");
    line.trim_end().to_owned()
}

fn measured(measurement: &Measurement) -> Vec<String> {
    let per_token = measurement.per_token.as_secs_f64();
    let rate = 1.0 / per_token.max(f64::MIN_POSITIVE);
    let mut rows = vec![format!(
        "measured over {} tokens: {} a token, {rate:.1} tokens/s",
        measurement.tokens,
        ms(per_token)
    )];
    for (i, hop) in measurement.hops.iter().enumerate() {
        let time = hop
            .per_step
            .map_or_else(|| "-".to_owned(), |time| ms(time.as_secs_f64()));
        let span = format!("{}:{}", hop.blocks.start, hop.blocks.end);
        rows.push(row([
            &(i + 1).to_string(),
            &short(hop.peer),
            &span,
            "",
            &time,
            "until its answer was here",
        ]));
    }
    rows
}

fn candidates(explanation: &Explanation) -> Vec<String> {
    let line = |cells: [&str; 8]| {
        let [server, blocks, state, ping, announced, measured, room, why] = cells;
        format!("  {server:<8} {blocks:>9} {state:<8} {ping:>9} {announced:>10} {measured:>10} {room:>9}  {why}")
    };
    let mut rows = vec![
        "servers".to_owned(),
        line([
            "server",
            "blocks",
            "state",
            "ping",
            "announced",
            "measured",
            "room",
            "why",
        ]),
    ];
    let best = explanation.chains.as_ref().ok().and_then(|chains| chains.first());
    for candidate in &explanation.candidates {
        let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), ms);
        let room = candidate
            .cache_left
            .map_or_else(|| "-".to_owned(), |tokens| tokens.to_string());
        rows.push(line([
            &short(candidate.peer),
            &format!("{}:{}", candidate.blocks.start, candidate.blocks.end),
            state(candidate),
            &time(candidate.rtt),
            &time(candidate.announced),
            &time(candidate.measured),
            &room,
            &verdict(&candidate.verdict, best),
        ]));
    }
    rows.push(
        "  announced and measured: a token through one block; room: tokens that still fit into its cache".to_owned(),
    );
    rows
}

fn state(candidate: &Candidate) -> &'static str {
    use sepal_protocol::record::ServerState::{Joining, Offline, Online};
    match candidate.state {
        Online => "online",
        Joining => "joining",
        Offline => "offline",
    }
}

fn verdict(verdict: &Verdict, best: Option<&Chain>) -> String {
    match verdict {
        Verdict::Taken(hop) => format!("hop {}", hop + 1),
        Verdict::NotOnline => "serves nothing now".to_owned(),
        Verdict::Banned => "failed a short while ago".to_owned(),
        Verdict::NoWay => "no chain leads through it".to_owned(),
        Verdict::Slower {
            seconds,
            n_hops,
            is_full,
        } => {
            let more = seconds - best.map_or(0.0, |best| best.seconds);
            let full = if *is_full { ", its cache seems full" } else { "" };
            format!("{} through {n_hops} hop(s), {} more{full}", ms(*seconds), ms(more))
        }
    }
}

fn others(explanation: &Explanation) -> Vec<String> {
    let chains = explanation.chains.iter().flatten().skip(1);
    let lines = chains.map(|chain| {
        let hops = chain
            .parts
            .iter()
            .map(|part| format!("{} {}", short(part.hop.peer), blocks(&part.hop)));
        format!("  {:>9}  {}", ms(chain.seconds), hops.collect::<Vec<_>>().join(" → "))
    });
    let mut rows: Vec<String> = lines.collect();
    if !rows.is_empty() {
        rows.insert(0, "without a server of this chain".to_owned());
    }
    rows
}

fn ms(seconds: f64) -> String {
    if seconds.is_finite() {
        format!("{:.1} ms", seconds * 1000.0)
    } else {
        "no answer".to_owned()
    }
}

fn blocks(hop: &Hop) -> String {
    format!("{}:{}", hop.blocks.start, hop.blocks.end)
}

/// The end of a peer id, which is what differs.
fn short(peer: PeerId) -> String {
    let id = peer.to_string();
    format!("…{}", &id[id.len().saturating_sub(6)..])
}

/// Milliseconds as a number that JSON has; none for what never ends.
fn number(seconds: f64) -> Value {
    json!(seconds.is_finite().then(|| (seconds * 1e6).round() / 1e3))
}

fn chain_json(chain: &Chain) -> Value {
    let hops = chain.parts.iter().map(|part| {
        json!({
            "peer": part.hop.peer.to_string(),
            "blocks": blocks(&part.hop),
            "way_ms": number(part.way),
            "server_ms": number(part.own),
            "wait_ms": number(part.penalty),
            "source": origin(part.measured),
        })
    });
    json!({
        "hops": hops.collect::<Vec<_>>(),
        "back_ms": number(chain.back),
        "predicted_ms_per_token": number(chain.seconds),
    })
}

fn measured_json(measurement: &Measurement) -> Value {
    let hops = measurement.hops.iter().map(|hop| {
        json!({
            "peer": hop.peer.to_string(),
            "blocks": format!("{}:{}", hop.blocks.start, hop.blocks.end),
            "ms_per_token": hop.per_step.map(|time| number(time.as_secs_f64())),
        })
    });
    json!({
        "tokens": measurement.tokens,
        "ms_per_token": number(measurement.per_token.as_secs_f64()),
        "hops": hops.collect::<Vec<_>>(),
    })
}

fn candidate_json(candidate: &Candidate) -> Value {
    let time = |seconds: Option<f64>| seconds.map(number);
    let (taken_as, slower) = match candidate.verdict {
        Verdict::Taken(hop) => (Some(hop + 1), None),
        Verdict::Slower { seconds, .. } => (None, Some(number(seconds))),
        _ => (None, None),
    };
    json!({
        "peer": candidate.peer.to_string(),
        "blocks": format!("{}:{}", candidate.blocks.start, candidate.blocks.end),
        "state": state(candidate),
        "rtt_ms": time(candidate.rtt),
        "answers": candidate.rtt.map(f64::is_finite),
        "announced_ms_per_block": time(candidate.announced),
        "measured_ms_per_block": time(candidate.measured),
        "cache_tokens_left": candidate.cache_left,
        "dtype": candidate.dtype,
        "hop": taken_as,
        "best_chain_through_it_ms": slower,
        "why": verdict(&candidate.verdict, None),
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use sepal_protocol::record::ServerState;

    use super::*;
    use crate::{
        client::{Avoided, HopReport},
        swarm::{
            Snapshot,
            route::{Known, explain},
            spans::BlockRecords,
            testing::{peer, server},
        },
    };

    fn report(spans: &[(u64, std::ops::Range<u32>)]) -> Report {
        let mut blocks = vec![BlockRecords::new(); 4];
        for (id, span) in spans {
            for block in span.clone() {
                blocks[block as usize].insert(peer(*id), server(ServerState::Online, span.clone()));
            }
        }
        let explanation = explain(
            &Snapshot::new("m", blocks),
            &(0..4),
            &Known::default(),
            Some(64),
            &HashSet::new(),
        );
        let hop = HopReport {
            peer: peer(1),
            is_here: false,
            name: None,
            blocks: 0..4,
            per_step: Some(Duration::from_millis(5)),
            last_step: None,
            verified: 0,
        };
        Report {
            prefix: "m".to_owned(),
            n_blocks: 4,
            max_length: 64,
            explanation,
            measurement: Some(Measurement {
                tokens: 8,
                per_token: Duration::from_millis(5),
                hops: vec![hop],
            }),
            avoided: vec![Avoided {
                peer: peer(9),
                name: Some("Lisbon".to_owned()),
                left: Duration::from_secs(15),
                reason: "silent for 6s".to_owned(),
            }],
        }
    }

    #[test]
    fn a_route_is_told_with_its_parts_its_times_and_what_else_there_was() {
        let rows = report(&[(1, 0..4), (2, 0..2), (3, 2..4)]).rows(true);
        assert_eq!(
            rows[0],
            "m, 4 blocks, a session of 64 tokens: about 331.3 ms a token through 1 hop(s)"
        );
        let told = |what: &str| assert!(rows.iter().any(|row| row.contains(what)), "{what}: {rows:#?}");
        told("measured over 8 tokens: 5.0 ms a token, 200.0 tokens/s");
        told("hop 1");
        told(&format!(
            "{} (Lisbon) is left out for 15 s more: silent for 6s",
            peer(9)
        ));
        told("499.3 ms through 2 hop(s), 168.0 ms more");
        told("without a server of this chain");
        assert_eq!(report(&[(1, 0..4)]).rows(false).len(), 7);
    }

    #[test]
    fn programs_are_given_numbers() {
        let json = report(&[(1, 0..4), (2, 0..2), (3, 2..4)]).to_json(true);
        assert_eq!(json["route"]["hops"][0]["peer"], peer(1).to_string());
        assert_eq!(json["route"]["predicted_ms_per_token"], 331.333);
        assert_eq!(json["measured"]["ms_per_token"], 5.0);
        assert_eq!(json["candidates"][0]["hop"], Value::Null);
        assert_eq!(json["avoided"][0]["reason"], "silent for 6s");
        assert_eq!(json["alternatives"].as_array().map(Vec::len), Some(1));
        assert!(report(&[(1, 0..2)]).to_json(false)["missing"].is_string());
    }
}
