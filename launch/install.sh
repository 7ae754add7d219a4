#!/usr/bin/env bash
# Makes .venv and installs jaxclip with the given extras; does nothing when that is done already.
#
#   bash launch/install.sh [EXTRAS]     for example: train (default), train,cuda, train,tpu
#
# Environment: PYTHON, JAXCLIP_VENV and JAXCLIP_NO_UV as in launch/local.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  -*) die "unknown option $1" ;;
esac
cd "$root"
ensure_environment "${JAXCLIP_VENV:-.venv}" "${1:-train}" 3.11
