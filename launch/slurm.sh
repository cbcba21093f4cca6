#!/usr/bin/env bash
# One run on a SLURM cluster; the options of sbatch override the ones below:
#
#     sbatch --nodes=4 launch/slurm.sh --config configs/coca.py:base --workdir /shared/runs/coca
#
# Needs: a checkout with its .venv (make setup ACCELERATOR=cuda13) on a file system that all nodes
# see; submit from the checkout. One process a node, which takes all its GPUs.
#
# Twenty minutes before the time limit, and when the job is preempted, SLURM sends SIGTERM: the run
# saves and ends with status 75, and the job goes back into the queue, where it continues from its
# checkpoint. It does so after a hung input (74) or a failed node too. Other errors end the job.
#SBATCH --job-name=big_mm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@1200
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?start this script with sbatch}" || exit 2

# The step ends when one of its processes fails: the others would wait for it in a collective.
srun --kill-on-bad-exit=1 .venv/bin/python -m big_mm.train "$@"
status=$?

case $status in
  0) ;;
  74 | 75 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
  *) exit "$status" ;;
esac
