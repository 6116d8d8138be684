//! Everything that is printed: the stable lines on stdout, errors on stderr. Nobody else prints.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use tracing::Level;

use super::{logging, remedy};

/// Exit code for a command line that cannot be understood, as most programs have it.
const USAGE_ERROR: u8 = 2;

/// One line on stdout, visible at once also when stdout is a pipe.
pub(super) fn line(text: impl Display) {
    written(writeln!(io::stdout(), "{text}"));
}

/// A piece of text on stdout without a line end, visible at once.
pub(super) fn piece(text: &str) {
    written(write!(io::stdout(), "{text}"));
}

/// Makes visible what went to stdout. A node serves on whatever becomes of its output, and says once what did.
fn written(outcome: io::Result<()>) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let Err(error) = outcome.and_then(|()| io::stdout().flush()) else {
        return;
    };
    // A closed pipe is the reader's decision, not an error of ours.
    if error.kind() != io::ErrorKind::BrokenPipe && !SAID.swap(true, Ordering::Relaxed) {
        problem(&format!("cannot write to stdout: {error}"), None);
    }
}

/// A remark beside the results, on stderr. If that is gone, there is nobody to tell.
pub(super) fn note(text: &str) {
    aside(Level::INFO, text, None);
}

/// Something that is probably not as it was meant.
pub(super) fn warning(text: &str) {
    aside(Level::WARN, text, None);
}

/// An error after which the program goes on: one line with the whole chain of causes, and one with what helps where that
/// is known.
pub(super) fn error(error: &anyhow::Error) {
    problem(&format!("{error:#}"), remedy::of(error).as_deref());
}

fn problem(text: &str, hint: Option<&str>) {
    aside(Level::ERROR, text, hint);
}

/// Where lines of JSON are logged, all that goes to stderr is.
fn aside(level: Level, text: &str, hint: Option<&str>) {
    let said = logging::as_json(level, text, hint).unwrap_or_else(|| {
        let kind = match level {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        format!("{kind}{text}\n{hint}")
    });
    drop(io::stderr().write_all(said.as_bytes()));
}

/// Help and version go to stdout and are no failure; anything else explains itself on stderr.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(USAGE_ERROR)
    } else {
        ExitCode::SUCCESS
    }
}

/// What is wrong with the configuration; as bad as a command line that cannot be understood.
pub(super) fn misconfigured(problems: &[String]) -> ExitCode {
    for problem in problems {
        self::problem(problem, None);
    }
    ExitCode::from(USAGE_ERROR)
}

/// An error that ends the program.
pub(super) fn failure(error: &anyhow::Error) -> ExitCode {
    self::error(error);
    ExitCode::FAILURE
}
