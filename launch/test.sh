#!/usr/bin/env bash
# Set-up, then the default test suite. More: `launch/test.sh -m slow`, `launch/test.sh tests/data`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m pytest -q "$@"
