//! `sepal health --watch`: the picture fills the terminal and changes as the swarm does. Keys: q, Esc or Ctrl-C end it,
//! arrows and Page Up/Down scroll.

use std::{sync::Arc, time::Duration};

use ratatui::{
    Frame,
    crossterm::event::{Event, KeyCode},
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    super::screen::{self, Screen},
    table::{self, Row, Tone},
};
use crate::{
    swarm::health::{Health, HealthState},
    task::Tasks,
};

/// How often the age of the picture is shown anew.
const TICK: Duration = Duration::from_secs(1);

/// Pictures are stale when so many looks should have brought a new one.
const STALE_AFTER_LOOKS: f64 = 3.0;

/// Shows the picture until the user ends it.
///
/// # Errors
/// When there is no terminal, or it cannot be drawn on.
pub(super) async fn run(health: &Health, tasks: &Tasks) -> anyhow::Result<()> {
    let mut screen = Screen::take("--watch needs a terminal; without one, give --json", tasks)?;
    let (mut states, mut view) = (health.watch(), View::default());
    let mut tick = tokio::time::interval(TICK);
    loop {
        let state = states.borrow_and_update().clone();
        screen.draw(|frame| view.draw(frame, &state, health.age()))?;
        tokio::select! {
            changed = states.changed() => changed?,
            _ = tick.tick() => {}
            event = screen.event() => match event {
                Some(event) if view.handle(&event) => {}
                _ => return Ok(()),
            },
        }
    }
}

/// Where in the picture the user is.
#[derive(Debug, Default)]
struct View {
    /// Lines above the first one shown.
    scrolled: u16,
    /// Lines that fit.
    height: u16,
    /// Lines there are.
    length: u16,
}

impl View {
    /// Takes in a key; false if it ends the view.
    fn handle(&mut self, event: &Event) -> bool {
        if screen::ends(event) {
            return false;
        }
        let Some(code) = screen::pressed(event) else {
            return true;
        };
        let page = self.height.max(1);
        match code {
            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scrolled = self.scrolled.saturating_add(page),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(page),
            KeyCode::Home => self.scrolled = 0,
            KeyCode::End => self.scrolled = u16::MAX,
            _ => {}
        }
        self.clamp();
        true
    }

    fn clamp(&mut self) {
        self.scrolled = self.scrolled.min(self.length.saturating_sub(self.height));
    }

    fn draw(&mut self, frame: &mut Frame<'_>, state: &Arc<HealthState>, age: Option<Duration>) {
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(frame.area());
        let rows = table::rows(state);
        self.height = body.height;
        self.length = u16::try_from(rows.len()).unwrap_or(u16::MAX);
        self.clamp();
        frame.render_widget(headline(state, age), head);
        let lines: Vec<Line<'_>> = rows
            .iter()
            .skip(usize::from(self.scrolled))
            .take(usize::from(body.height))
            .map(line)
            .collect();
        frame.render_widget(Paragraph::new(lines), body);
    }
}

/// How old the picture is, and how to leave.
fn headline(state: &HealthState, age: Option<Duration>) -> Line<'static> {
    let (text, color) = match age {
        None => ("looking…".to_string(), Color::Yellow),
        Some(age) if age.as_secs_f64() > STALE_AFTER_LOOKS * state.refresh_seconds => {
            (format!("STALE: looked {} s ago", age.as_secs()), Color::Red)
        }
        Some(age) => (format!("looked {} s ago", age.as_secs()), Color::Green),
    };
    Line::from(vec![
        Span::styled("swarm health  ", Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(text, color),
        Span::raw("   q ends, arrows scroll"),
    ])
}

fn line(row: &Row) -> Line<'_> {
    let style = match row.tone {
        Tone::Plain | Tone::Strip => Style::new(),
        Tone::Title => Style::new().add_modifier(Modifier::DIM),
        Tone::Good => Style::new().fg(Color::Green).add_modifier(Modifier::BOLD),
        Tone::Waiting => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    };
    if row.tone != Tone::Strip {
        return Line::styled(row.text.as_str(), style);
    }
    // Holes shout; the others are the greener the more servers hold them.
    let blocks = row.text.split_inclusive(|_: char| true).map(|block| {
        let color = match block {
            "·" => Color::Red,
            "1" => Color::Yellow,
            _ => Color::Green,
        };
        Span::styled(block, color)
    });
    Line::from(blocks.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyEvent, KeyModifiers},
    };

    use super::{super::table::tests::picture, *};

    fn drawn(view: &mut View, (width, height): (u16, u16), age: Option<Duration>) -> String {
        let mut state = picture();
        state.refresh_seconds = 20.0;
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let state = Arc::new(state);
        terminal.draw(|frame| view.draw(frame, &state, age)).unwrap();
        terminal.backend().to_string()
    }

    fn key(code: KeyCode) -> Event {
        Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn the_picture_is_drawn_in_any_size() {
        let whole = drawn(&mut View::default(), (120, 20), Some(Duration::from_secs(3)));
        assert!(
            whole.contains("looked 3 s ago") && whole.contains("demo (demo-hf) is BROKEN"),
            "{whole}"
        );
        assert!(!whole.contains('\u{1b}'));
        for size in [(1, 1), (3, 2), (40, 5), (500, 100)] {
            drawn(&mut View::default(), size, None);
        }
    }

    #[test]
    fn a_picture_that_does_not_change_any_more_is_called_stale() {
        let old = drawn(&mut View::default(), (80, 5), Some(Duration::from_secs(61)));
        assert!(old.contains("STALE: looked 61 s ago"), "{old}");
        assert!(drawn(&mut View::default(), (80, 5), None).contains("looking…"));
    }

    #[test]
    fn keys_scroll_as_far_as_there_are_lines_and_end_the_view() {
        let mut view = View::default();
        assert!(drawn(&mut view, (80, 4), None).contains("1 model(s)"));
        assert!(view.handle(&key(KeyCode::End)));
        let end = drawn(&mut view, (80, 4), None);
        assert!(end.contains("! claims blocks") && !end.contains("1 model(s)"), "{end}");
        assert!(view.handle(&key(KeyCode::Home)));
        assert_eq!(view.scrolled, 0);
        assert!(view.handle(&key(KeyCode::Up)) && view.handle(&Event::Resize(10, 10)));
        assert!(!view.handle(&key(KeyCode::Char('q'))) && !view.handle(&key(KeyCode::Esc)));
        let ctrl_c = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!view.handle(&ctrl_c) && view.handle(&key(KeyCode::Char('c'))));
    }
}
