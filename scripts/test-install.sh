#!/usr/bin/env bash
# Tries what people install with, with the program of the development build: packs it as a release, runs scripts/install.sh of
# the archive in an empty home (twice, as an upgrade), has three nodes answer a question in one line each, looks at the
# systemd units, and removes everything again. As root it becomes nobody for that.
# Not run here: the images of the Dockerfile, which need a daemon, and the builds of scripts/release.sh for other machines.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
chmod 755 "$work"
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "install: $*" >&2
    for log in "$work"/*.log; do echo "--- $log" >&2; tail -n 20 "$log" >&2; done
    exit 1
}
says() { grep -qE -- "$2" "$work/$1.log" || fail "$1 does not say: $2"; }

cargo build --bin sepal --locked
target=$(uname -m)-unknown-linux-gnu
scripts/release.sh --binary "${CARGO_TARGET_DIR:-target}/debug/sepal" --out "$work/archives" "$target"
archive=$(echo "$work"/archives/sepal-*.tar.gz)
tar -xzf "$archive" -C "$work" --strip-components=1 --wildcards '*/install.sh'

home=$work/home
mkdir "$home"
become=()
if [ "$(id -u)" = 0 ]; then
    chown 65534:65534 "$home"
    become=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
# In an environment with nothing in it but what is named before the command.
newcomer=("${become[@]}" env -i HOME="$home" PATH=/usr/bin:/bin)
installs() {
    local name=$1
    shift
    "${newcomer[@]}" "$@" >"$work/$name.log" 2>&1
}

installs first bash "$work/install.sh" --archive "$archive" || fail 'it does not install'
says first '^installed sepal [0-9.]+ in .*/\.local/bin/sepal$'
says first '^memory +.* a server would plan with'
says first '^saved as .*/\.cache/sepal/machine\.json$'
says first '^meta-llama/Llama-3\.1-405B +126 +16384 '
sepal=$home/.local/bin/sepal
grep -q '"saved_at"' "$home/.cache/sepal/machine.json" || fail 'there is no profile'
grep -q 'eligible' "$home/.local/share/man/man1/sepal.1" || fail 'the manual does not name its pages'
bash -c 'source "$1" && complete -p sepal' - "$home/.local/share/bash-completion/completions/sepal" >/dev/null || fail 'bash cannot complete'
installs eligible "$sepal" eligible meta-llama/Llama-3.1-70B --json || fail 'what fits is not told'
says eligible '"read_bytes_per_second":[0-9]'

# Twice is an upgrade. What the old version had and the new one has not is gone afterwards.
rm "$sepal"
printf '#!/bin/sh\necho sepal 0.0.1\n' >"$sepal"
chmod 755 "$sepal"
echo old >"$home/.local/share/sepal/old"
echo share/sepal/old >>"$home/.local/share/sepal/installed"
installs second bash "$work/install.sh" --archive "$archive" --no-gauge || fail 'it does not upgrade'
says second '^upgraded sepal 0\.0\.1 to sepal '
[ ! -e "$home/.local/share/sepal/old" ] || fail 'a file of the old version is still there'

# A release that is not what its checksum says, and one without.
mkdir "$work/damaged"
cp "$work/archives/"* "$work/damaged/"
printf x >>"$work/damaged/${archive##*/}"
if installs damaged bash "$work/install.sh" --archive "$work/damaged/${archive##*/}"; then fail 'it installs a damaged archive'; fi
says damaged 'is damaged or is not what SHA256SUMS names'
if installs nothing bash "$work/install.sh"; then fail 'it builds without a clone'; fi
says nothing 'not inside of a clone'

# Three nodes, one line each.
await() {
    for _ in $(seq 300); do
        if grep -q "^$2" "$work/$1.log" 2>/dev/null; then
            sed -n "s|^$2||p" "$work/$1.log" | head -n 1
            return
        fi
        sleep 0.1
    done
    fail "$1 never printed: $2"
}
here='--listen /ip4/127.0.0.1/tcp/0 --skip-reachability-check --throughput 100'
line=(bash "$work/install.sh" --archive "$archive" --no-gauge)
"${newcomer[@]}" NODE_NAME=one SEPAL_SERVE="demo --blocks 0:4 --new-swarm $here" "${line[@]}" >"$work/one.log" 2>&1 &
pids+=($!)
addr=$(await one 'listening ')
await one 'online demo-hf 0:4' >/dev/null
"${newcomer[@]}" NODE_NAME=two SEPAL_SERVE="demo --blocks 4:8 $here" SEPAL_PEERS="$addr" "${line[@]}" >"$work/two.log" 2>&1 &
pids+=($!)
await two 'online demo-hf 4:8' >/dev/null
installs three SEPAL_PROMPT='What is 2+2?' SEPAL_PEERS="$addr" "${line[@]}" || fail 'the third node has no answer'
says three '4'
[ -s "$home/.local/share/sepal/one.key" ] && [ -s "$home/.local/share/sepal/two.key" ] || fail 'the nodes kept no keys'
installs lacking "$sepal" eligible demo --initial-peers "$addr" || fail 'the swarm is not asked'
says lacking 'blocks 0:8 once more, some have 1 server'
kill -TERM "${pids[@]}"
for pid in "${pids[@]}"; do wait "$pid" || fail "a node did not exit with 0 when it was told to"; done
pids=()

if command -v systemctl >/dev/null; then
    installs service SEPAL_SERVE='demo --new-swarm' "${line[@]}" --service || fail 'the unit is not installed'
    says service 'sepal\.service, which serves: demo --new-swarm'
    grep -qx 'SERVE_FLAGS=demo --new-swarm ' "$home/.config/sepal/serve.env" || fail 'the unit serves something else'
fi
if command -v systemd-analyze >/dev/null; then
    mkdir "$work/units"
    sed "s|^ExecStart=[^ ]*|ExecStart=$sepal|" packaging/sepal.service >"$work/units/sepal.service"
    systemd-analyze verify --man=no "$work/units/sepal.service" >"$work/unit.log" 2>&1 || fail 'systemd refuses the unit'
    if [ -f "$home/.config/systemd/user/sepal.service" ]; then
        XDG_RUNTIME_DIR=$work systemd-analyze verify --user --man=no "$home/.config/systemd/user/sepal.service" \
            >"$work/unit.log" 2>&1 || fail 'systemd refuses the unit of a user'
    fi
else
    echo 'install: no systemd-analyze here, the units were not verified'
fi

installs removed bash "$work/install.sh" --uninstall --purge || fail 'it does not uninstall'
left=$(find "$home" -type f -not -path '*/.cache/huggingface/*')
[ -z "$left" ] || fail "this is left after uninstalling: $left"
cat "$work/first.log"
echo 'install: installed, upgraded, three nodes answered, units are fine, and all is gone again'
