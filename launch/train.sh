#!/usr/bin/env bash
# Train on every device of this machine: launch/train.sh CONFIG --train SET [--val SET] [...]
# GPUs: one rank each (RANKS overrides); none: one rank on the CPU.
# RESTARTS=n: begin again from the newest checkpoint up to n times when a rank dies (default 0).
# SIGTERM, SIGUSR1 or Ctrl-C: all ranks write a checkpoint after the step they are in, then end.
# So does `touch RUN/stop`. Exit code: 0 finished, 75 stopped (the same command continues), else
# an error.
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
    sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$MORE_LAUNCH/stoppable.sh"
find_run "$@"
begin_run
ranks="${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
if [ "$ranks" -eq 1 ] && [ "${RESTARTS:-0}" -eq 0 ]; then
    exec python -m more train "$@"
fi
restarts=()
[ "${RESTARTS:-0}" -eq 0 ] || restarts=(--max_restarts="$RESTARTS")
# Agent and workers must not share one store: a restarted group would find stale keys in it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# The -- keeps torchrun from reading --run as a short form of its own --run-path.
run_stoppable torchrun --standalone --nproc_per_node="$ranks" "${restarts[@]}" \
    -m more -- train "$@"
settle 0
[ "$state" != stopped ] || code=$STOPPED
exit "$code"
