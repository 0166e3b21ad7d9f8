#!/usr/bin/env bash
# The one door: installs what is missing into .venv, then runs a command of `python -m pipeline`.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

usage() {
    cat <<'TEXT'
Usage: ./run.sh COMMAND [OPTIONS]

  extract    images and prompts -> feature cache (stage one)
  federate   feature cache -> federated adapters and their accuracies (stage two)
  sweep      many configurations on one cache, side by side; the best by validation
  cache      look into, check, import and export caches
  download   fetch a public data set
  bench      time the kernels, whole runs and extraction
  test       run the project's tests; further words go to pytest
  check      formatting, lint and tests

./run.sh federate, with nothing else, runs the main job on the built-in data.
./run.sh COMMAND --help explains a command. FEDCLIP_PYTHON=python3 uses that interpreter and
installs nothing.
TEXT
}

# install FILE: pip install -r FILE into .venv unless this very FILE was installed before
install() {
    local stamp=".venv/.installed-$1"
    cmp -s "$1" "$stamp" && return
    echo "installing $1 into .venv (once; a few minutes on a slow line)" >&2
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" >.venv/pip.log 2>&1; then
        tail -n 5 .venv/pip.log >&2
        echo "Error: pip could not install $1; the whole log is in .venv/pip.log" >&2
        exit 1
    fi
    cp "$1" "$stamp"
}

find_python() {
    local name
    for name in python3.12 python3.11 python3.13 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Error: no Python 3.11 or newer with venv was found; install one, or name an interpreter in FEDCLIP_PYTHON" >&2
    exit 1
}

case "${1:-}" in
    "" | -h | --help | help) usage; exit 0 ;;
esac

if [ -n "${FEDCLIP_PYTHON:-}" ]; then
    python="$FEDCLIP_PYTHON"
else
    install requirements.txt
    case "$1" in
        bench) install requirements-bench.txt ;;
        test | check) install requirements-dev.txt ;;
    esac
    python=".venv/bin/python"
fi

case "$1" in
    test)
        shift
        exec "$python" -m pytest "$@"
        ;;
    bench)
        shift
        exec "$python" -m benchmarks "$@"
        ;;
    check)
        "$python" -m ruff format --check .
        "$python" -m ruff check .
        exec "$python" -m pytest
        ;;
    *) exec "$python" -m pipeline "$@" ;;
esac
