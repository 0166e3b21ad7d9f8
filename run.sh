#!/usr/bin/env bash
# The one door: installs what is missing into .venv, then runs a command of `python -m pipeline`.
set -euo pipefail
home="$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)"

# A closed stream becomes the null device: an echo to it would end this script.
{ : 3>&1; } 2>/dev/null || exec >/dev/null
if ! : 3>&2; then exec 2>/dev/null; fi

usage() {
    cat <<'TEXT'
Usage: ./run.sh COMMAND [OPTIONS]

  extract    images and prompts -> feature cache (stage one)
  federate   feature cache -> federated adapters and their accuracies (stage two)
  sweep      train many configurations side by side; the best by validation
  flower     federate over several machines: superlink, supernode, run
  cache      show, verify, import, export and merge caches
  download   fetch a public data set
  predict    classify your own images with a trained adapter
  reproduce  images -> the paper's table, in one command
  report     show runs, sweeps and benchmarks as one HTML page
  runs       list runs and sweeps; a page that lays their curves over each other
  table      compare runs and sweeps: test accuracies over seeds as text, LaTeX, CSV or Markdown
  bench      time the kernels, whole runs and extraction
  gpu-check  first minutes on a machine with a GPU: tests, times and checks, stage by stage
  test       run the project's tests; further options go to pytest
  check      formatting, lint, types and tests
  docs-check run every command that the documentation shows

./run.sh federate, with nothing else, runs the main job on the built-in data.
./run.sh COMMAND --help explains a command. FEDCLIP_PYTHON=python3 uses that interpreter and
installs nothing. FEDCLIP_UNLOCKED=1 installs requirements.txt without checking hashes.
TEXT
}

# explain WORD: what the commands below do, that are no commands of pipeline; false for others
explain() {
    case "$1" in
        test) cat <<'TEXT' ;;
Usage: ./run.sh test [PYTEST OPTIONS]

  Run the project's tests. Further options go to pytest:

    ./run.sh test tests/cache/test_store.py -k resume
    ./run.sh test --collect-only -q     # names of the tests, without running them
TEXT
        check) cat <<'TEXT' ;;
Usage: ./run.sh check

  Everything that must hold before a commit, the quick things first: ruff's formatting and lint,
  mypy --strict on the public modules (pyproject.toml), then all tests. Stops at the first failure.
TEXT
        docs-check) cat <<'TEXT' ;;
Usage: ./run.sh docs-check

  Run every command that README.md, CONTRIBUTING.md and docs/ show, in a scratch copy of the
  project with an empty home, on small stand-in data. Commands that need a network, a GPU or many
  minutes are only parsed. Ends with exit code 1 when one fails or is unknown.
TEXT
        *) return 1 ;;
    esac
}

die() {
    echo "Error: $*" >&2
    exit 1
}

find_python() {
    local name
    for name in python3.12 python3.11 python3.13 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    die "no Python 3.11 or newer with venv was found; install one, or name an interpreter in FEDCLIP_PYTHON"
}

# make_venv DIR: a fresh one, also in the place of one whose making was broken off or whose Python has gone
make_venv() {
    local python
    [ ! -e "$1" ] || [ -e "$1/.by-run.sh" ] ||
        die "$1 has no pip and was not made here; remove it, or use it as it is with FEDCLIP_PYTHON=$1/bin/python"
    python="$(find_python)"
    rm -rf -- "$1" && mkdir -- "$1" && : >"$1/.by-run.sh" && "$python" -m venv "$1" >&2 ||
        die "$1 could not be made; free space or permissions, or name an interpreter that has everything in FEDCLIP_PYTHON"
}

# install FILE: pip install -r FILE into .venv unless this very FILE was installed before
install() {
    local venv="$home/.venv" kept="$home/.venv/.installed-${1//\//-}"
    cmp -s "$home/$1" "$kept" && return
    echo "installing $1 into .venv (once; a few minutes on a slow line)" >&2
    have_pip
    if ! pip_in_venv install -r "$home/$1" >"$venv/pip.log" 2>&1; then
        tail -n 5 "$venv/pip.log" >&2
        die "pip could not install $1; the whole log is in $venv/pip.log"
    fi
    cp "$home/$1" "$kept"
}

# install_locked SET: with the pins and hashes of locks/ on Linux, else by the requirement files they are made
# from. SET is "" for what running needs, "-test" for the tests as well.
install_locked() {
    local venv="$home/.venv" build
    if [ -n "${FEDCLIP_UNLOCKED:-}" ] || [ "$(uname -s)" != Linux ]; then
        install requirements.txt
        [ -z "$1" ] || install requirements-dev.txt
        return
    fi
    if [ ! -e "$venv/.torch-build" ]; then
        have_pip
        if finds_cpu_torch; then build=cpu; else build=cuda; fi
        echo "$build" >"$venv/.torch-build"
    fi
    install "locks/$(cat "$venv/.torch-build")$1.txt"
}

# finds_cpu_torch: does this machine's pip find the CPU build of torch that locks/cpu.txt pins?
finds_cpu_torch() {
    local pin="$home/.venv/torch.txt"
    sed -n '/^torch==/,/[^\\]$/p' "$home/locks/cpu.txt" >"$pin"
    pip_in_venv install --dry-run --ignore-installed --no-deps --require-hashes -r "$pin" >/dev/null 2>&1
}

have_pip() {
    "$home/.venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv "$home/.venv"
}

pip_in_venv() {
    "$home/.venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"
}

case "${1:-}" in
    "" | -h | --help | help) usage; exit 0 ;;
esac
# help_asked WORD...: whether -h or --help is among the words, before a -- that ends ours
help_asked() {
    local word
    for word in "$@"; do
        case "$word" in
            -h | --help) return 0 ;;
            --) return 1 ;;
        esac
    done
    return 1
}

if help_asked "$@" && explain "$1"; then exit 0; fi

if [ -n "${FEDCLIP_PYTHON:-}" ]; then
    python="$(command -v -- "$FEDCLIP_PYTHON")" ||
        die "FEDCLIP_PYTHON=$FEDCLIP_PYTHON: there is no such interpreter; name one, or unset it to create .venv"
    python="$(cd -- "$(dirname -- "$python")" && pwd)/$(basename -- "$python")" # cd below
else
    case "$1" in
        test | check | docs-check | gpu-check) install_locked -test ;;
        *) install_locked "" ;;
    esac
    # A command's help needs none of the packages that only its work needs.
    help_asked "$@" || case "$1" in
        bench) install requirements-bench.txt ;;
        flower) install requirements-flower.txt ;;
    esac
    python="$home/.venv/bin/python"
fi

case "$1" in
    test)
        shift
        cd -- "$home"
        # All tests: files of them side by side, a process for each CPU. A choice of tests: one by one.
        cpus="$(nproc 2>/dev/null || echo 1)"
        if [ $# -eq 0 ] && [ "$cpus" -gt 1 ] && "$python" -c 'import xdist' 2>/dev/null; then
            set -- -n "$((cpus < 8 ? cpus : 8))" --dist loadfile
        fi
        exec "$python" -m pytest "$@"
        ;;
    bench)
        shift
        cd -- "$home"
        exec "$python" -m benchmarks "$@"
        ;;
    gpu-check)
        shift
        cd -- "$home"
        exec "$python" -m benchmarks.gpu_check "$@"
        ;;
    docs-check)
        shift
        cd -- "$home"
        exec "$python" -m tests.docs_check "$@"
        ;;
    check)
        [ $# -eq 1 ] || die "check takes no options; to run some tests: ./run.sh test $2"
        cd -- "$home"
        "$python" -m ruff format --check .
        "$python" -m ruff check .
        "$python" -m mypy
        exec "$home/run.sh" test
        ;;
    *)
        # Files are named from where the caller stands, so the modules are found by PYTHONPATH;
        # safe: a cache.py of the caller's is not taken for ours.
        export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
        exec "$python" -m pipeline "$@"
        ;;
esac
