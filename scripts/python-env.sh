#!/usr/bin/env bash
# Makes the Python environment of the interop tests in the user's cache folder, once, and prints the path of its python.
# Needs: python3.11 with venv, a C compiler with nm (for cpu_torch.py), and PyPI the first time (1 GB down, 2.5 GB on disk).
set -euo pipefail
cd "$(dirname "$0")/.."

log() { echo "python-env: $*" >&2; }

sources=(scripts/python-env.sh interop-tests/python/requirements.txt interop-tests/python/cpu_torch.py interop-tests/python/hivemind_names.py)
hash=$(cat "${sources[@]}" | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-${HOME:?}/.cache}/sepal"
env="$cache/python-$hash"

if [ ! -e "$env/ready" ]; then
    mkdir -p "$cache"
    exec 9>"$cache/python-$hash.lock"
    flock 9 # another run may be making it
fi
if [ ! -e "$env/ready" ]; then
    # Petals 2.2.0's pins have wheels for CPython 3.8 to 3.11 only.
    python=""
    for candidate in python3.11 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || { log "CPython 3.11 is needed and was not found"; exit 1; }
    log "making $env"
    rm -rf "$env"
    "$python" -m venv "$env" >&2
    # Several attempts: one failed download of seventy should not fail a whole run.
    for attempt in 1 2 3; do
        "$env/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
            --requirement interop-tests/python/requirements.txt >&2 && break
        [ "$attempt" -lt 3 ] || { log "installing the packages failed"; exit 1; }
        log "installing failed, trying again"
        sleep 5
    done
    packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    cp interop-tests/python/hivemind_names.py "$packages/"
    echo "import hivemind_names" >"$packages/hivemind_names.pth"
    "$env/bin/python" interop-tests/python/cpu_torch.py >&2
    "$env/bin/python" -W ignore -c 'import hivemind, petals, torch, transformers; print("python-env: petals", petals.__version__, "hivemind", hivemind.__version__, "torch", torch.__version__, "transformers", transformers.__version__)' >&2
    touch "$env/ready"
fi
echo "$env/bin/python"
