"""Reads the scores of several experiments from the folders of their runs; no set is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from more.errors import UserError, nearest
from more.evaluation.results import SHARE, Results, RunScores
from more.evaluation.saved import order, read_json, read_scores, reference


def collect(experiments: Sequence[str], columns: Sequence[str] | None = None,
            classes: Sequence[str] | None = None, notes: list[str] | None = None) -> Results:
    """Read the scores of all runs.

    Args:
        experiments: `NAME=RUN[,RUN…]` each.
        columns: which to show, and in which order; shares of the sets among them are added.
            None: all that any run has, in the order in which the stages make them.
        classes: take means over these only; None: the mIoU as scored.
        notes: gets a line for every score that could not be read.

    Raises:
        UserError: not of this form, a run without scores or with two scores of one column, an
            unknown column or class.
    """
    notes = [] if notes is None else notes
    groups = {name: [_read_run(path, notes) for path in paths]
              for name, paths in _parse(experiments).items()}
    runs = [run for group in groups.values() for run in group]
    rows = {label: row for run in reversed(runs) for label, row in run.rows.items()}
    sets = sorted(rows, key=lambda label: order(rows[label]))
    shares = [label + SHARE for label in sets
              if any(reference(run.rows[label], list(run.rows.values()))
                     for run in runs if label in run.rows)]
    chosen = [*sets, *shares] if columns is None else list(columns)
    for column in chosen:
        _check("column", column, [*sets, *shares])
    chosen += [column + SHARE for column in chosen if column + SHARE in shares]
    for label in dict.fromkeys(column.removesuffix(SHARE) for column in chosen):
        _check_once(label, runs)
    if classes is not None:
        known = [name for column in chosen for name in rows[column.removesuffix(SHARE)]["classes"]]
        for name in classes:
            _check("class", name, list(dict.fromkeys(known)))
    return Results(groups, list(dict.fromkeys(chosen)),
                   None if classes is None else list(dict.fromkeys(classes)))


def _parse(experiments: Sequence[str]) -> dict[str, list[Path]]:
    """Run folders by experiment."""
    found: dict[str, list[Path]] = {}
    for text in experiments:
        name, _, runs = text.partition("=")
        paths = [Path(run) for run in runs.split(",")]
        if not name or not all(runs.split(",")):
            raise UserError(f"{text!r}: is not an experiment", "give NAME=RUN or NAME=RUN,RUN,…")
        if name in found:
            raise UserError(f"{name}: is given twice", f"give all its runs at once: {name}=RUN,RUN")
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError(f"{name}: has a run twice, which would make the spread too small",
                            "name every run once")
        found[name] = paths
    return found


def _read_run(path: Path, notes: list[str]) -> RunScores:
    """Scores and seed of one run."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder", "give the --run folder of `more train`")
    said: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    files: dict[str, list[str]] = {}
    for row in read_scores(path, said):
        label = f"{row['folder']}:".lstrip(":") + f"{row['set']}@{row.get('data', '?')}"
        rows.setdefault(label, row)
        files.setdefault(label, []).append(row["file"])
    if not rows:
        raise UserError(f"{path}/scores: no score ({' '.join(said)})",
                        f"more evaluate … --save {path}/scores/NAME.json")
    config = read_json(path / "config.json", said)
    train = config.get("train") if isinstance(config, dict) else None
    notes += [f"{path}: {line}" for line in said]
    return RunScores(path, train.get("seed") if isinstance(train, dict) else None, rows,
                     {label: names for label, names in files.items() if len(names) > 1})


def _check_once(column: str, runs: Sequence[RunScores]) -> None:
    """No run may have two figures for a column (one at another threshold, say)."""
    for run in runs:
        if column in run.twice:
            raise UserError(f"{run.path}: {' and '.join(run.twice[column])} both score {column}",
                            "keep one of them under scores/, or choose other --columns")


def _check(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = nearest(name, known)
        raise UserError(f"{what} {name!r} is in none of these scores",
                        f"did you mean {near}?" if near else f"known: {', '.join(known)}")
