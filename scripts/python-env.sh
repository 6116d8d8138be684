#!/usr/bin/env bash
# Makes the Python environment of the interop tests in the user's cache folder, once, and prints the path of its python.
# Needs: python3.11 with venv, a C compiler with nm (for cpu_torch.py), and PyPI the first time (1 GB down, 2.5 GB on disk).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh

peers=interop-tests/python

furnish() {
    local packages
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') &&
        cp "$peers/hivemind_names.py" "$packages/" &&
        echo "import hivemind_names" >"$packages/hivemind_names.pth" &&
        "$venv/bin/python" "$peers/cpu_torch.py" >&2 &&
        "$venv/bin/python" -W ignore -c 'import hivemind, petals, torch, transformers; print("python-env: petals", petals.__version__, "hivemind", hivemind.__version__, "torch", torch.__version__, "transformers", transformers.__version__)' >&2
}

make_venv python "$peers/requirements.txt" scripts/python-env.sh "$peers/cpu_torch.py" "$peers/hivemind_names.py"
echo "$venv/bin/python"
