"""Steps by part as a picture of stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from more.errors import UserError

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")


def draw_parts(parts: Mapping[str, Mapping[str, float]], file: Path, title: str) -> None:
    """Write one bar a step, its parts stacked, with seconds and the ratio to the slowest.

    Args:
        parts: seconds by part, by step.
        file: a name that matplotlib can write, such as .png or .svg.
        title: above the picture.

    Raises:
        UserError: it cannot be written.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    slowest = max(sum(one.values()) for one in parts.values())
    names = sorted(parts, key=lambda name: -sum(parts[name].values()))
    figure, axes = pyplot.subplots(figsize=(9, 1.7 + 0.75 * len(names)), layout="constrained")
    labels = list(next(iter(parts.values())))
    for row, name in enumerate(names):
        left = 0.0
        for part, colour in zip(labels, COLOURS, strict=False):
            width = parts[name][part]
            axes.barh(row, width, left=left, color=colour, height=0.62,
                      label=part if row == 0 else None)
            if width > 0.06 * slowest:
                axes.text(left + width / 2, row, f"{width:.2g}", ha="center", va="center",
                          color="white", fontsize=9)
            left += width
        ratio = slowest / left
        axes.text(left + 0.01 * slowest, row, f"{left:.3g} s"
                  + (f", {ratio:.2f} × as fast" if ratio > 1.005 else ""), va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * slowest)
    axes.set_xlabel("seconds")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: the picture cannot be written ({error})",
                        "give a path ending in .png in a folder that exists") from error
    finally:
        pyplot.close(figure)
