"""How a setting is declared: default, meaning, and the values that it may have.

The sections declare their fields with `setting`. `more.config.check` asks `not_a_choice`,
`not_finite` and `out_of_bounds`. The functions `check_…` at the end are rules of settings whose
value is no plain number: each says what a value must be, and "" where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, field
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """Values that a setting may have; None: no such limit.

    Attributes:
        choices: all of them, where they are few.
        low: smallest.
        high: largest.
        above: they are greater than this.
        below: they are less than this.
        also: one more, outside of the limits.
        rule: takes a value and says what it must be; "" where it is.
        takes_none: "none" is a value, so Python's None stands for it.
        empty_is_off: an empty text turns it off; the word "none" would be a file, or a name.
    """

    choices: tuple | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    also: float | None = None
    rule: Callable[[Any], str] | None = None
    takes_none: bool = False
    empty_is_off: bool = False


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field with its meaning and limits in the metadata.

    Args:
        default: its value, copied where it can be changed; a dataclass for a section.
        meaning: one line, for `more config FILE --explain`.
        **limits: see `Limits`.

    Returns:
        What `dataclasses.field` returns.
    """
    allowed = Limits(**limits)
    if "none" in (allowed.choices or ()):
        allowed = allowed._replace(takes_none=True)
    metadata = {"meaning": meaning, "limits": allowed}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def limits_of(item: Field) -> Limits:
    """What was declared by `setting`."""
    return item.metadata["limits"]


def not_a_choice(item: Field, value: Any) -> str:
    """What a value must be, where the setting takes one of a few; "" where it is one of them."""
    choices = limits_of(item).choices
    if choices is None or value in choices:
        return ""
    return "must be one of " + ", ".join(str(one) or "'' (off)" for one in choices)


def not_finite(item: Field, value: Any) -> str:
    """What a value must be, where one of its numbers is infinite or none; else ""."""
    numbers = value if isinstance(value, tuple) else (value,)
    finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
    return "" if finite else "must be finite"


def out_of_bounds(item: Field, value: Any) -> str:
    """What a value must be by the bounds and the rule of its setting; "" where it is."""
    choices, low, high, above, below, also, rule, *_ = limits_of(item)
    if rule is not None:
        return rule(value)
    if also is not None and value == also:
        return ""
    if above is not None and not value > above:
        return f"must be greater than {above}"
    too_low, too_high = low is not None and value < low, high is not None and value > high
    if below is not None and (too_low or value >= below):
        return f"must be at least {low} and below {below}"
    if high is not None and (too_low or too_high):
        between = f"must lie between {low or 0} and {high}"
        return between if also is None else f"{between}, or be {also}"
    if too_low:
        return "must not be negative" if low == 0 else f"must be at least {low}"
    return ""


def check_scales(value: tuple) -> str:
    """Sizes of an image, the full one first."""
    if not value or value[0] != 1:
        return "the first scale must be 1"
    return "" if min(value) > 0 else "scales must be greater than 0"


def check_channels(value: tuple) -> str:
    """One number for each colour."""
    return "" if len(value) == 3 else "needs three numbers (R, G, B on the 0..255 scale)"


def check_deviations(value: tuple) -> str:
    """One number above 0 for each colour."""
    return check_channels(value) or ("" if min(value) > 0 else "must be greater than 0")


def check_decay_rates(value: tuple) -> str:
    """Decay rates of AdamW."""
    good = len(value) == 2 and all(0 <= beta < 1 for beta in value)
    return "" if good else "needs two numbers of at least 0 and below 1"


def check_offsets(value: tuple) -> str:
    """Offsets of neighbours, all in pixels or all as shares of the crop."""
    good = len(value) > 0 and (all(step >= 1 and step == int(step) for step in value)
                               or all(0 < step < 1 for step in value))
    return "" if good else "needs whole pixels, or shares of the crop between 0 and 1"


def check_span(value: str) -> str:
    """Two numbers of updates, or nothing."""
    parts = value.split(":")
    good = parts == [""] or (len(parts) == 2 and all(part.isdecimal() for part in parts)
                             and int(parts[0]) < int(parts[1]))
    return "" if good else "must be FROM:TO, two numbers of updates with FROM below TO"
