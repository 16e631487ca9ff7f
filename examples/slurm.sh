#!/bin/bash
# Four hosts of eight GPUs on one run: RECIPE=ultramem-1.6b-x12 DATA=… OUT=… sbatch examples/slurm.sh
#SBATCH --job-name=ultramem
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# The run's folder and the data must lie where every host sees them. SIGTERM, five minutes before the end or at a
# preemption, saves and stops; the same job, queued again, goes on.
set -euo pipefail
read -r first_host < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 --shutdown-timeout 240 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first_host:29500" \
  -m ultramem train "$RECIPE" --data "$DATA" --out "$OUT"
