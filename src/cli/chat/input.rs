//! Where the messages come from: a line editor with a history in a terminal, plain lines from a pipe.

use std::{
    fs,
    io::{self, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use rustyline::{Config, DefaultEditor, error::ReadlineError};

use super::super::{environment, output, signals::Interrupts};

/// Begins and ends a message of many lines.
const FENCE: &str = "\"\"\"";
const PROMPT: &str = "> ";
const MORE: &str = "… ";
/// Messages that are remembered between conversations.
const MAX_HISTORY: usize = 1000;

/// Something to read messages from.
#[derive(Debug)]
pub(super) enum Input {
    /// `None` only while a line is being read.
    Terminal(Option<Box<Editor>>),
    Pipe,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A message or a command.
    Text(String),
    /// An empty line, or one that was thought better of.
    Nothing,
    /// No more will come.
    End,
}

/// A line editor, and the file that its history is in.
#[derive(Debug)]
pub(super) struct Editor {
    lines: DefaultEditor,
    history: PathBuf,
}

impl Input {
    /// Standard input, whatever that is.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub(super) fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let editor = Editor::open().context("cannot read from this terminal")?;
        Ok(Self::Terminal(Some(Box::new(editor))))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next message; of a pipe, the next line. Ctrl-C while a pipe is waited for is its end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub(super) async fn next(&mut self, interrupts: &mut Interrupts) -> anyhow::Result<Line> {
        match self {
            Self::Terminal(place) => {
                let Some(mut editor) = place.take() else {
                    return Ok(Line::End);
                };
                let (line, editor) = tokio::task::spawn_blocking(move || (editor.message(), editor))
                    .await
                    .context("interrupted")?;
                *place = Some(editor);
                line
            }
            Self::Pipe => tokio::select! {
                line = tokio::task::spawn_blocking(piped) => line.context("interrupted")?,
                () = interrupts.next() => Ok(Line::End),
            },
        }
    }
}

/// One line of a pipe.
fn piped() -> anyhow::Result<Line> {
    let mut line = String::new();
    let n_bytes = io::stdin()
        .read_line(&mut line)
        .context("cannot read the next message")?;
    let text = line.trim_end_matches(['\r', '\n']);
    Ok(match text.trim() {
        _ if n_bytes == 0 => Line::End,
        "" => Line::Nothing,
        _ => Line::Text(text.to_owned()),
    })
}

impl Editor {
    fn open() -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)?
            .history_ignore_space(true);
        let mut lines = DefaultEditor::with_config(config.build())?;
        let folder = environment::cache_folder();
        let history = folder.join("chat-history");
        // Without a history there is still a conversation.
        if let Err(error) = fs::create_dir_all(&folder) {
            tracing::debug!(error = &error as &dyn std::error::Error, "no folder for the history");
        }
        drop(lines.load_history(&history));
        Ok(Self { lines, history })
    }

    /// One message: a line, lines that end with a backslash and the one after them, or what stands between two fences.
    fn message(&mut self) -> anyhow::Result<Line> {
        let mut message = String::new();
        let mut fenced = false;
        loop {
            let prompt = if message.is_empty() && !fenced { PROMPT } else { MORE };
            let line = match self.lines.readline(prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    output::line("(Ctrl-D ends the conversation)");
                    return Ok(Line::Nothing);
                }
                Err(ReadlineError::Eof) => return Ok(Line::End),
                Err(error) => return Err(error).context("cannot read from this terminal"),
            };
            match gathered(&mut message, &line, &mut fenced) {
                Gathered::More => {}
                Gathered::Whole if message.trim().is_empty() => return Ok(Line::Nothing),
                Gathered::Whole => {
                    self.remember(&message);
                    return Ok(Line::Text(message));
                }
            }
        }
    }

    /// The history is written at once, readable by its owner only (`rustyline` sees to that).
    fn remember(&mut self, message: &str) {
        let added = self.lines.add_history_entry(message);
        if let Err(error) = added.and_then(|_| self.lines.append_history(&self.history)) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the history was not written");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Gathered {
    More,
    Whole,
}

/// Puts `line` behind `message`.
fn gathered(message: &mut String, line: &str, fenced: &mut bool) -> Gathered {
    let line = if message.is_empty() && !*fenced {
        match line.trim_start().strip_prefix(FENCE) {
            Some(rest) => {
                *fenced = true;
                if rest.is_empty() {
                    return Gathered::More;
                }
                rest
            }
            None => line,
        }
    } else {
        line
    };
    if *fenced {
        return match line.trim_end().strip_suffix(FENCE) {
            Some(last) => {
                message.push_str(last);
                Gathered::Whole
            }
            None => {
                message.push_str(line);
                message.push('\n');
                Gathered::More
            }
        };
    }
    match line.strip_suffix('\\') {
        Some(line) => {
            message.push_str(line);
            message.push('\n');
            Gathered::More
        }
        None => {
            message.push_str(line);
            Gathered::Whole
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(lines: &[&str]) -> Option<String> {
        let (mut message, mut fenced) = (String::new(), false);
        for (at, line) in lines.iter().enumerate() {
            if gathered(&mut message, line, &mut fenced) == Gathered::Whole {
                assert_eq!(at + 1, lines.len(), "{lines:?} end early");
                return Some(message);
            }
        }
        None
    }

    #[test]
    fn lines_are_gathered_to_messages() {
        for (lines, expected) in [
            (&["one"][..], Some("one")),
            (&["one\\", "two"], Some("one\ntwo")),
            (&["one\\"], None),
            (&["\"\"\"", "one", "", "two", "\"\"\""], Some("one\n\ntwo\n")),
            (&["\"\"\"one", "two\"\"\""], Some("one\ntwo")),
            (&["\"\"\"one\"\"\""], Some("one")),
            (&["\"\"\"", "one\\", "\"\"\""], Some("one\\\n")),
            (&["say \"\"\" now"], Some("say \"\"\" now")),
        ] {
            assert_eq!(message(lines).as_deref(), expected, "{lines:?}");
        }
    }
}
