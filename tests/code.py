"""What `python -c TEXT` and `python FILE` do, as a module: so that the process may be forked.

    python -m tests.code TEXT [ARGUMENT…]
"""

from __future__ import annotations

import sys

# The text that runs FILE with its arguments: FILE is the second argument, the first a folder that
# is searched for modules before all others, or empty.
FILE = """
import runpy, sys
stubs, sys.argv[:] = sys.argv[1], sys.argv[2:]
sys.path[:0] = [stubs] if stubs else []
runpy.run_path(sys.argv[0], run_name="__main__")
"""

if __name__ == "__main__":
    exec(compile(sys.argv.pop(1), "<text>", "exec"), {"__name__": "__main__"})
