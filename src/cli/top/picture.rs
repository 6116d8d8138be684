//! What `sepal top` draws: a head, the cache, and as much of sessions, peers and errors as fits. Pure.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Gauge, Paragraph, Row, Table},
};

use super::super::{
    plain::{cut, duration, plain},
    status::lines::{jobs, log_line, peer_cells, queue, requests, session_cells, texts},
};
use crate::control::protocol::{LogRow, ModelRow, PeerRow, Picture, SessionRow, State, Status};

/// Lines for the last warnings and errors, with their title.
const ERRORS: u16 = 4;

/// Characters that a cell of a stranger's words may have.
const CELL: usize = 60;

/// Where in the tables the user is.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Rows above the first ones shown.
    pub(super) scrolled: u16,
}

impl View {
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, picture: &Picture) {
        let status = &picture.status;
        let n_models = u16::try_from(status.models.len()).unwrap_or(u16::MAX);
        let n_more = u16::try_from(status.jobs.len() + usize::from(status.api.is_some())).unwrap_or(u16::MAX);
        let n_sessions = u16::try_from(picture.sessions.len()).unwrap_or(u16::MAX);
        let n_peers = u16::try_from(picture.peers.len()).unwrap_or(u16::MAX);
        self.scrolled = self.scrolled.min(n_sessions.max(n_peers).saturating_sub(1));
        // A title and the names of columns come on top of the rows.
        let room = |n: u16| n.max(1).saturating_add(2);
        let [head, models, sessions, peers, errors, foot] = Layout::vertical([
            Constraint::Length(n_more.saturating_add(2)),
            Constraint::Length(n_models.saturating_mul(2).min(8)),
            Constraint::Max(if n_models == 0 { 0 } else { room(n_sessions) }),
            Constraint::Max(room(n_peers)),
            Constraint::Length(if status.errors.is_empty() { 0 } else { ERRORS }),
            Constraint::Min(1),
        ])
        .areas(frame.area());
        draw_head(frame, head, status);
        draw_models(frame, models, &status.models);
        self.draw_sessions(frame, sessions, &picture.sessions);
        self.draw_peers(frame, peers, &picture.peers);
        draw_errors(frame, errors, &status.errors);
        let keys = Line::styled("q ends, arrows scroll", Style::new().add_modifier(Modifier::DIM));
        let [_, last] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(foot);
        frame.render_widget(keys, last);
    }

    fn draw_sessions(&self, frame: &mut Frame<'_>, area: Rect, sessions: &[SessionRow]) {
        let rows = sessions.iter().map(|session| {
            let [id, peer, blocks, position, age, idle, speed] = session_cells(session);
            [id, peer, blocks, position, speed, age, idle].map(|cell| cut(&cell, CELL))
        });
        let names = [
            "session", "peer", "blocks", "tokens", "tokens/s", "open for", "idle for",
        ];
        let widths = [8, 8, 20, 13, 8, 12, 12];
        let title = format!("sessions: {}", sessions.len());
        self.draw_table(frame, area, (&title, names, widths), rows);
    }

    fn draw_peers(&self, frame: &mut Frame<'_>, area: Rect, peers: &[PeerRow]) {
        let rows = peers.iter().map(|peer| peer_cells(peer).map(|cell| cut(&cell, CELL)));
        let names = ["peer", "via", "ping", "serves", "program", "address"];
        let widths = [8, 5, 8, 18, 14, 40];
        let title = format!("peers: {}", peers.len());
        self.draw_table(frame, area, (&title, names, widths), rows);
    }

    fn draw_table<const N: usize>(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        (title, names, widths): (&str, [&str; N], [u16; N]),
        rows: impl Iterator<Item = [String; N]>,
    ) {
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
        frame.render_widget(titled(title), head);
        let rows = rows.skip(usize::from(self.scrolled)).map(Row::new);
        let dim = Style::new().add_modifier(Modifier::DIM);
        let table = Table::new(rows, columns(&widths, body.width)).header(Row::new(names).style(dim));
        frame.render_widget(table, body);
    }
}

/// As many columns as fit into `room`, the last one perhaps cut; who has a narrow terminal sees the first ones whole.
fn columns(widths: &[u16], room: u16) -> Vec<Constraint> {
    let mut left = room;
    let columns = widths.iter().map_while(|width| {
        let width = (*width).min(left);
        left = left.saturating_sub(width + 1);
        (width > 0).then_some(Constraint::Length(width))
    });
    columns.collect()
}

fn titled(title: &str) -> Line<'_> {
    Line::styled(title, Style::new().add_modifier(Modifier::BOLD))
}

/// Who, how, how long; how many tokens; what an API and jobs come to.
fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let color = match status.state {
        State::Online | State::Running => Color::Green,
        State::Starting | State::Joining => Color::Yellow,
        State::Paused | State::Draining | State::Stopping => Color::Red,
    };
    let node = &status.node;
    let who = format!("sepal {} {}  ", cut(&node.command, 16), cut(&node.name, 16));
    let state = Style::new().fg(color).add_modifier(Modifier::BOLD);
    let first = Line::from(vec![
        Span::styled(who, Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(status.state.as_str(), state),
        Span::raw(format!("  up {}", duration(status.uptime_s))),
        Span::raw(match status.reachable.as_deref() {
            None => "",
            Some("direct") => "  others dial it",
            Some("relay") => "  through a relay",
            Some(_) => "  others cannot reach it",
        }),
    ]);
    let second = match status.models.is_empty() {
        true => plain(&node.models.join(" ")),
        false => format!(
            "{:.1} tokens/s, {:.1} since the start, {} in all; {} steps wait or run: {}",
            status.tokens.per_second,
            status.tokens.per_second_mean,
            status.tokens.total,
            status.queued,
            queue(&status.queue)
        ),
    };
    let third = status
        .api
        .as_ref()
        .map(|api| format!("{}; {}", texts(api), requests(api)));
    let workers = status.jobs.iter().map(|row| format!("jobs of {}", plain(&jobs(row))));
    let more = [second].into_iter().chain(third).chain(workers).map(Line::raw);
    let lines: Vec<_> = [first].into_iter().chain(more).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// Two lines a model: what is served, and how full the cache is.
fn draw_models(frame: &mut Frame<'_>, area: Rect, models: &[ModelRow]) {
    for (model, top) in models.iter().zip((area.top()..area.bottom()).step_by(2)) {
        let line = |offset: u16| Rect::new(area.x, top + offset, area.width, 1).intersection(area);
        let text = format!(
            "{} {} of {} in {}, {}, announced as {:.1} tokens/s",
            model.prefix,
            model.blocks.as_deref().unwrap_or("no blocks yet"),
            model.n_blocks,
            model.weights,
            model.state.as_str(),
            model.throughput
        );
        frame.render_widget(Line::raw(plain(&text)), line(0));
        let cache = model.cache;
        let share = match cache.total {
            0 => 0.0,
            total => (cache.reserved as f64 / total as f64).clamp(0.0, 1.0),
        };
        let label = format!(
            "cache {} in use, {} of {} reserved",
            cache.used, cache.reserved, cache.total
        );
        let color = if share > 0.9 { Color::Red } else { Color::Blue };
        let gauge = Gauge::default().ratio(share).label(label).gauge_style(color);
        frame.render_widget(gauge, line(1));
    }
}

/// The latest first.
fn draw_errors(frame: &mut Frame<'_>, area: Rect, errors: &[LogRow]) {
    let rows = errors.iter().rev().map(|row| {
        let color = if row.level == "ERROR" {
            Color::Red
        } else {
            Color::Yellow
        };
        Line::styled(plain(&log_line(row)), color)
    });
    let lines: Vec<Line<'_>> = [titled("last warnings and errors")]
        .into_iter()
        .chain(rows)
        .take(usize::from(area.height))
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::super::status::lines::tests::busy, *};

    fn drawn(view: &mut View, (width, height): (u16, u16), picture: &Picture) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame, picture)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_busy_node_fills_the_terminal() {
        let text = drawn(&mut View::default(), (120, 24), &busy());
        for expected in [
            "sepal serve NodeAAAA  online  up 2 h 2 min  others dial it",
            "12.3 tokens/s, 3.4 since the start, 4711 in all; 1 steps wait or run",
            "3 running, 4 waiting; 42 new tokens for 100 of prompts, 60 of these in caches; 7 answered, 2 refused, 1 failed",
            "jobs of demo-hf: 2 wait or run; 9 done, 0 failed, 0 refused, 0 stopped; 1 taken over from others",
            "demo-hf 0:4 of 8 in bfloat16, online, announced as 812.0 tokens/s",
            "cache 1024 in use, 4096 of 16384 reserved",
            "sessions: 2",
            "01234567 PeerAAAA demo-hf 0:4          17/64         12.3     1 min 1 s    0 s",
            "peers: 2",
            "PeerAAAA out   12 ms    demo-hf 4:8",
            "3 min 20 s ago  WARN  a peer said",
            "q ends, arrows scroll",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn an_idle_node_and_one_that_serves_nothing_have_less_to_show() {
        let mut idle = busy();
        (idle.sessions, idle.peers, idle.status.errors) = (Vec::new(), Vec::new(), Vec::new());
        let text = drawn(&mut View::default(), (80, 24), &idle);
        assert!(text.contains("sessions: 0") && text.contains("peers: 0"), "{text}");
        assert!(!text.contains("last warnings"), "{text}");
        idle.status.models.clear();
        idle.status.node.models = vec!["org/model".to_owned()];
        idle.status.state = State::Running;
        let text = drawn(&mut View::default(), (80, 24), &idle);
        assert!(text.contains("running") && text.contains("org/model"), "{text}");
        assert!(!text.contains("sessions"), "{text}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for size in [(1, 1), (3, 2), (20, 5), (40, 12), (500, 100)] {
            drawn(&mut View::default(), size, &busy());
        }
        let narrow = drawn(&mut View::default(), (40, 20), &busy());
        assert!(
            narrow.contains("sepal serve NodeAAAA  online") && narrow.contains("01234567"),
            "{narrow}"
        );
    }

    #[test]
    fn strangers_cannot_act_on_the_terminal() {
        let text = drawn(&mut View::default(), (200, 30), &busy());
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r', '\u{202e}']), "{text:?}");
        // What they said is there all the same, on its one line.
        assert!(text.contains("owned"), "{text}");
    }

    #[test]
    fn scrolling_ends_at_the_last_row() {
        let mut view = View { scrolled: u16::MAX };
        let text = drawn(&mut view, (120, 24), &busy());
        assert_eq!(view.scrolled, 1);
        assert!(!text.contains("01234567"), "{text}");
    }
}
