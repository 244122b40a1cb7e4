"""PAR and refined labels, written as the formulas read (method §4.5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def par(image, masks, dilations, iterations):
    """image [3,H,W], masks [K,H,W] of the same size; neighbours by clamped index."""
    height, width = image.shape[-2:]
    rows, columns = torch.arange(height), torch.arange(width)
    shifts = [(d * dy, d * dx) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1)
              if (dy, dx) != (0, 0)]

    def look(x, shift):
        y = (rows + shift[0]).clamp(0, height - 1)
        z = (columns + shift[1]).clamp(0, width - 1)
        return x[:, y][:, :, z]

    near = torch.stack([look(image, s) for s in shifts])
    sigma = near.std(dim=0)
    colour = (-((near - image) / (sigma + 1e-8) / 0.3) ** 2).mean(dim=1).softmax(dim=0)
    distance = torch.tensor([math.hypot(*s) for s in shifts], dtype=image.dtype)
    place = (-(distance / (distance.std() + 1e-8) / 0.3) ** 2).softmax(dim=0)
    weights = colour + 0.01 * place[:, None, None]
    for _ in range(iterations):
        masks = sum(w * look(masks, s) for w, s in zip(weights, shifts, strict=True))
    return masks


def par_by_shifts(masks, weights, dilations, iterations):
    """Rounds of sums over shifted copies: masks [B,K,H,W], weights [B,8·dilations,H,W]."""
    height, width = masks.shape[-2:]
    margin, around = max(dilations), (-1, 0, 1)
    corners = [(margin + d * dy, margin + d * dx)
               for d in dilations for dy in around for dx in around if (dy, dx) != (0, 0)]
    for _ in range(iterations):
        padded = F.pad(masks, (margin,) * 4, mode="replicate")
        masks = torch.zeros_like(masks)
        for (y, x), weight in zip(corners, weights.unbind(1), strict=True):
            masks.addcmul_(padded[..., y : y + height, x : x + width], weight[:, None])
    return masks


def refined_label(image, cams, tags, high, low, dilations, iterations):
    """One image: image [3,H,W] in 0..1, cams [C,H,W], tags [C]."""
    height, width = image.shape[-2:]
    half, full = (height // 2, width // 2), (height, width)

    def up(x, size):
        return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]

    present = [k for k in range(len(tags)) if tags[k] > 0]
    if not present:
        return torch.zeros(full, dtype=torch.long)
    numbers = torch.tensor([0] + [k + 1 for k in present])
    small = up(cams[present], half)
    runs = []
    for level in (high, low):
        channels = torch.cat([torch.full((1, *half), level, dtype=small.dtype), small])
        refined = par(up(image, half), channels.softmax(dim=0), dilations, iterations)
        runs.append(numbers[up(refined, full).argmax(dim=0)])
    label = torch.full(full, 255)
    label[(runs[0] == 0) & (runs[1] == 0)] = 0
    label[runs[0] > 0] = runs[0][runs[0] > 0]
    return label


def cam_to_label(cams, tags, high, low):
    """One pixel at a time: cams [B,C,H,W], tags [B,C]."""
    label = torch.zeros(cams.shape[0], *cams.shape[-2:], dtype=torch.long)
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in label.shape)).tolist():
        values = (cams[b, :, y, x] * tags[b]).tolist()
        top = max(values)
        if top <= low:
            continue
        label[b, y, x] = 255 if top <= high else values.index(top) + 1
    return label
