"""The figures of several experiments side by side, read from the folders of their runs.

An experiment is one or more runs that differ in the seed. A column is a set of seeds or masks on
the images that it was scored on, `FOLDER:set@data` (FOLDER: of stage two inside the run), or the
share that such a set of stage two reaches of full supervision, `FOLDER:set@data / true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from more.errors import UserError, nearest
from more.evaluation.routes import route_letter
from more.evaluation.run_scores import order, read_json, read_scores, reference

SHARE = " / true"


@dataclass(frozen=True)
class RunScores:
    """One run.

    Attributes:
        path: its folder.
        seed: `train.seed`; None where it was not recorded.
        rows: its scores by column.
        twice: columns that two files score, with those files.
    """

    path: Path
    seed: int | None
    rows: dict[str, dict[str, Any]]
    twice: dict[str, list[str]]


@dataclass(frozen=True)
class Cell:
    """An experiment's figures in one column.

    Attributes:
        values: one a run; None where the run has no score.
    """

    values: list[float | None]

    @property
    def known(self) -> list[float]:
        """The values of the runs that have the score."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Mean over these runs."""
        return mean(self.known) if self.known else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over these runs; None for fewer than two."""
        return stdev(self.known) if len(self.known) > 1 else None

    def text(self) -> str:
        """In per cent, such as `68.1 ± 0.2 (2 of 3)`; a dash where no run has the score."""
        if self.mean is None:
            return "–"
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        some = len(self.known) < len(self.values)
        return (f"{100 * self.mean:.1f}{spread}"
                + (f" ({len(self.known)} of {len(self.values)})" if some else ""))


@dataclass(frozen=True)
class Experiments:
    """Several experiments in one table.

    Attributes:
        experiments: runs of every experiment, by its name.
        columns: what is shown, in this order.
        classes: means are over these only; None takes all.
    """

    experiments: dict[str, list[RunScores]]
    columns: list[str]
    classes: list[str] | None = None

    def value(self, run: RunScores, column: str) -> float | None:
        """What a run has in a column, as a fraction; None without that score."""
        row = run.rows.get(column.removesuffix(SHARE))
        if row is None or not column.endswith(SHARE):
            return self._figure(row)
        full = self._figure(reference(row, list(run.rows.values())))
        own = self._figure(row)
        return own / full if own is not None and full else None

    def cell(self, name: str, column: str) -> Cell:
        """An experiment's values in a column."""
        return Cell([self.value(run, column) for run in self.experiments[name]])

    def routes(self, column: str) -> dict[str, list[str]]:
        """How the column's sets were made: every sentence with the experiments it is true of."""
        found: dict[str, list[str]] = {}
        for name, row in self._rows(column):
            found.setdefault(str(row.get("route")), []).append(name)
        return {route: list(dict.fromkeys(names)) for route, names in found.items()}

    def warnings(self) -> list[str]:
        """Columns whose figures must not be compared with each other, and why."""
        lines = []
        for column in dict.fromkeys(column.removesuffix(SHARE) for column in self.columns):
            rows = [row for _, row in self._rows(column)]
            if len({(route_letter(str(row.get("route"))), row["supervision"]) for row in rows}) > 1:
                lines.append(f"{column}: inference routes or supervision differ; these figures "
                             "must not be compared with each other")
            for key, what in (("data_digest", "versions of the data"), ("images_digest", "images")):
                if len({row[key] for row in rows if row.get(key)}) > 1:
                    lines.append(f"{column}: scored on different {what}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, as fractions; None where there is none."""
        def cell(name: str, column: str) -> dict[str, Any]:
            found = self.cell(name, column)
            return {"mean": found.mean, "spread": found.spread, "runs": len(found.known)}

        return {
            "classes": self.classes, "warnings": self.warnings(),
            "columns": {column: self.routes(column) for column in self.columns},
            "experiments": {name: {
                "cells": {column: cell(name, column) for column in self.columns},
                "runs": [{"run": str(run.path), "seed": run.seed,
                          "values": {column: self.value(run, column) for column in self.columns}}
                         for run in runs]} for name, runs in self.experiments.items()}}

    def _rows(self, column: str) -> list[tuple[str, dict[str, Any]]]:
        """The rows behind a column, each with its experiment."""
        label = column.removesuffix(SHARE)
        return [(name, run.rows[label]) for name, runs in self.experiments.items()
                for run in runs if label in run.rows]

    def _figure(self, row: dict[str, Any] | None) -> float | None:
        """mIoU of a row over the classes asked for, those without truth left out."""
        if row is None or self.classes is None:
            return row and row.get("miou")
        if not set(self.classes) <= set(row["classes"]):
            return None  # of other data: a mean over the rest would be another figure
        chosen = [row["classes"][name] for name in self.classes]
        # A class that was predicted but has no truth has an IoU of 0, and no recall.
        found = [figures["iou"] for figures in chosen if figures.get("iou") is not None
                 and figures.get("recall", 0) is not None]
        return mean(found) if found else None


def read_experiments(experiments: Sequence[str], columns: Sequence[str] | None = None,
            classes: Sequence[str] | None = None, notes: list[str] | None = None) -> Experiments:
    """Read the scores of all runs.

    Args:
        experiments: `NAME=RUN[,RUN…]` each.
        columns: which to show, and in which order; shares of the sets among them are added.
            None: all that any run has, in the order in which the stages make them.
        classes: take means over these only; None takes the mIoU as scored.
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
    return Experiments(groups, list(dict.fromkeys(chosen)),
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
