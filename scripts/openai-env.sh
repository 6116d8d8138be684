#!/usr/bin/env bash
# Makes the Python environment with OpenAI's client that the interop tests of the API use, once, and prints the path of its
# python. Its pydantic is not the one that Petals needs, so it is an environment of its own.
# Needs: python3.11 with venv, and PyPI the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

furnish() {
    "$venv/bin/python" -c 'import openai; print("openai-env: openai", openai.__version__)' >&2
}

make_venv openai interop-tests/python/requirements-openai.txt scripts/openai-env.sh
echo "$venv/bin/python"
