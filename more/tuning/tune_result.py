"""What `more tune` found: as JSON, as a table, as lines of text and as the command to run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE

from more import __version__
from more.evaluation.score_result import percent, plain
from more.evaluation.words import route_lines
from more.progress import PlainTable
from more.refinement.image import Refinement
from more.tuning.figures import Difference, PointScores
from more.tuning.grid import Axis, marked, settings_at, value_of
from more.tuning.sample import Sample

FORMAT = 1
LISTED = 10


@dataclass(frozen=True)
class TuneResult:
    """All points of a search with their figures.

    Attributes:
        name: what the seeds are called.
        route: how masks of them come about.
        axes: what was varied.
        random: number of points drawn from the product; None: all.
        seed: of sample, draw and bootstrap.
        points: settings; the reference is among them.
        scores: figures of each.
        reference: number of the point to compare with.
        reference_name: what to call it.
        best: number of the point with the highest mIoU among those that keep enough.
        min_kept: the share of pixels that such a point keeps.
        difference: best less reference.
        sample: the images.
        failed: those of them that could not be counted, with reasons.
        class_names: background first.
        provenance: of the figures: digests, engine, seeds.
    """

    name: str
    route: str
    axes: list[Axis]
    random: int | None
    seed: int
    points: list[Refinement]
    scores: list[PointScores]
    reference: int
    reference_name: str
    best: int
    min_kept: float
    difference: Difference
    sample: Sample
    failed: list[tuple[str, str]]
    class_names: list[str]
    provenance: dict[str, Any]

    @property
    def images(self) -> int:
        """Number of images that were counted."""
        return len(self.sample.ids) - len(self.failed)

    def ranked(self) -> list[int]:
        """Numbers of the points that keep enough pixels, best first; the earlier of equals."""
        return ranking(self.scores, self.min_kept)

    def to_json(self) -> dict[str, Any]:
        """The form of `tune.json`: the same search gives the same values."""
        return plain({
            "format": FORMAT, "tool": "more tune", "version": __version__, "name": self.name,
            "route": self.route, "grid": {axis.key: list(axis.values) for axis in self.axes},
            "random": self.random, "seed": self.seed, "min_kept": self.min_kept,
            "sample": {"images": self.sample.ids, "per_class": self.sample.per_class,
                       "failed": [list(pair) for pair in self.failed]},
            "supervision": self.supervision(), "reference": self.reference,
            "reference_name": self.reference_name, "best": self.best,
            "difference": asdict(self.difference), "provenance": self.provenance,
            "points": [self._point(number) for number in range(len(self.points))],
        })

    def _point(self, number: int) -> dict[str, Any]:
        how, found = self.points[number], self.scores[number]
        return {"settings": how.record(), "at": settings_at(how, self.axes),
                "miou": found.scores.miou, "miou_all": found.miou_all,
                "pixel_accuracy": found.scores.pixel_accuracy,
                "precision": found.precision, "recall": found.recall, "kept": found.kept,
                "iou": dict(zip(self.class_names, found.scores.iou, strict=True))}

    def table(self) -> PlainTable:
        """A rich table: the best points, then the reference."""
        table = PlainTable(title=f"{self.name}: {self.route}", title_justify="left", box=SIMPLE,
                      padding=(0, 1, 0, 0), caption="\n".join(self.notes()), caption_justify="left")
        names = [axis.key.removeprefix("crf.").replace("_", " ") for axis in self.axes]
        for name in (*names, "mIoU", "gain", "precision", "recall", "kept"):
            table.add_column(name, justify="right", overflow="fold")
        shown = self.ranked()[:LISTED]
        for number in shown:
            table.add_row(*self._cells(number), style="bold" if number == self.best else None)
        table.add_section()
        table.add_row(*self._cells(self.reference), style="cyan")
        return table

    def _cells(self, number: int) -> list[str]:
        how, found = self.points[number], self.scores[number]
        gain = found.scores.miou - self.scores[self.reference].scores.miou
        return [*(marked(axis.key, value_of(how, axis.key)) for axis in self.axes),
                percent(found.scores.miou), f"{100 * gain:+.2f}", percent(found.precision),
                percent(found.recall), f"{100 * found.kept:.1f}"]

    def notes(self) -> list[str]:
        """Lines of text that belong to the figures."""
        lines = [f"{len(self.points)} points on {self.images} labelled images; percent; gain over "
                 f"the {self.reference_name} settings, which are the last row"]
        short = len(self.points) - len(self.ranked())
        if short:
            lines.append(f"not listed: {short} that keep less than {100 * self.min_kept:g} % of "
                         "the pixels, as leaving pixels out makes a mIoU look better")
        if self.sample.absent:
            lines.append(f"not in the sample: {', '.join(self.sample.absent)}")
        return [*lines, *self._worth(), self.supervision(), *route_lines([self.route])]

    def _worth(self) -> list[str]:
        gap, name = self.difference, self.reference_name
        if self.best == self.reference:
            return [f"the {name} settings are the best of these points"]
        lines = [f"gain of the best over {name}: {100 * gap.miou:+.2f}"]
        if gap.low is None or gap.high is None:
            return lines
        lines[0] += (f", 95 % interval over images {100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
                     + ("" if gap.certain else ": may be chance, try more images"))
        if gap.unseen is not None and gap.unseen_positive is not None:
            lines.append(f"chosen on a part of the images and scored on the others: "
                         f"{100 * gap.unseen:+.2f} on average, above zero in "
                         f"{100 * gap.unseen_positive:.0f} % of {gap.draws} draws")
        return lines

    def verdict(self) -> str:
        """Whether the best point is worth a change, in one line."""
        gap = self.difference
        if self.best == self.reference:
            return (f"the present ({self.reference_name}) settings are the best of these points: "
                    "nothing to change")
        if gap.low is None or gap.high is None:
            return "one image tells nothing about others: take more before changing settings"
        interval = f"95 % interval {100 * gap.low:+.2f} to {100 * gap.high:+.2f}"
        if gap.certain:
            return f"gain {100 * gap.miou:+.2f}, {interval}"
        return (f"no gain is shown: {100 * gap.miou:+.2f}, but its {interval} includes 0")

    def supervision(self) -> str:
        """What the search used beyond image tags."""
        return (f"chosen with the true masks of {self.images} images: masks made with these "
                "settings are no longer supervised by image tags alone; say so with the scores")


def ranking(scores: Sequence[PointScores], min_kept: float) -> list[int]:
    """Numbers of the points that keep at least `min_kept`, best first; the earlier of equals."""
    kept = [n for n, found in enumerate(scores)
            if found.kept >= min_kept and not math.isnan(found.scores.miou)]
    return sorted(kept, key=lambda n: -scores[n].scores.miou)


def refine_command(how: Refinement, seeds: str, data: str, out: str, engine: str) -> str:
    """The `more refine` line of a point, for a shell; the released values need no option."""
    parts = ["python", "-m", "more", "refine", seeds, "--data", data, "--out", out]
    released = Refinement()
    if how.threshold != released.threshold:
        parts += ["--threshold", repr(float(how.threshold))]
    if how.ignore_below is not None:
        parts += ["--ignore-below", repr(float(how.ignore_below))]
    if how.ignore_disagreement:
        parts.append("--ignore-disagreement")
    for key, value in asdict(how.params).items():
        if value != getattr(released.params, key):
            parts += ["--set", f"crf.{key}={value!r}"]
    return shlex.join(parts + (["--engine", engine] if engine != "auto" else []))
