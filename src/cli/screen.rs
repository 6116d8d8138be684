//! A view that fills the terminal: the screen, given back as it was found, and the keyboard. What is drawn is not known here.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::{Context, bail};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::task::Tasks;

/// How often the keyboard is looked at, and so how long an end may take.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Keys that may wait to be handled. Nobody types faster.
const MAX_WAITING_KEYS: usize = 64;

/// The terminal and its keyboard. Dropping it gives the terminal back, whatever happens. (ratatui sees to panics.)
pub(super) struct Screen {
    terminal: DefaultTerminal,
    keys: mpsc::Receiver<Event>,
    _reads_keys_until_dropped: DropGuard,
}

impl Screen {
    /// Takes the terminal over. `otherwise` is what to do where there is none.
    ///
    /// # Errors
    /// When stdout is no terminal, or it cannot be drawn on.
    pub(super) fn take(otherwise: &str, tasks: &Tasks) -> anyhow::Result<Self> {
        if !io::stdout().is_terminal() {
            bail!("{otherwise}");
        }
        let terminal = ratatui::try_init().context("cannot draw on this terminal")?;
        let stop = CancellationToken::new();
        let keys = read_keys(stop.clone(), tasks);
        Ok(Self {
            terminal,
            keys,
            _reads_keys_until_dropped: stop.drop_guard(),
        })
    }

    /// Draws a picture.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        self.terminal.draw(picture)?;
        Ok(())
    }

    /// The next key, or another event of the terminal; `None` when the keyboard cannot be read any more.
    pub(super) async fn event(&mut self) -> Option<Event> {
        self.keys.recv().await
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The key that was pressed, if that is what happened.
pub(super) fn pressed(event: &Event) -> Option<KeyCode> {
    match event {
        Event::Key(KeyEvent { code, kind, .. }) if *kind != KeyEventKind::Release => Some(*code),
        _ => None,
    }
}

/// Whether it ends a view: q, Esc or Ctrl-C.
pub(super) fn ends(event: &Event) -> bool {
    let with_control = matches!(event, Event::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL));
    match pressed(event) {
        Some(KeyCode::Char('q') | KeyCode::Esc) => true,
        Some(KeyCode::Char('c')) => with_control,
        _ => false,
    }
}

/// Reads the keyboard in a thread of its own until `stop`: reading blocks.
fn read_keys(stop: CancellationToken, tasks: &Tasks) -> mpsc::Receiver<Event> {
    let (sender, inbox) = mpsc::channel(MAX_WAITING_KEYS);
    tasks.spawn("keys", async move {
        let reading = tokio::task::spawn_blocking(move || {
            while !stop.is_cancelled() {
                match event::poll(KEY_WAIT).and_then(|some| some.then(event::read).transpose()) {
                    Ok(None) => {}
                    Ok(Some(event)) => {
                        if sender.blocking_send(event).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the keyboard cannot be read");
                        return;
                    }
                }
            }
        });
        let _ = reading.await;
    });
    inbox
}
