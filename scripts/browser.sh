#!/usr/bin/env bash
# The browser tests of the health map and of the chat, chromium over live swarms, and a chat front end from PyPI. Builds sepal, installs what is missing, prints where the
# screenshots are.
# Needs: chromium (as root on a Debian it is installed), CPython 3.11 with pip, PyPI the first time.
# Usage: scripts/browser.sh [ARGUMENT OF PYTEST…]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

find_chromium() {
    local name
    for name in chromium chromium-browser google-chrome-stable google-chrome; do
        command -v "$name" && return
    done
}
export CHROMIUM=${CHROMIUM:-$(find_chromium || true)}
if [ -z "$CHROMIUM" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "browser: installing chromium" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >&2 || true
    fi
    CHROMIUM=$(find_chromium || true)
fi
[ -n "$CHROMIUM" ] || { echo "browser: no chromium: install it (apt-get install chromium, as root) or name it in CHROMIUM" >&2; exit 1; }

cargo build --bin sepal --locked
target=${CARGO_TARGET_DIR:-$PWD/target}
export SEPAL=$target/debug/sepal PICTURES=$target/browser
PEER_PYTHON=$(scripts/python-env.sh)
export PEER_PYTHON
make_venv llm interop-tests/browser/requirements-llm.txt
export LLM=$venv/bin/llm
make_venv browser interop-tests/browser/requirements.txt
rm -rf "$PICTURES"
mkdir -p "$PICTURES"
status=0
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest -p no:cacheprovider --tb=short -v interop-tests/browser "$@" || status=$?
echo "browser: screenshots are in $PICTURES"
exit "$status"
