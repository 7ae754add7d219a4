#!/usr/bin/env bash
# Runs the tests of the core (optim, losses, models) on Python 3.12 or newer, which gets the newest
# JAX, in a virtual environment of its own and without tensorflow.
#
#   bash launch/test_core.sh                  the tests of the core
#   bash launch/test_core.sh tests/optim -x   pytest with these arguments
#   bash launch/test_core.sh --dry_run [...]  print the commands and run none
#
# Exits with 77 when the machine has no such Python.
#
# Environment:
#   PYTHON            the Python to use (3.12 or newer; default: looks for one)
#   JAXCLIP_CORE_VENV the virtual environment (default: .venv-core)
#   JAXCLIP_WORKERS   processes for the tests (default: one a core, at most 4; 0: no xdist)
#   JAXCLIP_NO_UV=1   use pip even where uv is installed
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
cd "$root"

DRY_RUN=0
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --dry_run) DRY_RUN=1 && shift ;;
esac

environment=${JAXCLIP_CORE_VENV:-.venv-core}
find_python 3.12 >/dev/null || exit 77
ensure_environment "$environment" test-core 3.12
python=$environment/bin/python
run "$python" -c 'import sys, jax; print("Python", sys.version.split()[0], "JAX", jax.__version__)'

if (($# > 0)); then
  run "$python" -m pytest "$@"
  exit
fi
workers=$(test_workers "$python")
parallel=()
if ((workers > 1)); then
  # The file during which a process died is run once more, not eight times.
  parallel=(--numprocesses "$workers" --dist loadfile --max-worker-restart 1)
fi
run "$python" -m pytest ${parallel[@]+"${parallel[@]}"} --durations=20 tests/optim tests/losses tests/models
