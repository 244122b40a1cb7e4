"""Dense energy: neighbouring pixels of like colour shall share their class (method §4.6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.localization.maps import resize
from more.localization.regions import IGNORE, box_mask
from more.losses.enlarge import enlarge
from more.losses.precision import full

# images [B, 3, H, W] in 0..255, values [B, K, H, W], sigma_xy, sigma_rgb -> [B, K, H, W]
Filter = Callable[[Tensor, Tensor, float, float], Tensor]


class GatedEnergy(torch.autograd.Function):
    """`-scale · Σ s⊙(A s)⊙gate` with `s = p⊙inside`; one filter call for value and gradient.

    The gradient with respect to p is `-2·scale·(A s)⊙gate⊙inside`: the released code's own
    backward, which takes the gate as constant and the gated form as symmetric (it is not).
    """

    @staticmethod
    def forward(ctx, probabilities, gate, inside, scale, affinity) -> Tensor:
        """probabilities `[B, K, h, w]`, gate and inside `[B, 1, h, w]`, affinity: s to A s."""
        shares = probabilities * inside
        gated = affinity(shares).to(shares.dtype) * gate
        ctx.save_for_backward(gated * inside)
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
    scale: float = 0.5,
    filter: Filter | None = None,
) -> Tensor:
    """Bilateral energy of the segmentation, gated towards unsure pixels.

    Everything happens at `scale` of the size. The gate is `max(0, inside - max_k p)`, and 1 where
    the label is 255. Runs in float32 outside of autocast.

    Args:
        seg_logits: `[B, K, h, w]`, resized to full size. images: `[B, 3, H, W]` RGB in 0..255.
        labels: `[B, H, W]`, 255 uncertain. box: `[B, 4]` (y0, y1, x0, x1), None: whole image.
        weight: factor of the energy, divided by the batch size.
        sigma_rgb, sigma_xy: deviations in grey levels and in pixels at full size.
        filter: bilateral filter (see `energy_filter`); default: the permutohedral lattice, which
            the released weight belongs to (an exact Gaussian gives about twice the sum).

    Returns: a scalar, not positive.
    """
    if filter is None:
        filter = energy_filter("lattice")
    batch, height, width = labels.shape
    size = (int(height * scale), int(width * scale))
    with torch.autocast(seg_logits.device.type, enabled=False):
        logits = full(seg_logits)  # at full size they are not kept while the filter runs
        probabilities = resize(enlarge(logits, (height, width)).softmax(dim=1), size)
        gate, inside = _gate(probabilities.detach(), labels, box)
        images = F.interpolate(images.to(probabilities.dtype), size=size, mode="nearest")

        def affinity(shares: Tensor) -> Tensor:
            return filter(images, shares, sigma_xy * scale, sigma_rgb)

        return GatedEnergy.apply(probabilities, gate, inside, weight / batch, affinity)


def energy_filter(name: str) -> Filter:
    """The bilateral filter that the setting `loss.energy_filter` names.

    Args:
        name: "lattice", the released mathematics, or "attention": the exact Gaussian of every
            second row and column, times the lattice's gain. On a CPU the lattice is that of the
            fast CRF, two to three times as fast as torch's, where numba is installed.
    """
    if name == "lattice":
        try:
            from more.filtering.fast.bilateral import lattice_filter

            return lattice_filter
        except (ImportError, OSError):
            from more.filtering.permutohedral import bilateral_filter

            return bilateral_filter
    if name == "attention":
        from more.filtering.attention import attention_filter

        return attention_filter
    raise ValueError(f"the energy's filter is 'lattice' or 'attention', not {name!r}")


def _gate(probabilities: Tensor, labels: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gate and inside, both `[B, 1, h, w]`, from full-size labels and box."""
    size = tuple(probabilities.shape[-2:])
    dtype = probabilities.dtype
    uncertain = F.interpolate((labels == IGNORE)[:, None].to(dtype), size=size, mode="nearest")
    if box is None:
        inside = torch.ones_like(uncertain)
    else:
        full_size = box_mask(box, tuple(labels.shape[-2:]))[:, None].to(dtype)
        inside = F.interpolate(full_size, size=size, mode="nearest")
    unsure = (inside - probabilities.amax(dim=1, keepdim=True)).clamp(min=0)
    return torch.where(uncertain > 0, 1.0, unsure), inside
