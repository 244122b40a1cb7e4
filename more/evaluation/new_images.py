"""The report's pictures of new images: what the networks of stage two say of them."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import numpy as np

from more.data.shards.reader import ShardSet
from more.evaluation.cards import Maker, Source
from more.evaluation.gallery import Gallery, choose, find_data, open_set
from more.evaluation.routes import seed_facts
from more.evaluation.run_scores import TRUE, about_run, stage_folders
from more.palette import PALETTE


def new_images(run: Path, count: int, colours: np.ndarray = PALETTE, most: int = 60_000
               ) -> Gallery:
    """Cards of images that stage two's folders in a run have masks or predictions of.

    Args:
        run: run folder of stage one, or of a stage two itself. count: most images.
        colours: uint8 `[256, 3]` by pixel value. most: bytes of a photograph in the page.

    Returns:
        The gallery; the layers of an image are the answer of every network, and the truth.
    """
    gallery = Gallery("New images")
    folders = stage_folders(run, gallery.notes)
    own = about_run(run, gallery.notes, "")
    trained_on = set() if own["stage"] == 2 else _training_ids(run)
    sources: list[Source] = []
    for folder, about in [*([("", own)] if own["stage"] == 2 else []), *folders]:
        made = _prediction(run / folder, folder or run.name, gallery.notes, trained_on)
        if made is not None:
            trained = "true masks" if about["supervision"] == TRUE else "masks from tags"
            sources.append(Source(f"decoder-{len(sources)}", f"decoder ({folder or run.name}), "
                                  f"trained on {trained}", made))
    if not sources:
        return gallery
    first = sources[0].set
    folder = find_data(first.path.parent.parent, [first])
    if folder is None:
        gallery.notes.append("The images of stage two's masks were not found.")
        return gallery
    images = ShardSet(folder, kind="images")
    maker = Maker(images, sources, colours, most)
    gallery.cards = [maker.card(*item) for item in choose(first, images, count, gallery)]
    gallery.legend = maker.legend()
    gallery.about = "No network was trained on them and no tag is given."
    return gallery


def _training_ids(run: Path) -> set[str]:
    """Ids of the images that stage one made seeds or masks of."""
    for path in (*sorted(run.glob("seeds/*")), *sorted(run.glob("masks/*"))):
        found = open_set(path, path.name, []) if path.is_dir() else None
        if found is not None:
            return set(found.ids)
    return set()


def _prediction(folder: Path, name: str, notes: list[str], trained_on: Set[str]
                ) -> ShardSet | None:
    """Masks of a stage-two folder, or its decoder's seeds; none that were told the true tags, and
    none of images that were trained on."""
    for path in (*sorted(folder.glob("masks/*")), *sorted(folder.glob("seeds/*"))):
        if not path.is_dir():
            continue
        found = open_set(path, f"{name}/{path.parent.name}/{path.name}", notes)
        if found is not None and not trained_on.intersection(found.ids):
            facts = seed_facts(found.manifest.provenance)
            of_decoder = found.kind == "masks" or facts.get("map") == "decoder"
            if of_decoder and not (facts.get("map") == "decoder" and facts.get("tags") == "true"):
                return found
    return None
