#!/usr/bin/env bash
# Train on a cluster that Slurm manages.
set -euo pipefail

if [ "$#" -lt 4 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    cat <<'USAGE'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [option of train.py ...]

environment:
  GPUS (8)           processes of the job, one GPU each
  GPUS_PER_NODE (8)  of them on each machine
  CPUS_PER_TASK (5)  CPU cores of each process
  SRUN_ARGS          more arguments of srun
USAGE
    [ "$#" -ge 1 ] && { [ "$1" = -h ] || [ "$1" = --help ]; } && exit 0
    exit 2
fi

# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
exec srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
