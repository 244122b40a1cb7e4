"""The bilateral filter as a plain sum of Gaussians over pixels on a grid, image by image."""

from __future__ import annotations

import math

import torch


def middles(side, stride):
    """The side in ceil(side / stride) equal parts: the pixel in the middle of each."""
    parts = math.ceil(side / stride)
    return [math.floor((i + 0.5) * side / parts) for i in range(parts)]


def sampled_filter(images, values, sigma_xy, sigma_rgb, stride=2, amplitude=0.58):
    """Images [B,3,H,W] in 0..255, values [B,K,H,W]; each key counts as often as it stands for."""
    height, width = images.shape[-2:]
    rows, columns = middles(height, stride), middles(width, stride)
    weight = amplitude * height * width / (len(rows) * len(columns))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = []
    for image, maps in zip(images, values, strict=True):
        features = torch.cat([torch.stack([x, y]) / sigma_xy, image / sigma_rgb]).to(maps.dtype)
        keys = features[:, rows][:, :, columns].flatten(1).T.contiguous()
        kept = maps[:, rows][:, :, columns].flatten(1).T
        sums = [torch.exp(-0.5 * torch.cdist(
            part, keys, compute_mode="donot_use_mm_for_euclid_dist") ** 2) @ kept
            for part in features.flatten(1).T.contiguous().split(1024)]
        out.append(weight * torch.cat(sums).T.view(maps.shape))
    return torch.stack(out)
