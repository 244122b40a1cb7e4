"""Dense energy and permutohedral lattice, one image and one class at a time (method §4.6, §4.9).

A lattice point is a row of whole numbers in a dictionary; sums run over the pixels of an image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


class Lattice:
    """The lattice of one image's features [N, d] (Adams, Baek, Davis 2010)."""

    def __init__(self, features):
        count, d = features.shape
        # Onto the plane of zero sum; summed in the paper's order, so that ties fall alike.
        columns, total = [], torch.zeros_like(features[:, 0])
        for j in range(d, 0, -1):
            scale = math.sqrt(2 / 3) * (d + 1) / math.sqrt(j * (j + 1))
            value = features[:, j - 1] * scale
            columns.append(total - j * value)
            total = total + value
        point = torch.stack([total, *columns[::-1]], dim=1)
        zero = (point / (d + 1)).round() * (d + 1)
        # Back to zero sum: the ranks say which coordinates move.
        rank = (point - zero).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        rank = rank + (zero.sum(1, keepdim=True) / (d + 1)).round().long()
        move = (rank < 0).long() - (rank > d).long()
        zero, rank = zero + move * (d + 1), rank + move * (d + 1)
        rest = (point - zero) / (d + 1)
        ordered = torch.zeros_like(rest).scatter_(1, rank, rest)  # largest remainder first
        self.d, self.weights = d, torch.zeros(count, d + 1, dtype=features.dtype)
        self.weights[:, 0] = 1 - ordered[:, 0] + ordered[:, d]
        for c in range(1, d + 1):
            self.weights[:, c] = ordered[:, d - c] - ordered[:, d - c + 1]
        corners = torch.stack([zero.long() + c - (d + 1) * (rank > d - c) for c in range(d + 1)], 1)
        points, place = torch.unique(corners.flatten(0, 1), dim=0, return_inverse=True)
        self.place, self.size = place.view(count, d + 1), len(points)
        self._find_neighbours(points.tolist())

    def _find_neighbours(self, points):
        """For every axis the places of both neighbours; `size` where there is none."""
        table = {tuple(point): number for number, point in enumerate(points)}
        self.sides = []
        for axis in range(self.d + 1):
            step = [self.d if i == axis else -1 for i in range(self.d + 1)]
            self.sides.append([torch.tensor([
                table.get(tuple(x + sign * s for x, s in zip(point, step, strict=True)), self.size)
                for point in points]) for sign in (1, -1)])

    def filter(self, values):
        """One map [N]: splat, blur axis by axis, slice."""
        grid = torch.zeros(self.size + 1, dtype=values.dtype)
        for c in range(self.d + 1):
            grid.index_add_(0, self.place[:, c], self.weights[:, c] * values)
        for left, right in self.sides:
            grid = torch.cat([grid[:-1] + 0.5 * (grid[left] + grid[right]), grid.new_zeros(1)])
        return (self.weights * grid[self.place]).sum(1) / (1 + 2.0 ** -self.d)


class Energy(torch.autograd.Function):
    """-scale Σ s (A s) gate of one image, with the release's own backward."""

    @staticmethod
    def forward(ctx, shares, gate, lattice, scale):
        smooth = torch.stack([lattice.filter(one.flatten()).view_as(one) for one in shares])
        ctx.save_for_backward(smooth, gate)
        ctx.scale = scale
        return -scale * (shares * smooth * gate).sum()

    @staticmethod
    def backward(ctx, upstream):
        smooth, gate = ctx.saved_tensors
        return upstream * -2 * ctx.scale * smooth * gate, None, None, None


def energy(logits, images, labels, weight, sigma_rgb, sigma_xy):
    """Logits [B,K,H,W], images [B,3,H,W] in 0..255, labels [B,H,W]; no box."""
    height, width = logits.shape[-2] // 2, logits.shape[-1] // 2
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # Divided by tensors: division by a number is a product with its rounded inverse in torch.
    places = torch.stack([x, y]).to(images.dtype) / torch.full((2, 1, 1), sigma_xy / 2)
    total = 0.0
    for scores, image, label in zip(logits, images, labels, strict=True):
        p = F.interpolate(scores.softmax(0)[None], size=(height, width), mode="bilinear")[0]
        small = F.interpolate(image[None], size=(height, width))[0]
        small = small / torch.full((3, 1, 1), sigma_rgb)
        unknown = F.interpolate((label == 255)[None, None].float(), size=(height, width))[0, 0]
        gate = torch.where(unknown > 0, 1.0, (1 - p.detach().amax(0)).clamp(min=0))
        lattice = Lattice(torch.cat([places, small]).flatten(1).T)
        total = total + Energy.apply(p, gate, lattice, weight / len(logits))
    return total
