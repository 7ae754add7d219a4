#!/usr/bin/env bash
# Runs n processes of one distributed training on this machine, for trying out many hosts.
#
#   bash launch/local_processes.sh N [OPTIONS] CONFIG [OPTIONS OF `jaxclip train` ...]
#   bash launch/local_processes.sh N [OPTIONS] -- COMMAND [ARGUMENTS ...]
#
#   bash launch/local_processes.sh 2 configs/emoji.py --workdir workdir/two
#   bash launch/local_processes.sh 4 --devices_per_process 2 -- python my_script.py
#
# Each process finds JAXCLIP_COORDINATOR_ADDRESS, JAXCLIP_NUM_PROCESSES and JAXCLIP_PROCESS_ID in
# its environment; each line it prints is prefixed with its number. When one fails, the others are
# stopped, and its exit status is the script's. Ctrl-C and kill are passed on to all.
#
# Options:
#   --devices_per_process K  virtual CPU devices of each process (sets XLA_FLAGS)
#   --gpus_per_process K     GPUs of each process (sets CUDA_VISIBLE_DEVICES)
#   --port P                 port of the coordinator on 127.0.0.1 (default: a free one)
#   --grace SECONDS          time to stop before a process is killed (default: 20)
#   --dry_run                print what would run, and run nothing
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

devices_per_process="" gpus_per_process="" port="" grace=20 command=()
DRY_RUN=0
numbers=(devices_per_process gpus_per_process port grace)
read_options "" "${numbers[*]}" "$@"
count=${REST[0]:-}
# Options may also stand between the number of processes and the config.
read_options "" "${numbers[*]}" ${REST[@]+"${REST[@]:1}"}
for option in "${numbers[@]}"; do
  [[ -z "${!option}" ]] || need_number "--$option" "${!option}"
done
[[ -z "$port" ]] || need_port --port "$port"
case "${REST[0]:-}" in
  "") ;;
  --) command=("${REST[@]:1}") ;;
  *)
    [[ -f "${REST[0]%%:*}" ]] || die "no such config: ${REST[0]%%:*}"
    command=("${JAXCLIP_VENV:-$root/.venv}/bin/jaxclip" train --config "${REST[@]}")
    ;;
esac
[[ -n "$count" ]] || die "how many processes? For example: bash launch/local_processes.sh 2 configs/emoji.py --workdir workdir/two"
need_number N "$count"
((${#command[@]} > 0)) || die "nothing to run: give a config, or -- and a command"
if [[ "$DRY_RUN" == 0 ]]; then
  command -v "${command[0]}" >/dev/null 2>&1 ||
    die "cannot run ${command[0]}; bash launch/local.sh CONFIG makes .venv"
fi

free_port() {
  local candidate
  while true; do
    candidate=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || break
  done
  printf '%s\n' "$candidate"
}
[[ -n "$port" ]] || port=$(free_port)

# The environment of process $1, as words for env(1).
environment_of() {
  local process=$1 first list
  settings=(
    "JAXCLIP_COORDINATOR_ADDRESS=127.0.0.1:$port"
    "JAXCLIP_NUM_PROCESSES=$count"
    "JAXCLIP_PROCESS_ID=$process"
  )
  if [[ -n "$devices_per_process" ]]; then
    settings+=("JAX_PLATFORMS=cpu")
    settings+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices_per_process")
  fi
  if [[ -n "$gpus_per_process" ]]; then
    first=$((process * gpus_per_process))
    list=$(seq -s, "$first" $((first + gpus_per_process - 1)))
    settings+=("CUDA_VISIBLE_DEVICES=$list")
  fi
}

settings=()
if [[ "$DRY_RUN" == 1 ]]; then
  for ((process = 0; process < count; process++)); do
    environment_of "$process"
    quote env "${settings[@]}" "${command[@]}"
  done
  exit 0
fi

# Copies standard input to standard output line by line, with the number of the process. It ends
# with the input, not with a signal: the last words of a process are the ones that matter.
prefix() {
  trap '' INT TERM HUP
  local line
  while IFS= read -r line || [[ -n "$line" ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

pipes=$(mktemp -d)
processes=() readers=()
# Job control gives each process a group of its own, so that its children can be stopped with it,
# and so that a Ctrl-C reaches it once: from here.
set -m
stop_all() {
  local signal=$1 pid
  for pid in "${processes[@]}"; do
    kill "-$signal" -- "-$pid" 2>/dev/null || true
  done
}
received=""
trap 'received=INT; stop_all INT' INT
trap 'received=TERM; stop_all TERM' TERM HUP
trap 'stop_all KILL; rm -rf "$pipes"' EXIT

for ((process = 0; process < count; process++)); do
  environment_of "$process"
  mkfifo "$pipes/$process"
  prefix "$process" <"$pipes/$process" &
  readers+=($!)
  # Opened here and not by the process: one that is killed before it opens its end would leave the
  # reader waiting for ever.
  exec 3>"$pipes/$process"
  env "${settings[@]}" "${command[@]}" >&3 2>&1 3>&- </dev/null &
  processes+=($!)
  exec 3>&-
done
set +m
# Without this the shell would add its own lines ("Terminated ...") to ours.
exec 4>&2 2>/dev/null
tell() { say "$@" 2>&4; }

# Polls, because `wait -n` is missing in the bash that macOS has.
failure=0 deadline="" left=$count
done_with=()
while ((left > 0)); do
  for ((process = 0; process < count; process++)); do
    [[ -z "${done_with[process]:-}" ]] || continue
    if ! kill -0 "${processes[process]}" 2>/dev/null; then
      status=0
      wait "${processes[process]}" || status=$?
      done_with[process]=yes
      left=$((left - 1))
      if ((status != 0)) && [[ "$failure" == 0 ]]; then
        failure=$status
        if [[ -z "$received" ]] && ((left > 0)); then
          tell "process $process exited with status $status; stopping the other $left"
          stop_all TERM
        else
          tell "process $process exited with status $status"
        fi
      fi
    fi
  done
  if [[ "$failure" != 0 || -n "$received" ]] && ((left > 0)); then
    : "${deadline:=$((SECONDS + grace))}"
    if ((SECONDS >= deadline)); then
      tell "$left still running after $grace s: killing"
      stop_all KILL
      deadline=$((SECONDS + grace))
    fi
  fi
  sleep 0.1 || true
done
# Strays that a process left behind would keep its pipe open.
stop_all KILL
wait "${readers[@]}" || true
exit "$failure"
