#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each worker of a TPU pod; not meant to be called by hand.
#
#   tpu_worker.sh install [EXTRAS]     make .venv (train,tpu)
#   tpu_worker.sh run ARGUMENTS        start `jaxclip train ARGUMENTS`, detached from the terminal
#   tpu_worker.sh status               never started | running | exited STATUS | exited stopped
#   tpu_worker.sh stop                 ask the training to write a checkpoint and end; wait for it
#   tpu_worker.sh logs [LINES]         follow the log
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"
cd "$root"

# Beside the checkout, not in it: shipping new code replaces that.
state=${JAXCLIP_STATE:-$HOME/.jaxclip-run}
log=$state/train.log

# The name is asked for too, because after a reboot the number may be another process.
running() {
  [[ -f "$state/pid" ]] && grep -qs jaxclip-run "/proc/$(<"$state/pid")/cmdline"
}

case "${1:-}" in
  install)
    # The images of TPU machines bring an older Python; uv brings one that fits.
    export PATH="$HOME/.local/bin:$PATH"
    if ! have_uv; then
      python3 -m pip install --quiet --user uv
    fi
    bash launch/install.sh "${2:-train,tpu}"
    ;;
  run)
    shift
    if running; then die "already running here as process $(<"$state/pid"); stop it first"; fi
    mkdir -p "$state"
    rm -f "$state/status"
    printf '\n[tpu_worker.sh] %s %s\n' "$(date)" "$(quote jaxclip train "$@")" >>"$log"
    # A shell of its own stays until the end to note the status, and hands TERM on. A training that
    # was told to stop exits with 0, too, but has not finished.
    # shellcheck disable=SC2016
    nohup setsid bash -c '
      state=$1 && shift
      "$@" &
      child=$!
      trap "stopped=yes; kill -TERM $child" TERM
      while kill -0 "$child" 2>/dev/null; do wait "$child" && status=0 || status=$?; done
      [ -z "${stopped:-}" ] || [ "$status" -ne 0 ] || status=stopped
      echo "$status" >"$state/status"
    ' jaxclip-run "$state" "$root/.venv/bin/jaxclip" train "$@" >>"$log" 2>&1 </dev/null &
    printf '%s\n' "$!" >"$state/pid"
    say "started on $(hostname); log: $log"
    ;;
  status)
    if running; then
      echo "running"
    elif [[ -f "$state/status" ]]; then
      echo "exited $(<"$state/status")"
    elif [[ -f "$state/pid" ]]; then
      echo "exited unknown"
    else
      echo "never started"
    fi
    ;;
  stop)
    if running; then
      kill -TERM "$(<"$state/pid")"
      for ((second = 0; second < 300; second++)); do
        running || break
        sleep 1
      done
      if running; then die "still running after 300 s on $(hostname)"; fi
    fi
    say "stopped on $(hostname)"
    ;;
  logs) exec tail -n "${2:-100}" -F "$log" ;;
  -h | --help) usage ;;
  *) die "unknown command '${1:-}'" ;;
esac
