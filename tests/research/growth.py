"""How the time of the losses grows with the number of classes and of patches."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch

from more.bench.measure import show_tables
from more.method.gcr import GraphCategoryRepresentation
from tests.research.kernels import CPU, Line, one_thread, spent
from tests.research.losses import draw, our_losses

CLASSES, PATCHES = (20, 80, 320), (14, 28, 56)  # patches: per side
# What the work itself needs: exponents of C and of N. PTC compares all pairs of patches; the graph
# has ⌊C/2⌋ edges a class. Gradients of patches are as large as the patches.
NEEDED = {"URE": (1, 1), "CRE": (1, 1), "PTC": (0, 2), "GCR": (2, 1)}
NOTES = ["exponents: slope of log time over log C (28² patches) and log N (80 classes), N the "
         "number of patches; needed: what the size of the work asks for."]


def measure(batch: int, dim: int, rounds: int, classes: tuple[int, ...] = CLASSES,
            patches: tuple[int, ...] = PATCHES, device: torch.device = CPU) -> list[Line]:
    """Milliseconds of every loss, one line per loss and size, median of rounds."""
    lines = []
    for count in classes:
        for side in patches:
            torch.manual_seed(0)
            graph = GraphCategoryRepresentation(dim).to(device)
            for name, work in our_losses(draw(count, batch, side, dim, device), graph).items():
                work()
                seconds = statistics.median(spent(work, device) for _ in range(rounds))
                lines.append({"what": name, "classes": count, "patches": side**2,
                              "ms": 1e3 * seconds})
    return lines


def exponents(lines: list[Line]) -> list[Line]:
    """Fitted exponents of every loss beside those that the work needs."""
    middle = {key: sorted({line[key] for line in lines}) for key in ("classes", "patches")}
    middle = {key: values[len(values) // 2] for key, values in middle.items()}
    found = []
    for name, needed in NEEDED.items():
        slopes = []
        for key, other in (("classes", "patches"), ("patches", "classes")):
            points = [(line[key], line["ms"]) for line in lines
                      if line["what"] == name and line[other] == middle[other]]
            slopes.append(slope(points))
        found.append({"what": name, "classes": slopes[0], "needed by classes": needed[0],
                      "patches": slopes[1], "needed by patches": needed[1]})
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of log y over log x."""
    x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
    return statistics.linear_regression(x, y).slope


def draw_plot(lines: list[Line], fits: list[Line], path: Path) -> None:
    """Two panels with log axes: over classes and over patches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, other in zip(axes, ("classes", "patches"), ("patches", "classes"), strict=True):
        values = sorted({line[other] for line in lines})
        held = values[len(values) // 2]
        for fit in fits:
            points = sorted((line[key], line["ms"]) for line in lines
                            if line["what"] == fit["what"] and line[other] == held)
            axis.loglog(*zip(*points, strict=True), "o-",
                        label=f"{fit['what']}: exponent {fit[key]:.2f}")
        ticks = sorted({line[key] for line in lines})
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel(f"{key} ({held} {other})")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("ms, forward and backward")
    figure.savefig(path, dpi=120)


def show_growth(batch: int, dim: int, rounds: int, plot: Path | None, device: str,
                as_json: bool) -> None:
    """Measure, print, and draw where a file is named."""
    from more.inference.predict import choose_device

    where = choose_device(device or "cpu")
    with one_thread():
        lines = measure(batch, dim, rounds, device=where)
    fits = exponents(lines)
    if plot is not None:
        draw_plot(lines, fits, plot)
    notes = [*NOTES, *([f"plot: {plot}"] if plot is not None else [])]
    show_tables("losses", {"lines": lines, "exponents": fits},
                {"device": str(where), "batch": batch, "dim": dim, "rounds": rounds}, notes,
                as_json)
