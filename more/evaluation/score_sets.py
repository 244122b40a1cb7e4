"""What is scored against what: both sets opened and checked, before any pixel is counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from more.data.shards.reader import ShardSet
from more.errors import UserError, first_few, nearest
from more.evaluation.routes import seed_facts
from more.evaluation.truth_folder import FolderTruth

DEFAULT_THRESHOLD = 0.5
NO_TRUTH = "build the image set with its masks to evaluate on it"
Truth = ShardSet | FolderTruth
_SAME_SET = "give the image set that the seeds or masks were made from"


def open_pair(path: Path, data: Path) -> tuple[ShardSet, ShardSet]:
    """Seeds or masks, and the truth; over the same classes, with every file hashed.

    Raises:
        UserError: other kinds of sets, other classes, or a damaged file.
    """
    source, truth = ShardSet(path, check="full"), ShardSet(data, kind="images", check="full")
    if source.kind not in ("seeds", "masks"):
        raise UserError(f"{path} holds {source.kind}, not seeds or masks",
                        fix="give the output of `more localize` or `more refine`")
    if list(source.class_names) != list(truth.class_names):
        raise UserError(
            f"{path} has {len(source.class_names)} classes ({first_few(source.class_names, 4)}), "
            f"{data} has {len(truth.class_names)} ({first_few(truth.class_names, 4)})",
            fix=_SAME_SET)
    return source, truth


def matching_rows(source: ShardSet, truth: Truth,
                  only: Collection[str] | None = None) -> list[tuple[int, int]]:
    """Row of each item in the source and in the truth, in the source's order.

    Args:
        source: seeds or masks, from `open_pair`.
        truth: the image set, from `open_pair`, or its true masks in a folder.
        only: ids to take; None takes all.

    Raises:
        UserError: nothing to score, an item that the truth lacks, or no true masks at all.
    """
    where = {name: row for row, name in enumerate(truth.ids)}
    strangers = [name for name in source.ids if name not in where]
    if strangers:
        held = truth.images.path if isinstance(truth, FolderTruth) else truth.path
        raise UserError(f"{held} does not hold {len(strangers)} of the {len(source)} images "
                        f"of {source.path}: {first_few(strangers)}", fix=_SAME_SET)
    if not len(source):
        raise UserError(f"{source.path} holds no image", fix="make it again from a filled set")
    if not truth.has("mask"):
        raise UserError(f"{truth.path} holds no true masks", fix=NO_TRUTH)
    return [(item, where[name]) for item, name in enumerate(source.ids)
            if only is None or name in only]


def with_truth(pairs: list[tuple[int, int]], source: ShardSet, truth: Truth
               ) -> tuple[list[tuple[int, int]], list[str]]:
    """The pairs whose image has a true mask, and the ids of the others.

    Of an image set every pair stays: an image without mask in it is an error of its own.

    Raises:
        UserError: no image has a true mask.
    """
    if not isinstance(truth, FolderTruth):
        return pairs, []
    kept = [pair for pair in pairs if truth.files[pair[1]] is not None]
    if not kept:
        raise UserError(f"{truth.path}: holds no mask of the {len(pairs)} images of {source.path}",
                        "give the folder of their true masks")
    return kept, [source.ids[item] for item, row in pairs if truth.files[row] is None]


def truth_digest(truth: Truth) -> str:
    """Tells the truth apart from another one, and from another version of it."""
    return truth.digest if isinstance(truth, FolderTruth) else truth.manifest.digest


def check_truth(pixels: np.ndarray, truth: Truth) -> None:
    """Raise UserError unless some true pixel belongs to a class.

    Args:
        pixels: true pixels of each class `[K]`, background first.
        truth: the true masks.
    """
    if not pixels[1:].any():
        held = "only background" if pixels[0] else "no pixel but 255 (ignore)"
        fix = ("see what they hold with data_tools.inspect --pixels. If the masks that the set "
               "was made from mark objects by 255, make it again with --mask-values 255=NAME")
        if isinstance(truth, FolderTruth):
            fix = f"check that {truth.list} is the list of these masks' numbers"
        raise UserError(f"{truth.path}: the true masks of these images hold {held}, so there is "
                        "nothing to score", fix=fix)


def seed_threshold(source: ShardSet, threshold: float | None = None) -> float:
    """Background threshold of seeds: the one given, else the set's own, else 0.5."""
    if threshold is None:
        recorded = seed_facts(source.manifest.provenance).get("threshold")
        return DEFAULT_THRESHOLD if recorded is None else float(recorded)
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold} is outside 0..1",
                        fix="seeds are normalised maps: choose a value such as 0.5")
    return float(threshold)


def check_subset(classes: Sequence[str] | None, known: list[str]) -> list[str] | None:
    """The names asked for, in pixel-value order; UserError with near names for unknown ones."""
    if classes is None:
        return None
    for name in classes:
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"class {name!r} is not in the set",
                            fix=f"did you mean {near}?" if near else f"known: {', '.join(known)}")
    return [name for name in known if name in set(classes)]


def set_name(path: Path) -> str:
    """What to call a set: its folder, with the one above it for seeds and masks of a run."""
    path = path.resolve()
    grouped = path.parent.name in ("seeds", "masks")
    return f"{path.parent.name}/{path.name}" if grouped else path.name
