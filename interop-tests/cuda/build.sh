#!/usr/bin/env bash
# Builds the emulated card's libraries: interop-tests/cuda/build.sh FOLDER. Needs g++.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
command -v "${CXX:-g++}" >/dev/null || {
    echo "cuda: a C++ compiler is needed for the emulated card: apt-get install g++" >&2
    exit 1
}
mkdir -p "$folder"
build() { # NAME VERSION SOURCE… [-- LIBRARY]
    local name=$1 version=$2
    shift 2
    "${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -shared -fPIC "-Wl,-soname,lib$name.so.$version" -o "$folder/lib$name.so.$version.part" "$@"
    mv "$folder/lib$name.so.$version.part" "$folder/lib$name.so.$version"
    ln -sf "lib$name.so.$version" "$folder/lib$name.so"
}
build cuda 1 "$here/libcuda.cpp" "$here/threads.cpp" -ldl -pthread
# The newest ones do not know the emulated card and are to be passed over.
build nvrtc 13 -DTOOLKIT=13 -DKNOWN=90 "$here/libnvrtc.cpp" -ldl
build nvrtc 12 -DTOOLKIT=12 -DKNOWN=70,80 "$here/libnvrtc.cpp" -ldl
build cublas 13 -DREFUSES "$here/libcublas.cpp" "-L$folder" -l:libcuda.so.1
build cublas 12 -O3 -march=native "$here/libcublas.cpp" "-L$folder" -l:libcuda.so.1
cp "$here/kernel.hpp" "$folder/kernel.hpp"
