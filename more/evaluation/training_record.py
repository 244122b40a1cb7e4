"""What a run's log says of its training: curves, minutes, throughput, how far it got."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from more.evaluation.charts import curve_svg
from more.evaluation.words import TERMS

OTHERS = {"learning rate": "of the first group of parameters",
          "images per second": "mean between two lines of the log"}
FEWEST = 3  # points of a curve: two make a line that means nothing


def read_log(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Records of `log.jsonl` by step; of steps that a resumed run wrote twice, the later one.

    Lines that do not parse (a run killed while writing) are counted in `notes`.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        notes.append("log.jsonl is not in this run: no curves.")
        return []
    merged: dict[int, dict[str, Any]] = {}
    bad = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            merged.setdefault(int(record["step"]), {}).update(record)
        except (ValueError, KeyError, TypeError):
            bad += bool(line.strip())
    if bad:
        notes.append(f"log.jsonl: {bad} unreadable line{'s' if bad > 1 else ''} left out.")
    return [merged[step] for step in sorted(merged)]


def seconds_of(log: list[dict[str, Any]]) -> float | None:
    """Seconds that the updates took, without evaluations and pauses; None when not recorded."""
    total, before = 0.0, 0
    for record in log:
        if "seconds_per_step" in record:
            total += float(record["seconds_per_step"]) * (record["step"] - before)
        if "terms" in record:
            before = record["step"]
    return total or None


def throughput(log: list[dict[str, Any]]) -> float | None:
    """Images a second over all updates: all images over all the time; None when not recorded."""
    images = seconds = 0.0
    before = 0
    for record in log:
        if "terms" not in record:
            continue
        speed, steps = record.get("images_per_s"), record["step"] - before
        before = record["step"]
        if speed:
            each = float(record.get("seconds_per_step", 1.0))  # old logs: every update alike
            images, seconds = images + speed * each * steps, seconds + each * steps
    return images / seconds if seconds else None


def progress(run: Path, log: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """`step`, `iterations` and `state` of a run, by its status where there is one.

    The log has a line every some updates only, so that its last line can be older.
    """
    try:
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = {}
    status = status if isinstance(status, dict) else {}
    logged = max((record["step"] for record in log if "terms" in record), default=None)
    planned = config.get("train") if isinstance(config.get("train"), dict) else {}
    return {"step": status.get("step", logged), "state": status.get("state"),
            "iterations": status.get("iterations", planned.get("iterations"))}


def curves(log: list[dict[str, Any]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Charts of every loss term, the evaluations, the learning rate and the throughput.

    Returns:
        Charts with `name`, `about`, `last` and `svg`; and, as `name`, `about` and `values`,
        quantities that are no curve: fewer than three points, or a term that is switched off
        (always 0).
    """
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in log:
        for name, value in _numbers(record).items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(record["step"])
            values.append(value)
    known = {f"loss {name}": place for place, name in enumerate(TERMS)}
    names = sorted(series, key=lambda name: (known.get(name, len(TERMS)),
                                             not name.startswith("loss"), name))
    charts, few = [], []
    for name in names:
        steps, values = series[name]
        if name.startswith("loss ") and not any(values):
            few.append({"name": name, "about": _about(name),
                        "values": "0 all the time: switched off"})
        elif len(values) < FEWEST:
            few.append({"name": name, "about": _about(name), "values": ", ".join(
                f"{_shown(name, value)} at update {step}"
                for step, value in zip(steps, values, strict=True))})
        else:
            charts.append({"name": name, "about": _about(name), "last": _shown(name, values[-1]),
                           "svg": curve_svg(name, steps, values, name.startswith("eval"))})
    return charts, few


def _shown(name: str, value: float) -> str:
    """A value as text: evaluations in per cent as everywhere on the page."""
    return f"{value:.2f} %" if name.startswith("eval ") else f"{value:.4g}"


def _about(name: str) -> str:
    if name.startswith("eval "):
        return "mIoU in % on the validation set while training"
    return OTHERS.get(name) or TERMS.get(name.removeprefix("loss "), "")


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Plain numbers of one record under the names of their charts."""
    out = {f"loss {name}": value for name, value in (record.get("terms") or {}).items()}
    rates = record.get("lr")
    if isinstance(rates, dict):
        rates = next(iter(rates.values()), None)
    out |= {"learning rate": rates, "images per second": record.get("images_per_s")}
    out |= {f"eval {name}": value for name, value in (record.get("eval") or {}).items()
            if name != "images"}
    return {name: float(value) for name, value in out.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
            and math.isfinite(value)}
