//! Everything that is printed: the stable lines on stdout, errors on stderr. Nobody else prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the one place where the program prints"
)]

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use super::remedy;

/// Exit code for a command line that cannot be understood, as most programs have it.
const USAGE_ERROR: u8 = 2;

/// One line on stdout, visible at once also when stdout is a pipe.
pub(super) fn line(text: impl Display) {
    println!("{text}");
    // A closed pipe is the reader's decision, not an error of ours.
    drop(io::stdout().flush());
}

/// A piece of text on stdout without a line end, visible at once.
pub(super) fn piece(text: &str) {
    print!("{text}");
    drop(io::stdout().flush());
}

/// A remark beside the results, on stderr.
pub(super) fn note(text: &str) {
    eprintln!("{text}");
}

/// An error after which the program goes on: one line with the whole chain of causes, and one with what helps where that
/// is known.
pub(super) fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
    if let Some(remedy) = remedy::of(error) {
        eprintln!("hint: {remedy}");
    }
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
        eprintln!("error: {problem}");
    }
    ExitCode::from(USAGE_ERROR)
}

/// An error that ends the program.
pub(super) fn failure(problem: &anyhow::Error) -> ExitCode {
    error(problem);
    ExitCode::FAILURE
}
