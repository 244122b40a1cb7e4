"""The maps of a batch of images, and what is stored of them.

Letters of shapes: B counts the images, C the foreground classes; S is the side of the network's
input, s that of stored maps; h and w count patches, D is their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from more.config.schema import Config
from more.data.seeds import SeedItem
from more.data.transforms import inference_image
from more.device import has_bf16
from more.errors import UserError
from more.method.cam import minmax, multi_scale, spread
from more.method.heads import shown_probabilities

KINDS = ("cam", "lam", "fused", "decoder")
SMALLEST_PROBABILITY = 0.01


@dataclass(frozen=True)
class Request:
    """What to compute.

    Attributes:
        maps: map kinds, of `KINDS`.
        tags: where the tags come from, "true" or "predicted".
        batch: images a forward.
        within_tags: the decoder chooses among the background and the tagged classes alone.
    """

    maps: tuple[str, ...] = ("lam",)
    tags: str = "true"
    batch: int = 4
    within_tags: bool = False


class Localizer:
    """Maps of a batch of images at seed resolution.

    Args:
        config: the run's settings (`inference`).
        network: in eval mode, on `device`.
        request: map kinds and tags.
        device: where the network is.

    Attributes:
        half: it runs in bf16, by autocast: `precision` says so, or leaves it to the device.

    Raises:
        UserError: the decoder is asked for, but was not trained.
    """

    def __init__(self, config: Config, network: torch.nn.Module, request: Request,
                 device: torch.device):
        check_maps(request.maps, config)
        self.config, self.network, self.request, self.device = config, network, request, device
        self.half = config.in_bf16 or (config.precision == "auto" and has_bf16(device))
        grid = config.inference.size // network.encoder.patch_size
        self.side = max(1, round(grid * config.inference.seed_scale))

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        """RGB uint8 [H, W, 3] → normalised [3, S, S] at the inference size."""
        data = self.config.data
        return torch.from_numpy(
            inference_image(image, self.config.inference.size, data.mean, data.std))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, tags: torch.Tensor) -> list[dict[str, SeedItem]]:
        """Seeds of normalised images [B, 3, S, S] with tags [B, C], one dict per image."""
        images = images.to(self.device)
        maps: dict[str, torch.Tensor] = {}
        with self._autocast():
            if self.request.tags == "predicted":
                tags = self._predict_tags(images)
            if set(self.request.maps) & {"cam", "lam", "fused"}:
                maps.update(self._localization(images, tags.to(self.device)))
            if "decoder" in self.request.maps:
                within = tags.to(self.device) > 0 if self.request.within_tags else None
                maps["decoder"] = self._decoder(images, within)
        chosen = (tags > 0).cpu().numpy()
        arrays = {kind: maps[kind].float().cpu().numpy() for kind in self.request.maps}
        return [{kind: seed_item(array[row], None if kind == "decoder" else chosen[row])
                 for kind, array in arrays.items()} for row in range(len(images))]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _localization(self, images: torch.Tensor, tags: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of the present classes; those of the others are not kept, so not computed."""
        inference, patches = self.config.inference, []

        def forward(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """CAM and LAM of some views."""
            found = self.network(views, mode="maps")
            if inference.spread and not patches:  # scale 1 comes first, the images before mirrored
                patches.append(found["patches"][:len(images)].float())
            return found["cam"].float(), found["lam"].float()

        found = multi_scale(forward, images, inference.scales, relu=(True, False), tags=tags)
        cam, lam = (present.dense(tags.shape[1]) for present in found)
        maps = {"cam": cam, "lam": lam, "fused": minmax((cam + lam) / 2)}
        if patches:
            maps = {kind: self._spread(value, patches[0]) for kind, value in maps.items()}
        return {kind: self._shrink(value) for kind, value in maps.items()}

    def _spread(self, maps: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, S, S] at the grid of patches [B, D, h, w], spread over similar ones, 0..1."""
        inference = self.config.inference
        coarse = F.interpolate(maps, patches.shape[-2:], mode="bilinear", antialias=True)
        wide = spread(coarse, patches, inference.spread, inference.spread_temperature)
        return minmax(wide)

    def _decoder(self, images: torch.Tensor, within: torch.Tensor | None) -> torch.Tensor:
        """Probabilities [B, C + 1, s, s]: logits of image and mirror added, maximum over scales.

        Those of classes that are false in `within` [B, C] are 0.
        """
        best = None
        for scale in self.config.inference.segment_scales:
            side = int(images.shape[-1] * scale)
            view = F.interpolate(images, (side, side), mode="bilinear")
            logits = self.network(torch.cat([view, view.flip(-1)]), mode="segment").float()
            plain, mirrored = self._shrink(logits).chunk(2)
            total = plain + mirrored.flip(-1)
            best = total if best is None else torch.maximum(best, total)
        if within is not None:
            best[:, 1:].masked_fill_(~within[:, :, None, None], float("-inf"))
        return best.softmax(1)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """How likely normalised images [B, 3, S, S] show each class, [B, C].

        The classifier says it; in stage two, which does not train it on, the decoder.

        Args:
            images: [B, 3, S, S], normalised.

        Returns:
            [B, C], 0 to 1.
        """
        images = images.to(self.device)
        with self._autocast():
            if self.config.stage == 2:
                return shown_probabilities(self.network(images, mode="segment").float())
            return self.network(images, mode="maps")["logits"].float().sigmoid()

    def _predict_tags(self, images: torch.Tensor) -> torch.Tensor:
        """Classes above `inference.tag_threshold`; the best one where none is above."""
        likely = self.probabilities(images)
        found = likely > self.config.inference.tag_threshold
        return found | (likely == likely.amax(1, keepdim=True)) & ~found.any(1, keepdim=True)

    def _shrink(self, maps: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps, (self.side, self.side), mode="bilinear",
                             antialias=maps.shape[-1] > self.side)


def check_maps(kinds: Sequence[str], config: Config) -> None:
    """Refuse maps that a run does not have.

    Args:
        kinds: of maps.
        config: the run's settings.

    Raises:
        UserError: the decoder is asked for, but was not trained.
    """
    if "decoder" in kinds and not config.decoder_trained:
        raise UserError("the decoder of this run was not trained: loss.weights.seg = 0",
                        "take stage two's run (more train --masks …), or another --map")


def seed_item(maps: np.ndarray, tags: np.ndarray | None) -> SeedItem:
    """The stored form of one image's maps.

    Args:
        maps: [C, s, s] for class maps, [C + 1, s, s] with background first for probabilities.
        tags: [C]: the classes to keep; None keeps background and every class whose probability
            reaches 0.01 anywhere.

    Returns:
        The item, float16.
    """
    if tags is None:
        keep = maps.max(axis=(1, 2)) >= SMALLEST_PROBABILITY
        keep[0] = True
        keys = np.flatnonzero(keep)
        return SeedItem(keys, maps[keys].astype(np.float16))
    classes = np.flatnonzero(tags)
    return SeedItem(classes + 1, maps[classes].astype(np.float16))
