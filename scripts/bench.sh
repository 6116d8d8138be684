#!/usr/bin/env bash
# Every figure of the engine in one run on one machine, beside what the machine can do at best, llama.cpp and Petals.
#
# Usage: scripts/bench.sh [--quick] [SECTION…]     sections: limits blocks llama petals sessions hops lines accuracy soak card
#   Without a section all of them, 45 minutes, of which the soak takes 10; card only where there is an NVIDIA card, on the first
#   one. What is run is written to examples/BENCHMARKS.md.
#   --quick: smaller models and fewer steps, to see that everything works; its figures mean little and are not written.
# Needs: the Rust toolchain, what scripts/python-env.sh needs and, for the section llama, what scripts/llama-cpp-env.sh needs;
# 16 GB of memory and 8 GB in $TMPDIR. Both peers are installed from PyPI by those scripts the first time.
# The section card needs NVIDIA's driver, its run-time compiler and cuBLAS (README, "On NVIDIA cards"), and a card with 12 GB:
# four blocks of Llama 70B's shape in 16 bits are 7, and measuring what the card can do takes 2.
# The section lines makes network namespaces: root, `ip`, and `tc` with netem or python3 with /dev/net/tun.
# A section that fails is reported, the others go on; the exit status is 1 then.
set -euo pipefail
cd "$(dirname "$0")/.."
everywhere=(limits blocks llama petals sessions hops lines accuracy soak)
sections=("${everywhere[@]}" card)

usage() { sed -n '/^# Usage/,/^# Needs/{/^# Needs/!s/^# \{0,1\}//p}' scripts/bench.sh; }

options=() wanted=()
for argument in "$@"; do
    case $argument in
        -h | --help) usage; exit 0 ;;
        --quick) options+=(--quick) ;;
        -*) echo "bench.sh: no option $argument" >&2; usage >&2; exit 2 ;;
        *)
            [[ " ${sections[*]} " == *" $argument "* ]] || { echo "bench.sh: no section $argument; there are: ${sections[*]}" >&2; exit 2; }
            wanted+=("$argument")
            ;;
    esac
done

have_card() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

if ! have_card; then
    if [[ " ${wanted[*]} " == *" card "* ]]; then
        echo "bench.sh: no NVIDIA card here (nvidia-smi -L lists none), which the section card measures" >&2
        exit 1
    fi
    [ ${#wanted[@]} -gt 0 ] || wanted=("${everywhere[@]}")
fi

wants() {
    local section
    for section; do
        [[ ${#wanted[@]} -gt 0 && " ${wanted[*]} " != *" $section "* ]] || return 0
    done
    return 1
}

# An environment that cannot be made fails only the sections that need it.
peer() {
    "$1" || echo "bench.sh: $2 could not be installed (see above); the sections that compare with it will fail" >&2
}

echo '=== building' >&2
cargo build --release --locked --bin sepal --example engine_bench --example sessions_bench --example accuracy --example card_bench
petals="" llama_cpp=""
if wants limits blocks llama petals sessions hops lines; then petals=$(peer scripts/python-env.sh Petals); fi
if wants llama; then llama_cpp=$(peer scripts/llama-cpp-env.sh llama.cpp); fi

exec python3 scripts/bench --programs "${CARGO_TARGET_DIR:-target}/release" --petals "$petals" --llama-cpp "$llama_cpp" \
    "${options[@]}" "${wanted[@]}"
