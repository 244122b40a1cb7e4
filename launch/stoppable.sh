# Sourced by train.sh, nodes.sh and slurm/train.sbatch: finds the run folder, turns a signal into
# the file RUN/stop, and tells a stopped run (exit code 75) from a finished one (0).
readonly STOPPED=75

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# find_run TRAIN-ARGUMENTS…: sets `run` from --run or --run-dir; else it is the folder two in that
# of --init, as in `more train`, else checkpoints/CONFIG_NAME.
find_run() {
    local config="" init="" settings=() name
    run=""
    while [ $# -gt 0 ]; do
        case "$1" in
            --run=* | --run-dir=*) run="${1#*=}" ;;
            --run | --run-dir) run="${2:-}" ;;
            --init=*) init="${1#*=}" ;;
            --init) init="${2:-}" ;;
            --set) settings+=(--set "${2:-}") ;;
            --set=*) settings+=("$1") ;;
            -*) ;;
            *) config="${config:-$1}" ;;
        esac
        if [[ "$1" == --* && "$1" != *=* && $# -gt 1 ]]; then shift; fi  # every option has a value
        shift
    done
    if [ -z "$run" ] && [ -d "$init" ]; then
        run="${init%/}/two"
    elif [ -z "$run" ]; then
        name="$(MORE_NEXT=off python -m more config "$config" "${settings[@]}")" || return
        run="checkpoints/$(sed -n "s/^name = ['\"]\(.*\)['\"]\$/\1/p" <<< "$name")"
    fi
}

stamp() { stat -c '%i %y' "$run/status.json" 2>/dev/null || true; }

# What this start of the run wrote last; nothing when status.json is an earlier start's.
final_state() {
    ls "$run" > /dev/null 2>&1 || true  # a network file system looks again
    [ "$(stamp)" = "$before" ] ||
        sed -n 's/.*"state": *"\([a-z]*\)".*/\1/p' "$run/status.json" 2>/dev/null || true
}

# A stop file that nobody obeyed would end the new start at once.
begin_run() {
    rm -f "$run/stop"
    before="$(stamp)"
}

ask_to_stop() {
    if [ -z "$asked" ] && mkdir -p "$run" && touch "$run/stop"; then
        asked=yes
        say "asked to stop: all ranks write a checkpoint after this step (once more: end at once)"
    elif [ -n "$child" ]; then
        kill "-$end_signal" "$child" 2>/dev/null || true
    fi
}

# run_stoppable COMMAND…: runs it to its end, whatever signals arrive; sets `code`.
# torchrun would answer SIGTERM by killing the ranks after 30 s, and die of SIGUSR1: it is deaf to
# both, whoever sends them to all processes. What ends it, and its ranks, is SIGQUIT.
run_stoppable() {
    local deaf=(USR1)
    asked="" child="" end_signal=TERM
    if [ "$1" = torchrun ]; then
        deaf=(USR1 TERM INT HUP) end_signal=QUIT
        export PET_SIGNALS_TO_HANDLE=SIGQUIT  # its option --signals_to_handle, if it has it
    fi
    trap ask_to_stop TERM USR1 INT HUP
    set -m  # a process group of its own: Ctrl-C reaches this script alone
    (trap '' "${deaf[@]}" && exec "$@") &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        if [ -z "$asked" ]; then
            wait "$child" || true
        else  # ranks that are just starting take the file for an old one and remove it
            [ -e "$run/stop" ] || touch "$run/stop" || true
            sleep 1
        fi
    done
    wait "$child" && code=0 || code=$?
    trap - TERM USR1 INT HUP
    rm -f "$run/stop"
}

# settle SECONDS: sets `state`; waits that long for another machine's last words to show up here.
settle() {
    local end=$((SECONDS + $1))
    while :; do
        state="$(final_state)"
        case "$state" in finished | stopped | failed) return ;; esac
        if [ "$code" -ne 0 ] || [ "$SECONDS" -ge "$end" ]; then return; fi
        sleep 1
    done
}
