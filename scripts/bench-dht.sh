#!/usr/bin/env bash
# Our DHT beside Python's on the same loopback network, in one run, as one table: store, get, get_many(80), bootstrap, memory.
#
# Usage: scripts/bench-dht.sh [NUMBER_OF_NODES] [ROUNDS]      16 nodes of each kind and 40 rounds, unless given
# Needs: what scripts/python-env.sh needs.
set -euo pipefail
cd "$(dirname "$0")/.."
for argument in "$@"; do
    case $argument in
        -h | --help) sed -n '/^# Usage/s/^# //p' scripts/bench-dht.sh && exit ;;
        '' | *[!0-9]*) echo "bench-dht.sh: $argument is no number; --help shows what there is" >&2 && exit 2 ;;
    esac
done
python=$(scripts/python-env.sh)
cargo build --release --locked --example dht_bench
exec "$python" interop-tests/python/dht_bench.py "${CARGO_TARGET_DIR:-target}/release/examples/dht_bench" "$@"
