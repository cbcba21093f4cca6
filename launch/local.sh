#!/usr/bin/env bash
# Starts several processes of one run on this machine, joined over loopback:
#
#     launch/local.sh 2 python -m big_mm.train --config configs/quickstart.py --workdir runs/two
#
# To try a multi-process run before it is queued; on the CPU each process has one device unless
# JAX_NUM_CPU_DEVICES says otherwise, on GPUs process i takes GPU i. If one process ends with an
# error, the others are ended too; the status is the first one that is not 0. A signal to this
# script goes to all of them.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
count=$1
shift

export JAX_COORDINATOR_ADDRESS="localhost:${JAX_COORDINATOR_PORT:-$((20000 + RANDOM % 10000))}"
export JAX_NUM_PROCESSES=$count
gpus=0
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi --list-gpus | wc -l); fi

processes=() signalled=0
terminate() { kill -TERM "${processes[@]}" 2>/dev/null || true; }
trap 'signalled=1; terminate' TERM INT
for ((i = 0; i < count; i++)); do
  if ((gpus)); then export CUDA_VISIBLE_DEVICES=$((i % gpus)); fi
  JAX_PROCESS_ID=$i "$@" &
  processes+=($!)
done

status=0
while [[ $(jobs -p) ]]; do
  code=0
  wait -n || code=$?
  if ((signalled)); then # the signal ended the wait, not a process
    signalled=0
  elif ((code && !status)); then
    status=$code
    # After SIGTERM (75) they all end by themselves; otherwise the others would wait for ever.
    ((code == 75)) || terminate
  fi
done
exit "$status"
