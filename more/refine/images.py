"""Seeds → masks of single images, or of several at once where the CRF's engine gains by it.

Imports no torch, so that a worker stays small and starts fast.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from more.data.seeds import SeedItem, seed_probabilities
from more.data.shards.format import IGNORE
from more.filtering import crf
from more.refine.settings import Refinement
from more.refine.worker_memory import check_image


def refine_item(image: np.ndarray, item: SeedItem,
                how: Refinement) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence of one image (method §4.12).

    Args:
        image: [H, W, 3] uint8 RGB.
        item: its seed.
        how: the CRF, its engine, and what becomes 255.

    Returns:
        label uint8 [H, W]: 0, a class of the seed, or 255; confidence uint8 [H, W]: round(255 Q)
        of the best label. Without classes everything is background with confidence 255.
    """
    return refine_items([image], [item], how)[0]


def refine_items(images: list[np.ndarray], items: list[SeedItem], how: Refinement,
                 device: str = "cpu") -> list[tuple[np.ndarray, np.ndarray]]:
    """`refine_item` of images of one size whose seeds have equally many labels, all at once."""
    full = images[0].shape[:2]
    size = how.size(*full)
    if size != full:
        images = [cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) for image in images]
        return [tuple(cv2.resize(part, full[::-1], interpolation=cv2.INTER_NEAREST)
                      for part in made)
                for made in refine_items(images, items, replace(how, max_pixels=0), device)]
    seeds = [seed_probabilities(item, full, how.threshold) for item in items]
    if len(seeds[0][0]) == 1:
        return [(np.zeros(full, np.uint8), np.full(full, 255, np.uint8)) for _ in images]
    if device == "cpu":
        check_image(crf.resolve_engine(how.engine), full[0] * full[1], len(seeds[0][0]))
    probs = [maps for _, maps in seeds]
    if len(images) == 1 and device == "cpu":
        marginals = [crf.refine(images[0], probs[0], how.params, how.engine)]
    else:
        marginals = crf.refine_batch(images, probs, how.params, how.engine, device)
    return [label_map(keys, maps, q, how) for (keys, maps), q in zip(seeds, marginals, strict=True)]


def label_map(keys: np.ndarray, probs: np.ndarray, q: np.ndarray,
              how: Refinement) -> tuple[np.ndarray, np.ndarray]:
    """Label and confidence from what went into the CRF and what came out.

    Args:
        keys: [K] pixel values of the labels.
        probs: [K, H, W] before the CRF.
        q: [K, H, W] marginals.
        how: what becomes 255.

    Returns:
        As `refine_item`.
    """
    after = q.argmax(0)
    best = np.take_along_axis(q, after[None], 0)[0]  # max(0) is slow in pydensecrf's layout
    label = keys[after].astype(np.uint8)
    if how.ignore_below is not None:
        label[best < how.ignore_below] = IGNORE
    if how.ignore_disagreement:
        label[after != probs.argmax(0)] = IGNORE
    return label, np.rint(best.clip(0, 1) * 255).astype(np.uint8)
