"""One image of the report's gallery: its photograph and the layers over it, with their IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from more.data.seeds import seed_label, seed_probabilities
from more.data.shards.format import IGNORE
from more.data.shards.reader import ShardSet
from more.evaluation.layers import heat_uri, label_uri, name_labels, photograph
from more.evaluation.metrics import image_iou, joint_labels, joint_matrix, true_pixels
from more.evaluation.score_count import read_seed
from more.evaluation.score_sets import seed_threshold
from more.palette import colour_of


class Layer(Protocol):
    """One picture of every card: a map or a label map over the photograph."""

    @property
    def key(self) -> str:
        """Tells layers apart."""

    @property
    def caption(self) -> str:
        """What the page calls it."""

    def label(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """Label map `[H, W]` of an image; None where there is none of this size."""

    def heat(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """The map to show in place of the labels; None where these are shown."""


@dataclass(frozen=True)
class Source:
    """A set of seeds or masks that is shown as one layer.

    Seeds are shown as a heat map, those of the decoder and masks as labels.
    """

    key: str
    caption: str
    set: ShardSet

    def label(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """Label map `[H, W]` of an image; None where the set lacks it or has another size."""
        if name not in self.set.ids:
            return None
        row = self.set.index_of(name)
        if self.set.kind == "masks":
            label = self.set.mask(row)
            return label if label is not None and label.shape == size else None
        return seed_label(read_seed(self.set, row), size, seed_threshold(self.set))

    def heat(self, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """The strongest class's map `[H, W]`; None for labels."""
        if self.set.kind == "masks" or self.key.startswith("decoder"):
            return None
        maps = seed_probabilities(read_seed(self.set, self.set.index_of(name)), size)[1][1:]
        return maps.max(0) if len(maps) else np.zeros(size, np.float32)


@dataclass
class Maker:
    """Makes cards of one image set, and keeps which pixel values were drawn.

    Args:
        images: the set with the photographs, and the truth if there is one.
        sources: layers in their order.
        colours: uint8 `[256, 3]` by pixel value.
        most: bytes of a photograph in the page.
    """

    images: ShardSet
    sources: Sequence[Layer]
    colours: np.ndarray
    most: int
    drawn: set[int] = field(default_factory=set)

    def card(self, name: str, group: str, iou: float | None) -> dict[str, Any]:
        """What the page shows of one image."""
        row = self.images.index_of(name)
        image, truth = self.images.image(row), self.images.mask(row)
        layers, seen = [], set()
        for source in self.sources:
            layers.append(self._layer(source.key, source.caption, name, image, truth, seen, source))
        if self.images.has("mask"):
            layers.append(self._layer("truth", "truth", name, image, truth, seen, None))
        tagged = np.flatnonzero(self.images.tags[row])
        classes = sorted((seen | {int(k) + 1 for k in tagged}) - {0, IGNORE})
        return {"id": name, "group": group, "iou": iou, "layers": layers, "classes": classes,
                "width": image.shape[1], "height": image.shape[0],
                "photograph": photograph(image, self.most),
                "tags": [{"name": self.images.class_names[k],
                          "colour": colour_of(int(k) + 1, self.colours)} for k in tagged]}

    def legend(self) -> list[dict[str, Any]]:
        """Pixel value, name and colour of everything that was drawn, but for the background."""
        names = {IGNORE: "uncertain or ignored (255)",
                 **{k + 1: name for k, name in enumerate(self.images.class_names)}}
        return [{"value": value, "name": names.get(value, str(value)),
                 "colour": colour_of(value, self.colours)}
                for value in sorted(self.drawn - {0})]

    def _layer(self, key: str, caption: str, name: str, image: np.ndarray,
               truth: np.ndarray | None, seen: set[int], source: Layer | None
               ) -> dict[str, Any]:
        size = image.shape[:2]
        label = truth if source is None else source.label(name, size)
        if label is None or label.shape != size:
            return {"key": key, "caption": caption, "src": None}
        values = set(np.unique(label).tolist())
        heat = None if source is None else source.heat(name, size)
        seen.update(values)
        if heat is None:
            self.drawn.update(values)
        return {"key": key, "caption": caption,
                "src": label_uri(label, self.colours) if heat is None else heat_uri(heat, label),
                "iou": None if source is None else _iou(truth, label, self.images.num_classes),
                "names": name_labels(label, self.images.class_names, self.colours)}


def _iou(truth: np.ndarray | None, label: np.ndarray, classes: int) -> float | None:
    if truth is None or truth.shape != label.shape:
        return None
    joint = joint_labels(truth, label, classes + 1)[1]
    return image_iou(joint_matrix(joint, classes + 1), true_pixels(truth, classes + 1))
