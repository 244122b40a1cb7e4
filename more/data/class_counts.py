"""Images of each class, and which classes have too few of them to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FEW = 20
"""Images: a class with fewer is rarely found after training."""


def class_counts(names: Sequence[str], tags: np.ndarray) -> dict[str, int]:
    """Images that are tagged with each class.

    Args:
        names: the C classes.
        tags: zeros and ones `[N, C]`.

    Returns:
        Number of images by class, the most frequent class first, equals in the classes' order.
    """
    return most_first(dict(zip(names, tags.astype(np.int64).sum(0).tolist(), strict=True)))


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """The same numbers, the largest first; equals keep their order."""
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def few_note(counts: Mapping[str, int], few: int = FEW) -> str | None:
    """A line about classes with few pictures.

    Args:
        counts: images by class.
        few: a class with fewer is named.

    Returns:
        The line; None where every class has enough.
    """
    short = {name: count for name, count in most_first(counts).items() if count < few}
    if not short:
        return None
    listed = ", ".join(f"{name} {count}" for name, count in short.items())
    return (f"fewer than {few} images: {listed}; such classes are rarely learned: bring more "
            "images, or leave them out")
