#!/usr/bin/env bash
# What a container of the JobSet runs: `jaxclip train` with the given arguments.
#
# A training that is told to stop (a node is drained or preempted) writes a checkpoint and, on one
# host, exits with 0. To Kubernetes that would mean finished; here it becomes 143, a failure, as on
# several hosts, after which the JobSet starts all of them again and the training carries on.
set -uo pipefail
stopped=0 training=""
trap 'stopped=1; [[ -z "$training" ]] || kill -TERM "$training" 2>/dev/null' TERM
jaxclip train "$@" &
training=$!
if ((stopped == 1)); then kill -TERM "$training"; fi
# A trap interrupts `wait`: it is asked until the training is gone, and then for its status.
while
  wait "$training"
  kill -0 "$training" 2>/dev/null
do :; done
wait "$training"
status=$?
if ((stopped == 1 && status == 0)); then status=143; fi
exit "$status"
