//! Tests on an emulated card that is not the usual one. The driver is asked once per process what its cards are, so such a
//! test is done in a process of its own.

use std::{any::type_name, env, process::Command};

/// Whether this process is the one in which the emulated card is what `variables` say (`interop-tests/cuda/README.md`). In
/// any other one `test`, which asks, is done in that process now and has to pass there. A real card is the same in both.
pub(super) fn is_on_card<F: Fn()>(variables: &[(&str, &str)], _test: F) -> bool {
    let is_set = |(name, value): &(&str, &str)| env::var_os(name).is_some_and(|found| found == *value);
    if variables.iter().all(is_set) {
        return true;
    }
    let name = type_name::<F>().trim_start_matches(concat!(env!("CARGO_CRATE_NAME"), "::"));
    let mut other = Command::new(env::current_exe().unwrap());
    other
        .args(["--ignored", "--exact", name])
        .envs(variables.iter().copied());
    let output = other.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "with {variables:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}
