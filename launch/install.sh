#!/usr/bin/env bash
# Makes .venv and installs jaxclip with the given extras; does nothing when that is done already.
#
#   bash launch/install.sh [--dry_run] [EXTRAS]
#
# EXTRAS: for example train (the default), train,cuda or train,tpu. --dry_run prints the commands
# and runs none.
#
# Environment: PYTHON, JAXCLIP_VENV and JAXCLIP_NO_UV as in launch/local.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
DRY_RUN=0
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --dry_run) DRY_RUN=1 && shift ;;
  -*) die "unknown option $1" ;;
esac
(($# <= 1)) || die "one list of extras, with commas between, after --dry_run; got: $*"
cd "$root"
ensure_environment "${JAXCLIP_VENV:-.venv}" "${1:-train}" 3.11
