"""Charts of the report as inline SVG in the page's own text colour."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stands for the page's text colour in drawn curves; replaced by the CSS keyword.
_INK = "#0a0b0c"
_LINE = "#3b7dd8"


def curve_svg(name: str, steps: Sequence[float], values: Sequence[float], points: bool = False
              ) -> str:
    """A small chart of one quantity over the steps, as inline SVG in the page's own text colour.

    Long records are drawn as means over at most 300 bins; missing and infinite values are left
    out. `points` marks every value (few values, such as evaluations).
    """
    from matplotlib.ticker import MaxNLocator

    x, y = _binned(np.asarray(steps, np.float64), np.asarray(values, np.float64))
    with _chart(name) as (axes, svg):
        axes.plot(x, y, color=_LINE, linewidth=1.4, marker="o" if points else None, markersize=3)
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return svg[0]


def reliability_svg(name: str, confidence: Sequence[float], accuracy: Sequence[float],
                    share: Sequence[float]) -> str:
    """Accuracy over confidence as inline SVG: one point a bin, its area by the bin's pixels.

    The dashed diagonal is perfect calibration; points below it are too confident.

    Args:
        confidence, accuracy: means of the bins that hold pixels.
        share: their part of all pixels.
    """
    with _chart(name) as (axes, svg):
        low = 100 * min((*confidence, *accuracy, 0.5))
        sure, right = 100 * np.asarray(confidence), 100 * np.asarray(accuracy)
        axes.plot([low, 100], [low, 100], color=_INK, alpha=0.5, linewidth=0.8, linestyle="--")
        axes.plot(sure, right, color=_LINE, linewidth=1.0)
        axes.scatter(sure, right, 4 + 60 * np.asarray(share), color=_LINE, zorder=3)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("pixels right, %")
    return svg[0]


def kept_svg(name: str, kept: Sequence[float], miou: Sequence[float],
             thresholds: Sequence[float]) -> str:
    """mIoU of the pixels kept over their share as inline SVG, some points with their threshold."""
    with _chart(name) as (axes, svg):
        kept, miou = 100 * np.asarray(kept), 100 * np.asarray(miou)
        axes.plot(kept, miou, color=_LINE, linewidth=1.2, marker="o", markersize=3)
        width, last = np.ptp(kept), math.inf
        for place in range(len(kept)):
            if place and abs(kept[place] - last) < 0.09 * width:
                continue  # its number would lie on the one before
            last = kept[place]
            axes.annotate(f"{thresholds[place]:g}", (kept[place], miou[place]), fontsize=6,
                          textcoords="offset points", xytext=(3, 3), color=_INK)
        axes.set_xlabel("pixels kept, %")
        axes.set_ylabel("mIoU, %")
    return svg[0]


@contextmanager
def _chart(name: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on in the report's style; the list holds the SVG text afterwards."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.style import context
    from matplotlib.ticker import MaxNLocator

    style = {"font.size": 8, "text.color": _INK, "axes.edgecolor": _INK, "xtick.color": _INK,
             "ytick.color": _INK, "axes.labelcolor": _INK, "svg.fonttype": "none",
             "svg.hashsalt": name, "figure.facecolor": "none", "axes.facecolor": "none",
             "axes.spines.top": False, "axes.spines.right": False}
    with context(style):
        axes = Figure(figsize=(3.4, 1.7), layout="constrained").add_subplot()
        axes.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.5)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        svg: list[str] = []
        yield axes, svg
        text = io.StringIO()
        FigureCanvasSVG(axes.figure).print_svg(text, metadata=dict.fromkeys(
            ("Creator", "Date", "Format", "Type")))
        svg.append(_inline(text.getvalue(), name))


def _binned(x: np.ndarray, y: np.ndarray, most: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Finite values only, averaged over neighbours until at most `most` are left."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    width = max(math.ceil(len(x) / most), 1)
    starts = np.arange(0, len(x), width)
    if not len(x):
        return x, y
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _inline(svg: str, name: str) -> str:
    """The bare `<svg>` element: no prologue, fluid width, the page's ink and font."""
    svg = svg[svg.index("<svg"):].replace(_INK, "currentColor")
    # matplotlib's style rule and metadata would act on, or link out of, the whole page.
    for pattern in (r"<style.*?</style>", r"<metadata>.*?</metadata>", r"font-family: [^;\"]*;"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    view = head[head.index("viewBox="):].split('"')[1]
    return f'<svg viewBox="{view}" role="img" aria-label="{html.escape(name)}">{rest}'
