"""Scores of a set of seeds or masks against the true masks of an image set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from more.data.shards.format import sha256_bytes
from more.data.shards.reader import ShardSet
from more.device import usable_cores
from more.errors import UserError
from more.evaluation.boundary import DEFAULT_BOUNDARY, boundary_iou
from more.evaluation.calibration import calibrate
from more.evaluation.metrics import Scores, scores
from more.evaluation.routes import describe_route
from more.evaluation.score_count import Counts, Job, Rows, count_piece, pieces, sweep_scores
from more.evaluation.score_result import Result
from more.evaluation.score_sets import (
    Truth,
    check_subset,
    check_truth,
    matching_rows,
    open_pair,
    seed_threshold,
    set_name,
    truth_digest,
    with_truth,
)
from more.evaluation.truth_folder import FolderTruth, TruthFolder
from more.progress import track

MOST_THREADS = 16


def evaluate(path: Path, data: Path, threshold: float | None = None,
             classes: Sequence[str] | None = None, sweep: bool = False,
             boundary: float = DEFAULT_BOUNDARY, calibration: bool = True,
             workers: int | None = None, name: str | None = None,
             only: Collection[str] | None = None, progress: bool = True,
             truth_folder: TruthFolder | None = None) -> Result:
    """Compare a set of seeds or masks with the true masks of an image set.

    Args:
        path: shard set of kind `seeds` or `masks`.
        data: shard set of kind `images` that holds the true masks, unless these are elsewhere.
        threshold: background threshold for seeds; default: the set's own, else 0.5. Seeds with
            an explicit background (the decoder's) are labelled by argmax and have none.
        classes: names for an additional mean over these classes only (`background` counts).
        sweep: also the mIoU at thresholds 0.10, 0.15, …, 0.90 (seeds without background).
        boundary: width of the band of the boundary IoU over the image's diagonal; 0 leaves it out.
        calibration: also how far the confidence can be trusted, for masks that store one.
        workers: threads; default: as many as usable cores, at most 16. The figures do not depend
            on it.
        name: what to call the set; default: its folder, as `seeds/lam`.
        only: ids to score; default: all of the set.
        progress: show a progress line.
        truth_folder: take the true masks from PNG files; images without one are left out and
            named.

    Raises:
        UserError: sets that do not belong together, an image without true mask, true masks that
            show no class, an unknown class, or a mask with values outside the classes; always
            with the name of the file or image.
    """
    _check_options(boundary, workers)
    source, truth = open_pair(Path(path), Path(data))
    truth = truth if truth_folder is None else FolderTruth(truth, truth_folder)
    class_names = ["background", *truth.class_names]
    subset = check_subset(classes, class_names)
    job = Job(len(class_names), seed_threshold(source, threshold), sweep, boundary, calibration)
    pairs, without = with_truth(matching_rows(source, truth, only), source, truth)
    counts = _run(job, source, truth, pieces(source, pairs), workers, progress)
    check_truth(counts.sums["truth"], truth)
    found = _result(job, Path(data), source, truth, counts, name or set_name(Path(path)), subset)
    if isinstance(truth, FolderTruth):
        found = replace(found, truth=truth.record(without), truth_notes=truth.notes(without))
    return found


def _result(job: Job, data: Path, source: ShardSet, truth: Truth, counts: Counts, name: str,
            subset: list[str] | None) -> Result:
    """Figures from the sums of all images."""
    class_names = ["background", *truth.class_names]
    used, sums = job.threshold if counts.thresholded else None, counts.sums
    figures, pixels = scores(sums["matrix"], sums["truth"]), int(sums["truth"].sum())
    held = set(source.ids)
    scored = list(counts.per_image)
    return Result(
        name=name, kind=source.kind, data=data.name,
        route=describe_route(source.manifest.provenance, used), threshold=used,
        class_names=class_names, scores=figures, images=len(scored),
        unlabelled=1 - int(sums["matrix"].sum()) / pixels,
        missing=[i for i in truth.ids if i not in held],
        per_image=counts.per_image,
        subset=subset, sweep=sweep_scores(sums["swept"]) if "swept" in sums else {},
        boundary=_boundary(sums["boundary"], figures) if job.boundary else None,
        boundary_width=job.boundary or None,
        calibration=calibrate(sums["levels"], sums["reached"]) if "levels" in sums else None,
        digests=(truth_digest(truth), ids_digest(scored)), matrix=sums["matrix"])


def ids_digest(ids: Sequence[str]) -> str:
    """sha256 over a set of ids, whatever their order."""
    return sha256_bytes("\n".join(sorted(ids)).encode("utf-8"))


def _run(job: Job, source: ShardSet, truth: Truth, parts: list[Rows], workers: int | None,
         progress: bool) -> Counts:
    """Every piece once, over threads.

    Decoding, filtering and counting leave Python's lock, all but a twentieth of the time. So
    threads keep the cores busy, and start at once, which processes do not.
    """
    counts = Counts()
    workers = workers or min(usable_cores(), MOST_THREADS)
    with (track(sum(map(len, parts)), "evaluate", disable=not progress) as bar,
          ThreadPoolExecutor(workers) as pool):
        for part in pool.map(lambda rows: count_piece(job, source, truth, rows), parts):
            counts.merge(part)
            bar.advance(len(part.per_image))
    return counts


def _boundary(counts: np.ndarray, figures: Scores) -> np.ndarray:
    """Boundary IoU `[K]`; 0 of a class whose truth was left out altogether, with its band."""
    found = boundary_iou(counts)
    return np.where(np.isnan(found) & (figures.recall == 0), 0.0, found)


def _check_options(boundary: float, workers: int | None) -> None:
    if not 0 <= boundary <= 0.5:
        raise UserError(f"boundary {boundary} is outside 0..0.5",
                        fix="give the band's width over the image's diagonal, such as 0.02; "
                            "0 leaves it out")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers", fix="give 1 or more, or leave it out")
