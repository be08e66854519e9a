#!/usr/bin/env bash
# Train on a cluster that Slurm manages. A job that a signal has ended is queued again and goes on.
set -euo pipefail

if [ "$#" -lt 4 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    cat <<'USAGE'
usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [option of train.py ...]

Called in a batch script, it lets the job be queued again when training has saved and ended by a
signal (exit status 75; sbatch --requeue --signal=TERM@120 sends one two minutes before the time
limit). The job then goes on from the newest checkpoint, as by --resume.

environment:
  GPUS (8)           processes of the job, one GPU each
  GPUS_PER_NODE (8)  of them on each machine
  CPUS_PER_TASK (5)  CPU cores of each process
  SRUN_ARGS          more arguments of srun
USAGE
    [ "$#" -ge 1 ] && { [ "$1" = -h ] || [ "$1" = --help ]; } && exit 0
    exit 2
fi

saved_and_ended=75
# A queued job must not start over, whatever it was started with.
resume=()
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || resume=(--resume)

# The signal is for the processes of srun; this script waits for what they answer.
trap : TERM HUP

status=0
# SRUN_ARGS holds several words on purpose.
# shellcheck disable=SC2086
srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}" \
    ${resume[@]+"${resume[@]}"} || status=$?

if [ "$status" -eq "$saved_and_ended" ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "training was saved and ended by a signal: job $SLURM_JOB_ID is queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
