//! The program when its output goes nowhere: it neither panics nor hides that something is lost.
#![expect(clippy::unwrap_used, reason = "all of this program is a test")]

use std::{
    fs::File,
    process::{Command, Output, Stdio},
};

/// The program with a long output that goes to `stdout`; whoever has the other end of it hangs up at once.
fn listing(stdout: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sepal"));
    command
        .args(["init", "-"])
        .env_clear()
        .stdout(stdout)
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    child.wait_with_output().unwrap()
}

#[test]
fn a_reader_that_hangs_up_is_no_failure() {
    let output = listing(Stdio::piped());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_once() {
    let output = listing(File::create("/dev/full").unwrap().into());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("error: cannot write to stdout: ").count(), 1, "{said}");
}
