#!/usr/bin/env bash
# Rewrites protocol/src/generated from protocol/proto. Needs nothing but Rust.
set -eu
cd "$(dirname "$0")/.."
SEPAL_REGENERATE=1 cargo test --quiet -p sepal-protocol --test generated
