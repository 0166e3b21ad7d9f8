#!/usr/bin/env bash
# Pins and hashes of everything that the README's two commands install on Linux, made from requirements.txt
# and requirements-dev.txt: ./locks/update.sh. Needs uv; cpu*.txt also needs a pip that finds a CPU build of torch.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

lock() { # lock OUT UV_OPTIONS...
    local out="$1"
    shift
    uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 -o "locks/$out" "$@"
}

lock cuda.txt --universal requirements.txt
lock cuda-test.txt --universal -c locks/cuda.txt requirements.txt requirements-dev.txt
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    here="$(uname -m)-unknown-linux-gnu"
    lock cpu.txt --find-links "$PIP_FIND_LINKS" --python-platform "$here" requirements.txt
    lock cpu-test.txt --find-links "$PIP_FIND_LINKS" --python-platform "$here" -c locks/cpu.txt requirements.txt requirements-dev.txt
else
    echo "cpu.txt and cpu-test.txt stay as they are: PIP_FIND_LINKS names no folder with a CPU build of torch" >&2
fi
