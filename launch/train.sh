#!/usr/bin/env bash
# Train on every device of this machine: launch/train.sh CONFIG --train SET [--val SET] [...]
# GPUs: one rank each (RANKS overrides); none: one rank on the CPU.
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
    sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ranks="${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
if [ "$ranks" -eq 1 ]; then
    exec python -m more train "$@"
fi
# Agent and workers must not share one store: a restarted group would find stale keys in it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# The -- keeps torchrun from reading --run as a short form of its own --run-path.
exec torchrun --standalone --nproc_per_node="$ranks" -m more -- train "$@"
