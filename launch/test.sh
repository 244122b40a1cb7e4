#!/usr/bin/env bash
# Set-up, then the default test suite. More: `launch/test.sh -m slow`, `launch/test.sh tests/data`.
# One process per core, at most four, each with whole files; `-n 0` runs all tests in one process,
# and so does -m (slow tests measure time) unless there is a -n beside it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cores="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)"
spread=()
case " $* " in
    *" -n"* | *" --numprocesses"* | *" --dist"* | *" -m"* | *" --pdb "* | *" no:xdist "*) ;;
    *) [ "$cores" -eq 1 ] || spread=(-n "$((cores < 4 ? cores : 4))") ;;
esac
# In the order of tests/conftest.py: the longest files first, or one of them would end alone.
[ ${#spread[@]} -eq 0 ] || spread+=(--dist loadfile --no-loadscope-reorder)
exec python -m pytest -q "${spread[@]}" "$@"
