"""Term `energy`: pixels that are near and of similar colour should share a class (method §4.6).

B batch, K channels of the decoder (background and classes), H×W pixels, h×w working size.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.filtering.bilateral import bilateral_features, bilateral_filter
from more.filtering.gaussian_attention import attention_engine, attention_filter
from more.filtering.permutohedral import PermutohedralLattice
from more.method.cam import resize
from more.method.gradients import enlarge
from more.method.labels import IGNORE
from more.tensors import box_mask, full

SCALE = 0.5  # working size as a part of the full one

# images [B, 3, H, W] in 0..255, values [B, K, H, W], sigma_xy, sigma_rgb -> [B, K, H, W]
Filter = Callable[[Tensor, Tensor, float, float], Tensor]
Affinity = Callable[[Tensor], Tensor]  # values [B, K, h, w] of images it knows, filtered


class GatedEnergy(torch.autograd.Function):
    """`-scale · Σ s⊙(A s)⊙gate` with `s = p⊙inside`; one filter call for value and gradient.

    The gradient with respect to p is `-2·scale·(A s)⊙gate⊙inside`: the released code's own
    backward, which takes the gate as constant and the gated form as symmetric (it is not).
    """

    @staticmethod
    def forward(ctx, probabilities, gate, inside, scale, affinity) -> Tensor:
        """The energy.

        Args:
            ctx: of autograd.
            probabilities: `[B, K, h, w]`.
            gate: `[B, 1, h, w]`.
            inside: `[B, 1, h, w]`; None: 1 everywhere.
            scale: factor of the energy.
            affinity: s to A s.
        """
        shares = probabilities if inside is None else probabilities * inside
        gated = affinity(shares).to(shares.dtype) * gate
        ctx.save_for_backward(gated if inside is None else gated * inside)
        ctx.scale = scale
        return -scale * (shares * gated).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[Tensor, None, None, None, None]:
        """Gradient for the probabilities only."""
        (gated,) = ctx.saved_tensors
        return upstream * (-2.0 * ctx.scale) * gated, None, None, None, None


def dense_energy(
    seg_logits: Tensor,
    images: Tensor,
    labels: Tensor,
    box: Tensor | None = None,
    weight: float = 1e-7,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = SCALE,
    filter: Filter | None = None,
) -> Tensor:
    """Bilateral energy of the segmentation, gated towards unsure pixels.

    Everything happens at `scale` of the size. The gate is `max(0, inside - max_k p)`, and 1 where
    the label is 255. Runs in float32 outside of autocast.

    Args:
        seg_logits: `[B, K, h, w]`, resized to full size.
        images: `[B, 3, H, W]`, RGB in 0..255.
        labels: `[B, H, W]`, 255 uncertain.
        box: `[B, 4]` (y0, y1, x0, x1), the real image inside its padding; None: all of it.
        weight: factor of the energy, divided by the batch size.
        sigma_rgb: deviation in colour, grey levels.
        sigma_xy: deviation in space, pixels at full size.
        scale: working size as a part of the full one.
        filter: bilateral filter (see `energy_filter`); default: the permutohedral lattice, which
            the released weight belongs to (an exact Gaussian gives about twice the sum).

    Returns:
        A scalar, not positive.
    """
    if filter is None:
        filter = energy_filter("lattice")
    size = shrunk(labels, scale)
    images = F.interpolate(images.to(full(seg_logits).dtype), size=size, mode="nearest")

    def affinity(shares: Tensor) -> Tensor:
        return filter(images, shares, sigma_xy * scale, sigma_rgb)

    return energy_of(seg_logits, labels, box, weight / len(labels), size, affinity)


def shrunk(labels: Tensor, scale: float) -> tuple[int, int]:
    """Height and width that the energy of labels `[B, H, W]` is made at."""
    height, width = labels.shape[-2:]
    return int(height * scale), int(width * scale)


def energy_of(seg_logits: Tensor, labels: Tensor, box: Tensor | None, factor: float,
              size: tuple[int, int], affinity: Affinity) -> Tensor:
    """`dense_energy` of some images of a batch, with a known affinity.

    Args:
        seg_logits: `[b, K, h, w]`, of these images.
        labels: `[b, H, W]`, 255 uncertain.
        box: `[b, 4]` (y0, y1, x0, x1), or None.
        factor: of the sum over the images.
        size: working height and width.
        affinity: filters values of these images.

    Returns:
        A scalar, not positive.
    """
    with torch.autocast(seg_logits.device.type, enabled=False):
        logits = full(seg_logits)  # at full size they are not kept while the filter runs
        large = enlarge(logits, tuple(labels.shape[-2:])).softmax(dim=1)
        probabilities = resize(large, size)
        del large
        gate, inside = _gate(probabilities.detach(), labels, box)
        return GatedEnergy.apply(probabilities, gate, inside, factor, affinity)


def shared_affinity(filter: Filter, images: Tensor, sigma_xy: float, sigma_rgb: float
                    ) -> Callable[[slice], Affinity]:
    """The filter of a batch that is worked on in parts: rows of the batch to their affinity.

    On a GPU, what depends on the images alone is computed here, once for the whole batch. On a CPU,
    and for filters that are not from `energy_filter`, it is computed part by part when needed.

    Args:
        filter: bilateral filter.
        images: `[B, 3, h, w]` in 0..255, at the working size.
        sigma_xy: deviation in space, pixels of these images.
        sigma_rgb: deviation in colour, grey levels.

    Returns:
        A function of a slice of the batch; what it returns filters values of these images.
    """
    make = _engine(filter, tuple(images.shape[-2:])) if images.is_cuda else None
    if make is None:
        return lambda rows: lambda shares: filter(images[rows], shares, sigma_xy, sigma_rgb)
    engine = make(bilateral_features(images, sigma_xy, sigma_rgb))

    def affinity(rows: slice) -> Affinity:
        part = engine.part(rows)
        return lambda shares: part.filter(shares.flatten(2)).view(shares.shape)
    return affinity


def _engine(filter: Filter, size: tuple[int, int]) -> Callable[[Tensor], Any] | None:
    """What builds the filter of a whole batch from its features; None for unknown filters."""
    if filter is attention_filter:
        return attention_engine(size)
    return PermutohedralLattice if filter in (bilateral_filter, energy_filter("lattice")) else None


def energy_filter(name: str) -> Filter:
    """The bilateral filter that the setting `loss.energy_filter` names.

    Args:
        name: "lattice", the released mathematics, or "attention": the exact Gaussian of every
            second row and column, times the lattice's gain. On a CPU the lattice is that of the
            fast CRF, two to three times as fast as torch's, where numba is installed.
    """
    if name == "lattice":
        try:
            import more.filtering.fast  # noqa: F401

            return lattice_filter
        except (ImportError, OSError):
            return bilateral_filter
    if name == "attention":
        return attention_filter
    raise ValueError(f"the energy's filter is 'lattice' or 'attention', not {name!r}")


def lattice_filter(images: Tensor, values: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """`more.filtering.bilateral.bilateral_filter`, on a CPU by the lattice of the fast CRF.

    The same lattice and the same gain, image after image; the images of a batch go to as many
    threads as torch has, which jitted code allows (it holds no GIL). On a GPU, in double precision,
    and with deviations too small for the fast engine, the plain one is called.
    """
    if images.device.type != "cpu" or values.dtype != torch.float32 \
            or not torch.isfinite(images).all():
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    from more.filtering import fast

    fast.load()
    pictures = images.detach().permute(0, 2, 3, 1).contiguous().float().numpy()
    maps = values.detach().contiguous().numpy()
    try:
        with ThreadPoolExecutor(min(len(maps), torch.get_num_threads())) as threads:
            found = list(threads.map(fast.filter_image, pictures, maps, [sigma_xy] * len(maps),
                                     [sigma_rgb] * len(maps)))
    except fast.TooFineError:
        return bilateral_filter(images, values, sigma_xy, sigma_rgb)
    return torch.from_numpy(np.stack(found))


def _gate(probabilities: Tensor, labels: Tensor, box: Tensor | None
          ) -> tuple[Tensor, Tensor | None]:
    """Gate and inside, both `[B, 1, h, w]`, from labels and box at full size.

    Inside is None where there is no box.
    """
    size, dtype = tuple(probabilities.shape[-2:]), probabilities.dtype
    uncertain = F.interpolate((labels == IGNORE)[:, None].to(dtype), size=size, mode="nearest")
    inside = None
    if box is not None:
        full_size = box_mask(box, tuple(labels.shape[-2:]))[:, None].to(dtype)
        inside = F.interpolate(full_size, size=size, mode="nearest")
    unsure = (1 if inside is None else inside) - probabilities.amax(dim=1, keepdim=True)
    # At most 1, and where the label is uncertain it is 1.
    return torch.maximum(unsure.clamp_(min=0), uncertain), inside
