"""What a training step keeps besides weights, gradients and optimiser state: activations.

The network is run on tensors without memory (`FakeTensorMode`): a prediction takes seconds on any
machine. The losses are run in earnest on drawn numbers, for as many images as the decoder's terms
take at a time; every further image adds the same.

CPU kernels are followed. On a GPU fused attention keeps the same tensors; what operations need
inside themselves (work space of convolutions) and what the allocator rounds up come on top. There
the decoder's terms also enlarge as many images at a time as fit into half of the memory that is
free then (`images_at_a_time`): they may take up to that half beyond what is predicted here.
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
from more.device import local_device
from more.method.cam import PresentMaps, present_classes
from more.method.gradients import images_at_a_time
from more.method.labels import Batch
from more.method.make_network import make_network
from more.method.network import MoReNetwork, NetworkOutput
from more.method.objective import make_objective
from more.plan.live_bytes import LiveBytes, without_memory
from more.train.cams import half_views, packs_views, view_sizes

AUTOCAST = ("bf16", "fp16")  # fp16 keeps as much as autocast does, but for casts of weights
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

    Returns:
        Bytes, by the part of the step.

    Raises:
        UserError: as `make_network`.
    """
    crop, half = config.data.crop, config.precision in AUTOCAST
    weights = torch.bfloat16 if config.precision == "bf16_weights" else torch.float32
    with torch.device("meta"):
        skeleton = make_network(config, load_weights=False)
        for parameter in skeleton.parameters():
            parameter.data = parameter.data.to(weights)
    with FakeTensorMode(), LiveBytes() as live:
        network = without_memory(skeleton).train()
        batch = torch.zeros(images, 3, crop, crop, dtype=weights)
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
    losses = kept + _loss_bytes(config, sizes, images)
    return StepActivations(kept, forward, cam, losses, backward)


def autocast(enabled: bool) -> Any:
    """bf16 autocast as training has it, or nothing.

    Args:
        enabled: whether the network computes in 16 bits over float32 weights.

    Returns:
        The context to run the network in.
    """
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


def _cam_bytes(config: Config, network: MoReNetwork, images: int, live: LiveBytes) -> int:
    """Most bytes while the views are run and summed, without what lives already."""
    before, present = live.now, min(config.model.num_classes, PRESENT)
    summed = 2 * 4 * images * present * config.data.crop ** 2
    live.restart()
    weights = next(network.parameters()).dtype
    half = weights == torch.float32 and (config.precision in AUTOCAST or half_views(
        config.cam.precision, local_device()))
    sizes = view_sizes(config, network.encoder.patch_size)
    packed = packs_views(config.cam.packed, local_device())
    for together in [sizes] if packed else [[one] for one in sizes]:
        views = [torch.zeros(count * images, 3, *size, dtype=weights) for size, count in together]
        with torch.no_grad(), autocast(half):
            network(views if packed else views[0], mode="cam")
        del views
    # After a view: both its maps at full size, and the mirror image's before they are one.
    return max(summed + live.peak - before, 3 * summed)


def _backward(network: MoReNetwork, output: NetworkOutput) -> None:
    """Backward of a loss that every output takes part in; gradients of weights are dropped."""
    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(drop)
    sum(value.sum() for value in output if value.requires_grad).backward()


def _loss_bytes(config: Config, sizes: Sequence[tuple[int, ...]], images: int) -> int:
    """Most bytes of maps, labels, losses and their backward.

    Args:
        config: settings; all terms count.
        sizes: of the outputs of one image, in the order of `NetworkOutput`.
        images: of one pass.
    """
    crop = config.data.crop
    logits = torch.empty(1, *sizes[NetworkOutput._fields.index("seg_logits")], device="meta")
    together = images_at_a_time(logits, (crop, crop))
    if images <= together:
        return _measured_loss_bytes(config, sizes, images)
    few, more = (_measured_loss_bytes(config, sizes, n) for n in (together, together + 1))
    return few + (images - together) * (more - few)


def _measured_loss_bytes(config: Config, sizes: Sequence[tuple[int, ...]], images: int) -> int:
    """Most bytes of maps, labels, losses and their backward for so many images, by running them."""
    generator = torch.Generator().manual_seed(0)
    always = StartConfig(**dict.fromkeys(vars(StartConfig()), -1))
    objective = make_objective(replace(config, loss=replace(config.loss, start=always)))
    output = NetworkOutput(*(torch.randn(images, *size, generator=generator).requires_grad_()
                             for size in sizes))
    crop, classes = config.data.crop, config.model.num_classes
    pixels = torch.randn(images, 3, crop, crop, generator=generator)
    tags = (torch.arange(classes) < PRESENT).float().expand(images, -1)
    keys = torch.rand(images, 2, sizes[2][1] * sizes[2][2], generator=generator)
    numbers, valid = present_classes(tags)
    with LiveBytes() as live:
        cams, aux_cams = (PresentMaps(torch.rand(*numbers.shape, crop, crop, generator=generator),
                                      numbers, valid) for _ in range(2))
        terms = objective(output, Batch(images=pixels, tags=tags, cams=cams, aux_cams=aux_cams,
                                        keys=keys), 0)
        terms["total"].backward()
    return live.peak
