#!/usr/bin/env bash
# Every check of the project, on a fresh machine too: format, lints, documentation, tests, real Python peers.
#
# Usage: scripts/test.sh          everything
#        scripts/test.sh STEP…    some steps, by the names printed at the end
# Needs: the Rust toolchain with rustfmt and clippy, a C compiler, CPython 3.11 with pip; for the step cuda without a card a C++
# compiler, for network root, iproute2 and nftables, for browser Chromium, for install debootstrap, for readme curl. As root on
# Debian the steps network, browser and install install what they lack.
set -euo pipefail
cd "$(dirname "$0")/.."

# Two at a time: each of these tests starts several processes of its own.
interop_jobs=2

have_nextest() { cargo nextest --version >/dev/null 2>&1; }

step_format() { cargo fmt --all --check; }

step_lint() {
    cargo clippy --workspace --all-targets --locked -- -D warnings
    source scripts/venv.sh
    make_venv lint packaging/requirements-lint.txt
    "$venv/bin/shellcheck" --shell=bash --external-sources --severity=warning scripts/*.sh interop-tests/cuda/build.sh
}

step_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked; }

step_unit() {
    # tests/examples.rs runs them.
    cargo build --examples --locked
    if have_nextest; then
        cargo nextest run --workspace --exclude interop-tests --locked
    else
        cargo test --workspace --exclude interop-tests --lib --bins --tests --locked
    fi
    cargo test --workspace --exclude interop-tests --doc --locked
}

step_python() { scripts/python-env.sh; }

# One of the two test programs of interop-tests.
run_interop() {
    cargo build --bin sepal --locked
    if have_nextest; then
        cargo nextest run --package interop-tests --test "$1" --test-threads "$interop_jobs" --locked
    else
        cargo test --package interop-tests --test "$1" --locked -- --test-threads "$interop_jobs"
    fi
}

# Tests that need a card, by cargo arguments: of nextest and of cargo test.
run_on_card() {
    if have_nextest; then
        cargo nextest run --lib --test examples --run-ignored only --locked -E "$1"
    else
        cargo test --lib --test examples --locked -- --ignored $2
    fi
}

# Each in a process of its own, by the same arguments: a card that one loses, another in the same process would miss.
run_each_on_card() {
    local listed name names=()
    if have_nextest; then
        run_on_card "$1"
        return
    fi
    listed=$(cargo test --lib --test examples --locked -- --ignored --list $2) || return 1
    mapfile -t names < <(sed -n 's/: test$//p' <<<"$listed")
    [ ${#names[@]} -gt 0 ] || { echo "cuda: no test is called $2" >&2; return 1; }
    for name in "${names[@]}"; do run_on_card '' "--exact $name" || return 1; done
}

# The answer of the built-in model, which a swarm computes on this device; the log goes to a file.
answer_on() {
    RUST_LOG=warn,sepal=info cargo run --quiet --locked --bin sepal -- demo --device "$1" 2>"$2" |
        sed -n '/^> /,/^hops/p' | sed '/^hops/d'
}

# A whole swarm on cards says what it says on the processor.
demo_on_card() {
    local log expected found
    log=$(mktemp)
    if ! expected=$(answer_on cpu "$log") || ! found=$(answer_on cuda "$log"); then
        echo 'cuda: the demonstration failed:' >&2
        cat "$log" >&2
        return 1
    fi
    if ! grep -q 'a card to compute with' "$log" || grep -q 'cards cannot be used' "$log"; then
        echo 'cuda: the demonstration did not use a card:' >&2
        cat "$log" >&2
        return 1
    fi
    if [ -z "$expected" ] || [ "$found" != "$expected" ]; then
        printf 'cuda: the demonstration says on a card\n%s\nand on the processor\n%s\n' "$found" "$expected" >&2
        return 1
    fi
    echo 'cuda: the demonstration says on a card what it says on the processor'
    rm "$log"
}

step_cuda() {
    local card="" libraries="${CARGO_TARGET_DIR:-target}/emulated-card"
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo "cuda: on $(nvidia-smi -L | head -1)"
        # Every process has an emulated card of its own; this one all share, and one test takes all its free memory.
        export NEXTEST_TEST_THREADS=1 RUST_TEST_THREADS=1
    else
        echo 'cuda: no NVIDIA card here: on the emulated one (interop-tests/cuda/README.md)'
        interop-tests/cuda/build.sh "$libraries" || return 1
        card=$(cd "$libraries" && pwd)
    fi
    # tests/examples.rs runs it.
    cargo build --example card_bench --locked || return 1
    # What there is no second card for is tested on the first one twice.
    EMULATED_CARDS=2 LD_LIBRARY_PATH="$card${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
        run_on_card 'test(cuda) and not test(every_program_compiles) and not test(lost)' \
        'cuda --skip every_program_compiles --skip lost' || return 1
    EMULATED_CARDS=2 LD_LIBRARY_PATH="$card${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
        run_each_on_card 'test(cuda) and test(lost)' lost || return 1
    EMULATED_CARDS=2 LD_LIBRARY_PATH="$card${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" demo_on_card || return 1
    # What the host's compiler accepts, NVIDIA's may not.
    source scripts/venv.sh
    make_venv nvrtc interop-tests/cuda/requirements.txt || return 1
    LD_LIBRARY_PATH=$(echo "$venv"/lib/python3*/site-packages/nvidia/cuda_nvrtc/lib) \
        run_on_card 'test(every_program_compiles)' every_program_compiles
}

step_interop() { run_interop interop; }

step_network() {
    if [ "$(id -u)" != 0 ]; then
        echo 'network: these tests make network namespaces, which only root may: sudo scripts/test.sh network' >&2
        return 1
    fi
    if ! command -v ip >/dev/null || ! command -v nft >/dev/null; then
        { apt-get update && apt-get install -y --no-install-recommends iproute2 nftables; } || {
            echo 'network: install the programs ip and nft (packages iproute2 and nftables), then run this step again' >&2
            return 1
        }
    fi
    run_interop network
}

step_browser() { scripts/browser.sh; }

step_install() { scripts/test-install.sh; }

step_readme() { scripts/readme.sh; }

steps=(format lint doc unit python cuda interop network browser install readme)
[ $# -gt 0 ] || set -- "${steps[@]}"

summary=()
failed=0
for step in "$@"; do
    declare -F "step_$step" >/dev/null || { echo "test.sh: no step $step; there are: ${steps[*]}" >&2; exit 2; }
    echo "=== $step"
    started=$SECONDS
    # Not behind an `if` or `||`: there the shell ignores -e within the step.
    set +e
    (set -e; "step_$step")
    status=$?
    set -e
    took=$((SECONDS - started))
    if [ "$status" -eq 0 ]; then
        summary+=("ok      $step  ${took} s")
    else
        summary+=("FAILED  $step  ${took} s")
        failed=1
    fi
done

echo "=== summary"
printf '%s\n' "${summary[@]}"
exit "$failed"
