#!/usr/bin/env bash
# One run on a Cloud TPU slice, from your own machine with gcloud:
#
#     export TPU=my-slice ZONE=us-central2-b
#     launch/tpu_vm.sh create v5litepod-256 v2-alpha-tpuv5-lite   accelerator type, runtime version
#     launch/tpu_vm.sh setup                                     copies this checkout, installs it
#     launch/tpu_vm.sh train --config configs/coca.py:base --workdir gs://BUCKET/runs/coca
#     launch/tpu_vm.sh logs                                      of the first worker
#     launch/tpu_vm.sh stop                                      SIGTERM: saves and ends
#     launch/tpu_vm.sh delete
#
# The same command runs on every worker; JAX finds the others through the metadata server. Each
# worker starts the run again while it ends with status 74 (hung input), 75 (SIGTERM) or a signal,
# unless `stop` asked for the end. Commands that are printed and not run: DRY_RUN=1.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

[[ $# -gt 0 ]] || usage
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE}"
action=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() {
  if [[ ${DRY_RUN:-} ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}
on_workers() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

case $action in
  create)
    [[ $# == 2 ]] || usage
    run gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$1" \
      --version="$2" ${SPOT:+--spot}
    ;;
  setup)
    archive=$(mktemp -d)/big_mm.tar.gz
    git archive --format=tar.gz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU:" --zone="$ZONE" --worker=all
    on_workers all "mkdir -p big_mm && tar -xzf big_mm.tar.gz -C big_mm && cd big_mm &&
      make setup ACCELERATOR=tpu && .venv/bin/pip install --quiet gcsfs"
    ;;
  train)
    [[ $# -gt 0 ]] || usage
    command=$(printf '%q ' .venv/bin/python -m big_mm.train "$@")
    on_workers all "cd big_mm && rm -f stop && nohup bash -c '
      while true; do
        ${command//\'/\'\\\'\'}
        status=\$?
        [ \$status -eq 74 ] || [ \$status -eq 75 ] || [ \$status -gt 128 ] || exit \$status
        [ ! -e stop ] || exit \$status
        sleep 10
      done' >> train.log 2>&1 < /dev/null &"
    ;;
  logs) on_workers 0 "tail -n 100 -f big_mm/train.log" ;;
  stop) on_workers all "touch big_mm/stop && pkill -TERM -f 'python -m big_mm.train'" ;;
  delete) run gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" ;;
  *) usage ;;
esac
