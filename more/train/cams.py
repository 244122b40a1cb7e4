"""The CAMs that an update learns from: which views are run, with which weights, how precisely.

B images of a pass, C classes, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from more.config.schema import Config
from more.device import has_bf16
from more.method.cam import Present, PresentMaps, multi_scale, scaled_size, single_scale
from more.method.network import NetworkOutput
from more.method.objective import Objective
from more.train.average import WeightAverage

RELU = (True, True)  # of both CAMs


class CamMaker:
    """Multi-scale CAM and auxiliary CAM of a batch, without gradient (method §4.4).

    - The view of scale 1 is the training forward's; only its mirror image is run again.
    - While no term needs the main CAM (the decoder's terms have not begun), views stop at the
      auxiliary block, and the main CAM is the training forward's alone.
    - `cam.every` = k: the views are run in updates 0, k, 2k, …; in the others both CAMs are the
      training forward's alone.
    - On a GPU (`cam.packed`) the views go through the blocks in one pass.
    - `cam.ema`: all views, scale 1 as well, are run with the average of the weights.

    Args:
        config: settings.
        model: what is called with images and a mode: DeepSpeed's engine, or the network.
        objective: says what an update needs.
        patch: side of a patch in pixels.
        average: of the weights, for `cam.ema`.
    """

    def __init__(self, config: Config, model: Callable[..., Any], objective: Objective, patch: int,
                 average: WeightAverage | None = None):
        self.cam, self.model, self.objective = config.cam, model, objective
        if config.cam.ema and average is None:
            raise ValueError("cam.ema needs an average of the weights")
        self.average = average if config.cam.ema else None
        self.multiple = patch if config.cam.whole_patches else 1
        self.frozen = config.model.frozen_blocks
        self.half: bool | None = None  # asked of the device once, with the first images

    @torch.no_grad()
    def __call__(self, images: Tensor, tags: Tensor | Present, output: NetworkOutput, step: int,
                 mirrored: Tensor | None = None) -> tuple[PresentMaps | None, PresentMaps | None]:
        """CAM and auxiliary CAM, 0..1 at full size, for an update; None where none is needed.

        Args:
            images: `[B, 3, H, W]` as the network takes them.
            tags: `[B, C]`, or what they say; only the maps of present classes are made.
            output: of the training forward on these images.
            step: number of the update.
            mirrored: what the frozen blocks make of the mirrored images, where that is known.
        """
        if not self.objective.needs_cams(step):
            return None, None
        size, first = tuple(images.shape[-2:]), (output.cam, output.aux_cam)
        if step % self.cam.every:
            return single_scale(first, size, RELU, tags=tags)
        if needs_main(self.objective, step):
            return self._views("cam", images, tags, first, RELU, mirrored)
        main = single_scale(first[:1], size, RELU[:1], tags=tags)
        return main + self._views("aux_cam", images, tags, first[1:], RELU[1:], mirrored)

    def _views(self, mode: str, images: Tensor, tags: Tensor | Present, first: tuple[Tensor, ...],
               relu: tuple[bool, ...], mirrored: Tensor | None) -> tuple[PresentMaps, ...]:
        """Run the views of all scales for the CAMs that `mode` names, and sum them up."""
        if self.half is None:
            self.half = half_views(self.cam.precision, images.device)
        network = partial(self.model, mode=mode, half=self.half
                          and images.dtype == torch.float32)  # 16-bit weights need none

        def known(views: Tensor) -> Tensor:
            """The views, or their kept tokens where the frozen blocks have been run."""
            # Of scale 1 only the mirrored images are asked for (`multi_scale` with `first`).
            same = mirrored is not None and views.shape == images.shape and self.average is None
            return mirrored if same else views

        def run(views: Any) -> Any:
            """CAMs of the views of a scale, or with `packed` of those of all scales."""
            if packed:
                return network([known(view) for view in views])
            views = known(views)
            return network(views, frozen=self.frozen) if views is mirrored else network(views)
        packed = packs_views(self.cam.packed, images.device)
        # Inside an autocast, even one that is off, casts of weights are kept until it is left: they
        # are made once for all views, not once for each.
        keep_casts = torch.autocast(images.device.type, enabled=False)
        with self.average.in_place() if self.average else nullcontext(), keep_casts:
            return multi_scale(run, images, self.cam.scales, relu, tags=tags,
                               first=None if self.average else first, multiple=self.multiple,
                               together=packed)


def needs_main(objective: Objective, step: int) -> bool:
    """Whether an update uses the main CAM: for the decoder's labels, and late for CRE and URE.

    Args:
        objective: with its weights and starts.
        step: number of the update.

    Returns:
        False where views may stop at the auxiliary block.
    """
    decoder = objective.active("seg", step) or objective.active("energy", step)
    return decoder or objective.compute_inactive or step > objective.cam.late_after


def half_views(precision: str, device: torch.device) -> bool:
    """Whether views that only give CAMs run in bf16 (`cam.precision`) on a device.

    Args:
        precision: `cam.precision`.
        device: of the network.

    Returns:
        Whether they do.
    """
    if precision == "auto":
        return has_bf16(device)
    return precision == "bf16"


def packs_views(packed: str, device: torch.device) -> bool:
    """Whether the views that only give CAMs run in one pass (`cam.packed`) on a device.

    Args:
        packed: `cam.packed`.
        device: of the network.

    Returns:
        Whether they do.
    """
    return packed == "yes" or (packed == "auto" and device.type == "cuda")


def view_sizes(config: Config, patch: int) -> list[tuple[tuple[int, int], int]]:
    """The forwards that only give CAMs, as ((height, width), views an image) of each.

    Args:
        config: settings.
        patch: side of a patch in pixels.

    Returns:
        One entry for each forward.
    """
    cam, crop = config.cam, config.data.crop
    multiple = patch if cam.whole_patches else 1
    return [((crop, crop), 2 if cam.ema else 1)] + [
        (scaled_size((crop, crop), scale, multiple), 2) for scale in cam.scales if scale != 1]
