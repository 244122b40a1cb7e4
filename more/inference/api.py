"""`more.load`: a trained network for pictures in memory, with the masks of `more predict`.

H and W are the sides of a picture, C counts the classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import torch

from more.config.schema import Config
from more.data.pixels import Picture, is_picture, read_pixels
from more.data.seeds import seed_probabilities
from more.data.tags import class_indices
from more.errors import UserError
from more.filtering.crf import resolve_engine
from more.inference.localizer import KINDS, Localizer, Request, check_maps
from more.inference.picture_masks import PictureMasks, Shown
from more.inference.predict import (
    choose_device,
    choose_network,
    names_or_numbers,
    record_of,
    with_tag_threshold,
)
from more.inference.predict_job import Options
from more.inference.prediction import Prediction
from more.inference.trained import load_run, weights_digest

Tags: TypeAlias = "str | Sequence[str] | Sequence[Sequence[str]] | None"


class Maps(NamedTuple):
    """Where a network sees the classes of a picture.

    Attributes:
        cam: class activation maps, by class name: float32 `[H, W]`, 0 to 1.
        lam: localisation attention maps, likewise.
    """

    cam: dict[str, np.ndarray]
    lam: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Loaded:
    """A network, its settings, and the checkpoint or file that it came from."""

    config: Config
    network: torch.nn.Module
    path: Path
    sha256: str


def load(path: str | os.PathLike[str], device: str | torch.device = "auto",
         map: str | None = None, checkpoint: str = "latest") -> Network:
    """Load a trained network. DeepSpeed is not needed.

    Args:
        path: a file of `more export-weights`, or a run folder.
        device: "cpu", "cuda", "cuda:1", …; "auto" is a GPU if there is one.
        map: which map becomes a mask: "decoder", "lam", "cam" or "fused". None takes, as
            `more predict` does, the decoder of stage two (of `RUN/two` once that is finished),
            else the LAM.
        checkpoint: of a run folder: "latest", "best", or the name of one.

    Returns:
        The network.

    Raises:
        UserError: nothing there, no network of this project, a damaged file, an unknown map or
            device, a decoder that was not trained.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder",
                        fix="give a run folder, or a file of `more export-weights`")
    name = "" if str(device) == "auto" else str(device)
    return Network(source, choose_device(name, "device"), _known_map(map), checkpoint)


class Network:
    """A trained network, ready for pictures. `more.load` makes it.

    Args:
        source: run folder or exported file.
        device: where to compute.
        map: as for `load`.
        checkpoint: as for `load`.

    Attributes:
        source: as given.
        device: as given.
        map: which map becomes a mask unless `predict` is told otherwise.
        classes: names of the C classes; the pixel value of the first one is 1.
    """

    def __init__(self, source: Path, device: torch.device, map: str | None = None,
                 checkpoint: str = "latest"):
        self.source, self.device, self._checkpoint = source, device, checkpoint
        self._folder, chosen = choose_network(source, Options(map or "auto"))
        self.map = chosen.map
        self._networks: dict[Path, _Loaded] = {}
        config = self._loaded(self.map).config
        self.classes = tuple(names_or_numbers(self._folder, config))
        check_maps((self.map,), config)

    def __repr__(self) -> str:
        return f"Network({self._loaded(self.map).path}: {self.map}, {len(self.classes)} classes, " \
               f"on {self.device})"

    @overload
    def predict(self, picture: Picture, *, crf: bool = ..., tags: str | Sequence[str] | None = ...,
                tag_threshold: float | None = ..., map: str | None = ...) -> Prediction: ...

    @overload
    def predict(self, picture: Sequence[Picture], *, crf: bool = ..., tags: Tags = ...,
                tag_threshold: float | None = ..., map: str | None = ...) -> list[Prediction]: ...

    def predict(self, picture: Picture | Sequence[Picture], *, crf: bool = True, tags: Tags = None,
                tag_threshold: float | None = None, map: str | None = None
                ) -> Prediction | list[Prediction]:
        """The mask of a picture, or of each picture of a list: the one of `more predict`.

        Args:
            picture: path, PIL image, or RGB array uint8 `[H, W, 3]`; or a list of them. All
                results of a list are held in memory; a long list is better cut into parts.
            crf: dense CRF at the size of the picture; otherwise the plain thresholded map.
            tags: names of the classes that the picture shows; for a list of pictures one list of
                names for all, or one for each. None: those that the network finds (a decoder
                then chooses among all classes).
            tag_threshold: probability from which a class is found; None: the run's setting.
            map: another map than `self.map`. Of a run folder with stage two, all maps but the
                decoder's are those of stage one, as for `more predict`.

        Returns:
            A prediction; for a list a list, in the same order.

        Raises:
            UserError: a picture that cannot be read, an unknown class or map, a threshold out of
                range.
        """
        kind = _known_map(map) or self.map
        if is_picture(picture):
            return self._predict([picture], [self._given(tags)], kind, crf, tag_threshold)[0]
        if not isinstance(picture, Sequence):
            read_pixels(picture)  # says what is taken
        given = self._given_to_each(tags, len(picture))
        return self._predict(picture, given, kind, crf, tag_threshold)

    def maps(self, picture: Picture, tags: str | Sequence[str] | None = None, *,
             tag_threshold: float | None = None) -> Maps:
        """CAM and LAM of the classes of a picture, multi-scale and with flips, at its size.

        Args:
            picture: path, PIL image, or RGB array uint8 `[H, W, 3]`.
            tags: names of the classes; None: those that the network finds, which may be none.
            tag_threshold: probability from which a class is found; None: the run's setting.

        Returns:
            The maps, by class name.

        Raises:
            UserError: as for `predict`.
        """
        given = self._given(tags)
        masks = self._masks(("cam", "lam"), Options("lam", tag_threshold=tag_threshold),
                            given is not None)
        image = read_pixels(picture).image
        seen, = masks.look([Shown(image, given, None, {})])
        named = {}
        for kind, seed in seen.seeds.items():
            keys, maps = seed_probabilities(seed, image.shape[:2])
            named[kind] = {self.classes[key - 1]: values
                           for key, values in zip(keys[1:].tolist(), maps[1:], strict=True)}
        return Maps(named["cam"], named["lam"])

    def _predict(self, pictures: Sequence[Picture], given: list[np.ndarray | None], kind: str,
                 crf: bool, tag_threshold: float | None) -> list[Prediction]:
        """Masks of pictures, batch after batch as `more predict` makes them."""
        options = Options(kind, tag_threshold=tag_threshold, crf=crf)
        masks = self._masks((kind,), options, any(tags is not None for tags in given))
        size, made = masks.localizer.config.inference.batch, []
        for start in range(0, len(pictures), size):
            batch = []
            for row in range(start, min(start + size, len(pictures))):
                read, tags = read_pixels(pictures[row]), given[row]
                batch.append(Shown(read.image, tags, read.file,
                                   masks.provenance(read.sha256, tags)))
            made += [masks.predict(*pair) for pair in zip(batch, masks.look(batch), strict=True)]
        return made

    def _masks(self, kinds: tuple[str, ...], options: Options, given: bool) -> PictureMasks:
        """What makes masks of the kind `options.map`, or maps of several kinds."""
        threshold = options.tag_threshold
        if threshold is not None and not 0 <= threshold <= 1:  # also true for NaN
            raise UserError(f"tag_threshold is {threshold}", fix="give a probability from 0 to 1")
        loaded = self._loaded(options.map)
        config = with_tag_threshold(loaded.config, options)
        localizer = Localizer(config, loaded.network, Request(kinds, "true"), self.device)
        record = record_of(config, options, loaded.path, given, resolve_engine("auto"),
                           loaded.sha256)
        return PictureMasks(localizer, self.classes, record)

    def _loaded(self, kind: str) -> _Loaded:
        """The network for a kind of map, read when it is first needed."""
        folder = self._folder if kind == self.map else self.source
        if folder not in self._networks:
            config, network, path = load_run(folder, self._checkpoint)
            self._networks[folder] = _Loaded(config, network.to(self.device), path,
                                             weights_digest(path))
        return self._networks[folder]

    def _given(self, tags: Tags) -> np.ndarray | None:
        """bool `[C]` of class names; None stays None."""
        if tags is None:
            return None
        names = [tags] if isinstance(tags, str) else list(tags)
        if not all(isinstance(name, str) for name in names):
            raise UserError("tags: several lists for one picture",
                            fix="give the names of its classes, as in tags=['dog', 'cat']")
        chosen = np.zeros(len(self.classes), bool)
        chosen[list(class_indices(names, self.classes, "tags"))] = True
        return chosen

    def _given_to_each(self, tags: Tags, count: int) -> list[np.ndarray | None]:
        """`_given` for each of `count` pictures."""
        if tags is None or isinstance(tags, str) or all(isinstance(name, str) for name in tags):
            return [self._given(tags)] * count
        if len(tags) != count or any(isinstance(names, str) for names in tags):
            raise UserError(f"tags: {len(tags)} lists for {count} pictures",
                            fix="give one list of names for each picture, or names for all")
        return [self._given(names) for names in tags]


def _known_map(kind: str | None) -> str | None:
    """A kind of map; None for "auto"."""
    if kind not in (None, "auto", *KINDS):
        raise UserError(f"map {kind!r}: unknown", fix=f"choose from {', '.join(KINDS)}, or None")
    return None if kind == "auto" else kind
