"""The confusion matrix of a result as the report shows it: parts of each true class in per cent."""

from __future__ import annotations

from typing import Any

import numpy as np

from more.evaluation.score_result import Result

MOST = 30  # classes: a larger matrix is not read by anyone
PAIRS = 8


def confusion_table(result: Result) -> dict[str, Any]:
    """Rows of the matrix and the most frequent mistakes.

    Returns:
        `name`, `route`, `names` of the columns, `rows` of `name` and `cells` (parts 0..1; rows
        are true classes, of which only those with truth are there), `left_out` (number of classes
        that are not shown, those with the fewest mistakes) and `pairs` (`true`, `predicted`,
        `part` of the true class's pixels), most pixels first.
    """
    counts = np.asarray(result.matrix, np.int64)
    true = counts.sum(1)
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(0) + wrong.sum(1)
    there = np.flatnonzero((true > 0) | (counts.sum(0) > 0))
    kept = sorted(sorted(there.tolist(), key=lambda k: (k > 0, -mistakes[k]))[:MOST])
    parts = counts / np.maximum(true, 1)[:, None]
    names = result.class_names
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    return {"name": result.name, "route": result.route, "names": [names[k] for k in kept],
            "rows": [{"name": names[k], "cells": [float(parts[k, j]) for j in kept],
                      "own": kept.index(k)} for k in kept if true[k]],
            "left_out": len(there) - len(kept),
            "pairs": [{"true": names[t], "predicted": names[p], "part": float(parts[t, p])}
                      for t, p in pairs if wrong[t, p]]}
