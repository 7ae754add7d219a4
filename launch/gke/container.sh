#!/usr/bin/env bash
# What a container of the JobSet runs: `jaxclip train` with the given arguments.
#
# A training that is told to stop (a node is drained or preempted) writes a checkpoint and, on one
# host, exits with 0. To Kubernetes that would mean finished; here it becomes 143, a failure, as on
# several hosts, after which the JobSet starts all of them again and the training carries on.
set -uo pipefail
jaxclip train "$@" &
training=$!
stopped=0 status=0
trap 'stopped=1; kill -TERM "$training" 2>/dev/null' TERM
# A trap interrupts `wait`; only the last round has the training's own status.
while kill -0 "$training" 2>/dev/null; do
  wait "$training" && status=0 || status=$?
done
if ((stopped == 1 && status == 0)); then status=143; fi
exit "$status"
