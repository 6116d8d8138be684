#!/usr/bin/env bash
# Every check of the project: format, lints, documentation, tests.
set -eu
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo test --workspace --locked
