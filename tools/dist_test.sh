#!/usr/bin/env bash
# Evaluate with several processes: one per GPU, or on a machine without a GPU that many on the CPU.
set -euo pipefail

if [ "$#" -lt 3 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    cat <<'USAGE'
usage: dist_test.sh CONFIG CHECKPOINT GPUS [option of test.py ...]

  CONFIG      path of a config file, or the name of a shipped config
  CHECKPOINT  checkpoint file to evaluate
  GPUS        number of processes on this machine; each uses one GPU, or the CPU where there is none

environment, for jobs on several machines:
  NNODES (1)  NODE_RANK (0)  MASTER_ADDR (127.0.0.1)  PORT (29500)
USAGE
    [ "$#" -ge 1 ] && { [ "$1" = -h ] || [ "$1" = --help ]; } && exit 0
    exit 2
fi

exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
