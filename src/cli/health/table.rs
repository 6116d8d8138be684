//! A picture of a swarm as lines of text, each with a tone for those who can show colours. Pure; whatever strangers wrote
//! is made harmless for a terminal.

use std::fmt::Write;

use super::super::plain::{cut, plain};
use crate::swarm::health::{Condition, HealthState, Hole, ModelCondition, ModelState, ServerView};

/// Blocks in one line of the strip.
const STRIP: usize = 64;

/// Columns of a server's line that texts of strangers may take.
const NAME: usize = 24;
const VERSION: usize = 14;

/// How a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A fact.
    Plain,
    /// The name of what follows.
    Title,
    /// All is well.
    Good,
    /// Not yet, or no more.
    Waiting,
    /// Something is wrong.
    Bad,
    /// How many servers hold each block.
    Strip,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) tone: Tone,
    pub(crate) text: String,
}

fn row(tone: Tone, text: impl Into<String>) -> Row {
    Row {
        tone,
        text: text.into(),
    }
}

/// The whole picture.
pub(crate) fn rows(state: &HealthState) -> Vec<Row> {
    let totals = &state.totals;
    let summary = format!(
        "{} model(s), {} server(s) of which {} answer, {} of {} blocks served",
        totals.models, totals.servers, totals.online, totals.blocks_covered, totals.blocks
    );
    let mut rows = vec![row(Tone::Plain, summary)];
    for bootstrap in &state.bootstraps {
        let (tone, how) = match (&bootstrap.error, bootstrap.rtt) {
            (Some(error), _) => (Tone::Bad, format!("does not answer: {}", plain(error))),
            (None, rtt) => (Tone::Plain, format!("answers in {}", milliseconds(rtt))),
        };
        rows.push(row(tone, format!("bootstrap {} {how}", bootstrap.addr)));
    }
    for model in &state.models {
        rows.push(row(Tone::Plain, ""));
        rows.extend(model_rows(model));
    }
    rows
}

/// One model: how it is, its blocks, what is missing, its servers.
fn model_rows(model: &ModelState) -> Vec<Row> {
    let (tone, condition) = match model.state {
        ModelCondition::Healthy => (Tone::Good, "healthy"),
        ModelCondition::Broken => (Tone::Bad, "BROKEN"),
    };
    let mut summary = format!(
        "{} ({}) is {condition}, {} blocks",
        plain(&model.name),
        plain(&model.prefix),
        model.n_blocks
    );
    if let Some(route) = &model.best_route {
        let (speed, hops) = (route.tokens_per_second, route.hops.len());
        let _ = write!(summary, ", about {speed:.1} tokens/s through {hops} hop(s)");
    }
    let mut rows = vec![row(tone, summary)];
    rows.extend(strip(&model.coverage));
    rows.extend(model.holes.iter().flat_map(hole_rows));
    if !model.servers.is_empty() {
        rows.push(row(Tone::Title, titles()));
    }
    for server in &model.servers {
        rows.push(server_row(server));
        let error = server
            .reach_error
            .iter()
            .map(|error| row(Tone::Bad, format!("      {}", plain(error))));
        rows.extend(error);
        let problems = server
            .problems
            .iter()
            .map(|what| row(Tone::Bad, format!("      ! {}", plain(what))));
        rows.extend(problems);
    }
    rows
}

fn titles() -> String {
    format!(
        "  {:<9} {:<12} {:>9} {:>10} {:>9} {:<13} {:>7} {:<6} {:<VERSION$} {}",
        "server", "state", "blocks", "tokens/s", "cache", "precision", "ping", "via", "version", "name"
    )
}

/// How many servers hold each block, one character a block: `·` for none, `+` for ten and more.
fn strip(coverage: &[u32]) -> Vec<Row> {
    let lines = coverage.chunks(STRIP).enumerate().map(|(i, part)| {
        let counts: String = part.iter().map(|count| digit(*count)).collect();
        row(Tone::Strip, format!("  {:>4} [{counts}]", i * STRIP))
    });
    lines.collect()
}

fn digit(count: u32) -> char {
    match count {
        0 => '·',
        1..=9 => char::from_digit(count, 10).unwrap_or('+'),
        _ => '+',
    }
}

/// What nobody serves, and what can be done.
fn hole_rows(hole: &Hole) -> Vec<Row> {
    let what = format!(
        "  blocks {}:{} are served by nobody; to serve them:",
        hole.start, hole.end
    );
    let mut rows = vec![
        row(Tone::Bad, what),
        row(Tone::Plain, format!("    {}", plain(&hole.fill))),
    ];
    for candidate in &hole.candidates {
        let text = format!("    or move {}, which {}", candidate.peer_id, plain(&candidate.why));
        rows.push(row(Tone::Plain, text));
    }
    rows
}

fn server_row(server: &ServerView) -> Row {
    let number = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    let mut precision = server.dtype.as_deref().map(plain).unwrap_or_default();
    if let Some(quant) = server.quant.as_deref().filter(|quant| *quant != "none") {
        let _ = write!(precision, "/{}", plain(quant));
    }
    let via = match server.using_relay {
        Some(true) => "relay",
        Some(false) => "direct",
        None => "",
    };
    let version = cut(server.version.as_deref().unwrap_or(""), VERSION);
    let line = format!(
        "  {:<9} {:<12} {:>9} {:>10.0} {:>9} {:<13} {:>7} {via:<6} {version:<VERSION$} {}",
        server.short_id,
        server.state.name(),
        format!("{}:{}", server.start, server.end),
        server.throughput,
        number(server.cache_tokens_left),
        cut(&precision, 13),
        milliseconds(server.rtt),
        cut(server.public_name.as_deref().unwrap_or(""), NAME),
    );
    let tone = match server.state {
        Condition::Online => Tone::Plain,
        Condition::Joining | Condition::Offline => Tone::Waiting,
        Condition::Unreachable => Tone::Bad,
    };
    row(tone, line.trim_end())
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_string(), |seconds| format!("{:.0}ms", seconds * 1000.0))
}

#[cfg(test)]
pub(crate) mod tests {
    use sepal_protocol::record::{ServerInfo, ServerState};

    use super::*;
    use crate::swarm::health::{Candidate, SignatureView, Totals};

    pub(crate) fn picture() -> HealthState {
        let server = ServerView {
            peer_id: "12D3KooWa".to_string(),
            short_id: "…abc123".to_string(),
            state: Condition::Online,
            start: 0,
            end: 2,
            throughput: 1234.5,
            network_rps: None,
            forward_rps: None,
            inference_rps: None,
            public_name: Some("\u{1b}[2Jann\u{202e}".to_string()),
            version: None,
            dtype: Some("bfloat16".to_string()),
            quant: Some("nf4".to_string()),
            adapters: Vec::new(),
            using_relay: Some(true),
            cache_tokens_left: Some(4096),
            reachable: Some(true),
            reach_error: None,
            checked: None,
            rtt: Some(0.0123),
            pings: std::collections::BTreeMap::new(),
            expires: None,
            signature: SignatureView::None,
            problems: vec!["claims blocks 0:80 of a model of 4 blocks".to_string()],
            info: ServerInfo::new(ServerState::Online, 1234.5),
        };
        let model = ModelState {
            name: "demo".to_string(),
            prefix: "demo-hf".to_string(),
            repository: None,
            n_blocks: 4,
            state: ModelCondition::Broken,
            in_registry: true,
            coverage: vec![1, 12, 0, 0],
            holes: vec![Hole {
                start: 2,
                end: 4,
                fill: "sepal serve demo --blocks 2:4 --initial-peers ADDR".to_string(),
                candidates: vec![Candidate {
                    peer_id: "12D3KooWb".to_string(),
                    why: "serves 1:2, which 11 others also serve".to_string(),
                }],
            }],
            best_route: None,
            servers: vec![server],
        };
        HealthState {
            totals: Totals {
                models: 1,
                servers: 1,
                online: 1,
                blocks_covered: 2,
                blocks: 4,
            },
            models: vec![model],
            ..HealthState::default()
        }
    }

    #[test]
    fn a_picture_is_told_in_lines() {
        let rows = rows(&picture());
        let text: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
        assert_eq!(
            text,
            [
                "1 model(s), 1 server(s) of which 1 answer, 2 of 4 blocks served",
                "",
                "demo (demo-hf) is BROKEN, 4 blocks",
                "     0 [1+··]",
                "  blocks 2:4 are served by nobody; to serve them:",
                "    sepal serve demo --blocks 2:4 --initial-peers ADDR",
                "    or move 12D3KooWb, which serves 1:2, which 11 others also serve",
                "  server    state           blocks   tokens/s     cache precision        ping via    version        name",
                "  …abc123   online             0:2       1234      4096 bfloat16/nf4     12ms relay                 \u{fffd}[2Jann\u{fffd}",
                "      ! claims blocks 0:80 of a model of 4 blocks",
            ]
        );
    }
}
