#!/usr/bin/env bash
# Trains on this machine: makes .venv, installs jaxclip[train] into it, runs the config.
#
#   bash launch/local.sh [--dry_run] CONFIG [OPTIONS OF `jaxclip train` ...]
#
#   bash launch/local.sh configs/emoji.py
#   bash launch/local.sh configs/emoji.py --config.optim.learning_rate=3e-4
#   WORKDIR=/data/run1 bash launch/local.sh configs/emoji.py
#
# The run goes to $WORKDIR, by default workdir/<name of the config>[-<its argument>]. The same command again
# carries on where it stopped (after Ctrl-C, kill, or a crash). When the training is done the
# workdir holds checkpoints, config.json, metrics.jsonl, TensorBoard events and report.html.
# --dry_run before the config prints the commands and runs none; after it, it is that of
# `jaxclip train`: build everything, compile, do one step on made-up data.
#
# Environment:
#   WORKDIR           where the run goes
#   PYTHON            the Python to make .venv with (3.11 or newer; default: looks for one)
#   JAXCLIP_EXTRA     the extra to install (default: train); several: train,cuda
#   JAXCLIP_VENV      the virtual environment (default: .venv)
#   JAXCLIP_NO_UV=1   use pip even where uv is installed
set -euo pipefail
invoked_from=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

DRY_RUN=0
if [[ "${1:-}" == --dry_run ]]; then DRY_RUN=1 && shift; fi
case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  "")
    usage >&2
    die "no config given, for example: bash launch/local.sh configs/emoji.py"
    ;;
  -*) die "the config comes first, got '$1'; for example: bash launch/local.sh configs/emoji.py $1" ;;
esac

config=$1
shift
# ml_collections configs may carry an argument: configs/emoji.py:argument.
file=${config%%:*}
if [[ -f "$invoked_from/$file" ]]; then
  config=$invoked_from/$config
elif [[ -f "$root/$file" ]]; then
  config=$root/$config
elif [[ ! -f "$file" ]]; then
  # common.py holds what configs share.
  there=$(cd "$root" && printf '%s\n' configs/*.py | grep -v '/common\.py$' | tr '\n' ' ')
  die "no such config: $file; there are: $there"
fi

name=$(basename "${file%.py}")
# A variant of a config is another run: workdir/emoji-short.
if [[ "$config" == *:* ]]; then
  variant=${config##*:}
  name+=-${variant//[^A-Za-z0-9_.=-]/_}
fi
workdir_arguments=()
case " $* " in
  *" --workdir "* | *" --workdir="*) ;;
  *)
    workdir=${WORKDIR:-$root/workdir/$name}
    workdir_arguments=(--workdir "$(absolute_from "$invoked_from" "$workdir")")
    ;;
esac

cd "$root"
environment=${JAXCLIP_VENV:-.venv}
ensure_environment "$environment" "${JAXCLIP_EXTRA:-train}" 3.11
[[ "$environment" == /* ]] || environment=$root/$environment
# Relative paths in the options are meant from there.
cd "$invoked_from"

command=("$environment/bin/jaxclip" train --config "$config"
  ${workdir_arguments[@]+"${workdir_arguments[@]}"} "$@")
if [[ "$DRY_RUN" == 1 ]]; then
  quote "${command[@]}"
  exit 0
fi
# Replaces this shell, so that Ctrl-C and kill reach the training itself.
exec "${command[@]}"
