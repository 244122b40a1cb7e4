"""The report's pictures of the training set: image, maps, mask after CRF, truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.cards import Maker, Source
from more.evaluation.decoder_layer import KEY, Decode, decoder_layer
from more.evaluation.routes import seed_facts
from more.evaluation.run_scores import about_run
from more.evaluation.score import evaluate
from more.evaluation.score_result import Result
from more.palette import PALETTE
from more.run_folder import OWN_DATA

MASKS = ("lam", "fused", "cam", "decoder")
SEEDS = {"cam": "CAM", "lam": "LAM", "fused": "CAM and LAM", "decoder": "decoder"}


@dataclass
class Gallery:
    """Cards for the page, the layers and classes that occur in them, and what could not be shown.

    `scored` is what the pictures were ranked by; None where there is no truth. `known` are the
    classes that training images are tagged with, background first; None where that is not known.
    """

    title: str = ""
    about: str = ""
    cards: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scored: Result | None = None
    known: list[str] | None = None

    @property
    def layers(self) -> list[dict[str, str]]:
        """Key and caption of every layer, in the cards' order."""
        found = {layer["key"]: layer["caption"] for card in self.cards for layer in card["layers"]}
        return [{"key": key, "caption": caption} for key, caption in found.items()]


def make_gallery(run: Path, data: Path | None, count: int, colours: np.ndarray = PALETTE,
                 most: int = 60_000, decode: Decode | None = None) -> Gallery:
    """Cards of `count` images: half the worst by IoU of the refined masks, a quarter around the
    median, a quarter the best; the worst first.

    Args:
        run: run folder with `seeds/*`, `masks/*` (any may be missing).
        data: the image set; None: looked for in the run's records.
        count: number of images.
        colours: uint8 `[256, 3]` by pixel value.
        most: bytes of a photograph in the page.
        decode: asks the network of stage two, or the run's own, where nothing of it is stored.

    Raises:
        UserError: `data` was given and does not hold the run's images.
    """
    gallery = Gallery("Training images")
    if about_run(run, [], "")["stage"] == 2:
        return gallery  # its own seeds and masks are of new images, see `new_images`
    seeds, masks = _open_seeds(run, gallery), _open_masks(run, gallery)
    sources = [*seeds, *masks]
    if not sources:
        return gallery
    gallery.known = known_classes(sources[0].set)
    folder = data or find_data(run, [source.set for source in sources])
    if folder is None:
        gallery.notes.append("The image set was not found: give its folder with --data to see "
                             "pictures.")
        return gallery
    images = ShardSet(folder, kind="images")
    ranked = sources[-1].set
    if not set(ranked.ids) & set(images.ids):
        raise UserError(f"{folder} holds none of the images of {ranked.path}",
                        fix="give the image set that the seeds were made from")
    chosen = choose(ranked, images, count, gallery)
    decoder = decoder_layer(run, seeds, images, [name for name, _, _ in chosen], decode,
                            gallery.notes)
    shown = [*(source for source in seeds if source.key != KEY),
             *([decoder] if decoder else []), *masks]
    maker = Maker(images, shown, colours, most)
    gallery.cards = [maker.card(*item) for item in chosen]
    gallery.legend = maker.legend()
    gallery.about = ("With the image's own tags, which training knows. Heat maps: the strongest "
                     "of the image's classes at each pixel, blue 0 to red 1, white line at the "
                     "seed's threshold.")
    return gallery


def known_classes(made: ShardSet) -> list[str] | None:
    """Background and the classes that some image of a set was tagged with; None where the tags are
    not the true ones."""
    if seed_facts(made.manifest.provenance).get("tags") != "true":
        return None
    return ["background", *(name for name, any_image in zip(
        made.class_names, made.tags.any(0), strict=True) if any_image)]


def find_data(run: Path, made: list[ShardSet]) -> Path | None:
    """The image set named anywhere in the run's JSON files, or in the records of the sets or of the
    run's seeds (masks do not name theirs); else the run's own, also of a run that was moved.

    Taken is the first existing folder that is a shard set of images with the sets' images.
    """
    records: list[Any] = [item.manifest.extra for item in made]
    records += [item.manifest.provenance for item in made]
    for file in [*sorted(run.glob("*.json")), *sorted(run.glob("seeds/*/manifest.json"))]:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            records.append(record.get("extra") if file.name == "manifest.json" else record)
        except (ValueError, AttributeError):
            continue
    own = [str(folder / OWN_DATA) for folder in (run, run.parent)]  # run.parent: of stage two
    for text in [*_texts(records), *own]:
        try:
            if (Path(text) / "manifest.json").is_file():
                if set(ShardSet(text, kind="images").ids) & set(made[0].ids):
                    return Path(text)
        except (UserError, OSError, ValueError):
            continue
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every non-empty string inside nested dicts and lists."""
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def open_set(path: Path, name: str, notes: list[str], kind: str | None = None) -> ShardSet | None:
    """A set of the run; a damaged one becomes a note."""
    try:
        return ShardSet(path, kind=kind)
    except UserError as error:
        notes.append(f"{name} cannot be read: {error.message}.")
        return None


def _open_seeds(run: Path, gallery: Gallery) -> list[Source]:
    """One set of seeds for each kind of map, that of the kind's name before others."""
    folders = sorted((path for path in (run / "seeds").glob("*") if path.is_dir()),
                     key=lambda path: (path.name not in SEEDS, path.name))
    found: dict[str, Source] = {}
    for path in folders:
        seeds = open_set(path, f"seeds/{path.name}", gallery.notes)
        if seeds is not None:
            recorded = seed_facts(seeds.manifest.provenance).get("map")
            kind = path.name if path.name in SEEDS else recorded
            if kind in SEEDS:
                found.setdefault(kind, Source(kind, SEEDS[kind], seeds))
    there = {path.name for path in folders}
    for kind in ("cam", "lam"):
        if kind not in found and kind not in there and "fused" not in found:
            gallery.notes.append(f"seeds/{kind} is not in this run: `more localize --map {kind}` "
                                 "makes it.")
    return [found[kind] for kind in SEEDS if kind in found]


def _open_masks(run: Path, gallery: Gallery) -> list[Source]:
    """The refined masks to show: those from LAM where there are several."""
    order = {name: place for place, name in enumerate(MASKS)}
    there = sorted((path for path in (run / "masks").glob("*") if path.is_dir()),
                   key=lambda path: (order.get(path.name, len(order)), path.name))
    if not there:
        gallery.notes.append("Refined masks (masks/lam) are not in this run: `more refine` makes "
                             "them.")
        return []
    masks = open_set(there[0], f"masks/{there[0].name}", gallery.notes)
    return [] if masks is None else [Source("mask", "mask after CRF", masks)]


def choose(ranked: ShardSet, images: ShardSet, count: int, gallery: Gallery
           ) -> list[tuple[str, str, float | None]]:
    """`(id, group, IoU)` of the images to show, the worst first; spread over the set where there
    is no truth to rank them by."""
    held = set(images.ids)
    ids = [name for name in ranked.ids if name in held]
    try:
        scored = evaluate(ranked.path, images.path, boundary=0, calibration=False, progress=False)
    except UserError as error:
        gallery.notes.append(f"{gallery.title} are not ranked by IoU: {error.message}.")
        step = max(len(ids) // count, 1)
        return [(name, "sample", None) for name in ids[::step][:count]]
    gallery.scored = scored
    order = sorted((name for name in ids if not np.isnan(scored.per_image[name])),
                   key=scored.per_image.__getitem__)
    return [(name, group, scored.per_image[name]) for name, group in pick(order, count)]


def pick(order: list[str], count: int) -> list[tuple[str, str]]:
    """From ids in ascending IoU: the worst half, a quarter median, a quarter best of `count`."""
    if len(order) <= count:
        return [(name, "all") for name in order]
    best, median = count // 4, count // 4
    worst = count - best - median
    rest = order[worst:len(order) - best]
    start = (len(rest) - median) // 2
    return ([(name, "worst") for name in order[:worst]]
            + [(name, "median") for name in rest[start:start + median]]
            + [(name, "best") for name in order[len(order) - best:]])
