//! A picture of a swarm as lines of text. Pure; whatever strangers wrote is made harmless for a terminal.

use std::fmt::Write;

use crate::swarm::health::{HealthState, Hole, ModelCondition, ModelState, ServerView};

/// Blocks in one line of the strip.
const STRIP: usize = 64;

/// Columns of a server's line that texts of strangers may take.
const NAME: usize = 24;
const VERSION: usize = 14;

/// The whole picture.
pub(crate) fn lines(state: &HealthState) -> Vec<String> {
    let totals = &state.totals;
    let mut lines = vec![format!(
        "{} model(s), {} server(s) of which {} answer, {} of {} blocks served",
        totals.models, totals.servers, totals.online, totals.blocks_covered, totals.blocks
    )];
    for bootstrap in &state.bootstraps {
        let how = match (&bootstrap.error, bootstrap.rtt) {
            (Some(error), _) => format!("does not answer: {}", plain(error)),
            (None, rtt) => format!("answers in {}", milliseconds(rtt)),
        };
        lines.push(format!("bootstrap {} {how}", bootstrap.addr));
    }
    for model in &state.models {
        lines.push(String::new());
        lines.extend(model_lines(model));
    }
    lines
}

/// One model: how it is, its blocks, what is missing, its servers.
pub(crate) fn model_lines(model: &ModelState) -> Vec<String> {
    let condition = match model.state {
        ModelCondition::Healthy => "healthy",
        ModelCondition::Broken => "BROKEN",
    };
    let speed = match &model.best_route {
        Some(route) => format!(
            ", about {:.1} tokens/s through {} hop(s)",
            route.tokens_per_second,
            route.hops.len()
        ),
        None => String::new(),
    };
    let mut lines = vec![format!(
        "{} ({}) is {condition}, {} blocks{speed}",
        plain(&model.name),
        plain(&model.prefix),
        model.n_blocks
    )];
    lines.extend(strip(&model.coverage));
    lines.extend(model.holes.iter().flat_map(hole_lines));
    if !model.servers.is_empty() {
        lines.push(format!(
            "  {:<9} {:<12} {:>9} {:>10} {:>9} {:<13} {:>7} {:<6} {:<VERSION$} {}",
            "server", "state", "blocks", "tokens/s", "cache", "precision", "ping", "via", "version", "name"
        ));
    }
    for server in &model.servers {
        lines.push(server_line(server));
        lines.extend(server.reach_error.iter().map(|error| format!("      {}", plain(error))));
        lines.extend(
            server
                .problems
                .iter()
                .map(|problem| format!("      ! {}", plain(problem))),
        );
    }
    lines
}

/// How many servers hold each block, one character a block: `·` for none, `+` for ten and more.
pub(crate) fn strip(coverage: &[u32]) -> Vec<String> {
    let lines = coverage.chunks(STRIP).enumerate().map(|(i, part)| {
        let counts: String = part.iter().map(|count| digit(*count)).collect();
        format!("  {:>4} [{counts}]", i * STRIP)
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
pub(crate) fn hole_lines(hole: &Hole) -> Vec<String> {
    let mut lines = vec![
        format!(
            "  blocks {}:{} are served by nobody; to serve them:",
            hole.start, hole.end
        ),
        format!("    {}", plain(&hole.fill)),
    ];
    for candidate in &hole.candidates {
        lines.push(format!(
            "    or move {}, which {}",
            candidate.peer_id,
            plain(&candidate.why)
        ));
    }
    lines
}

pub(crate) fn server_line(server: &ServerView) -> String {
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
    line.trim_end().to_string()
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_string(), |seconds| format!("{:.0}ms", seconds * 1000.0))
}

fn cut(text: &str, width: usize) -> String {
    plain(text).chars().take(width).collect()
}

/// A stranger's text without what a terminal would act on: control characters, and those that reorder a line.
pub(crate) fn plain(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}
