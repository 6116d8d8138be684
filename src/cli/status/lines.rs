//! What a running node answers, as lines. Pure; whatever strangers wrote is made harmless for a terminal by who prints them,
//! and cut here.

use jiff::{SignedDuration, Unit, Zoned};

use super::super::plain::{cut, duration, milliseconds, one_line, short_peer};
use crate::control::protocol::{
    ApiRow, Change, JobsRow, LogRow, ModelRow, PauseRow, PeerRow, QueueRow, RefusedRow, SessionRow, State, Status,
    Tokens,
};

/// Warnings and errors that are shown; the JSON has more.
const N_ERRORS: usize = 5;

/// Characters of a session's id: those of most clients are random.
const ID: usize = 8;

/// Characters of what a peer calls its program.
const AGENT: usize = 24;

/// Everything about a node.
pub(super) fn of_status(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |topic: &str, text: String| lines.push(format!("{topic:<10} {text}"));
    let node = &status.node;
    add(
        "node",
        format!(
            "{} ({}, process {}, sepal {}), up {}",
            node.name,
            node.command,
            node.pid,
            node.version,
            duration(status.uptime_s)
        ),
    );
    add("state", state(status));
    for (i, addr) in status.addresses.iter().enumerate() {
        add(if i == 0 { "address" } else { "" }, addr.clone());
    }
    if let Some(reachable) = &status.reachable {
        let text = match reachable.as_str() {
            "direct" => "others dial it",
            "relay" => "through a relay",
            _ => "others cannot reach it; sepal doctor says why",
        };
        add("reachable", text.to_owned());
    }
    for model in &status.models {
        add("model", model_line(model));
        add("cache", cache_line(model));
    }
    lines.extend(of_work(status));
    lines
}

/// What it does, who is there, and what went wrong.
fn of_work(status: &Status) -> Vec<String> {
    let (mut lines, node) = (Vec::new(), &status.node);
    let mut add = |topic: &str, text: String| lines.push(format!("{topic:<10} {text}"));
    if status.models.is_empty() {
        if !node.models.is_empty() {
            add("models", node.models.join(" "));
        }
    } else {
        add("tokens/s", tokens(&status.tokens));
        let queued = status.queued;
        add(
            "sessions",
            format!("{} open, {queued} steps wait or run", status.sessions),
        );
        if queued > 0 {
            add("queue", queue(&status.queue));
        }
        if let Some(refused) = refused(&status.refused) {
            add("refused", refused);
        }
    }
    if status.swarms.len() > 1 {
        let swarms = status.swarms.iter();
        let swarms: Vec<String> = swarms
            .map(|swarm| format!("{} {}", swarm.name, swarm.state.as_str()))
            .collect();
        add("swarms", swarms.join(", "));
    }
    if let Some(api) = &status.api {
        add("requests", requests(api));
        add("texts", texts(api));
    }
    for row in &status.jobs {
        add("jobs", jobs(row));
    }
    let (peers, relayed) = (status.peers, status.peers_relayed);
    add("peers", format!("{peers} connected, {relayed} of them through a relay"));
    add("log", status.log.clone());
    let skipped = status.errors.len().saturating_sub(N_ERRORS);
    if status.errors.is_empty() {
        add("errors", "none".to_owned());
    }
    for (i, row) in status.errors.iter().skip(skipped).rev().enumerate() {
        add(if i == 0 { "errors" } else { "" }, log_line(row));
    }
    lines
}

/// What an API answered.
pub(in crate::cli) fn requests(api: &ApiRow) -> String {
    format!(
        "{} answered, {} refused, {} failed",
        api.requests, api.refused, api.failed
    )
}

/// What an API generates.
pub(in crate::cli) fn texts(api: &ApiRow) -> String {
    format!(
        "{} running, {} waiting; {} new tokens for {} of prompts, {} of these in caches",
        api.running, api.waiting, api.new_tokens, api.prompt_tokens, api.cached_tokens
    )
}

/// What a worker did and does.
pub(in crate::cli) fn jobs(jobs: &JobsRow) -> String {
    format!(
        "{}: {} wait or run; {} done, {} failed, {} refused, {} stopped; {} taken over from others",
        jobs.prefix, jobs.open, jobs.done, jobs.failed, jobs.refused, jobs.stopped, jobs.taken_over
    )
}

fn state(status: &Status) -> String {
    let text = match status.state {
        State::Starting => "starting: nothing is announced yet",
        State::Joining => "joining: blocks are loaded",
        State::Online => "online",
        State::Running => "running",
        State::Paused => return paused(status.pause.as_ref()),
        State::Draining => "draining: no new sessions, and it stops after the last one",
        State::Stopping => "stopping",
    };
    text.to_owned()
}

/// Why, and until when.
fn paused(pause: Option<&PauseRow>) -> String {
    let by_schedule = pause.is_some_and(|pause| pause.by == "schedule");
    let until = pause.and_then(|pause| pause.until_s).and_then(moment);
    match (by_schedule, until) {
        (true, Some(until)) => format!("paused by the schedule until {until}; sepal resume ends that before"),
        (true, None) => "paused by the schedule; sepal resume ends that".to_owned(),
        (false, Some(until)) => {
            format!("paused: no new sessions; sepal resume ends that, and the schedule holds again from {until} on")
        }
        (false, None) => "paused: no new sessions; sepal resume ends that".to_owned(),
    }
}

/// Such as `Mon 18:00`, of the clock on the wall here.
fn moment(seconds: f64) -> Option<String> {
    let left = SignedDuration::try_from_secs_f64(seconds).ok()?;
    // To the full minute: the seconds until then were counted a moment ago.
    let moment = Zoned::now().checked_add(left).ok()?.round(Unit::Minute).ok()?;
    Some(moment.strftime("%a %H:%M").to_string())
}

/// Who waits.
pub(in crate::cli) fn queue(queue: &QueueRow) -> String {
    let QueueRow {
        own,
        sessions,
        passes,
        limit,
    } = queue;
    format!("{own} own steps, {sessions} steps of others, {passes} passes; {limit} at most")
}

/// What was refused, if anything was.
fn refused(refused: &RefusedRow) -> Option<String> {
    let counts = [
        (refused.overloaded, "for overload"),
        (refused.paused, "while paused"),
        (refused.denied, "of denied peers"),
        (refused.sessions, "for too many sessions"),
        (refused.tokens, "for too many tokens"),
        (refused.cache, "for too much cache"),
    ];
    let texts = counts.iter().filter(|(count, _)| *count > 0);
    let texts: Vec<String> = texts.map(|(count, why)| format!("{count} {why}")).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn model_line(model: &ModelRow) -> String {
    let blocks = model.blocks.as_deref().unwrap_or("none yet");
    format!(
        "{} ({}), {}: blocks {blocks} of {} in {}, announced as {:.1} tokens/s",
        model.model,
        model.prefix,
        model.state.as_str(),
        model.n_blocks,
        model.weights,
        model.throughput
    )
}

fn cache_line(model: &ModelRow) -> String {
    let cache = model.cache;
    format!(
        "{} tokens in use, {} of {} reserved",
        cache.used, cache.reserved, cache.total
    )
}

/// How many tokens a second, and how many in all.
fn tokens(tokens: &Tokens) -> String {
    format!(
        "{:.1} in the last 10 s, {:.1} since the start, {} in all",
        tokens.per_second, tokens.per_second_mean, tokens.total
    )
}

/// One warning or error.
pub(in crate::cli) fn log_line(row: &LogRow) -> String {
    format!("{} ago  {:<5} {}", duration(row.age_s), row.level, one_line(&row.text))
}

/// Who is connected.
pub(super) fn of_peers(peers: &[PeerRow]) -> Vec<String> {
    if peers.is_empty() {
        return vec!["nobody is connected".to_owned()];
    }
    let mut lines = vec![format!(
        "{:<8} {:<6} {:>8} {:<24} {:<24} {}",
        "peer", "via", "ping", "serves", "program", "address"
    )];
    lines.extend(peers.iter().map(|peer| {
        let [id, via, ping, serves, agent, address] = peer_cells(peer);
        format!("{id:<8} {via:<6} {ping:>8} {serves:<24} {agent:<AGENT$} {address}")
    }));
    lines
}

/// Id, way, round trip, what it serves, program, address: fit for a terminal.
pub(in crate::cli) fn peer_cells(peer: &PeerRow) -> [String; 6] {
    let via = match (peer.relayed, peer.dialed) {
        (true, _) => "relay",
        (false, true) => "out",
        (false, false) => "in",
    };
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    [
        short_peer(&peer.peer_id),
        via.to_owned(),
        milliseconds(peer.rtt_s),
        or_none(cut(&peer.serves.join(", "), 60)),
        or_none(cut(peer.agent.as_deref().unwrap_or_default(), AGENT)),
        cut(&peer.address, 100),
    ]
}

/// What is open.
pub(super) fn of_sessions(sessions: &[SessionRow]) -> Vec<String> {
    if sessions.is_empty() {
        return vec!["no session is open".to_owned()];
    }
    let mut lines = vec![format!(
        "{:<8} {:<8} {:<20} {:>13} {:>13} {:>13} {:>9}",
        "session", "peer", "blocks", "tokens", "open for", "idle for", "tokens/s"
    )];
    lines.extend(sessions.iter().map(|session| {
        let [id, peer, blocks, position, age, idle, speed] = session_cells(session);
        format!("{id:<8} {peer:<8} {blocks:<20} {position:>13} {age:>13} {idle:>13} {speed:>9}")
    }));
    lines
}

/// Id, peer, blocks, position, age, idleness, speed: fit for a terminal.
pub(in crate::cli) fn session_cells(session: &SessionRow) -> [String; 7] {
    let id = session.id.clone().filter(|id| !id.is_empty());
    let rows = match session.batch {
        0 | 1 => String::new(),
        n => format!(" x{n}"),
    };
    [
        id.map_or_else(|| format!("#{}", session.number), |id| cut(&id, ID)),
        short_peer(&session.peer_id),
        cut(&format!("{} {}{rows}", session.prefix, session.blocks), 40),
        format!("{}/{}", session.position, session.max_length),
        duration(session.age_s),
        duration(session.idle_s),
        format!("{:.1}", session.tokens.per_second),
    ]
}

/// What a request changed.
pub(super) fn of_change(change: &Change) -> Vec<String> {
    let mut lines = vec![match change.before == change.now {
        true => format!("{} already", change.now.as_str()),
        false => format!("{}, was {}", change.now.as_str(), change.before.as_str()),
    }];
    if change.sessions > 0 {
        let end = if change.now == State::Stopping { "end" } else { "go on" };
        lines.push(format!("{} open session(s) {end}", change.sessions));
    }
    if !change.announced && change.now != State::Stopping {
        lines.push("the swarm is still being told".to_owned());
    }
    lines
}

/// How much is logged.
pub(super) fn of_log(before: &str, now: &str) -> Vec<String> {
    match before == now {
        true => vec![format!("logging {now}")],
        false => vec![format!("logging {now}, was {before}")],
    }
}

#[cfg(test)]
pub(in crate::cli) mod tests {
    use super::*;
    use crate::{
        cli::plain::plain,
        control::protocol::{CacheRow, Picture, SwarmRow, SwarmState, Who},
    };

    const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nroot\u{202e}";

    const TOKENS: Tokens = Tokens {
        total: 4711,
        per_second: 12.34,
        per_second_mean: 3.4,
    };

    /// A node with all sorts of things going on, and peers that want to harm the terminal.
    pub(in crate::cli) fn busy() -> Picture {
        let (session, peer) = (session(), peer());
        let evil_session = SessionRow {
            number: 3,
            id: Some(EVIL.to_owned()),
            peer_id: EVIL.to_owned(),
            batch: 4,
            ..session.clone()
        };
        let evil_peer = PeerRow {
            relayed: true,
            agent: Some(EVIL.repeat(100)),
            serves: vec![EVIL.to_owned()],
            address: EVIL.to_owned(),
            rtt_s: None,
            ..peer.clone()
        };
        Picture {
            status: status(),
            sessions: vec![session, evil_session],
            peers: vec![peer, evil_peer],
        }
    }

    fn session() -> SessionRow {
        SessionRow {
            prefix: "demo-hf".to_owned(),
            id: Some("0123456789abcdef".to_owned()),
            peer_id: "12D3KooWPeerAAAA".to_owned(),
            blocks: "0:4".to_owned(),
            batch: 1,
            position: 17,
            max_length: 64,
            age_s: 61.0,
            idle_s: 0.3,
            tokens: TOKENS,
            ..SessionRow::default()
        }
    }

    fn peer() -> PeerRow {
        PeerRow {
            peer_id: "12D3KooWPeerAAAA".to_owned(),
            address: "/ip4/192.0.2.1/tcp/31330".to_owned(),
            dialed: true,
            rtt_s: Some(0.012),
            serves: vec!["demo-hf 4:8".to_owned()],
            agent: Some("sepal/0.1.0".to_owned()),
            ..PeerRow::default()
        }
    }

    fn status() -> Status {
        Status {
            node: Who {
                name: "NodeAAAA".to_owned(),
                command: "serve".to_owned(),
                pid: 42,
                version: "0.1.0".to_owned(),
                ..Who::default()
            },
            state: State::Online,
            uptime_s: 7325.0,
            addresses: vec!["/ip4/192.0.2.9/tcp/31330/p2p/12D3KooWNodeAAAA".to_owned()],
            reachable: Some("direct".to_owned()),
            models: vec![model()],
            sessions: 2,
            queued: 1,
            queue: QueueRow {
                sessions: 1,
                limit: 1024,
                ..QueueRow::default()
            },
            refused: RefusedRow {
                denied: 3,
                tokens: 2,
                ..RefusedRow::default()
            },
            pause: None,
            tokens: TOKENS,
            api: Some(api()),
            jobs: vec![JobsRow {
                prefix: "demo-hf".to_owned(),
                open: 2,
                done: 9,
                taken_over: 1,
                ..JobsRow::default()
            }],
            peers: 2,
            peers_relayed: 1,
            swarms: [("public", SwarmState::Online), ("friends", SwarmState::Leaving)]
                .map(|(name, state)| SwarmRow {
                    name: name.to_owned(),
                    state,
                    ..SwarmRow::default()
                })
                .to_vec(),
            log: "info".to_owned(),
            errors: vec![LogRow {
                age_s: 200.0,
                level: "WARN".to_owned(),
                target: "sepal::p2p".to_owned(),
                text: format!("a peer said {EVIL}"),
            }],
        }
    }

    fn api() -> ApiRow {
        ApiRow {
            requests: 7,
            refused: 2,
            failed: 1,
            running: 3,
            waiting: 4,
            prompt_tokens: 100,
            cached_tokens: 60,
            new_tokens: 42,
        }
    }

    fn model() -> ModelRow {
        ModelRow {
            model: "demo".to_owned(),
            prefix: "demo-hf".to_owned(),
            state: State::Online,
            blocks: Some("0:4".to_owned()),
            n_blocks: 8,
            weights: "bfloat16".to_owned(),
            throughput: 812.0,
            tokens: TOKENS,
            sessions: 2,
            cache: CacheRow {
                used: 1024,
                reserved: 4096,
                total: 16384,
            },
        }
    }

    #[test]
    fn a_busy_node_is_told_in_lines() {
        let lines = of_status(&busy().status).join("\n");
        for expected in [
            "node       NodeAAAA (serve, process 42, sepal 0.1.0), up 2 h 2 min",
            "state      online",
            "model      demo (demo-hf), online: blocks 0:4 of 8 in bfloat16, announced as 812.0 tokens/s",
            "cache      1024 tokens in use, 4096 of 16384 reserved",
            "tokens/s   12.3 in the last 10 s, 3.4 since the start, 4711 in all",
            "sessions   2 open, 1 steps wait or run",
            "queue      0 own steps, 1 steps of others, 0 passes; 1024 at most",
            "refused    3 of denied peers, 2 for too many tokens",
            "swarms     public online, friends leaving",
            "requests   7 answered, 2 refused, 1 failed",
            "texts      3 running, 4 waiting; 42 new tokens for 100 of prompts, 60 of these in caches",
            "jobs       demo-hf: 2 wait or run; 9 done, 0 failed, 0 refused, 0 stopped; 1 taken over from others",
            "peers      2 connected, 1 of them through a relay",
            "errors     3 min 20 s ago  WARN  a peer said",
        ] {
            assert!(lines.contains(expected), "{expected:?} is not in\n{lines}");
        }
    }

    #[test]
    fn a_pause_says_why_and_until_when() {
        let said = |by: &str, until_s| {
            let by = by.to_owned();
            paused(Some(&PauseRow { by, until_s }))
        };
        assert_eq!(paused(None), "paused: no new sessions; sepal resume ends that");
        assert_eq!(said("person", None), paused(None));
        let until = moment(90_000.0).unwrap();
        assert!(until.contains(':') && until.len() == 9, "{until}");
        assert!(said("schedule", Some(90_000.0)).starts_with("paused by the schedule until "));
        assert!(said("person", Some(90_000.0)).contains("the schedule holds again from "));
    }

    #[test]
    fn an_idle_node_is_told_in_fewer() {
        let lines = of_status(&Status::default());
        assert!(lines.iter().any(|line| line == "errors     none"), "{lines:?}");
        assert_eq!(of_peers(&[]), ["nobody is connected"]);
        assert_eq!(of_sessions(&[]), ["no session is open"]);
    }

    #[test]
    fn strangers_cannot_act_on_the_terminal_or_break_a_line() {
        let picture = busy();
        let mut lines = of_peers(&picture.peers);
        lines.extend(of_sessions(&picture.sessions));
        lines.extend(of_status(&picture.status));
        assert!(
            lines[1].starts_with("PeerAAAA out       12 ms demo-hf 4:8"),
            "{}",
            lines[1]
        );
        for line in lines {
            let shown = plain(&line);
            assert!(
                !shown.contains(['\u{1b}', '\n', '\r', '\u{7}', '\u{202e}']),
                "{shown:?}"
            );
            assert!(shown.chars().count() < 300, "{shown}");
        }
        let sessions = of_sessions(&picture.sessions);
        assert!(sessions[1].contains("01234567 PeerAAAA demo-hf 0:4"), "{}", sessions[1]);
        assert!(sessions[2].contains("demo-hf 0:4 x4"), "{}", sessions[2]);
    }

    #[test]
    fn changes_say_what_was_before() {
        let mut change = Change {
            before: State::Online,
            now: State::Paused,
            sessions: 2,
            announced: false,
        };
        assert_eq!(
            of_change(&change),
            [
                "paused, was online",
                "2 open session(s) go on",
                "the swarm is still being told"
            ]
        );
        (change.before, change.announced, change.sessions) = (State::Paused, true, 0);
        assert_eq!(of_change(&change), ["paused already"]);
        assert_eq!(of_log("info", "debug"), ["logging debug, was info"]);
    }
}
