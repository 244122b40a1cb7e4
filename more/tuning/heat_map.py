"""The picture of a search: a heat map over two settings, curves over the others."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from more.errors import UserError
from more.palette import LINE
from more.tuning.grid import Axis, check_key, marked, value_of
from more.tuning.tune_result import TuneResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST, _REFERENCE = "#d62728", "#111111"


def parse_axes(text: str, axes: Sequence[Axis]) -> list[Axis]:
    """The axes named in `a,b`.

    Args:
        text: two keys.
        axes: all of the grid.

    Returns:
        The two.

    Raises:
        UserError: not two different settings of the grid.
    """
    keys = [key.strip() for key in text.split(",")]
    for key in keys:
        check_key(key, [axis.key for axis in axes], "--axes")
    if len(keys) != 2 or keys[0] == keys[1]:
        raise UserError(f"--axes {text}", "give two different settings of the grid: --axes a,b")
    return [next(axis for axis in axes if axis.key == key) for key in keys]


def best_along(result: TuneResult, axes: Sequence[Axis]) -> np.ndarray:
    """Highest mIoU for each combination of values of some axes, over all others.

    Args:
        result: the search.
        axes: some of its axes.

    Returns:
        float64 with one dimension an axis; NaN where no point was tried that keeps enough pixels.
    """
    best = np.full([len(axis.values) for axis in axes], np.nan)
    for number in reversed(result.ranked()):  # the best point writes last
        how = result.points[number]
        place = [_place(axis, value_of(how, axis.key)) for axis in axes]
        if None not in place:
            best[tuple(place)] = result.scores[number].scores.miou
    return best


def influence(result: TuneResult, axis: Axis) -> float:
    """How much the best score moves along an axis; 0 where nothing can be said."""
    along = best_along(result, [axis])
    along = along[np.isfinite(along)]
    return float(np.ptp(along)) if len(along) else 0.0


def draw(result: TuneResult, shown: Sequence[Axis] | None = None) -> Figure:
    """Heat map over two axes and a curve for each further one; a curve alone for one axis.

    Args:
        result: the search.
        shown: two axes for the heat map, across and up; None: the two most influential ones.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    varied = [axis for axis in result.axes if len(axis.values) > 1] or result.axes[:1]
    axes = sorted(varied, key=lambda axis: -influence(result, axis))
    pair = list(shown) if shown is not None else axes[:2]
    rest = axes if len(axes) == 1 else [axis for axis in axes if axis not in pair]
    if shown is None and len(pair) == 2 and len(pair[0].values) < len(pair[1].values):
        pair.reverse()  # the longer axis across
    wide = 0.0 if len(axes) == 1 else max(4.2, 1.6 + 0.85 * len(pair[0].values))
    tall = 3.6 if len(axes) == 1 else max(3.4, 1.9 + 0.55 * len(pair[1].values), 1.9 * len(rest))
    figure = Figure(figsize=(wide + (4.8 if rest else 0.4), tall), layout="constrained")
    parts = [part for part, needed in (("map", wide), ("curves", rest)) if needed]
    halves = dict(zip(parts, np.atleast_1d(figure.subfigures(
        1, len(parts), width_ratios=[{"map": wide, "curves": 4.2}[part] for part in parts])),
        strict=True))
    if "map" in halves:
        _heat_map(halves["map"].add_subplot(), result, pair, len(axes) > 2)
    if rest:
        for place, plot in enumerate(halves["curves"].subplots(len(rest), squeeze=False)[:, 0]):
            _curve(plot, result, rest[place], len(axes) > 1)
            plot.set_ylim(*_range(result, axes))
    figure.suptitle(f"{result.name}: mIoU in % on {result.images} labelled images", fontsize=10)
    return figure


def picture_bytes(figure: Figure) -> bytes:
    """PNG of a figure; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
    return data.getvalue()


def _heat_map(plot: Axes, result: TuneResult, pair: Sequence[Axis], more_axes: bool) -> None:
    across, up = pair
    values = 100 * best_along(result, pair).T
    image = plot.imshow(np.ma.masked_invalid(values), origin="lower", cmap="viridis",
                        aspect="auto")
    for axis, along in ((across, plot.xaxis), (up, plot.yaxis)):
        along.set_ticks(range(len(axis.values)), [marked(axis.key, v) for v in axis.values])
    plot.set_xlabel(across.key)
    plot.set_ylabel(up.key)
    plot.tick_params(labelsize=8)
    size = 9 if len(across.values) <= 8 else 7
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)]) if _any(values) else 0.0
    for (row, column), value in np.ndenumerate(values):
        tried = math.isfinite(value)
        plot.text(column, row, f"{value:.1f}" if tried else "–", ha="center", va="center",
                  fontsize=size, color="white" if tried and value < middle else "black")
    _frame(plot, result, result.reference, pair, _REFERENCE, "--", result.reference_name)
    _frame(plot, result, result.best, pair, _BEST, "-", "best")
    plot.set_title("best over the other settings" if more_axes else "", fontsize=8)
    if plot.patches:
        plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8,
                    frameon=False)
    plot.figure.colorbar(image, ax=plot, shrink=0.9).ax.tick_params(labelsize=7)


def _frame(plot: Axes, result: TuneResult, number: int, pair: Sequence[Axis], colour: str,
           style: str, label: str) -> None:
    """A frame around the cell of a point, where it lies on the grid."""
    from matplotlib.patches import Rectangle

    how = result.points[number]
    x, y = (_place(axis, value_of(how, axis.key)) for axis in pair)
    if x is not None and y is not None:
        inset = 0.46 if style == "-" else 0.40
        plot.add_patch(Rectangle((x - inset, y - inset), 2 * inset, 2 * inset, fill=False,
                                 edgecolor=colour, linestyle=style, linewidth=2, label=label))


def _curve(plot: Axes, result: TuneResult, axis: Axis, more_axes: bool) -> None:
    values = 100 * best_along(result, [axis])
    plot.plot(axis.values, values, color=LINE, marker="o", markersize=4, linewidth=1.4)
    for x, y in zip(axis.values, values, strict=True):
        if math.isfinite(y):
            plot.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 7),
                          ha="center", fontsize=8, zorder=4,
                          bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"})
    plot.axvline(value_of(result.points[result.reference], axis.key), color=_REFERENCE,
                 linestyle="--", linewidth=1, label=result.reference_name)
    plot.axvline(value_of(result.points[result.best], axis.key), color=_BEST, linewidth=1,
                 label="best")
    plot.set_xticks(axis.values, [marked(axis.key, v) for v in axis.values])
    plot.margins(x=0.12)
    plot.set_xlabel(axis.key, fontsize=9)
    plot.set_ylabel("mIoU, best over the rest" if more_axes else "mIoU", fontsize=8)
    plot.tick_params(labelsize=8)
    plot.grid(axis="y", alpha=0.25)
    plot.legend(fontsize=7, loc="best")


def _range(result: TuneResult, axes: Sequence[Axis]) -> tuple[float, float]:
    """Limits for the curves, alike in all, so that a setting without effect looks flat."""
    values = 100 * np.concatenate([best_along(result, [axis]) for axis in axes])
    if not _any(values):
        return 0.0, 100.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(high - low, 1.0)
    return low - 0.15 * room, high + 0.3 * room


def _place(axis: Axis, value: float) -> int | None:
    """Number of a value on an axis; None where it is not there."""
    return axis.values.index(value) if value in axis.values else None


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())
