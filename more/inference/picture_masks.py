"""From pictures in memory to masks: network and dense CRF, for `more predict` and the Python API.

H and W are the sides of a picture, C counts the classes, K the labels of a seed with background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from more.data.seeds import SeedItem, plain_label, seed_probabilities
from more.filtering.parameters import CRFParams
from more.inference.localize import seed_threshold
from more.inference.localizer import Localizer
from more.inference.prediction import Prediction
from more.refinement.image import Refinement, refine_maps


@dataclass(frozen=True)
class Shown:
    """A picture whose mask is wanted.

    Attributes:
        image: uint8 `[H, W, 3]` RGB.
        tags: bool `[C]`, given; None: to be predicted.
        file: where it was read from, if anywhere.
        provenance: everything that decides its mask.
    """

    image: np.ndarray
    tags: np.ndarray | None
    file: Path | None
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """What the network makes of a picture.

    Attributes:
        scores: float32 `[C]`, how likely the picture shows each class.
        tags: bool `[C]`, those above the threshold, or those given.
        seeds: by the kind of map.
    """

    scores: np.ndarray
    tags: np.ndarray
    seeds: dict[str, SeedItem]


class PictureMasks:
    """Makes masks of pictures.

    Args:
        localizer: makes the maps; its request names them and takes the tags it is given.
        names: of all classes.
        record: from `record_of`: says which map becomes a mask, and with which CRF.
    """

    def __init__(self, localizer: Localizer, names: Sequence[str], record: Mapping[str, Any]):
        self.localizer, self.names, self.record = localizer, tuple(names), record
        self.kind: str = record["map"]
        crf = record["crf"]
        self.crf = Refinement(CRFParams(**crf["parameters"]), crf["engine"]) if crf else None

    def provenance(self, sha256: str | None, tags: np.ndarray | None) -> dict[str, Any]:
        """The record of one picture: its content, and its tags `[C]` where they are given."""
        given = {} if tags is None else {"tags": [self.names[k] for k in np.flatnonzero(tags)]}
        return {**self.record, "image": sha256, **given}

    def look(self, pictures: Sequence[Shown]) -> list[Seen]:
        """Scores, tags and seeds of a batch of pictures, in one forward for each scale."""
        images = torch.stack([self.localizer.prepare(shown.image) for shown in pictures])
        scores = self.localizer.probabilities(images).cpu().numpy()
        found = scores >= self.localizer.config.inference.tag_threshold
        tags = np.stack([found[row] if shown.tags is None else shown.tags
                         for row, shown in enumerate(pictures)])
        seeds = self.localizer(images, torch.from_numpy(tags))
        return [Seen(*parts) for parts in zip(scores, tags, seeds, strict=True)]

    def predict(self, shown: Shown, seen: Seen) -> Prediction:
        """The mask of a picture that the network has seen.

        Args:
            shown: the picture.
            seen: of the same picture.

        Returns:
            Mask and probabilities at the size of the picture.

        Raises:
            UserError: the picture is too large for the CRF.
        """
        seed = seen.seeds[self.kind]
        if shown.tags is not None:  # the decoder knows nothing of them
            kept = np.isin(seed.keys, [0, *(np.flatnonzero(seen.tags) + 1)])
            seed = SeedItem(seed.keys[kept], seed.maps[kept])
        keys, maps = seed_probabilities(seed, shown.image.shape[:2])
        if self.crf is not None:
            maps = refine_maps(shown.image, maps, self.crf)
            mask = keys[maps.argmax(0)].astype(np.uint8)
        else:
            threshold = seed_threshold(self.kind, self.localizer.config)
            mask = plain_label(seed, keys, maps, threshold or 0.0)
        return Prediction(mask, maps, keys, self.names, seen.scores, seen.tags, shown.image,
                          shown.file, shown.provenance)
