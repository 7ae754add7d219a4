#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each worker of a TPU pod; not meant to be called by hand.
#
#   tpu_worker.sh install [EXTRAS]     make .venv (train,tpu)
#   tpu_worker.sh mount SOURCE         mount gs://BUCKET or HOST:/SHARE at /mnt/jaxclip
#   tpu_worker.sh run ARGUMENTS        start `jaxclip train ARGUMENTS`, detached from the terminal
#   tpu_worker.sh status               never started | running | exited STATUS | stopped
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
    if [[ -z "${PYTHON:-}" ]] && ! find_python 3.11 >/dev/null 2>&1; then
      have_uv || python3 -m pip install --quiet --user uv
      uv python install 3.12
      PYTHON=$(uv python find 3.12)
      export PYTHON
    fi
    bash launch/install.sh "${2:-train,tpu}"
    ;;
  mount)
    if mountpoint -q /mnt/jaxclip; then exit 0; fi
    sudo mkdir -p /mnt/jaxclip
    case "$2" in
      gs://*)
        command -v gcsfuse >/dev/null ||
          die "no gcsfuse on $(hostname): install it (cloud.google.com/storage/docs/cloud-storage-fuse/install), or use HOST:/SHARE"
        sudo chown "$(id -u):$(id -g)" /mnt/jaxclip
        # Folders that were made by others, or by a checkpoint, exist without a marker of their own.
        gcsfuse --implicit-dirs "${2#gs://}" /mnt/jaxclip
        ;;
      *) sudo mount -t nfs "$2" /mnt/jaxclip ;;
    esac
    ;;
  run)
    shift
    if running; then die "already running here as process $(<"$state/pid"); stop it first"; fi
    mkdir -p "$state"
    rm -f "$state/status" "$state/stopped"
    printf '\n[tpu_worker.sh] %s %s\n' "$(date)" "$(quote jaxclip train "$@")" >>"$log"
    # A shell of its own stays until the end to note the status, and hands TERM on. A training that
    # is told to stop and has no other processes exits with 0, but has not finished.
    # shellcheck disable=SC2016
    nohup setsid bash -c '
      state=$1 && shift
      trap "told=yes; [ -z \"\${child:-}\" ] || kill -TERM \"\$child\"" TERM
      "$@" &
      child=$!
      [ -z "${told:-}" ] || kill -TERM "$child"
      while
        wait "$child"
        kill -0 "$child" 2>/dev/null
      do :; done
      wait "$child"
      status=$?
      [ -z "${told:-}" ] || [ "$status" -ne 0 ] || status=143
      echo "$status" >"$state/status"
    ' jaxclip-run "$state" "$root/.venv/bin/jaxclip" train "$@" >>"$log" 2>&1 </dev/null &
    printf '%s\n' "$!" >"$state/pid"
    say "started on $(hostname); log: $log"
    ;;
  status)
    if running; then
      echo "running"
    elif [[ -f "$state/stopped" ]]; then
      echo "stopped"
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
      : >"$state/stopped"
      kill -TERM "$(<"$state/pid")" || true
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
