#!/usr/bin/env bash
# Make the virtual environment from exact pins.
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${GRASP_PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "error: Python 3.11 is needed, found $("$python" --version 2>&1); set GRASP_PYTHON=/path/to/python3.11" >&2
    exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "error: $python has no venv; on Debian: apt-get install python3.11-venv" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

echo "[grasp] installing about 240 packages from exact pins: about 1 GB to download, 3 GB on disk, 4 to 6 minutes"
echo "[grasp] torch 2.13.0 comes from your package index; plain PyPI on Linux serves the CUDA build, several GB more."
echo "[grasp] GRASP_TORCH_INDEX=URL takes torch from another index, such as PyTorch's own for the CPU build."
log=$venv/install.log
every=${2:-15} # seconds; tests wait less
: >"$log"

# What pip says goes to the log; every 15 seconds a line says how far it is.
show_progress() {
    local line num_found=0 since=$SECONDS said=$SECONDS status
    while true; do
        status=0
        IFS= read -r -t "$every" line || status=$?
        if ((status == 0)); then
            echo "$line" >>"$log"
            if [[ $line == Collecting* ]]; then num_found=$((num_found + 1)); fi
        elif ((status < 128)); then # above: no line in time
            break
        fi
        if ((SECONDS - said >= every)); then
            said=$SECONDS
            echo "[grasp] installing: $num_found packages found, $((SECONDS - since)) s"
        fi
    done
}

install() {
    "$venv/bin/pip" install --progress-bar off "$@" 2>&1 | show_progress || {
        grep '^ERROR' "$log" >&2 || tail -n 20 "$log" >&2
        echo "error: pip failed; $log has all that it said" >&2
        exit 1
    }
}

if [ -n "${GRASP_TORCH_INDEX:-}" ]; then
    install torch==2.13.0 --index-url "$GRASP_TORCH_INDEX"
fi
install -r "$here/base.txt" -r "$here/dev.txt" -c "$here/constraints.txt"
install --no-deps --no-build-isolation --editable "$here/.." # the command `grasp`
"$venv/bin/pip" check >>"$log" || { tail -n 20 "$log" >&2; exit 1; }
