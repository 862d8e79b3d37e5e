#!/usr/bin/env bash
#SBATCH --job-name=chiasm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
#   sbatch launch/slurm.sh train recipes.py --out /shared/runs/a --resume auto
#
# One torchrun a machine, which starts a process a GPU; each computes on the GPU of its LOCAL_RANK (on
# machines without: EACH=2 and train ... --device cpu). Two minutes before its time is up the job is
# told (SIGTERM), writes a checkpoint and ends; --requeue starts it again and --resume auto goes on.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${EACH:-${SLURM_GPUS_ON_NODE:-8}}" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" \
  -m chiasm "$@"
