# Sourced by scripts that need a virtual environment: makes it in the user's cache folder, once for each content of the
# files it is made from. Needs CPython 3.11 with venv, for which everything that is pinned has wheels, and PyPI once.

# make_venv NAME REQUIREMENTS [FILE…]
#   Leaves its folder in $venv. FILEs are what else it depends on. If there is a function `furnish`, it is run with the
#   packages in place; its failure is the environment's.
make_venv() {
    local name=$1 requirements=$2 hash cache python="" candidate attempt
    shift 2
    hash=$(cat scripts/venv.sh "$requirements" "$@" | sha256sum | cut -c1-16)
    cache="${XDG_CACHE_HOME:-${HOME:?}/.cache}/sepal"
    venv="$cache/$name-$hash"
    [ ! -e "$venv/ready" ] || return 0
    mkdir -p "$cache"
    exec 9>"$venv.lock"
    flock 9 # another run may be making it
    [ ! -e "$venv/ready" ] || { exec 9>&-; return 0; }
    for candidate in python3.11 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || { echo "$name: CPython 3.11 is needed and was not found" >&2; return 1; }
    echo "$name: making $venv" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv" >&2 || return 1
    # Several attempts: one failed download of seventy should not fail a whole run.
    for attempt in 1 2 3; do
        "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps \
            --requirement "$requirements" >&2 && break
        [ "$attempt" -lt 3 ] || { echo "$name: installing the packages failed" >&2; return 1; }
        echo "$name: installing failed, trying again" >&2
        sleep 5
    done
    if declare -F furnish >/dev/null; then furnish || return 1; fi
    touch "$venv/ready"
    exec 9>&-
}
