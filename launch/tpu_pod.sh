#!/usr/bin/env bash
# Runs a training on a Cloud TPU pod slice: gets it, ships this checkout, starts it, looks after it.
#
#   bash launch/tpu_pod.sh COMMAND [OPTIONS] [CONFIG --workdir /mnt/jaxclip/DIR [TRAIN OPTIONS ...]]
#
#   bash launch/tpu_pod.sh up --name b16 --type v5litepod-256 --zone us-west4-a --spot \
#       --mount gs://my-bucket configs/clip_vit_b16.py --workdir /mnt/jaxclip/b16
#   bash launch/tpu_pod.sh logs --name b16 --zone us-west4-a
#   bash launch/tpu_pod.sh watch ... the options and config of `up` ...
#   bash launch/tpu_pod.sh delete --name b16 --zone us-west4-a
#
# Commands:
#   create    ask for the TPU and wait until it is ready
#   ship      copy this checkout (what git tracks or would track) to all workers and install it
#   run       start the training on all workers; it goes on when the connection ends
#   up        create, ship, run
#   logs      follow the log of a worker
#   status    the state of the TPU and of the training on each worker
#   stop      have the training write a checkpoint and end
#   restart   after a preemption: delete what is left, then up
#   watch     look every --poll seconds; restart when preempted, until the training has finished
#   delete    give the TPU back
#
# Options (each may come from the environment instead, as TPU_NAME, TPU_TYPE, TPU_ZONE, ...):
#   --name NAME          name of the TPU (and of its queued resource)
#   --type TYPE          accelerator type, for example v4-32, v5litepod-256, v5p-128, v6e-64
#   --zone ZONE          its zone
#   --project PROJECT    default: that of gcloud
#   --runtime VERSION    runtime version; default: the one for the type
#   --queued             ask for it as a queued resource (needed for most large slices)
#   --spot               preemptible and cheaper
#   --mount SOURCE       what all workers share, mounted at /mnt/jaxclip when shipping: gs://BUCKET
#                        (with gcsfuse) or HOST:/SHARE (NFS, Filestore). Workdir and data go there
#   --extras EXTRAS      what to install (default: train,tpu)
#   --worker N           for logs: which worker (default: 0)
#   --poll SECONDS       default: 60
#   --max_restarts N     for watch: give up after that many, or 3 failures in a row (default: 100)
#   --dry_run            print the commands, and run none
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name=${TPU_NAME:-} type=${TPU_TYPE:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-}
runtime=${TPU_RUNTIME:-} queued=${TPU_QUEUED:-0} spot=${TPU_SPOT:-0} extras=${TPU_EXTRAS:-train,tpu}
mount=${TPU_MOUNT:-} worker=0 poll=60 max_restarts=100
DRY_RUN=0

# The runtime version that Google's documentation names for the type.
default_runtime() {
  case "$type" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "no runtime version known for --type=$type; give --runtime" ;;
  esac
}

place=()
vm() { # vm VERB [MORE ...]: gcloud on the TPU machines
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$name" "${place[@]}" "$@"
}
queue() { # queue VERB [MORE ...]: gcloud on the queued resource
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "${place[@]}" "$@"
}
on_workers() { # on_workers WORKER COMMAND: by ssh
  vm ssh --worker="$1" --command="$2"
}

# The state of the TPU, or "absent". Anything else that goes wrong (network, an expired login) is
# "unknown": deleting a healthy pod because a look at it failed would be worse than waiting.
state() {
  local answer
  if answer=$(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" '--format=value(state)' 2>&1); then
    printf '%s\n' "${answer##*$'\n'}"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo absent
  else
    say "gcloud: ${answer##*$'\n'}"
    echo unknown
  fi
}

create() {
  local options=() now
  [[ -n "$type" ]] || die "no --type given, for example --type v5litepod-16"
  if [[ -z "$runtime" ]]; then runtime=$(default_runtime) || exit 1; fi
  if [[ "$spot" == 1 ]]; then options+=(--spot); fi
  if [[ "$queued" == 1 ]]; then
    queue create --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
      ${options[@]+"${options[@]}"}
    [[ "$DRY_RUN" == 0 ]] || return 0
    while true; do
      now=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
        '--format=value(state.state)' 2>/dev/null) || now=unknown
      case "$now" in
        ACTIVE) break ;;
        FAILED | SUSPENDED) die "the queued resource is $now; bash launch/tpu_pod.sh delete --queued, then again" ;;
      esac
      say "queued resource: $now"
      sleep "$poll"
    done
  else
    vm create --accelerator-type="$type" --version="$runtime" ${options[@]+"${options[@]}"}
  fi
}

delete() {
  if [[ "$queued" == 1 ]]; then
    # --force takes the machines along.
    queue delete --force --quiet
  else
    vm delete --quiet
  fi
}

ship() {
  local archive
  cd "$root"
  git rev-parse --is-inside-work-tree >/dev/null 2>&1 || die "$root is no git checkout: cannot tell what to ship"
  if [[ "$DRY_RUN" == 1 ]]; then
    archive=jaxclip.tar.gz
    echo "git ls-files -z --cached --others --exclude-standard | tar --null -czf $archive -T -"
  else
    archive=$(mktemp -d)/jaxclip.tar.gz
    # Files deleted but still tracked are left out.
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
      if [[ -e "$file" ]]; then printf '%s\0' "$file"; fi
    done | tar --null -czf "$archive" -T -
  fi
  # Code must not change under a training that runs.
  # shellcheck disable=SC2016
  on_workers all 'if [ -f jaxclip/launch/tpu_worker.sh ] && [ "$(bash jaxclip/launch/tpu_worker.sh status)" = running ]; then echo "a training is running: stop it first" >&2; exit 1; fi'
  run gcloud compute tpus tpu-vm scp "$archive" "$name:jaxclip.tar.gz" "${place[@]}" --worker=all
  if [[ "$DRY_RUN" == 0 ]]; then rm -r "${archive%/*}"; fi
  # All but the environment and runs goes first, so that a file deleted here is gone there.
  on_workers all "mkdir -p jaxclip && find jaxclip -mindepth 1 -maxdepth 1 ! -name .venv ! -name workdir -exec rm -rf {} + && tar -xzf jaxclip.tar.gz -C jaxclip && bash jaxclip/launch/tpu_worker.sh install $extras"
  if [[ -n "$mount" ]]; then
    on_workers all "bash jaxclip/launch/tpu_worker.sh mount $(quote "$mount")"
  fi
}

need_config() {
  ((${#train[@]} > 0)) || die "no config given after the options, for example configs/clip_vit_b16.py"
  local config=${train[0]%%:*}
  [[ "$config" != /* && -f "$root/$config" ]] ||
    die "no such config in the checkout: $config (its path is taken from $root, because that is what goes to the TPU)"
  case " ${train[*]:1} " in
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *" --workdir /mnt/jaxclip/"* | *" --workdir=/mnt/jaxclip/"*)
      [[ -n "$mount" ]] || die "--workdir is in /mnt/jaxclip, but no --mount says what that is"
      ;;
    *" --workdir "* | *" --workdir="*)
      say "warning: the workdir is not in /mnt/jaxclip; unless all workers share it some other way, checkpoints are lost with the TPU"
      ;;
    *) die "no --workdir given after the config, for example --workdir /mnt/jaxclip/run1" ;;
  esac
}

start() {
  need_config
  on_workers all "bash jaxclip/launch/tpu_worker.sh run $(quote --config "${train[@]}")"
}

up() {
  need_config
  create
  ship
  start
}

restart() {
  need_config
  if [[ "$DRY_RUN" == 1 || "$(state)" != absent || "$queued" == 1 ]]; then
    delete || say "nothing left to delete"
  fi
  up
}

# This script again, as a process of its own, so that a command that fails ends that and not the
# watch.
again() { bash "$root/launch/tpu_pod.sh" "$1" "${arguments[@]}"; }

watch() {
  local restarts=0 crashes=0 now training
  need_config
  if [[ "$DRY_RUN" == 1 ]]; then
    echo "# every $poll s:"
    vm describe '--format=value(state)'
    on_workers 0 "bash jaxclip/launch/tpu_worker.sh status"
    echo "# when it is preempted, or gone:"
    restart
    return 0
  fi
  while true; do
    now=$(state)
    training=""
    if [[ "$now" == READY ]]; then
      training=$(on_workers 0 "bash jaxclip/launch/tpu_worker.sh status" 2>/dev/null) || training=""
      training=${training##*$'\n'}
    fi
    say "$(date '+%F %T') TPU $now${training:+, training $training}"
    case "$now:$training" in
      "READY:exited 0")
        say "finished"
        return 0
        ;;
      READY:running) crashes=0 ;;
      READY:stopped)
        say "stopped by hand (tpu_pod.sh stop); tpu_pod.sh run goes on"
        return 0
        ;;
      # Failed, or told to stop by the machine (status 143): where that is the beginning of a
      # preemption the attempt fails, and the next look shows the preemption.
      READY:exited* | "READY:never started")
        crashes=$((crashes + 1))
        if ((crashes > 3)); then die "failed $crashes times in a row; bash launch/tpu_pod.sh logs"; fi
        if again stop && again ship && again run; then restarts=$((restarts + 1)); fi
        ;;
      PREEMPTED:* | TERMINATED:* | absent:*)
        # Without capacity this fails, and the next look tries once more.
        if again restart; then restarts=$((restarts + 1)); fi
        ;;
    esac
    if ((restarts >= max_restarts)); then die "restarted $restarts times: giving up"; fi
    sleep "$poll"
  done
}

command=${1:-}
case "$command" in
  create | ship | run | up | logs | status | stop | restart | watch | delete) shift ;;
  -h | --help)
    usage
    exit 0
    ;;
  "")
    usage >&2
    die "no command given"
    ;;
  *) die "unknown command '$command'; one of create, ship, run, up, logs, status, stop, restart, watch, delete" ;;
esac
arguments=("$@")
read_options "queued spot" \
  "name type zone project runtime mount extras worker poll max_restarts" "$@"
train=(${REST[@]+"${REST[@]}"})
[[ -n "$name" ]] || die "no --name given (or TPU_NAME)"
[[ -n "$zone" ]] || die "no --zone given (or TPU_ZONE)"
[[ -z "$mount" || "$mount" == gs://?* || "$mount" == ?*:/?* ]] ||
  die "--mount=$mount is neither gs://BUCKET nor HOST:/SHARE"
need_extras "$extras"
[[ "$worker" == all ]] || need_index --worker "$worker"
need_number --poll "$poll"
need_number --max_restarts "$max_restarts"
need gcloud "install the Google Cloud CLI and run: gcloud auth login"
place=(--zone="$zone" ${project:+--project="$project"})

case "$command" in
  create) create ;;
  ship) ship ;;
  run) start ;;
  up) up ;;
  logs) on_workers "$worker" "bash jaxclip/launch/tpu_worker.sh logs" ;;
  status)
    vm describe '--format=value(state)'
    on_workers all "echo \$(hostname): \$(bash jaxclip/launch/tpu_worker.sh status)"
    ;;
  stop) on_workers all "bash jaxclip/launch/tpu_worker.sh stop" ;;
  restart) restart ;;
  watch) watch ;;
  delete) delete ;;
esac
