"""Charts of how far the confidence of scored masks can be trusted, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from more.evaluation.charts import kept_svg, reliability_svg
from more.evaluation.score_result import percent
from more.evaluation.training_record import FEWEST


def trust_charts(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two charts for every set that stores confidence: its reliability, and what leaving out
    doubtful pixels gains.

    Args:
        scores: rows of `read_scores`.

    Returns:
        `name`, `last` (a figure beside it), and `svg`, or `values` as text where there are fewer
        than three points to draw.
    """
    charts = []
    for record in scores:
        found = record.get("calibration")
        if found:
            name = f"{record['name']} on {record.get('data', '?')}"
            charts += [_reliability(name, found), _kept(name, found)]
    return charts


def _reliability(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Share of right pixels by confidence."""
    bins = [row for row in found["bins"] if row["pixels"]]
    chart = {"name": f"{name}: reliability", "last": f"error {percent(found['error'])} %"}
    if len(bins) < FEWEST:
        return chart | {"values": ", ".join(
            f"{percent(row['accuracy'])} % right at confidence {percent(row['confidence'])} %"
            for row in bins)}
    return chart | {"svg": reliability_svg(
        f"reliability {name}", [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins], [row["pixels"] / found["pixels"] for row in bins])}


def _kept(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """mIoU of the pixels kept by their share."""
    steps = [row for row in found["curve"] if row["kept"] and row["miou"] is not None]
    chart = {"name": f"{name}: pixels kept", "last": ""}
    different = {row["kept"]: row for row in steps}  # of thresholds that keep the same, the last
    if len(different) < FEWEST:
        return chart | {"values": ", ".join(
            f"up to {row['threshold']:g}: {percent(row['kept'])} % kept, mIoU "
            f"{percent(row['miou'])} %" for row in different.values()) or "no pixel is kept"}
    return chart | {"svg": kept_svg(
        f"pixels kept {name}", [row["kept"] for row in steps], [row["miou"] for row in steps],
        [row["threshold"] for row in steps])}
