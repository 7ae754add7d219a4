#!/usr/bin/env bash
# Runs the checks: makes .venv, installs jaxclip[test], then lint, format, types, shell, tests.
#
#   bash launch/test.sh                       everything but the tests marked slow
#   bash launch/test.sh tests/optim -k zclip  only pytest, with these arguments
#   bash launch/test.sh -m slow               the slow ones
#   bash launch/test.sh --dry_run [...]       print the commands and run none
#
# Environment:
#   PYTHON            the Python to make .venv with (3.11 or newer; default: looks for one)
#   JAXCLIP_VENV      the virtual environment (default: .venv)
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

environment=${JAXCLIP_VENV:-.venv}
ensure_environment "$environment" test 3.11
bin=$environment/bin

if (($# > 0)); then
  run "$bin/python" -m pytest "$@"
  exit
fi

# Every check runs, whatever the ones before it said; what failed is repeated at the end.
failed=()
check() {
  local name=$1
  shift
  if [[ "$DRY_RUN" == 1 ]]; then
    run "$@"
  else
    say "$name"
    "$@" || failed+=("$name")
  fi
}
check "ruff check" "$bin/ruff" check .
check "ruff format" "$bin/ruff" format --check .
check "mypy" "$bin/mypy"
check "shellcheck" "$bin/shellcheck" --external-sources launch/*.sh launch/*/*.sh .ci/run

workers=$(test_workers "$bin/python")
parallel=()
if ((workers > 1)); then
  # The file during which a process died is run once more, not eight times.
  parallel=(--numprocesses "$workers" --dist loadfile --max-worker-restart 1)
fi
if ((${#failed[@]} > 0)); then
  say "failed so far: ${failed[*]}"
fi
check "pytest" "$bin/python" -m pytest ${parallel[@]+"${parallel[@]}"} --durations=40

if ((${#failed[@]} > 0)); then
  die "failed: ${failed[*]}"
fi
