"""What a training step keeps besides weights, gradients and optimiser state: activations.

The network is run on tensors without memory (`FakeTensorMode`): a prediction takes seconds on any
machine. The losses are run in earnest for one image of drawn numbers and multiplied by the images
of a pass, in which their memory is linear.

CPU kernels are followed. On a GPU fused attention keeps the same tensors; what operations need
inside themselves (work space of convolutions) and what the allocator rounds up come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from more.config.schema import Config, StartConfig
from more.engine.build import make_network, make_objective
from more.engine.cams import half_views, view_sizes
from more.engine.livebytes import LiveBytes, without_memory
from more.losses.objective import Batch
from more.model.network import MoReNetwork, NetworkOutput

PRESENT = 3  # classes of an image, for the maps that are kept of present classes alone


@dataclass(frozen=True)
class StepActivations:
    """Bytes of one rank in one pass beside its states.

    Attributes:
        kept: alive between forward and backward.
        forward: most during the training forward.
        cam: most during the views that only give CAMs, with `kept`.
        losses: most during labels, losses and their backward, with `kept`.
        backward: most during the network's backward, without gradients of weights.
    """

    kept: int
    forward: int
    cam: int
    losses: int
    backward: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.forward, self.cam, self.losses, self.backward)


def step_activations(config: Config, images: int) -> StepActivations:
    """Predict the activations of a step in which every term takes part.

    Args:
        config: settings; precision, crop, scales and checkpointing count.
        images: of one pass on one rank.

    Raises:
        UserError: as `make_network`.
    """
    crop, half = config.data.crop, config.precision != "fp32"
    with torch.device("meta"):
        skeleton = make_network(config, load_weights=False)
    with FakeTensorMode(), LiveBytes() as live:
        network, batch = without_memory(skeleton).train(), torch.zeros(images, 3, crop, crop)
        before = live.now
        live.restart()
        with autocast(half):
            output = network(batch)
        output = NetworkOutput(*(value.float() for value in output))
        kept, forward = live.now - before, live.peak - before
        sizes = [tuple(value.shape[1:]) for value in output]
        cam = kept + _cam_bytes(config, network, images, live)
        live.restart()
        _backward(network, output)
        backward = live.peak - before
    losses = kept + images * _loss_bytes(config, sizes)
    return StepActivations(kept, forward, cam, losses, backward)


def autocast(enabled: bool) -> Any:
    """bf16 autocast as training has it, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


def _cam_bytes(config: Config, network: MoReNetwork, images: int, live: LiveBytes) -> int:
    """Most bytes while the views are run and summed, without what lives already."""
    before, area, classes = live.now, config.data.crop ** 2, config.model.num_classes
    summed = 2 * 4 * images * min(classes, PRESENT) * area
    live.restart()
    half = config.precision != "fp32" or half_views(config.cam.precision)
    for (height, width), count in view_sizes(config, network.encoder.patch_size):
        views = torch.zeros(count * images, 3, height, width)
        with torch.no_grad(), autocast(half):
            network(views, mode="cam")
        del views
    # Later come maps of all classes at full size, beside the sums.
    return summed + max(live.peak - before, 2 * 4 * images * classes * area)


def _backward(network: MoReNetwork, output: NetworkOutput) -> None:
    """Backward of a loss that every output takes part in; gradients of weights are dropped."""
    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(drop)
    sum(value.sum() for value in output if value.requires_grad).backward()


def _loss_bytes(config: Config, sizes: Sequence[tuple[int, ...]]) -> int:
    """Most bytes of maps, labels, losses and their backward for one image.

    Args:
        config: settings; all terms count.
        sizes: of the outputs of one image, in the order of `NetworkOutput`.
    """
    generator = torch.Generator().manual_seed(0)
    always = StartConfig(**dict.fromkeys(vars(StartConfig()), -1))
    objective = make_objective(replace(config, loss=replace(config.loss, start=always)))
    output = NetworkOutput(*(torch.randn(1, *size, generator=generator).requires_grad_()
                             for size in sizes))
    crop, classes = config.data.crop, config.model.num_classes
    image = torch.randn(1, 3, crop, crop, generator=generator)
    tags = (torch.arange(classes) < PRESENT).float()[None]
    keys = torch.rand(1, 2, sizes[2][1] * sizes[2][2], generator=generator)
    with LiveBytes() as live:
        cams, aux_cams = (torch.rand(1, classes, crop, crop, generator=generator)
                          for _ in range(2))
        terms = objective(output, Batch(images=image, tags=tags, cams=cams, aux_cams=aux_cams,
                                        keys=keys), 0)
        terms["total"].backward()
    return live.peak
