# Sourced by the other scripts: makes .venv once, installs requirements.txt when it or pyproject.toml
# has changed, activates the environment. PYTHON picks the interpreter (3.10 - 3.13), MORE_VENV the
# folder. In an installed package there is nothing to make: the active environment is the one.
MORE_LAUNCH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ ! -f "$MORE_LAUNCH/../requirements.txt" ]; then
    python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("more") is None)' && return
    echo "error: python does not find the package more; activate the environment that has it" >&2
    return 1
fi
cd "$MORE_LAUNCH/.."
MORE_VENV="${MORE_VENV:-.venv}"
case "$MORE_VENV" in /*) ;; *) MORE_VENV="$PWD/$MORE_VENV" ;; esac

find_python() {
    for name in "${PYTHON:-}" python3.11 python3.12 python3.10 python3.13 python3; do
        if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 && "$name" -c \
            'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: no Python 3.10 - 3.13 with venv found; install one or set PYTHON=/path/to/python" >&2
    return 1
}

if [ ! -x "$MORE_VENV/bin/python" ]; then
    python="$(find_python)"
    echo "making $MORE_VENV with $python"
    "$python" -m venv "$MORE_VENV"
fi
wanted="$(cat requirements.txt pyproject.toml | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$MORE_VENV/.requirements" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing requirements.txt (a few minutes the first time)"
    "$MORE_VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
    echo "$wanted" > "$MORE_VENV/.requirements"
fi
export PATH="$MORE_VENV/bin:$PATH"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
