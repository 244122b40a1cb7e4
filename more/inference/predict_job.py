"""Pictures one after another: read, maps of a batch, CRF, files; what fails is named."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from more.data.seeds import SeedItem, seed_label
from more.data.shards.codec import decode_whole
from more.data.shards.format import sha256_bytes
from more.errors import UserError, first_few
from more.filtering.parameters import CRFParams
from more.inference.inputs import Picture
from more.inference.localize import seed_threshold
from more.inference.localizer import Localizer
from more.inference.predict_files import Result, class_table
from more.palette import palette
from more.progress import Tally, Tracker
from more.refinement.image import Refinement, refine_item

_FOR_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the next picture would fail as well


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        map: cam, lam, fused, decoder, or auto (see `choose_network`).
        tags: csv file with `id,tags`; None: classes that the classifier finds (the decoder then
            chooses among all classes).
        tag_threshold: probability from which a class is found; None: `inference.tag_threshold`.
        crf: dense CRF with the run's parameters; otherwise the plain thresholded map.
        batch: pictures a forward; 0 = `inference.batch`.
        overlay: also paint the mask over the picture, with the names of its classes.
        palette: colours of the classes, see `more.palette`.
        sheet: also draw the overlays on one picture, see `write_contact_sheet`.
    """

    map: str = "auto"
    tags: Path | None = None
    tag_threshold: float | None = None
    crf: bool = True
    batch: int = 0
    overlay: bool = True
    palette: str = "voc"
    sheet: bool = True


@dataclass(frozen=True)
class _Item:
    """A picture that was read: pixels, given tags (None: to be predicted) and its record."""

    picture: Picture
    image: np.ndarray
    tags: np.ndarray | None
    provenance: dict[str, Any]


class PictureJob:
    """The work on a list of pictures; `tally` counts what became of them.

    `without_class` are the names of those whose mask is background everywhere.

    Args:
        localizer: makes the maps; its request names `options.map` and takes the tags it is given.
        options: how to predict.
        names: of all classes.
        given: tags `[C]` by spelling of a picture; None: they are predicted.
        out: folder of the results, whose lock is held.
        record: everything but the picture that decides a mask.
        bar: advances with every picture.
    """

    def __init__(self, localizer: Localizer, options: Options, names: list[str],
                 given: dict[str, np.ndarray] | None, out: Path, record: dict[str, Any],
                 bar: Tracker):
        self.localizer, self.options, self.names, self.given = localizer, options, names, given
        self.out, self.record, self.bar = out, record, bar
        self.tally = Tally("images")
        self.without_class: list[str] = []

    def run(self, pictures: list[Picture]) -> None:
        """All pictures, some at a time through the network."""
        size = self.options.batch or self.localizer.config.inference.batch
        batch: list[_Item] = []
        for item in self._read(pictures):
            batch.append(item)
            if len(batch) == size:
                self._predict(batch)
                batch = []
        if batch:
            self._predict(batch)
        names = self.without_class
        self.tally.note(f"no class above background, masks all background: {first_few(names)}; "
                        'their NAME.json says "no_class": true', len(names))

    def _read(self, pictures: list[Picture]) -> Iterator[_Item]:
        """Pictures that have to be done; the others are counted."""
        for picture in pictures:
            try:
                item = self._item(picture)
            except (UserError, OSError) as error:
                self._fail(picture, error)
                continue
            if item is None:
                self.tally.skip()
                self.bar.advance()
            else:
                yield item

    def _item(self, picture: Picture) -> _Item | None:
        tags = None
        if self.given is not None:
            tags = next((self.given[text] for text in picture.spellings if text in self.given),
                        None)
            if tags is None:
                raise UserError(f"no line in {self.options.tags}")
        data = picture.path.read_bytes()
        provenance = {**self.record, "image": sha256_bytes(data)}
        if tags is not None:
            provenance["tags"] = [self.names[k] for k in np.flatnonzero(tags)]
        result = Result(self.out, picture.name)
        if result.up_to_date(provenance, self.options.overlay):
            if result.without_class():
                self.without_class.append(picture.name)
            return None
        return _Item(picture, decode_whole(data, picture.place), tags, provenance)

    def _predict(self, batch: list[_Item]) -> None:
        images = torch.stack([self.localizer.prepare(item.image) for item in batch])
        scores = self.localizer.probabilities(images).cpu().numpy()
        found = scores >= self.localizer.config.inference.tag_threshold
        tags = np.stack([found[row] if item.tags is None else item.tags
                         for row, item in enumerate(batch)])
        seeds = self.localizer(images, torch.from_numpy(tags))
        for row, item in enumerate(batch):
            try:
                self._save(item, seeds[row][self.options.map], scores[row], tags[row])
                self.tally.ok()
                self.bar.advance()
            except Exception as error:  # recorded with its reason; the others go on
                if isinstance(error, OSError) and error.errno in _FOR_ALL:
                    raise
                self._fail(item.picture, error)

    def _save(self, item: _Item, seed: SeedItem, scores: np.ndarray, tags: np.ndarray) -> None:
        if item.tags is not None:  # the decoder knows nothing of them
            kept = np.isin(seed.keys, [0, *(np.flatnonzero(tags) + 1)])
            seed = SeedItem(seed.keys[kept], seed.maps[kept])
        label = self._label(item.image, seed)
        colours = palette(self.options.palette)
        nothing = not label.any()
        table = class_table(self.names, scores, tags, label, colours)
        Result(self.out, item.picture.name).save(
            item.image, label, {
                "file": str(item.picture.path), "size": list(label.shape), "classes": table,
                "background_pixels": int((label == 0).sum()), "no_class": nothing,
                "provenance": item.provenance},
            self.options.overlay, self.names, colours)
        if nothing:
            self.without_class.append(item.picture.name)

    def _label(self, image: np.ndarray, seed: SeedItem) -> np.ndarray:
        if self.options.crf:
            crf = self.record["crf"]
            return refine_item(image, seed,
                               Refinement(CRFParams(**crf["parameters"]), crf["engine"]))[0]
        threshold = seed_threshold(self.options.map, self.localizer.config)
        return seed_label(seed, image.shape[:2], threshold or 0.0)

    def _fail(self, picture: Picture, error: Exception) -> None:
        if isinstance(error, UserError):
            why = error.message.removeprefix(f"{picture.place}: ")
        elif isinstance(error, OSError) and error.strerror:
            why = error.strerror
        else:
            why = f"{type(error).__name__}: {error}"
        self.tally.fail(str(picture.path), why)
        self.bar.note(f"failed: {picture.path}: {why}")
        self.bar.advance()
