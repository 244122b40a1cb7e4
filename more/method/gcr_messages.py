"""The messages of GCR, computed tile by tile so that all edges are never in memory at once.

B batch, C classes, R = B·C heads, T tails, K kept neighbours, D channels. Nothing larger
than the tails is kept between forward and backward; the gates are recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of one edge tensor at a time: a few of them stay in a core's cache; a GPU wants large ones.
TILE = {"cpu": 2**20, "cuda": 2**24}


def message(heads: Tensor, tails: Tensor, index: Tensor | None, scale: Tensor,
            gate: str = "channel_sums") -> Tensor:
    """What every head gathers from its neighbours (steps 3 to 5 of the layer, method §4.1).

    `p = softmax(scale·(e·n))`, gate `g = tanh((2-p)·e + p·n)`, weight `w = Σn · Σg` or `n·g`,
    message `z = Σ_j softmax(w)_j n_j`.

    Args:
        heads: e, `[B, C, D]`.
        tails: `[B, T, D]`; without `index` the neighbours themselves, in the order of heads,
            T = C·K.
        index: the neighbours of each head, `[B, C, K]` places among the tails.
        scale: factor of the inner products, `[B, C, K]`; may need a gradient.
        gate: "channel_sums" or "inner".

    Returns:
        Messages `[B, C, D]`.
    """
    if index is not None:
        first = torch.arange(len(tails), device=tails.device) * tails.shape[1]
        index = (index + first[:, None, None]).flatten(0, 1)
    z = _Message.apply(heads.flatten(0, 1), tails.flatten(0, 1), index, scale.flatten(0, 1), gate)
    return z.view(heads.shape)


@dataclass
class _Edges:
    """The edges of some heads, `[r, K, D]`, and what the softmax over their scores gave."""

    head: Tensor
    near: Tensor
    share: Tensor
    weight: Tensor | None = None

    def half_gate(self) -> Tensor:
        """`σ(2x)`, of which `tanh x = 2σ(2x) - 1`: three times as fast as tanh on a CPU."""
        x = self.near * (2 * self.share)[..., None]
        return x.baddbmm_((4 - 2 * self.share)[..., None], self.head[:, None]).sigmoid_()


def _tiles(heads: Tensor, tails: Tensor, index: Tensor | None,
           scale: Tensor) -> Iterator[tuple[slice, slice | Tensor, _Edges, Tensor]]:
    """(rows of heads, places of their tails, edges, inner products e·n) tile by tile."""
    count = scale.shape[1]
    limit = TILE.get(heads.device.type, TILE["cuda"])
    step = max(1, limit // max(1, count * heads.shape[1] * heads.element_size()))
    for start in range(0, len(heads), step):
        rows = slice(start, min(start + step, len(heads)))
        if index is None:
            places: slice | Tensor = slice(rows.start * count, rows.stop * count)
            near = tails[places]
        else:
            places = index[rows].flatten()
            near = tails.index_select(0, places)
        head = heads[rows]
        near = near.view(len(head), count, head.shape[1])
        dot = _inner(near, head)
        yield rows, places, _Edges(head, near, (dot * scale[rows]).softmax(-1)), dot


def _inner(edges: Tensor, heads: Tensor) -> Tensor:
    """Inner products `[r, K]` of edges `[r, K, D]` and heads `[r, D]`.

    As row times matrix: MKL takes six times as long for matrix times column.
    """
    return torch.bmm(heads[:, None], edges.transpose(1, 2))[:, 0]


class _Message(torch.autograd.Function):
    """heads `[R, D]`, tails `[Q, D]`, index `[R, K]` or None, scale `[R, K]` to `[R, D]`."""

    @staticmethod
    def forward(ctx, heads, tails, index, scale, gate) -> Tensor:
        ctx.gate = gate
        ctx.save_for_backward(heads, tails, index, scale)
        result = torch.empty_like(heads)
        for rows, _, edges, _ in _tiles(heads, tails, index, scale):
            half = edges.half_gate().sub_(0.5)  # before any sum: sums of σ would lose digits
            if gate == "channel_sums":
                weight = edges.near.sum(-1) * half.sum(-1) * 2
            else:
                weight = half.mul_(edges.near).sum(-1) * 2
            torch.bmm(weight.softmax(-1)[:, None], edges.near, out=result[rows][:, None])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        heads, tails, index, scale = ctx.saved_tensors
        d_heads, d_scale = torch.empty_like(heads), torch.empty_like(scale)
        d_tails = torch.empty_like(tails) if index is None else torch.zeros_like(tails)
        for rows, places, edges, dot in _tiles(heads, tails, index, scale):
            d_near, d_heads[rows], d_score = _edge_gradients(edges, upstream[rows], scale[rows],
                                                             ctx.gate)
            d_scale[rows] = d_score * dot
            d_near = d_near.flatten(0, 1)
            if index is None:
                d_tails[places] = d_near
            else:
                d_tails.index_add_(0, places, d_near)
        return d_heads, d_tails, None, d_scale if ctx.needs_input_grad[3] else None, None


def _softmax_backward(soft: Tensor, upstream: Tensor) -> Tensor:
    return soft * (upstream - (soft * upstream).sum(-1, keepdim=True))


def _edge_gradients(edges: _Edges, upstream: Tensor, scale: Tensor,
                    gate: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for a tile's neighbours `[r, K, D]`, heads `[r, D]` and scores `[r, K]`."""
    near, head, share = edges.near, edges.head, edges.share
    half = edges.half_gate()
    d_mixture = _inner(near, upstream)
    if gate == "channel_sums":
        sums, gates = near.sum(-1), (half - 0.5).sum(-1) * 2
        mixture = (sums * gates).softmax(-1)
        d_weight = _softmax_backward(mixture, d_mixture)
        slope = torch.addcmul(half, half, half, value=-1)  # 1 - tanh² = 4·σ(1 - σ)
        slope *= (4 * d_weight * sums)[..., None]
        direct = d_weight * gates  # the same for every channel
    else:
        gates = (half - 0.5).mul_(2)
        mixture = (near * gates).sum(-1).softmax(-1)
        d_weight = _softmax_backward(mixture, d_mixture)
        slope = torch.addcmul(half, half, half, value=-1).mul_(near)
        slope *= (4 * d_weight)[..., None]
        direct = torch.zeros_like(d_weight)
    d_share = (slope * near).sum(-1) - _inner(slope, head)
    d_score = _softmax_backward(share, d_share)
    d_dot = d_score * scale
    d_head = torch.bmm(torch.stack([2 - share], 1), slope)[:, 0]
    d_head += torch.bmm(d_dot[:, None], near)[:, 0]
    # Gate, mixture, score and channel sum in one: three products of rank one.
    d_near = slope.mul_(share[..., None])
    left = torch.stack([mixture, d_dot, direct], -1)
    right = torch.stack([upstream, head, torch.ones_like(head)], 1)
    d_near.baddbmm_(left, right)
    if gate == "inner":
        d_near.addcmul_(d_weight[..., None], gates)
    return d_near, d_head, d_score
