#!/usr/bin/env bash
# Runs megalm under torchrun, on one node or as one of several:
#
#   bash launch/torchrun.sh train configs/pretrain/quickstart.yaml optimizer.lr=1e-3
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash launch/torchrun.sh train ...       on each node, with its NODE_RANK
#
# NPROC_PER_NODE defaults to the GPUs of this node, or 1 without any; MASTER_PORT to 29500.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NNODES=N NODE_RANK=R MASTER_ADDR=HOST] bash launch/torchrun.sh train CONFIG [key=value ...]" >&2
    exit 2
fi
nnodes=${NNODES:-1}
if [ "$nnodes" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "torchrun.sh: NNODES=$nnodes needs MASTER_ADDR, the name of the node with NODE_RANK=0" >&2
    exit 2
fi

gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
nproc=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(getconf _NPROCESSORS_ONLN) / nproc > 0 ? $(getconf _NPROCESSORS_ONLN) / nproc : 1))}

python=${MEGALM_VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m torch.distributed.run \
    --nnodes "$nnodes" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$nproc" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" \
    -m megalm "$@"
