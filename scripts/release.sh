#!/usr/bin/env bash
# Makes release archives, sepal-VERSION-TARGET.tar.gz, and SHA256SUMS over them. Those for gnu need glibc 2.17 or newer (December 2012)
# and serve machines with and without NVIDIA's cards, whose driver they load when they start. Those for musl are static, so that they
# run on any Linux of their processor, and can load nothing: there the processor computes.
#
# Usage: scripts/release.sh [--out FOLDER] [--binary FILE] [TARGET…]
#   TARGET         ARCH-unknown-linux-gnu or ARCH-unknown-linux-musl, ARCH being x86_64 or aarch64; default: all four
#   --out FOLDER   default: target/release-archives
#   --binary FILE  pack this program for the one TARGET instead of building it
# Needs rustup, and for the C parts CPython 3.11 with pip: zig, which compiles and links for all targets, comes from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${CARGO_TARGET_DIR:-target}/release-archives binary='' targets=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) sed -n '/^# Usage/,/^# Needs/s/^# \{0,1\}//p' scripts/release.sh && exit ;;
        --out | --binary)
            [ -n "${2:-}" ] || { echo "release: $1 needs a value; --help shows how" >&2 && exit 2; }
            if [ "$1" = --out ]; then out=$2; else binary=$2; fi
            shift
            ;;
        -*) echo "release: no option $1; --help lists them" >&2 && exit 2 ;;
        *) targets+=("$1") ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || targets=({x86_64,aarch64}-unknown-linux-{gnu,musl})
[ -z "$binary" ] || [ ${#targets[@]} = 1 ] || { echo 'release: --binary goes with one TARGET' >&2 && exit 2; }
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The oldest glibc that Rust's standard library runs on.
glibc=2.17

build() {
    local venv oldest=''
    case $1 in *-gnu) oldest=.$glibc ;; esac
    source scripts/venv.sh
    make_venv release packaging/requirements-release.txt
    rustup target add "$1"
    PATH="$venv/bin:$PATH" cargo zigbuild --profile dist --locked --bin sepal --target "$1$oldest"
    binary=${CARGO_TARGET_DIR:-target}/$1/dist/sepal
}

pack() {
    local name=sepal-$version-$1
    mkdir -p "$work/$name/bin"
    install -m 755 "$2" "$work/$name/bin/sepal"
    cp packaging/sepal.service scripts/install.sh README.md LICENSE-APACHE LICENSE-MIT "$work/$name/"
    # The same bytes whenever and by whomever it is made.
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work" -cf - "$name" | gzip -n >"$out/$name.tar.gz"
    echo "$out/$name.tar.gz"
}

for target in "${targets[@]}"; do
    if [ -n "$binary" ]; then
        pack "$target" "$binary"
    else
        build "$target"
        pack "$target" "$binary"
        binary=''
    fi
done
(cd "$out" && sha256sum sepal-*.tar.gz >SHA256SUMS)
echo "$out/SHA256SUMS"
