"""`python -m more COMMAND`."""

import os

# Before torch loads OpenMP: threads without work sleep. Spinning, they take the time of the loader
# and of whatever else runs here; beside two busy processes a step took up to three times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from more.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
