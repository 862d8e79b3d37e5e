#!/usr/bin/env bash
# One machine, or this machine's part of several: one process an NVIDIA GPU (or, without any, 2 on the
# CPU). Each computes on the GPU of its LOCAL_RANK, as --device auto, the default, chooses it.
#
#   launch/torchrun.sh train recipes.py --out runs/a --resume auto
#   NODES=2 NODE=0 HEAD=10.0.0.1 launch/torchrun.sh train ...     # and NODE=1 on the other machine
#
# All machines must see the folder of the run. A process that dies takes the others with it; they are
# started again up to RESTARTS times, and --resume auto goes on from the newest checkpoint.
set -euo pipefail
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
if [ "$gpus" -eq 0 ] && [ -z "${EACH:-}" ]; then
  export CHIASM_DEVICE=${CHIASM_DEVICE:-cpu}  # a Mac has one GPU, which two processes do not share
fi
each=${EACH:-$((gpus > 0 ? gpus : 2))}
meet=(--standalone)
if [ "${NODES:-1}" -gt 1 ]; then
  meet=(--node-rank "${NODE:?which machine this is, from 0}"
    --master-addr "${HEAD:?address of machine 0}" --master-port "${PORT:-29500}")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / each > 0 ? $(nproc) / each : 1))}
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes "${NODES:-1}" --nproc-per-node "$each" \
  --max-restarts "${RESTARTS:-3}" "${meet[@]}" -m chiasm "$@"
