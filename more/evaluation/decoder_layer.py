"""The decoder's answer to training images, as a layer of the report beside the seeds.

It is a set of a stage-two folder that holds these images, or the run's own decoder seeds; else the
network answers for the pictures of the page alone, if whoever builds the page can ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from more.data.seeds import SeedItem, seed_label
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.cards import Layer, Source
from more.evaluation.routes import seed_facts
from more.evaluation.run_scores import TAGS, stage_folders

KEY = "decoder"
# Run folder, images, ids → the decoder's probabilities by id; None where it was not trained.
Decode = Callable[[Path, ShardSet, Sequence[str]], Mapping[str, SeedItem] | None]


@dataclass(frozen=True)
class Answers:
    """The decoder's probabilities of some images, made for the page: a layer of labels."""

    key: str
    caption: str
    seeds: Mapping[str, SeedItem]

    def label(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """Label map `[H, W]` of an image; None where it was not asked for."""
        found = self.seeds.get(name)
        return None if found is None else seed_label(found, size, 0.0)

    def heat(self, name: str, size: tuple[int, int]) -> None:
        """Labels have no heat map."""


def decoder_layer(run: Path, own: Sequence[Source], images: ShardSet, ids: Sequence[str],
                  decode: Decode | None, notes: list[str]) -> Layer | None:
    """The layer to show, stage two's before stage one's; None, and a note, where there is none.

    Args:
        run: run folder of stage one.
        own: its seeds.
        images: the image set of the page.
        ids: images to show.
        decode: asks the network; None: only what is stored is shown.
        notes: gets a line where the layer is missing.
    """
    second = [name for name, about in stage_folders(run, []) if about["supervision"] == TAGS]
    for folder in second:
        stored = _stored(run / folder, ids, notes)
        if stored is not None:
            return Source(KEY, f"decoder ({folder})", stored)
    mine = next((source for source in own if source.key == KEY), None)
    if mine is not None and not second:
        return mine
    made = None
    folder = second[0] if second else ""
    if decode is not None:
        try:
            made = decode(run / folder, images, ids)
        except UserError as error:
            notes.append(f"The decoder's pictures are missing: {error.message}.")
            return mine
    if made is not None:
        return Answers(KEY, f"decoder ({folder})" if folder else "decoder", made)
    if mine is None and second:
        notes.append(f"The decoder's pictures of training images are not in this run: `more "
                     f"localize --run {run / folder} --data SET --out "
                     f"{run / folder}/seeds/train --map decoder` makes them.")
    return mine


def _stored(folder: Path, ids: Sequence[str], notes: list[str]) -> ShardSet | None:
    """Masks or decoder seeds of a stage-two folder that hold some of the images."""
    for path in (*sorted(folder.glob("masks/*")), *sorted(folder.glob("seeds/*"))):
        if not path.is_dir():
            continue
        try:
            found = ShardSet(path)
        except UserError as error:
            notes.append(f"{folder.name}/{path.parent.name}/{path.name} cannot be read: "
                         f"{error.message}.")
            continue
        of_decoder = seed_facts(found.manifest.provenance).get("map") == KEY
        if of_decoder and set(ids) & set(found.ids):
            return found
    return None
