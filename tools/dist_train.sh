#!/usr/bin/env bash
# Distributed training on one machine: tools/dist_train.sh CONFIG PROCESSES [options of cnv2 train]
# Without CUDA the processes run on CPUs with gloo. NNODES, NODE_RANK, MASTER_ADDR and PORT serve several machines.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES [options of cnv2 train]" >&2
    exit 2
fi
CONFIG=$1
PROCESSES=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
