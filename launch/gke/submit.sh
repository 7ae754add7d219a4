#!/usr/bin/env bash
# Runs a training on Google Kubernetes Engine as a JobSet: one pod for each host of a TPU slice, or
# for each GPU node.
#
#   bash launch/gke/submit.sh COMMAND [OPTIONS] [CONFIG --workdir /mnt/jaxclip/DIR [TRAIN OPTIONS]]
#
#   bash launch/gke/submit.sh image --image REGISTRY/jaxclip:1
#   bash launch/gke/submit.sh submit --name b16 --image REGISTRY/jaxclip:1 --bucket my-bucket \
#       --accelerator tpu-v5-lite-podslice --topology 16x16 \
#       configs/clip_vit_b16.py --workdir /mnt/jaxclip/b16
#   bash launch/gke/submit.sh logs --name b16
#
# The cluster needs the JobSet controller and, for --bucket, the Cloud Storage FUSE driver and a
# service account that may write to the bucket. A pod that fails or is preempted restarts them all,
# and the training carries on from its workdir.
#
# Commands:
#   image     build the container image from this checkout and push it
#   render    print the manifest
#   submit    apply it
#   logs      follow the log of host 0 (--host N)
#   status    the JobSet and its pods
#   delete    delete the JobSet (the workdir stays)
#
# Options:
#   --name NAME           name of the JobSet
#   --image IMAGE         container image
#   --extras EXTRAS       for image: what to install (default: train,tpu; for GPUs: train,cuda)
#   --accelerator A       node label: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice,
#                         tpu-v6e-slice, or for GPUs for example nvidia-h100-80gb
#   --topology T          TPU: the slice, for example 16x16 or 4x4x4
#   --hosts N             GPU: nodes (default: 1); TPU: chips of the topology / --chips_per_host
#   --chips_per_host N    default: 4 TPU chips, 8 GPUs
#   --bucket BUCKET       Cloud Storage bucket mounted at /mnt/jaxclip, or
#   --claim CLAIM         a PersistentVolumeClaim (ReadWriteMany) mounted there
#   --spot                on spot nodes
#   --namespace N         default: default
#   --service_account S   Kubernetes service account (default: default)
#   --max_restarts N      default: 100
#   --port P              port of the coordinator (default: 8476)
#   --host N              for logs: which host (default: 0)
#   --dry_run             print the commands, and run none
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name="" image="" extras=train,tpu accelerator="" topology="" hosts="" chips_per_host="" bucket="" claim=""
namespace=default service_account=default max_restarts=100 port=8476 host=0 spot=0
DRY_RUN=0

# How many hosts and chips, from the topology; sets kind, hosts and chips_per_host.
size() {
  local total=1 dimension
  case "$accelerator" in
    tpu-*)
      kind=tpu
      case "$accelerator" in
        tpu-v4-podslice | tpu-v5-lite-podslice | tpu-v5p-slice | tpu-v6e-slice) ;;
        *) say "warning: --accelerator=$accelerator is none that --help names; without nodes of that label the pods wait for ever" ;;
      esac
      : "${chips_per_host:=4}"
      [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
        die "--topology='$topology' is none; for example 16x16 or 4x4x4"
      need_number --chips_per_host "$chips_per_host"
      for dimension in ${topology//x/ }; do total=$((total * dimension)); done
      ((total % chips_per_host == 0)) ||
        die "--topology=$topology has $total chips, not a multiple of --chips_per_host=$chips_per_host"
      [[ -z "$hosts" || "$hosts" == $((total / chips_per_host)) ]] ||
        die "--hosts=$hosts, but --topology=$topology has $total chips, $chips_per_host a host: leave --hosts out"
      hosts=$((total / chips_per_host))
      ;;
    "") die "no --accelerator given, for example tpu-v5-lite-podslice or nvidia-h100-80gb" ;;
    *)
      kind=gpu
      [[ -z "$topology" ]] || die "--topology is for TPUs; for $accelerator give --hosts"
      : "${chips_per_host:=8}" "${hosts:=1}"
      need_number --hosts "$hosts"
      need_number --chips_per_host "$chips_per_host"
      ;;
  esac
}

check_run() {
  [[ -n "$image" ]] || die "no --image given"
  ((${#train[@]} > 0)) || die "no config given after the options, for example configs/clip_vit_b16.py"
  local config=${train[0]%%:*}
  [[ "$config" != /* && -f "$root/$config" ]] ||
    die "no such config in the checkout: $config (its path is taken from $root, as in the image)"
  [[ -n "$bucket" && -z "$claim" || -z "$bucket" && -n "$claim" ]] ||
    die "give one of --bucket and --claim: what the hosts share, mounted at /mnt/jaxclip"
  case " ${train[*]:1} " in
    *" --workdir /mnt/jaxclip/"* | *" --workdir=/mnt/jaxclip/"*) ;;
    *" --workdir gs://"* | *" --workdir=gs://"*) ;;
    *) die "the workdir must be on what the hosts share: --workdir /mnt/jaxclip/DIR or gs://BUCKET/DIR after the config" ;;
  esac
  [[ ! "$bucket$claim" =~ [^a-z0-9._-] ]] ||
    die "--bucket=$bucket --claim=$claim: give the name alone, without gs:// or a folder"
  need_number --max_restarts "$max_restarts"
  need_port --port "$port"
}

# The words as a JSON list, which is YAML, too.
json_list() {
  local word list=""
  for word in "$@"; do
    [[ "$word" != *[[:cntrl:]]* ]] || die "control characters in the argument $(quote "$word")"
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    list+="${list:+, }\"$word\""
  done
  printf '[%s]\n' "$list"
}

render() {
  local kinds line arguments condition
  size
  check_run
  kinds=" $kind "
  if [[ "$spot" == 1 ]]; then kinds+="spot "; fi
  if [[ -n "$bucket" ]]; then kinds+="bucket "; else kinds+="claim "; fi
  arguments=$(json_list --config "${train[@]}")
  while IFS= read -r line; do
    if [[ "$line" =~ ^(.*[^[:blank:]])[[:blank:]]+'# if '([a-z]+)$ ]]; then
      condition=${BASH_REMATCH[2]}
      line=${BASH_REMATCH[1]}
      [[ "$kinds" == *" $condition "* ]] || continue
    fi
    if [[ "$line" =~ ^[[:blank:]]*'#' ]]; then continue; fi
    line=${line//@NAME@/"$name"}
    line=${line//@NAMESPACE@/"$namespace"}
    line=${line//@SERVICE_ACCOUNT@/"$service_account"}
    line=${line//@MAX_RESTARTS@/"$max_restarts"}
    line=${line//@HOSTS@/"$hosts"}
    line=${line//@CHIPS_PER_HOST@/"$chips_per_host"}
    line=${line//@ACCELERATOR@/"$accelerator"}
    line=${line//@TOPOLOGY@/"$topology"}
    line=${line//@IMAGE@/"$image"}
    line=${line//@PORT@/"$port"}
    line=${line//@BUCKET@/"$bucket"}
    line=${line//@CLAIM@/"$claim"}
    line=${line//@ARGUMENTS@/"$arguments"}
    printf '%s\n' "$line"
  done <"$here/jobset.yaml"
}

submit() {
  local manifest
  manifest=$(render)
  if [[ "$DRY_RUN" == 1 ]]; then
    echo "kubectl apply --filename - <<'MANIFEST'"
    printf '%s\nMANIFEST\n' "$manifest"
  else
    printf '+ kubectl apply --filename - (the manifest: bash launch/gke/submit.sh render ...)\n' >&2
    printf '%s\n' "$manifest" | kubectl apply --filename -
  fi
}

command=${1:-}
case "$command" in
  image | render | submit | logs | status | delete) shift ;;
  -h | --help)
    usage
    exit 0
    ;;
  "")
    usage >&2
    die "no command given"
    ;;
  *) die "unknown command '$command'; one of image, render, submit, logs, status, delete" ;;
esac
options=(name image extras accelerator topology hosts chips_per_host bucket claim namespace)
options+=(service_account max_restarts port host)
read_options spot "${options[*]}" "$@"
train=(${REST[@]+"${REST[@]}"})
if [[ "$command" == image ]]; then
  need_extras "$extras"
  [[ -n "$image" ]] || die "no --image given"
  need docker "install Docker, or build launch/gke/Dockerfile with what you have"
  run docker build --file "$root/launch/gke/Dockerfile" --build-arg "EXTRAS=$extras" --tag "$image" \
    "$root"
  run docker push "$image"
  exit 0
fi
# Names of pods come from it, and they are limited to 63 characters.
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  die "--name='$name' must be 1 to 40 small letters, digits and dashes, a letter first"
for option in namespace service_account; do
  [[ "${!option}" =~ ^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$ ]] ||
    die "--$option='${!option}' must be small letters, digits and dashes, as Kubernetes names things"
done
[[ ! "$image$accelerator" =~ [^A-Za-z0-9@:/._-] ]] ||
  die "--image='$image' --accelerator='$accelerator': a character in it belongs to no such name"
need_index --host "$host"
[[ "$command" == render ]] || need kubectl "install it and connect it to the cluster"
selector=jobset.sigs.k8s.io/jobset-name=$name
case "$command" in
  render) render ;;
  submit) submit ;;
  logs)
    run kubectl logs --namespace "$namespace" --follow --tail 100 \
      --selector "$selector,batch.kubernetes.io/job-completion-index=$host"
    ;;
  status)
    run kubectl get jobset "$name" --namespace "$namespace"
    run kubectl get pods --namespace "$namespace" --selector "$selector" --output wide
    ;;
  delete) run kubectl delete jobset "$name" --namespace "$namespace" ;;
esac
