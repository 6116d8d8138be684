#!/usr/bin/env bash
# Installs sepal, or upgrades it when run again: checks the machine, takes a release archive or builds, gauges the machine,
# and prints which models it could serve. What it installed is listed in PREFIX/share/sepal/installed, and --uninstall
# removes just that.
#
# Usage: scripts/install.sh [--archive FILE|URL] [--prefix FOLDER] [--no-gauge] [--service] | --uninstall [--purge]
#
#   --archive FILE|URL  a release archive (scripts/release.sh makes them) instead of building; if SHA256SUMS lies beside it,
#                       it has to be in there. Default inside of a clone: build it, which needs Rust and a C compiler.
#   --prefix FOLDER     where to install; default: /usr/local for root, ~/.local for others
#   --no-gauge          measure nothing, and do not list models
#   --service           install a systemd unit that serves what SEPAL_SERVE says, for root of the system, else of the user
#   --uninstall         remove what was installed; --purge also keys, measurements and the unit's state, but no models
#
# One line for each of three nodes (without SEPAL_PEERS they find each other on the local network):
#   NODE_NAME=one SEPAL_SERVE='demo --blocks 0:4 --new-swarm' scripts/install.sh     prints the address of the swarm
#   NODE_NAME=two SEPAL_SERVE='demo --blocks 4:8' SEPAL_PEERS=ADDR scripts/install.sh
#   SEPAL_PROMPT='What is 2+2?' SEPAL_PEERS=ADDR scripts/install.sh
#
#   NODE_NAME    name of the node; it has a key of its own, and monitors show the name
#   SEPAL_SERVE  after installing, serve this: MODEL and flags of `sepal serve`
#   SEPAL_PROMPT after installing, have SEPAL_MODEL (default: demo) go on with this text
#   SEPAL_PEERS  addresses of nodes of the swarm
set -euo pipefail

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

archive='' prefix='' gauge=yes service=no uninstall=no purge=no
while [ $# -gt 0 ]; do
    case $1 in
        --archive | --prefix)
            [ -n "${2:-}" ] || fail "$1 needs a value; --help says which"
            if [ "$1" = --archive ]; then archive=$2; else prefix=$2; fi
            shift
            ;;
        --no-gauge) gauge=no ;;
        --service) service=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" && exit ;;
        *) fail "unknown option $1; --help lists them" ;;
    esac
    shift
done
if [ "$service" = yes ] && [ "$uninstall" = no ]; then
    have systemctl || fail "--service needs systemd, and this machine has none"
    [ -n "${SEPAL_SERVE:-}" ] || fail "--service needs SEPAL_SERVE: the model and the flags of sepal serve"
fi

home=${HOME:?HOME is not set}
is_root=no
[ "$(id -u)" != 0 ] || is_root=yes
if [ -z "$prefix" ]; then
    prefix=$home/.local
    [ "$is_root" = no ] || prefix=/usr/local
fi
[ "$uninstall" = no ] || [ -d "$prefix" ] || fail "nothing is installed under $prefix"
mkdir -p "$prefix" || fail "cannot make $prefix: give --prefix a folder that you may write to"
prefix=$(cd "$prefix" && pwd)
manifest=$prefix/share/sepal/installed
data=${XDG_DATA_HOME:-$home/.local/share}/sepal
cache=${XDG_CACHE_HOME:-$home/.cache}/sepal
config=${XDG_CONFIG_HOME:-$home/.config}
if [ "$is_root" = yes ]; then
    units=/etc/systemd/system unit_flags=/etc/sepal/serve.env unit_cache=/var/cache/sepal systemctl=(systemctl)
else
    units=$config/systemd/user unit_flags=$config/sepal/serve.env unit_cache=$cache systemctl=(systemctl --user)
fi
# For this script alone: sepal reads variables that begin with SEPAL_ as its own flags.
node=${NODE_NAME:-} serve=${SEPAL_SERVE:-} prompt=${SEPAL_PROMPT:-} model=${SEPAL_MODEL:-demo} peers=${SEPAL_PEERS:-}
unset SEPAL_SERVE SEPAL_PROMPT SEPAL_MODEL SEPAL_PEERS
case $node in
    */* | .* | *[[:space:]]*) fail "NODE_NAME=$node cannot be the name of a file: leave out slashes, spaces and dots before it" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Empties a folder but for what is called $2 in it.
empty_but() {
    [ -d "$1" ] || return 0
    find "$1/" -mindepth 1 -maxdepth 1 ! -name "$2" -exec rm -rf {} +
    rmdir "$1" 2>/dev/null || true
}

# What the unit kept, but models.
purge_unit() {
    local state=${XDG_STATE_HOME:-$home/.local/state}/sepal
    if [ "$is_root" = yes ]; then
        # Folders of a unit with a user of its own are private ones, with links to them where folders usually are.
        rm -rf /var/lib/private/sepal /var/lib/sepal
        empty_but /var/cache/private/sepal huggingface
        empty_but "$unit_cache" huggingface
        [ -e "$unit_cache" ] || rm -f "$unit_cache"
    else
        # Not `systemctl clean`: before systemd 254 the state of a user's unit is in the folder of the configuration, later
        # it may be a link to that, and what the user wrote there stays.
        rm -f "$state/node.key" "$config/sepal/node.key"
        [ ! -L "$state" ] || rm -f "$state"
        rmdir "$state" "$config/sepal" 2>/dev/null || true
    fi
}

# There is one unit, and it may be that of another prefix.
has_unit() { grep -qsF "ExecStart=$prefix/bin/sepal " "$units/sepal.service"; }

remove_installed() {
    local unit=no
    [ -f "$manifest" ] || fail "nothing is installed under $prefix"
    if has_unit; then
        unit=yes
        "${systemctl[@]}" disable --now sepal.service >/dev/null 2>&1 || true
        rm -f "$units/sepal.service" "$unit_flags"
        "${systemctl[@]}" daemon-reload >/dev/null 2>&1 || true
    fi
    while IFS= read -r file; do rm -f "$prefix/$file"; done <"$manifest"
    rm -f "$manifest"
    rmdir "$prefix/share/sepal" 2>/dev/null || true
    say "removed sepal from $prefix"
    if [ "$purge" = yes ]; then
        # What is installed there may be another prefix's.
        empty_but "$data" installed
        empty_but "$cache" huggingface
        [ "$unit" = no ] || purge_unit
        say "removed keys and measurements; models are still in the Hugging Face cache"
        [ ! -d "$unit_cache/huggingface" ] || say "models of the unit are still in $unit_cache/huggingface"
    else
        say "left: keys in $data, measurements in $cache, models in the Hugging Face cache"
        [ "$unit" = no ] || say "left: key and models of the unit, where systemd keeps state and caches"
    fi
}
if [ "$uninstall" = yes ]; then
    remove_installed
    exit
fi

# The machine.
machine=$(uname -m)
case $(uname -s):$machine in
    Linux:x86_64 | Linux:aarch64) ;;
    Linux:arm64) machine=aarch64 ;;
    *) [ -z "$archive" ] || fail "there are archives for Linux on x86_64 and aarch64, and this is $(uname -s) on $machine: build from a clone" ;;
esac
free_kib() { df -Pk "$1" | awk 'NR == 2 { print $4 }'; }
[ "$(free_kib "$prefix")" -ge 200000 ] || fail "less than 200 MB are free under $prefix"
memory_kib=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null || echo '')
[ -z "$memory_kib" ] || [ "$memory_kib" -ge 1000000 ] ||
    say "warning: less than 1 GB of memory is free, which is hardly a block of any useful model"

# Leaves the program, and what goes with it, in $work/new.
from_archive() {
    local name=${archive##*/} folder=${archive%/*} file
    file=$work/$name
    if [ "$folder" = "$archive" ]; then folder=.; fi
    case $archive in
        *://*)
            have curl || fail "curl is needed to get $archive"
            curl -fsSL --retry 3 -o "$file" "$archive" || fail "cannot get $archive"
            curl -fsSL -o "$work/SHA256SUMS" "$folder/SHA256SUMS" 2>/dev/null || rm -f "$work/SHA256SUMS"
            ;;
        *)
            [ -f "$archive" ] || fail "there is no file $archive"
            cp "$archive" "$file"
            if [ -f "$folder/SHA256SUMS" ]; then cp "$folder/SHA256SUMS" "$work/"; fi
            ;;
    esac
    if [ -f "$work/SHA256SUMS" ]; then
        grep -F "  $name" "$work/SHA256SUMS" >"$work/expected" || fail "SHA256SUMS beside $archive does not name it"
        (cd "$work" && sha256sum --check --quiet expected) || fail "$archive is damaged or is not what SHA256SUMS names"
    else
        say "warning: no SHA256SUMS beside $archive, so that nobody knows whether it is whole"
    fi
    mkdir "$work/new"
    tar -xzf "$file" -C "$work/new" --strip-components=1 || fail "cannot unpack $archive"
    [ -x "$work/new/bin/sepal" ] || fail "$archive is no archive of sepal"
}

from_source() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    [ -f "$root/Cargo.toml" ] || fail "not inside of a clone: give --archive, or clone the repository and run its scripts/install.sh"
    have cargo || fail "Rust is needed to build: get it from https://rustup.rs, or give --archive"
    have cc || fail "a C compiler is needed to build (packages gcc, or build-essential), or give --archive"
    [ "$(free_kib "$root")" -ge 6000000 ] || fail "building needs 6 GB, and $root has less free"
    say "building sepal"
    (cd "$root" && cargo build --release --locked --bin sepal)
    mkdir -p "$work/new/bin"
    cp "${CARGO_TARGET_DIR:-$root/target}/release/sepal" "$work/new/bin/sepal"
    cp "$root/packaging/sepal.service" "$work/new/"
}

if [ -n "$archive" ]; then from_archive; else from_source; fi
version=$("$work/new/bin/sepal" --version) || fail "the program does not run on this machine"

# In place at once, so that a running node keeps the file that it has.
put() {
    mkdir -p "$prefix/$(dirname "$2")"
    install -m "$3" "$1" "$prefix/$2.new"
    mv -f "$prefix/$2.new" "$prefix/$2"
    printf '%s\n' "$2" >>"$work/manifest"
}
before=$("$prefix/bin/sepal" --version 2>/dev/null || true)
put "$work/new/bin/sepal" bin/sepal 755
sepal=$prefix/bin/sepal
"$sepal" man --dir "$work/man" >/dev/null
for page in "$work"/man/*.1; do put "$page" "share/man/man1/${page##*/}" 644; done
complete() {
    "$sepal" completions "$1" >"$work/completion"
    put "$work/completion" "$2" 644
}
complete bash share/bash-completion/completions/sepal
complete zsh share/zsh/site-functions/_sepal
complete fish share/fish/vendor_completions.d/sepal.fish
mkdir -p "$prefix/share/sepal"
# What an older version had and this one has not.
if [ -f "$manifest" ]; then
    while IFS= read -r file; do grep -qxF "$file" "$work/manifest" || rm -f "$prefix/$file"; done <"$manifest"
fi
cp "$work/manifest" "$manifest"
case $before in
    '') say "installed $version in $sepal" ;;
    "$version") say "installed $version in $sepal again" ;;
    *) say "upgraded $before to $version in $sepal" ;;
esac
case ":$PATH:" in
    *":$prefix/bin:"*) ;;
    *) say "note: $prefix/bin is not on your PATH: export PATH=\"$prefix/bin:\$PATH\"" ;;
esac

# A unit that runs goes on with the old program. --service restarts it after it is written anew.
if [ "$service" = no ] && has_unit && [ "$("${systemctl[@]}" is-active sepal.service 2>/dev/null)" = active ]; then
    if "${systemctl[@]}" restart sepal.service; then
        say "restarted sepal.service, which serves with $version now"
    else
        say "warning: sepal.service still serves with the old program: ${systemctl[*]} restart sepal.service"
    fi
fi

if [ "$gauge" = yes ]; then
    say ''
    "$sepal" info --save
    say ''
    "$sepal" eligible
fi

# A key of its own lets a node keep its name in the swarm.
flags=()
if [ -n "$peers" ]; then
    read -r -a addresses <<<"$peers"
    flags+=(--initial-peers "${addresses[@]}")
fi
mkdir -p "$data"
serve_flags=("${flags[@]}")
[ -n "$peers" ] || [[ " $serve " =~ ' --'(new[-_]swarm|initial[-_]peers|lan)[' '=] ]] || serve_flags+=(--lan)
if [ -n "$node" ]; then serve_flags+=(--public-name "$node"); fi

install_unit() {
    mkdir -p "$units" "$(dirname "$unit_flags")"
    printf 'SERVE_FLAGS=%s %s\n' "$serve" "${serve_flags[*]}" >"$unit_flags"
    sed "s|^ExecStart=[^ ]*|ExecStart=$sepal|; s|^EnvironmentFile=.*|EnvironmentFile=$unit_flags|" "$work/new/sepal.service" >"$work/unit"
    if [ "$is_root" = no ]; then
        # A user has no other users to become, no system to start with, and may take nothing away but from itself.
        sed -i '/^DynamicUser=/d; s/^WantedBy=.*/WantedBy=default.target/; /^After=/d; /^Wants=/d
            /^# It computes/,/^SystemCallErrorNumber=/d' "$work/unit"
    fi
    install -m 644 "$work/unit" "$units/sepal.service"
    say "installed $units/sepal.service, which serves: $serve"
    if "${systemctl[@]}" daemon-reload 2>/dev/null && "${systemctl[@]}" enable --now sepal.service 2>/dev/null; then
        # An upgrade is only used after this.
        "${systemctl[@]}" restart sepal.service
        say "it runs; its log: journalctl -u sepal (journalctl --user -u sepal for a user)"
    else
        say "systemd does not run here; where it does: ${systemctl[*]} enable --now sepal.service"
    fi
}
if [ "$service" = yes ]; then
    install_unit
elif [ -n "$serve" ]; then
    say ''
    # Values with spaces are in quotes, as systemd takes them.
    split=$(xargs -n 1 printf '%s\n' <<<"$serve" 2>/dev/null) || fail "SEPAL_SERVE has a quote without an end: $serve"
    mapfile -t words <<<"$split"
    rm -rf "$work"
    exec "$sepal" serve "${words[@]}" "${serve_flags[@]}" --identity "$data/${node:-node}.key"
fi
if [ -n "$prompt" ]; then
    say ''
    [ -n "$peers" ] || flags+=(--lan)
    "$sepal" generate "$model" "${flags[@]}" --prompt "$prompt"
elif [ "$service" = no ]; then
    say ''
    say "next: sepal demo, or sepal serve MODEL --initial-peers ADDR"
fi
