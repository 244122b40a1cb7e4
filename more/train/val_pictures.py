"""Pictures of a few validation images, the same ones at every evaluation: what a run has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from more.config.schema import Config
from more.data.dataset import EvalDataset, collate
from more.data.shards.reader import ShardSet
from more.evaluation.captions import drawable, font
from more.evaluation.pictures import heat_overlay, mask_overlay, thumbnail
from more.train.distributed import World
from more.train.validation import route_label, route_maps

SIDE = 224  # most pixels of a tile's side
CAPTIONS = {"cam": "CAM", "lam": "LAM", "decoder": "decoder"}
_BAR, _GAP = 20, 4  # pixels: height of the captions, space between tiles


class ValPictures:
    """Draws the same validation images again and again: the image, what each route says, the truth.

    Nothing of the training depends on it: no random number is drawn, and no weight changes.

    Args:
        data: validation set; None: there is nothing to draw.
        config: settings (`telemetry.pictures`; images are taken from those that are scored).
        world: ranks.
        routes: among "cam", "lam" and "decoder".
    """

    def __init__(self, data: ShardSet | None, config: Config, world: World, routes: Sequence[str]):
        self.data, self.config, self.world, self.routes = data, config, world, routes
        self.rows: list[int] = []
        if data is not None:
            scored = min(config.eval.images or len(data), len(data))
            self.rows = spread_rows(scored, config.telemetry.pictures)

    @torch.no_grad()
    def draw(self, network: torch.nn.Module) -> dict[str, np.ndarray]:
        """What the network says now; all ranks call it.

        Args:
            network: `MoReNetwork`; it is in evaluation mode afterwards.

        Returns:
            RGB pictures uint8 `[H, W, 3]` by the images' ids; none on ranks other than 0.
        """
        # Under ZeRO 3 a forward gathers the weights from all ranks; else one rank is enough.
        if not self.world.main and self.config.deepspeed.zero_stage < 3:
            return {}
        network.eval()
        data, pictures = self.config.data, {}
        images = EvalDataset(self.data, self.config.inference.size, data.mean, data.std)
        batch_size = self.config.inference.batch
        for first in range(0, len(self.rows), batch_size):
            rows = self.rows[first:first + batch_size]
            batch = collate([images[row] for row in rows])
            layers = self._layers(network, batch)
            if self.world.main:
                for place, row in enumerate(rows):
                    pictures[self.data.ids[row]] = self._strip(row, batch["masks"][place], {
                        name: layer[place] for name, layer in layers.items()})
        return pictures

    def _layers(self, network: torch.nn.Module, batch: dict[str, Any]
                ) -> dict[str, list[tuple[np.ndarray | None, np.ndarray]]]:
        """By route, for each image: the strongest class map `[S, S]` (None of the decoder) and the
        label map `[S, S]`."""
        device = self.world.device
        tags, layers = torch.from_numpy(batch["tags"]).to(device), {}
        for name, values in route_maps(network, batch["images"].to(device), self.config,
                                       self.routes):
            labels = route_label(name, values, tags, self.config).cpu().numpy()
            heat = (None if name == "decoder" else
                    (values * tags[:, :, None, None]).amax(1).cpu().numpy())
            layers[name] = [(None if heat is None else heat[place], labels[place])
                            for place in range(len(labels))]
        return layers

    def _strip(self, row: int, truth: torch.Tensor | None,
               layers: dict[str, tuple[np.ndarray | None, np.ndarray]]) -> np.ndarray:
        """One picture: tiles side by side, each with its caption."""
        image, names = thumbnail(self.data.image(row), side=SIDE), self.data.class_names
        size = image.shape[1::-1]
        tiles = {"image": image}
        for name, (heat, label) in layers.items():
            label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
            tiles[CAPTIONS[name]] = (
                mask_overlay(image, label, names=names) if heat is None else
                heat_overlay(image, cv2.resize(heat, size), label))
        if truth is not None:
            label = cv2.resize(truth.numpy(), size, interpolation=cv2.INTER_NEAREST)
            tiles["truth"] = mask_overlay(image, label, names=names)
        return side_by_side(tiles)


def spread_rows(images: int, wanted: int) -> list[int]:
    """Rows of a set, evenly spread over it; always the same ones.

    Args:
        images: of the set.
        wanted: how many rows, at most.

    Returns:
        Their numbers.
    """
    count = min(wanted, images)
    return [int((2 * place + 1) * images / (2 * count)) for place in range(count)]


def side_by_side(tiles: dict[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size in a row, each below its caption.

    Args:
        tiles: RGB uint8 `[H, W, 3]` by caption.

    Returns:
        RGB uint8 `[H + 20, …, 3]`.
    """
    height, width = next(iter(tiles.values())).shape[:2]
    canvas = np.full((height + _BAR, len(tiles) * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles.values()):
        left = place * (width + _GAP)
        canvas[_BAR:, left:left + width] = tile
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    for place, caption in enumerate(tiles):
        pen.text((place * (width + _GAP) + 2, 2), drawable(caption), (0, 0, 0), font(13))
    return np.asarray(picture)
