"""One rank of a refinement with the small sets: SEEDS DATA OUT FUNCTION.

    torchrun --nproc_per_node=2 -m tests.jobs.rank_job …
"""

from __future__ import annotations

import sys
from pathlib import Path

from more.filtering.parameters import CRFParams
from more.progress import Tally
from more.refinement.image import Refinement
from more.refinement.refine import refine
from tests.refinement import sets


def main(seeds: str, data: str, out: str, function: str) -> int:
    """Refine this rank's share; the exit code of the command."""
    work = {} if function == "refine_shard" else {"shard_function": getattr(sets, function)}
    tally = refine(Path(seeds), Path(data), Path(out), Refinement(CRFParams(iterations=3)), 1,
                   3, executor="ranks", report=Tally.print, **work)
    return tally.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
