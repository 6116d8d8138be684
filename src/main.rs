//! The `sepal` binary: hands the command line to [`sepal::cli`] and turns its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    sepal::cli::run(std::env::args_os())
}
