#!/usr/bin/env bash
# Tries what people install with, with the program of the development build: packs it as a release, runs scripts/install.sh of
# the archive in an empty home (twice, as an upgrade), has three nodes answer a question in one line each, looks at the
# systemd units, and removes everything again. As root it becomes nobody for that, and on Debian it does so in a root of its
# own with nothing in it but a minimal Debian and systemd, which debootstrap makes and the cache folder keeps.
# Not run here: the images of the Dockerfile, which need a daemon, the builds of scripts/release.sh, and a started unit. What a
# machine lacks the means for is left out, and named in the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
# Mounts of a clean root are gone with whoever sees them.
if [ "$(id -u)" = 0 ] && [ -z "${SEES_ITS_OWN_MOUNTS:-}" ] && unshare --mount true 2>/dev/null; then
    SEES_ITS_OWN_MOUNTS=yes exec unshare --mount --propagation private "$0" "$@"
fi
work=$(mktemp -d)
chmod 755 "$work"
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    # A mount that stays is not to be emptied.
    umount -l "$work"/root/dev "$work"/root/proc "$work/root$work" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
fail() {
    echo "install: $*" >&2
    for log in "$work"/*.log; do echo "--- $log" >&2; tail -n 20 "$log" >&2; done
    exit 1
}
says() { grep -qE -- "$2" "$work/$1.log" || fail "$1 does not say: $2"; }
left_out=''
leave_out() {
    echo "install: left out, $2: $1"
    left_out+="; left out: $1"
}

cargo build --bin sepal --locked
target=$(uname -m)-unknown-linux-gnu
scripts/release.sh --help | grep -q '^Usage: scripts/release\.sh' || fail 'release.sh does not say how it is used'
if scripts/release.sh --nothing "$target" >"$work/option.log" 2>&1; then fail 'release.sh takes an option for a target'; fi
says option '^release: no option --nothing; --help lists them$'
scripts/release.sh --binary "${CARGO_TARGET_DIR:-target}/debug/sepal" --out "$work/archives" "$target"
archive=$(echo "$work"/archives/sepal-*.tar.gz)
tar -xzf "$archive" -C "$work" --strip-components=1 --wildcards '*/install.sh'

# Makes $work/root: a minimal Debian in which $work is where it is here. Its last line says why it cannot.
clean_root() {
    local suite cache root=$work/root
    [ "$(id -u)" = 0 ] || { echo 'only root can make one'; return 1; }
    [ -n "${SEES_ITS_OWN_MOUNTS:-}" ] || { echo 'this root cannot mount anything'; return 1; }
    suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") || { echo 'this is no Debian'; return 1; }
    command -v debootstrap >/dev/null || { apt-get update && apt-get install -y --no-install-recommends debootstrap; } || return 1
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/sepal/clean-$suite.tar
    mkdir -p "$root" "${cache%/*}"
    if [ ! -f "$cache" ]; then
        debootstrap --variant=minbase --include=systemd "$suite" "$work/made" || return 1
        tar -C "$work/made" --exclude='./var/cache/apt/*' -cf "$cache.$$" . && mv "$cache.$$" "$cache" || return 1
        rm -rf "$work/made"
    fi
    tar -xf "$cache" -C "$root" || return 1
    mkdir -p "$root$work" && mount --bind "$work" "$root$work" && mount --bind /dev "$root/dev" && mount -t proc proc "$root/proc"
}

home=$work/home
mkdir "$home"
enter=() place='an empty home'
if clean_root >"$work/root.log" 2>&1; then
    enter=(chroot "$work/root") place="a clean root with Debian $(cat "$work/root/etc/debian_version")"
else
    leave_out 'a clean root and what root installs' "$(tail -n 1 "$work/root.log")"
fi
become=("${enter[@]}")
if [ "$(id -u)" = 0 ]; then
    chown 65534:65534 "$home"
    become+=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
in_place() { if [ ${#enter[@]} -gt 0 ]; then chroot "$work/root" "$@"; else "$@"; fi; }
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
if grep -q '^meta-llama/' "$work/second.log"; then fail 'it lists models although nothing is to be measured'; fi
[ ! -e "$home/.local/share/sepal/old" ] || fail 'a file of the old version is still there'

# A release that is not what its checksum says, and one without.
mkdir "$work/damaged"
cp "$work/archives/"* "$work/damaged/"
printf x >>"$work/damaged/${archive##*/}"
if installs damaged bash "$work/install.sh" --archive "$work/damaged/${archive##*/}"; then fail 'it installs a damaged archive'; fi
says damaged 'is damaged or is not what SHA256SUMS names'
if installs nothing bash "$work/install.sh"; then fail 'it builds without a clone'; fi
says nothing 'not inside of a clone'

# What cannot be done, and what it says then: variables and options, and the text.
printf 'no archive' >"$work/other.tar.gz"
while IFS='|' read -r words text; do
    # shellcheck disable=SC2086 # several words
    if installs refused env $words; then fail "this does not fail: $words"; fi
    says refused "^install\\.sh: $text"
done <<ROWS
bash $work/install.sh --quiet|unknown option --quiet; --help lists them
bash $work/install.sh --archive|--archive needs a value; --help says which
bash $work/install.sh --archive $work/none.tar.gz|there is no file $work/none\\.tar\\.gz
bash $work/install.sh --archive $work/other.tar.gz|cannot unpack $work/other\\.tar\\.gz
bash $work/install.sh --archive ftp://127.0.0.1:9/sepal.tar.gz|(curl is needed to get|cannot get) ftp://127\\.0\\.0\\.1:9/sepal\\.tar\\.gz
bash $work/install.sh --archive $archive --prefix /proc/sepal|cannot make /proc/sepal: give --prefix a folder that you may write to
bash $work/install.sh --uninstall --prefix $home/elsewhere|nothing is installed under $home/elsewhere
bash $work/install.sh --archive $archive --no-gauge --service --prefix $home/unserved|--service needs (SEPAL_SERVE: the model and the flags|systemd)
NODE_NAME=a/b bash $work/install.sh --archive $archive|NODE_NAME=a/b cannot be the name of a file: leave out slashes
SEPAL_SERVE=demo' bash $work/install.sh --archive $archive --no-gauge|SEPAL_SERVE has a quote without an end: demo'
ROWS
[ ! -e "$home/elsewhere" ] || fail 'uninstalling makes the folder that it takes from'
[ ! -e "$home/unserved" ] || fail 'it installs before it looks whether it can'

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
# Who names a local network is in no other, and what is in quotes is one word: the blocks are all that is wrong.
if installs words SEPAL_SERVE="demo --lan home --schedule 'mon-fri 18:00-08:00' --blocks 0:99" "${line[@]}"; then fail 'it serves blocks that there are not'; fi
says words '--blocks 0:99 is outside of demo'
"${newcomer[@]}" NODE_NAME=one SEPAL_SERVE="demo --blocks 0:4 --new-swarm $here" "${line[@]}" >"$work/one.log" 2>&1 &
pids+=($!)
addr=$(await one 'listening ')
await one 'online demo-hf 0:4' >/dev/null
"${newcomer[@]}" NODE_NAME=two SEPAL_SERVE="demo --blocks 4:8 $here" SEPAL_PEERS="$addr" "${line[@]}" >"$work/two.log" 2>&1 &
pids+=($!)
await two 'online demo-hf 4:8' >/dev/null
installs three SEPAL_PROMPT='What is 2+2?' SEPAL_PEERS="$addr" "${line[@]}" || fail 'the third node has no answer'
says three '2 \+ 2 = 4'
[ -s "$home/.local/share/sepal/one.key" ] && [ -s "$home/.local/share/sepal/two.key" ] || fail 'the nodes kept no keys'
installs lacking "$sepal" eligible demo --initial-peers "$addr" || fail 'the swarm is not asked'
says lacking 'blocks 0:8 once more, some have 1 server'
kill -TERM "${pids[@]}"
for pid in "${pids[@]}"; do wait "$pid" || fail "a node did not exit with 0 when it was told to"; done
pids=()

if in_place sh -c 'command -v systemctl' >/dev/null; then
    installs service SEPAL_SERVE='demo --new-swarm' "${line[@]}" --service || fail 'the unit is not installed'
    says service 'sepal\.service, which serves: demo --new-swarm'
    grep -qx 'SERVE_FLAGS=demo --new-swarm ' "$home/.config/sepal/serve.env" || fail 'the unit serves something else'
else
    leave_out 'a unit of the user' 'there is no systemctl'
fi
units=''
verified() { in_place env XDG_RUNTIME_DIR="$work" systemd-analyze verify --man=no "$@" >"$work/unit.log" 2>&1 || fail 'systemd refuses a unit'; }
if in_place sh -c 'command -v systemd-analyze' >/dev/null; then
    mkdir "$work/units"
    sed "s|^ExecStart=[^ ]*|ExecStart=$sepal|" packaging/sepal.service >"$work/units/sepal.service"
    verified "$work/units/sepal.service"
    if [ -f "$home/.config/systemd/user/sepal.service" ]; then verified --user "$home/.config/systemd/user/sepal.service"; fi
    units=', units are fine'
else
    leave_out 'whether systemd takes the units' 'there is no systemd-analyze'
fi

# For root of a clean machine: in /usr/local, with a unit of the system.
if [ ${#enter[@]} -gt 0 ]; then
    root=$work/root
    as_root() { chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "${@:2}" >"$work/$1.log" 2>&1; }
    as_root system SEPAL_SERVE='demo --new-swarm' NODE_NAME=one "${line[@]}" --service || fail 'root cannot install the unit'
    says system '^installed sepal [0-9.]+ in /usr/local/bin/sepal$'
    says system '^installed /etc/systemd/system/sepal\.service, which serves: demo --new-swarm$'
    says system '^systemd does not run here; where it does: systemctl enable --now sepal\.service$'
    grep -qx 'SERVE_FLAGS=demo --new-swarm --public-name one' "$root/etc/sepal/serve.env" || fail 'the unit of root serves something else'
    verified /etc/systemd/system/sepal.service
    # As systemd has it when the unit has run.
    for kind in lib cache; do
        mkdir -p "$root/var/$kind/private/sepal"
        ln -s private/sepal "$root/var/$kind/sepal"
    done
    mkdir "$root/var/cache/sepal/huggingface"
    touch "$root/var/lib/sepal/node.key" "$root/var/cache/sepal/throughput.json" "$root/var/cache/sepal/huggingface/model"
    as_root gone bash "$work/install.sh" --uninstall --purge || fail 'root cannot uninstall'
    says gone '^models of the unit are still in /var/cache/sepal/huggingface$'
    [ -f "$root/var/cache/sepal/huggingface/model" ] || fail 'models are gone after root uninstalled'
    left=$(find "$root/usr/local" "$root/etc/systemd/system/sepal.service" "$root/etc/sepal" "$root/root/.local" "$root"/var/{lib,cache}/private/sepal \
        -type f -not -path '*/huggingface/*' 2>/dev/null || true)
    [ -z "$left" ] || fail "this is left after root uninstalled: $left"
fi

# Another prefix keeps its files, the list of them and the unit; models stay in any case, and what the user wrote.
unit=$home/.config/systemd/user/sepal.service unit_key=$home/.config/sepal/node.key
stays=("$home/.cache/sepal/huggingface/model" "$home/.config/sepal/sepal.toml")
installs files sh -c 'for file; do mkdir -p "${file%/*}" && echo "# $file" >"$file"; done' - "${stays[@]}" || fail 'no files can be made'
if [ -f "$unit" ]; then installs key sh -c 'echo key >"$1"' - "$unit_key" || fail 'no key can be made'; fi
installs elsewhere "${line[@]}" --prefix "$home/elsewhere" || fail 'it does not install elsewhere'
had_unit=$([ ! -f "$unit" ] || echo yes)
installs tried bash "$work/install.sh" --uninstall --purge --prefix "$home/elsewhere" || fail 'it does not uninstall elsewhere'
[ ! -e "$home/elsewhere/bin/sepal" ] && [ ! -e "$home/.local/share/sepal/one.key" ] || fail 'something is left elsewhere'
[ -x "$sepal" ] && [ -f "$home/.local/share/sepal/installed" ] || fail 'uninstalling from a prefix takes from another'
[ -z "$had_unit" ] || { [ -f "$unit" ] && [ -f "$unit_key" ]; } || fail 'uninstalling from a prefix takes the unit of another'

installs removed bash "$work/install.sh" --uninstall --purge || fail 'it does not uninstall'
for file in "${stays[@]}"; do [ -f "$file" ] || fail "this is gone after uninstalling: $file"; done
left=$(find "$home" -type f -not -path '*/.cache/huggingface/*' -not -path "${stays[0]}" -not -path "${stays[1]}")
[ -z "$left" ] || fail "this is left after uninstalling: $left"
cat "$work/first.log"
echo "install: in $place: installed, upgraded, three nodes answered$units, and all is gone again$left_out"
