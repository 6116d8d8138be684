//! `sepal top`: a running node fills the terminal and changes as it does. Keys: q, Esc or Ctrl-C end it, arrows and Page
//! Up/Down scroll through sessions and peers.

mod picture;

use std::time::Duration;

use clap::Args as ClapArgs;
use ratatui::crossterm::event::KeyCode;

use self::picture::View;
use super::{
    output,
    screen::{self, Screen},
    target::TargetArgs,
};
use crate::{
    control::{
        Connection, ControlError,
        protocol::{Answer, Picture, Request},
    },
    task::Tasks,
};

/// Lines that a page of scrolling skips.
const PAGE: u16 = 10;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Pause between two pictures, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = super::serve::parse_seconds)]
    period: Duration,
}

/// Shows pictures until the user ends it, or the node.
///
/// # Errors
/// There is no such node, or no terminal.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    let mut connection = args.target.connect().await?;
    let period_s = args.period.as_secs_f64();
    let first = connection.ask(&Request::Watch { period_s }).await?;
    let screen = Screen::take("sepal top needs a terminal; without one, sepal status --json", &tasks)?;
    let outcome = show(screen, connection, first).await;
    tasks.shutdown().await;
    match outcome {
        // That is what was watched for.
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::Broken(_))) => {
            output::note("the node stopped");
            Ok(())
        }
        outcome => outcome,
    }
}

async fn show(mut screen: Screen, mut connection: Connection, first: Answer) -> anyhow::Result<()> {
    let (mut latest, mut view) = (picture_in(first), View::default());
    loop {
        screen.draw(|frame| view.draw(frame, &latest))?;
        tokio::select! {
            answer = connection.next() => latest = picture_in(answer?),
            event = screen.event() => match event {
                Some(event) if !screen::ends(&event) => {
                    if let Some(key) = screen::pressed(&event) {
                        scroll(&mut view, key);
                    }
                }
                _ => return Ok(()),
            },
        }
    }
}

/// Nothing else was asked for; from a node that says something else, an empty picture.
fn picture_in(answer: Answer) -> Picture {
    match answer {
        Answer::Picture(picture) => *picture,
        _ => Picture::default(),
    }
}

fn scroll(view: &mut View, key: KeyCode) {
    view.scrolled = match key {
        KeyCode::Down | KeyCode::Char('j') => view.scrolled.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => view.scrolled.saturating_sub(1),
        KeyCode::PageDown | KeyCode::Char(' ') => view.scrolled.saturating_add(PAGE),
        KeyCode::PageUp => view.scrolled.saturating_sub(PAGE),
        KeyCode::Home => 0,
        KeyCode::End => u16::MAX,
        _ => view.scrolled,
    };
}
