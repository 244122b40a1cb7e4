"""What `more evaluate` found: as JSON, as a table, as lines of text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from more.data.shards.format import make_folder, write_atomic
from more.evaluation.metrics import Scores, mean_over

LISTED = 12


@dataclass(frozen=True)
class Result:
    """What `more evaluate` found; classes are in pixel-value order, background first.

    `missing` are ids of the data set that the evaluated set does not hold, `unlabelled` is the
    share of true pixels that were predicted 255 and therefore left out, `per_image` is the mean
    IoU of each image over the classes that its truth or its prediction contains. `sweep` maps
    thresholds to mIoU.
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
    def best(self) -> tuple[float, float] | None:
        """Threshold and mIoU of the best step of the sweep; None without one."""
        return max(self.sweep.items(), key=lambda item: item[1]) if self.sweep else None

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
            "classes": {name: {key: getattr(figures, key)[row] for key in
                               ("iou", "precision", "recall", "confusion")}
                        for row, name in enumerate(self.class_names)},
            "worst": sorted(self.per_image, key=self.per_image.__getitem__)[:LISTED],
        }
        if self.subset is not None:
            out |= {"subset": self.subset, "miou_subset": self.miou_subset}
        if self.sweep:
            out |= {"sweep": {f"{at:.2f}": miou for at, miou in self.sweep.items()},
                    "best_threshold": self.best[0], "best_miou": self.best[1]}
        return _plain(out)

    def save(self, path: Path) -> Path:
        """Write the JSON form to a file, atomically."""
        path = Path(path)
        make_folder(path.parent)
        write_atomic(path, (json.dumps(self.to_json(), indent=1) + "\n").encode("utf-8"))
        return path

    def table(self) -> Table:
        """A rich table: one row a class, the means below, the route above."""
        table = Table(title=f"{self.name}: {self.route}", title_justify="left",
                      caption="\n".join(self.notes()), caption_justify="left", show_footer=True)
        table.add_column("class", footer="mean over classes with truth")
        figures, true = self.scores, self._true()
        for name, values in (("IoU", figures.iou), ("precision", figures.precision),
                             ("recall", figures.recall)):
            table.add_column(name, justify="right", footer=percent(mean_over(values, true)))
        table.add_column("FP/TP", justify="right",
                         footer=ratio(mean_over(figures.confusion, true)))
        for row, name in enumerate(self.class_names):
            table.add_row(name, *(percent(values[row]) for values in
                                  (figures.iou, figures.precision, figures.recall)),
                          ratio(figures.confusion[row]))
        return table

    def notes(self) -> list[str]:
        """Lines of text that belong to the figures: counts, subset, sweep, what was left out."""
        lines = [f"mIoU {percent(self.miou)} on {self.images} images of {self.data}"]
        if self.subset is not None:
            lines.append(f"mIoU {percent(self.miou_subset)} over {', '.join(self.subset)}")
        if self.best:
            lines.append(f"best threshold of {min(self.sweep):.2f} to {max(self.sweep):.2f}: "
                         f"{self.best[0]:.2f} with mIoU {percent(self.best[1])}")
        if self.unlabelled:
            lines.append(f"{100 * self.unlabelled:.1f} % of the true pixels are unlabelled (255) "
                         "in the set and left out")
        if self.missing:
            shown = ", ".join(self.missing[:5]) + (", …" if len(self.missing) > 5 else "")
            lines.append(f"{len(self.missing)} images of {self.data} are not in the set: {shown}")
        return lines


def percent(value: float | None) -> str:
    """Hundredfold with two digits; a dash where undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def ratio(value: float | None) -> str:
    """Three digits; a dash where undefined, ∞ where infinite."""
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """JSON-ready: numpy numbers as Python's, NaN and infinities as None, recursively."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
