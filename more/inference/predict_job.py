"""Pictures one after another: read, maps of a batch, CRF, files; what fails is named."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from more.data.shards.codec import decode_whole
from more.data.shards.format import sha256_bytes
from more.errors import UserError, first_few
from more.inference.inputs import Picture
from more.inference.picture_masks import PictureMasks, Shown
from more.inference.predict_files import Result
from more.progress import Tally, Tracker

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
    """A picture that was read, and what to call its results."""

    picture: Picture
    shown: Shown


class PictureJob:
    """The work on a list of pictures; `tally` counts what became of them.

    `without_class` are the names of those whose mask is background everywhere.

    Args:
        masks: makes them.
        options: how to predict.
        given: tags `[C]` by spelling of a picture; None: they are predicted.
        out: folder of the results, whose lock is held.
        bar: advances with every picture.
    """

    def __init__(self, masks: PictureMasks, options: Options,
                 given: dict[str, np.ndarray] | None, out: Path, bar: Tracker):
        self.masks, self.options, self.given = masks, options, given
        self.out, self.bar = out, bar
        self.tally = Tally("images")
        self.without_class: list[str] = []

    def run(self, pictures: list[Picture]) -> None:
        """All pictures, some at a time through the network."""
        size = self.options.batch or self.masks.localizer.config.inference.batch
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
        provenance = self.masks.provenance(sha256_bytes(data), tags)
        result = Result(self.out, picture.name)
        if result.up_to_date(provenance, self.options.overlay):
            if result.without_class():
                self.without_class.append(picture.name)
            return None
        return _Item(picture, Shown(decode_whole(data, picture.place), tags, picture.path,
                                    provenance))

    def _predict(self, batch: list[_Item]) -> None:
        seen = self.masks.look([item.shown for item in batch])
        for item, found in zip(batch, seen, strict=True):
            try:
                made = self.masks.predict(item.shown, found)
                made.write(Result(self.out, item.picture.name), self.options.overlay,
                           self.options.palette)
                if not made.mask.any():
                    self.without_class.append(item.picture.name)
                self.tally.ok()
                self.bar.advance()
            except Exception as error:  # recorded with its reason; the others go on
                if isinstance(error, OSError) and error.errno in _FOR_ALL:
                    raise
                self._fail(item.picture, error)

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
