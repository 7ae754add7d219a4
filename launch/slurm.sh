#!/usr/bin/env bash
# Submits a training to Slurm, on one or many GPU nodes.
#
#   bash launch/slurm.sh [OPTIONS] CONFIG --workdir DIR [OPTIONS OF `jaxclip train` ...]
#
#   bash launch/slurm.sh --nodes 4 --gpus_per_node 8 --time 24:00:00 \
#       configs/clip_vit_b16.py --workdir /scratch/me/b16
#
# Run it on a login node, in a checkout on a file system that the nodes share: it makes .venv,
# installs jaxclip[train,cuda], and submits itself. Shortly before the time limit the training is
# told to write a checkpoint, and the job goes back into the queue; so it does when a node fails or
# the job is preempted. The training then carries on from its workdir.
#
# Options:
#   --nodes N              nodes (default: 1)
#   --gpus_per_node G      GPUs of each (default: 8)
#   --processes_per_node P 1: one process with all GPUs of its node (default); G: one for each GPU
#   --cpus_per_node C      CPU cores of each (default: all; the whole node is asked for)
#   --time LIMIT           time limit (default: 24:00:00)
#   --name NAME            job name (default: the name of the config)
#   --partition P, --account A, --qos Q, --constraint C    as sbatch has them
#   --sbatch "WORDS"       more options for sbatch, separated by blanks
#   --logs DIR             where the output goes (default: workdir/slurm)
#   --port P               port of the coordinator (default: from the job's number)
#   --no_requeue           do not go back into the queue
#   --no_install           take .venv ($JAXCLIP_VENV) as it is
#   --dry_run              print the commands, and run none
#
# Each process finds JAXCLIP_COORDINATOR_ADDRESS, JAXCLIP_NUM_PROCESSES and JAXCLIP_PROCESS_ID.
set -euo pipefail
invoked_from=$PWD
# Slurm runs a copy of the batch script, so the root comes from where it was submitted.
root=${JAXCLIP_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

# --- on a node, one process of the training ---------------------------------------------------
task() {
  export JAXCLIP_PROCESS_ID=$SLURM_PROCID
  if [[ "$JAXCLIP_PROCESSES_PER_NODE" != 1 ]]; then
    # The one that Slurm has bound to this task, else the one of its number among those it sees.
    local visible
    IFS=, read -r -a visible <<<"${CUDA_VISIBLE_DEVICES:-}"
    case ${#visible[@]} in
      0) export CUDA_VISIBLE_DEVICES=$SLURM_LOCALID ;;
      1) ;;
      *) export CUDA_VISIBLE_DEVICES=${visible[SLURM_LOCALID]:-$SLURM_LOCALID} ;;
    esac
  fi
  exec "$JAXCLIP_VENV/bin/jaxclip" train "$@"
}

# --- on the first node, the batch script ------------------------------------------------------
batch() {
  local hosts requeue=0 status=0
  cd "$root"
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export JAXCLIP_COORDINATOR_ADDRESS=${hosts%%$'\n'*}:${JAXCLIP_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
  export JAXCLIP_NUM_PROCESSES=$((SLURM_JOB_NUM_NODES * JAXCLIP_PROCESSES_PER_NODE))
  say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, coordinator $JAXCLIP_COORDINATOR_ADDRESS," \
    "$JAXCLIP_NUM_PROCESSES processes"
  # sbatch sends USR1 before the time limit: the steps write a checkpoint on TERM and end.
  trap 'requeue=1; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1
  trap 'scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
  # In the background, because bash runs a trap only when no command is in the foreground.
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$JAXCLIP_NUM_PROCESSES" \
    --ntasks-per-node="$JAXCLIP_PROCESSES_PER_NODE" \
    --cpus-per-task="$((SLURM_CPUS_ON_NODE / JAXCLIP_PROCESSES_PER_NODE))" \
    --kill-on-bad-exit=1 --label \
    bash "$root/launch/slurm.sh" --task "$@" &
  local step=$!
  # A trap interrupts `wait`: it is asked until srun is gone, and then for its status.
  while
    wait "$step"
    kill -0 "$step" 2>/dev/null
  do :; done
  wait "$step" || status=$?
  if ((requeue == 1)) && [[ "${JAXCLIP_REQUEUE:-1}" == 1 ]]; then
    say "time limit: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}

# --- on the login node -------------------------------------------------------------------------
submit() {
  local nodes=1 gpus_per_node=8 processes_per_node=1 cpus_per_node="" time=24:00:00 name=""
  local logs="$root/workdir/slurm" no_requeue=0 no_install=0 port="" sbatch=""
  # shellcheck disable=SC2034  # read by name
  local partition="" account="" qos="" constraint="" extra=() words option settings
  local options=(nodes gpus_per_node processes_per_node cpus_per_node time name logs port sbatch+)
  local passed_on=(partition account qos constraint)
  read_options "no_requeue no_install" "${options[*]} ${passed_on[*]}" "$@"
  for option in "${passed_on[@]}"; do
    if [[ -n "${!option}" ]]; then extra+=("--$option=${!option}"); fi
  done
  read -r -a words <<<"$sbatch"
  extra+=(${words[@]+"${words[@]}"})
  set -- ${REST[@]+"${REST[@]}"}
  local config=${1:-}
  (($# == 0)) || shift
  [[ -n "$config" ]] || die "no config given; bash launch/slurm.sh --help says how"
  [[ -f "$root/${config%%:*}" || "$config" == /* && -f "${config%%:*}" ]] ||
    die "no such config: ${config%%:*} (looked in $root)"
  need_number --nodes "$nodes"
  need_number --gpus_per_node "$gpus_per_node"
  [[ -z "$port" ]] || need_port --port "$port"
  [[ "$processes_per_node" == 1 || "$processes_per_node" == "$gpus_per_node" ]] ||
    die "--processes_per_node=$processes_per_node must be 1 or --gpus_per_node ($gpus_per_node)"
  case " $* " in
    *" --workdir "* | *" --workdir="*) ;;
    *) die "no --workdir given after the config: the job carries on from it, name a folder that all nodes share" ;;
  esac
  # The job runs in the checkout, wherever it was submitted from.
  with_absolute_workdir "$invoked_from" "$@"
  set -- "${ARGUMENTS[@]}"
  need sbatch "run this on a login node of a Slurm cluster"
  name=${name:-$(basename "${config%%:*}" .py)}

  cd "$root"
  local environment=${JAXCLIP_VENV:-$root/.venv}
  if ((no_install == 0)); then
    run env JAXCLIP_VENV="$environment" bash launch/install.sh train,cuda
  fi
  run mkdir -p "$logs"
  # By the environment: a value in --export could hold no comma.
  settings=(
    "JAXCLIP_ROOT=$root"
    "JAXCLIP_VENV=$environment"
    "JAXCLIP_PROCESSES_PER_NODE=$processes_per_node"
    "JAXCLIP_REQUEUE=$((1 - no_requeue))"
    "JAXCLIP_PORT=$port"
  )
  local job=(
    --job-name="$name"
    --nodes="$nodes"
    --ntasks-per-node="$processes_per_node"
    --gpus-per-node="$gpus_per_node"
    --time="$time"
    --output="$logs/%x-%j.log"
    --open-mode=append
    --signal=B:USR1@180
    --export=ALL
  )
  if [[ -n "$cpus_per_node" ]]; then
    need_number --cpus_per_node "$cpus_per_node"
    ((cpus_per_node >= processes_per_node)) ||
      die "--cpus_per_node=$cpus_per_node are fewer than --processes_per_node=$processes_per_node"
    job+=(--cpus-per-task="$((cpus_per_node / processes_per_node))")
  else
    job+=(--exclusive)
  fi
  if ((no_requeue == 0)); then job+=(--requeue); else job+=(--no-requeue); fi
  run env "${settings[@]}" sbatch "${job[@]}" ${extra[@]+"${extra[@]}"} "$root/launch/slurm.sh" --batch \
    --config "$config" "$@"
}

case "${1:-}" in
  --task) shift && task "$@" ;;
  --batch) shift && batch "$@" ;;
  *) submit "$@" ;;
esac
