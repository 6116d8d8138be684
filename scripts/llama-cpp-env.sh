#!/usr/bin/env bash
# Makes the Python environment with llama.cpp that scripts/bench.sh compares with, once, and prints the path of its python.
# Needs: python3.11 with venv, a C++ compiler (llama.cpp is compiled for this machine, which takes minutes), and PyPI the
# first time; CMake and ninja come from there.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

command -v c++ >/dev/null || command -v g++ >/dev/null || { echo 'llama-cpp: a C++ compiler is needed and was not found' >&2; exit 1; }
# The library and nothing else, as fast as it gets on this machine.
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

furnish() {
    "$venv/bin/python" -c 'import gguf, llama_cpp, numpy; print("llama-cpp: llama-cpp-python", llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())' >&2
}

make_venv llama-cpp interop-tests/python/requirements-llama-cpp.txt scripts/llama-cpp-env.sh
echo "$venv/bin/python"
