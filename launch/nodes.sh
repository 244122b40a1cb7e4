#!/usr/bin/env bash
# Train on several machines. Run this same line on each of them, within 10 minutes:
#   bash launch/nodes.sh HOST0 NODES CONFIG --train SET --run DIR [...]
# HOST0: name or address of the first machine, where all meet (PORT, default 29500). NODES: how many.
# Project, data and DIR have the same paths on all machines (a shared file system).
# One rank a GPU, or one on the CPU; RANKS overrides. RDZV_ID tells jobs with one HOST0 apart.
# RESTARTS (default 3): how often the ranks begin again from the newest checkpoint when one of them
# dies. A machine that was lost joins again by the same line; if it was HOST0, so must the others.
# SIGTERM, SIGUSR1 or Ctrl-C on any machine, or `touch DIR/stop`: checkpoint after this step, end.
# Exit code: 0 finished, 75 stopped (the same lines continue), else an error.
# Or from one machine by ssh, without restarts: deepspeed --hostfile, see launch/README.md.
set -euo pipefail
if [ $# -lt 3 ] || [ "$1" = "-h" ] || [ "$1" = "--help" ]; then
    sed -n '2,12s/^# //p' "${BASH_SOURCE[0]}"
    [ $# -gt 0 ] && [ $# -lt 3 ] && [[ "$1" != -* ]] && exit 2
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
source "$MORE_LAUNCH/stoppable.sh"
host0="$1" nodes="$2"
if ! [[ "$nodes" =~ ^[1-9][0-9]*$ ]]; then
    say "error: NODES is \"$nodes\", not a number; fix: bash launch/nodes.sh HOST0 NODES CONFIG …"
    exit 2
fi
id="${RDZV_ID:-more-$(cksum <<< "$*" | cut -d' ' -f1)}"
shift 2
found="$(python "$MORE_LAUNCH/address.py" "$host0")"
read -r own is_host <<< "$found"
ranks="${RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
port="${PORT:-29500}"
# Whoever starts first waits for the meeting point as long as for the other machines.
meeting="read_timeout=600,join_timeout=600${is_host:+,is_host=$is_host}"
say "$nodes machines meet at $host0:$port as $id; this one is $own with $ranks rank(s)"
# Agent and workers must not share one store: a restarted group would find stale keys in it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# The -- keeps torchrun from reading --run as a short form of its own --run-path.
command=(torchrun --nnodes="$nodes" --nproc_per_node="$ranks" --max_restarts="${RESTARTS:-3}"
    --rdzv_backend=c10d --rdzv_endpoint="$host0:$port" --rdzv_id="$id" --rdzv_conf="$meeting"
    --local_addr="$own" -m more -- train "$@")
if [ -n "${SLURM_STEP_ID:-}" ]; then
    trap '' USR1  # for the ranks: torchrun itself would die of it
    exec "${command[@]}"  # slurm/train.sbatch looks after signals and the result
fi
find_run "$@"
[ "$is_host" = 0 ] || rm -f "$run/stop"
before="$(stamp)"
run_stoppable "${command[@]}"
settle "${SETTLE:-30}"
[ "$state" != stopped ] || code=$STOPPED
exit "$code"
