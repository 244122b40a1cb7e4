"""The grid of settings: axes from text, points, and what a search costs."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from more.errors import UserError, nearest
from more.filtering.parameters import CRFParams
from more.refinement.image import Refinement

KEYS = ("threshold", "ignore_below", *(f"crf.{item.name}" for item in fields(CRFParams)))
MOST_POINTS = 10_000
# The threshold decides how much becomes foreground, which moves the score most; the colour width
# decides across which edges the CRF carries a label. The other fields mostly trade with these two
# (compat) or act on single pixels (gaussian). 12 points = 12 dense CRFs an image.
DEFAULT = ("threshold=0.3,0.4,0.5,0.6", "crf.bilateral_rgb=3,5,10")
# Decoder seeds have a background of their own, so no threshold: 9 points.
DEFAULT_DECODER = ("crf.bilateral_rgb=3,5,10", "crf.bilateral_compat=2,4,8")


@dataclass(frozen=True)
class Axis:
    """One varied setting: its key and its values in rising order."""

    key: str
    values: tuple[float, ...]


def parse_grid(texts: Sequence[str]) -> list[Axis]:
    """Axes of `key=v1,v2,…` texts, in the order given.

    Args:
        texts: keys are `threshold`, `ignore_below` (0 = off) and `crf.FIELD`.

    Returns:
        The axes.

    Raises:
        UserError: an unknown key (names the nearest), a key twice, no value, a value that is no
            number or that `more refine` would refuse.
    """
    axes: list[Axis] = []
    for text in texts:
        key, _, listed = text.partition("=")
        axis = Axis(key.strip(), _values(key.strip(), listed))
        if axis.key in [other.key for other in axes]:
            raise UserError(f"--grid {axis.key}: given twice", "list all its values in one --grid")
        axes.append(axis)
    return axes


def check_key(key: str, known: Iterable[str] = KEYS, option: str = "--grid") -> None:
    """Raise UserError, naming the nearest, for a key that is none of the known ones."""
    known = list(known)
    if key not in known:
        near = nearest(key, known) or nearest(f"crf.{key}", known)
        raise UserError(f"{option} {key}: unknown setting",
                        f"did you mean {near}?" if near else f"choose from {', '.join(known)}")


def _values(key: str, listed: str) -> tuple[float, ...]:
    check_key(key)
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--grid {key}: no value", f"write --grid {key}=1,2")
    values = []
    for part in parts:
        try:
            value = float(part)
            with_value(Refinement(), key, value)
        except ValueError as error:
            raise UserError(f"--grid {key}: {part!r} is not a number",
                            "separate numbers by commas") from error
        except UserError as error:
            raise UserError(f"--grid {key}: {error.message}", error.fix) from error
        values.append(value)
    return tuple(sorted(set(values)))


def with_value(how: Refinement, key: str, value: float) -> Refinement:
    """The same settings with one changed; `ignore_below` 0 means off, as in `more refine`.

    Args:
        how: settings.
        key: as in a grid.
        value: the new one.

    Returns:
        The changed settings.

    Raises:
        UserError: a value that `more refine` would refuse.
    """
    if key.startswith("crf."):
        if not math.isfinite(value):  # int(inf) would raise something else
            raise UserError(f"{key} is {value}", fix="give a finite number")
        return replace(how, params=replace(how.params, **{key[4:]: value}))
    return replace(how, **{key: value if key == "threshold" else (value or None)})


def value_of(how: Refinement, key: str) -> float:
    """The value of one setting, as it is written in a grid."""
    if key.startswith("crf."):
        return float(getattr(how.params, key[4:]))
    return float(getattr(how, key) or 0.0)


def grid_points(base: Refinement, axes: Sequence[Axis], most: int | None = None,
                seed: int = 0) -> list[Refinement]:
    """The points of the product of the axes, the last axis fastest.

    Args:
        base: the settings that no axis varies.
        axes: what varies.
        most: try this many points of the product, drawn without repetition; None: all.
        seed: of the draw.

    Returns:
        The points.

    Raises:
        UserError: the product is too large to try whole.
    """
    total = math.prod(len(axis.values) for axis in axes)
    if most is None and total > MOST_POINTS:
        raise UserError(f"the grid has {total} points", "try some of them: --random 100")
    numbers: Iterable[int] = range(total)
    if most is not None and most < total:
        numbers = sorted(random.Random(seed).sample(range(total), most))
    return [_point(base, axes, number) for number in numbers]


def _point(base: Refinement, axes: Sequence[Axis], number: int) -> Refinement:
    for axis in reversed(axes):
        number, place = divmod(number, len(axis.values))
        base = with_value(base, axis.key, axis.values[place])
    return base


def before_labels(how: Refinement) -> Refinement:
    """The settings that decide the CRF's result; points that share them share one CRF run."""
    return replace(how, ignore_below=None, ignore_disagreement=False)


def crf_groups(points: Iterable[Refinement]) -> list[list[Refinement]]:
    """Points by the CRF run that serves them, in order of first appearance."""
    ordered = list(dict.fromkeys(points))
    groups: dict[Refinement, list[Refinement]] = {before_labels(how): [] for how in ordered}
    for how in ordered:
        groups[before_labels(how)].append(how)
    return list(groups.values())


def settings_at(how: Refinement, axes: Sequence[Axis]) -> dict[str, Any]:
    """The varied settings of a point by key."""
    return {axis.key: value_of(how, axis.key) for axis in axes}


def marked(key: str, value: float) -> str:
    """A value as text for tables and pictures."""
    return "off" if key == "ignore_below" and value == 0 else f"{value:g}"
