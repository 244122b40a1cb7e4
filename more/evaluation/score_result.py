"""What `more evaluate` found: as JSON, as a table, as lines of text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from more.data.shards.format import make_folder, write_atomic
from more.errors import first_few
from more.evaluation.calibration import Calibration
from more.evaluation.metrics import Scores, dominant, mean_over
from more.evaluation.words import route_lines
from more.progress import PlainTable

LISTED = 12


@dataclass(frozen=True)
class Result:
    """What `more evaluate` found; classes are in pixel-value order, background first.

    Attributes:
        name: of the set that was scored.
        kind: "seeds" or "masks".
        data: name of the image set with the true masks.
        route: the sentence of `describe_route`.
        threshold: background threshold of seeds; None where none was used.
        class_names: background included.
        scores: figures by class and their means.
        images: how many were scored.
        unlabelled: share of true pixels that were predicted 255 and therefore left out.
        missing: ids of the data set that the scored set does not hold.
        per_image: mean IoU of each image over the classes that its truth or its prediction
            contains.
        subset: classes of an additional mean; None without one.
        sweep: mIoU by threshold.
        boundary: boundary IoU `[K]`; None where it was left out.
        boundary_width: of its bands, as a share of the diagonal.
        calibration: how far the confidence can be trusted; None where it was not counted.
        digests: of the data set and of the ids scored; they tell these apart from others.
        matrix: pixels `[K, K]`, true class first.
        truth: what is recorded of true masks in a folder; None where the data set holds them.
        truth_notes: lines about such masks.
    """

    name: str
    kind: str
    data: str
    route: str
    threshold: float | None
    class_names: list[str]
    scores: Scores
    images: int
    unlabelled: float
    missing: list[str]
    per_image: dict[str, float]
    subset: list[str] | None = None
    sweep: dict[float, float] = field(default_factory=dict)
    boundary: np.ndarray | None = None
    boundary_width: float | None = None
    calibration: Calibration | None = None
    digests: tuple[str, str] | None = None
    matrix: np.ndarray | None = None
    truth: dict[str, Any] | None = None
    truth_notes: list[str] = field(default_factory=list)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with truth."""
        return self.scores.miou

    @property
    def miou_subset(self) -> float | None:
        """Mean IoU over the classes asked for (those with truth); None when none were."""
        if self.subset is None:
            return None
        return mean_over(self.scores.iou, self._true() & np.isin(self.class_names, self.subset))

    @property
    def boundary_iou(self) -> float | None:
        """Mean boundary IoU over the classes with truth; None when it was left out."""
        return None if self.boundary is None else mean_over(self.boundary, self._true())

    @property
    def best(self) -> tuple[float, float] | None:
        """Threshold and mIoU of the best step of the sweep; None without one."""
        return max(self.sweep.items(), key=lambda item: item[1]) if self.sweep else None

    @property
    def missed(self) -> list[str]:
        """Classes with truth of which not one pixel is right."""
        true = self._true()
        return [name for row, name in enumerate(self.class_names)
                if true[row] and not self.scores.recall[row]]

    def _true(self) -> np.ndarray:
        return ~np.isnan(self.scores.recall)

    def to_json(self) -> dict[str, Any]:
        """The form of `evaluate --json`: plain numbers, undefined or infinite ones as None."""
        figures = self.scores
        out = {
            "name": self.name, "kind": self.kind, "data": self.data, "route": self.route,
            "threshold": self.threshold, "images": self.images, "missing": len(self.missing),
            "unlabelled": self.unlabelled, "miou": figures.miou,
            "pixel_accuracy": figures.pixel_accuracy, "mean_accuracy": figures.mean_accuracy,
            "precision": mean_over(figures.precision, self._true()),
            "recall": mean_over(figures.recall, self._true()),
            "confusion": mean_over(figures.confusion, self._true()),
            "classes_with_truth": int(self._true().sum()), "missed": self.missed,
            "classes": {name: {key: values[row] for key, values in self._per_class().items()}
                        for row, name in enumerate(self.class_names)},
            "worst": sorted(self.per_image, key=self.per_image.__getitem__)[:LISTED],
        }
        if self.boundary is not None:
            out |= {"boundary_iou": self.boundary_iou, "boundary_width": self.boundary_width}
        if self.calibration is not None:
            out["calibration"] = self.calibration.to_json()
        if self.digests is not None:
            out |= {"data_digest": self.digests[0], "images_digest": self.digests[1]}
        if self.truth is not None:
            out["truth"] = self.truth
        if self.subset is not None:
            out |= {"subset": self.subset, "miou_subset": self.miou_subset}
        if self.sweep:
            out |= {"sweep": {f"{at:.2f}": miou for at, miou in self.sweep.items()},
                    "best_threshold": self.best[0], "best_miou": self.best[1]}
        return plain(out)

    def _per_class(self) -> dict[str, np.ndarray]:
        """Figures `[K]` under their names in JSON."""
        out = {key: getattr(self.scores, key)
               for key in ("iou", "precision", "recall", "confusion")}
        return out if self.boundary is None else out | {"boundary_iou": self.boundary}

    def save(self, path: Path) -> Path:
        """Write the JSON form to a file, atomically."""
        path = Path(path)
        make_folder(path.parent)
        write_atomic(path, (json.dumps(self.to_json(), indent=1) + "\n").encode("utf-8"))
        return path

    def table(self) -> PlainTable:
        """A rich table: one row a class, the means below, the route above."""
        table = PlainTable(title=f"{self.name}: {self.route}", title_justify="left",
                      caption="\n".join(self.notes()), caption_justify="left", show_footer=True)
        table.add_column("class", footer="mean")
        true, columns = self._true(), self._per_class()
        for key, title, show in COLUMNS:
            if key in columns:
                table.add_column(title, justify="right", footer=show(mean_over(columns[key], true)))
        for row, name in enumerate(self.class_names):
            table.add_row(name, *(show(columns[key][row]) for key, _, show in COLUMNS
                                  if key in columns))
        return table

    def notes(self) -> list[str]:
        """Lines of text that belong to the figures: counts, subset, sweep, what was left out."""
        true = self._true()
        lines = [f"mIoU {percent(self.miou)} on {self.images} images of {self.data}; means are "
                 f"over the {true.sum()} of {len(true)} classes with truth"]
        lines += self.truth_notes
        if self.missed:
            lines.append(f"missed, no pixel is right: {', '.join(self.missed)}; they count as 0 "
                         "in the means, and FP/TP has no mean")
        dominance = dominance_note(self.to_json()["classes"])
        if dominance:
            lines.append(dominance)
        if self.subset is not None:
            without = [name for name, there in zip(self.class_names, true, strict=True)
                       if name in self.subset and not there]
            left = f", without {', '.join(without)}, which have no truth" if without else ""
            lines.append(f"mIoU {percent(self.miou_subset)} over {', '.join(self.subset)}{left}")
        if self.best:
            lines.append(f"best threshold of {min(self.sweep):.2f} to {max(self.sweep):.2f}: "
                         f"{self.best[0]:.2f} with mIoU {percent(self.best[1])}")
        if self.calibration is not None:
            lines.append(self.calibration.note())
        if self.unlabelled:
            lines.append(f"{100 * self.unlabelled:.1f} % of the true pixels are unlabelled (255) "
                         "in the set and left out")
        if self.missing:
            lines.append(f"{len(self.missing)} images of {self.data} are not in the set: "
                         f"{first_few(self.missing)}")
        return [*lines, *route_lines([self.route])]


def dominance_note(classes: Mapping[str, Mapping[str, float | None]]) -> str | None:
    """A line about the class that makes more than half of the mean FP/TP, if one does.

    Args:
        classes: figures by class in their JSON form; those without recall have no truth.
    """
    true = np.array([row.get("recall") is not None for row in classes.values()], dtype=bool)
    # A class with truth and without FP/TP was missed: its FP/TP is infinite.
    values = np.array([math.inf if row.get("confusion") is None else row["confusion"]
                       for row in classes.values()])
    place = dominant(values, true)
    if place is None:
        return None
    others = true & (np.arange(len(true)) != place)
    mean, rest = (ratio(mean_over(values, chosen)) for chosen in (true, others))
    return (f"mean FP/TP {mean}, of which {list(classes)[place]} {ratio(values[place])} makes more "
            f"than half: without it {rest}")


def percent(value: float | None) -> str:
    """Hundredfold with two digits; a dash where undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def ratio(value: float | None) -> str:
    """Three digits; a dash where undefined, ∞ where infinite."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.3f}"


COLUMNS = (("iou", "IoU", percent), ("boundary_iou", "boundary IoU", percent),
           ("precision", "precision", percent), ("recall", "recall", percent),
           ("confusion", "FP/TP", ratio))


def plain(value: Any) -> Any:
    """JSON-ready: numpy numbers as Python's, NaN and infinities as None, recursively."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
