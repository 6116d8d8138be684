//! The program as tests run it: in a folder of their own, with nothing of the environment.

use std::{path::Path, process::Command};

/// `sepal` with the arguments of `line`, in `folder`, which is its home as well.
pub(crate) fn sepal(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sepal"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env_clear()
        .env("HOME", folder);
    command
}
