"""The report's pictures of new images: what the networks of stage two say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.gallery import find_data, label_tile
from more.evaluation.pictures import data_uri, thumbnail
from more.evaluation.saved import stage_folders
from more.palette import colour_of


def new_image_cards(run: Path, count: int, notes: list[str]) -> list[dict[str, Any]]:
    """Cards of images that stage two's folders in a run have masks of, chosen at random.

    Args:
        run: run folder of stage one. count: most images. notes: told what could not be shown.

    Returns:
        For each image its id, tags and tiles: image, mask of every network, truth.
    """
    made: dict[str, ShardSet] = {}
    for folder, about in stage_folders(run, notes):
        for path in sorted((run / folder / "masks").glob("*")):
            try:
                masks = ShardSet(path, kind="masks")
            except UserError as error:
                notes.append(f"{folder}/masks/{path.name} cannot be read: {error.message}.")
                continue
            kind = "true masks" if about["supervision"] == "true masks" else "masks from tags"
            made.setdefault(f"stage two ({folder}), trained on {kind}", masks)
    if not made:
        return []
    first = next(iter(made.values()))
    folder = find_data(first.path.parent.parent, [first])
    if folder is None:
        notes.append("The images of stage two's masks were not found.")
        return []
    data = ShardSet(folder, kind="images")
    shared = [name for name in first.ids if name in set(data.ids)]
    chosen = np.random.default_rng(0).permutation(len(shared))[:count]
    return [_card(data, made, shared[place]) for place in sorted(chosen)]


def _card(data: ShardSet, made: dict[str, ShardSet], name: str) -> dict[str, Any]:
    row, classes = data.index_of(name), data.num_classes
    image, truth = data.image(row), data.mask(row)
    tiles = [{"caption": "image", "src": data_uri(thumbnail(image))}]
    for caption, masks in made.items():
        label = masks.mask(masks.index_of(name)) if name in masks.ids else None
        tiles.append(label_tile(caption, label, image, truth, classes, set()))
    tiles.append(label_tile("truth", truth, image, None, classes, set()))
    return {"id": name, "tiles": tiles,
            "tags": [{"name": data.class_names[k], "colour": colour_of(k + 1)}
                     for k in np.flatnonzero(data.tags[row])]}
