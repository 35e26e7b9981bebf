#!/usr/bin/env bash
# Make the virtual environment from exact pins. What pip says goes to a file, the terminal shows a line a step.
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
log=${GRASP_HOME:-$here/../.grasp}/logs/install.log
fail() {
    echo "error: $1" >&2
    exit 1
}
heartbeat() { # a line a minute while a program holds the other end of the input; no process is left to stop
    while read -rt 60; [ $? -gt 128 ]; do
        echo "[grasp]   ... $(grep -cE '^(Collecting|Processing) ' "$log") packages so far: $(tail -n 1 "$log" | cut -c -60)"
    done
}
step() { # step WHAT COMMAND...: run it quietly; when it fails, show how its output ends
    echo "[grasp] $1"
    "${@:2}" 3> >(heartbeat) >>"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        fail "$1: failed; all of it is in $log"
    }
}

python=${GRASP_PYTHON:-python3.11}
if ! command -v "$python" >/dev/null; then
    [ -z "${GRASP_PYTHON:-}" ] || fail "GRASP_PYTHON=$GRASP_PYTHON: no such program"
    python=python3
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    fail "Python 3.11 is needed, found $("$python" --version 2>&1); set GRASP_PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv; on Debian: apt-get install python3.11-venv"

mkdir -p "$(dirname "$log")"
: >"$log"
[ -x "$venv/bin/python" ] || step "making $venv" "$python" -m venv "$venv"
echo "[grasp] about 240 packages from exact pins: about 1 GB to download, 3 GB on disk, 4 to 6 minutes; details: $log"
echo "[grasp] torch 2.13.0 comes from your package index; plain PyPI on Linux serves the CUDA build, several GB more."
echo "[grasp] GRASP_TORCH_INDEX=URL takes torch from another index, such as PyTorch's own for the CPU build."
install=("$venv/bin/pip" install --progress-bar off)
if [ -n "${GRASP_TORCH_INDEX:-}" ]; then
    step "installing torch from GRASP_TORCH_INDEX" "${install[@]}" torch==2.13.0 --index-url "$GRASP_TORCH_INDEX"
fi
step "installing all packages" "${install[@]}" -r "$here/base.txt" -r "$here/dev.txt" -c "$here/constraints.txt"
step "installing the command grasp" "${install[@]}" --no-deps --no-build-isolation --editable "$here/.."
step "checking that the packages fit together" "$venv/bin/pip" check
