"""Graph Category Representation (GCR): class tokens gather from the tokens most like them.

Class tokens are the heads of a directed graph, tokens are its tails (method of MoRe,
arXiv 2412.11076). B batch, C classes, N patches, T tails, K kept neighbours, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from more.tensors import full_precision

RESIDUAL = 0.1  # share of the graph's message that is added to a class token


class Tails(nn.Linear):
    """The projection of tails, `W t + b`; it can also rank tails without making them."""

    def forward(self, tokens: Tensor, heads: Tensor | None = None) -> Tensor:
        """Tails of tokens, or with `heads` only their products with these.

        The products are e·(W t) without e·b. That is the same number for all tails of a head, so
        leaving it out does not change which tails are the best.

        Args:
            tokens: [...,D].
            heads: e, [B,C,D], or None.

        Returns:
            Tails [...,D]; with `heads` products [B,C,T], which no gradient flows through.
        """
        if heads is None:
            return super().forward(tokens)
        with torch.no_grad(), full_precision(tokens, heads, self.weight) as (tokens, heads, weight):
            return (heads @ weight) @ tokens.transpose(1, 2)


class GraphCategoryRepresentation(nn.Module):
    """Refine class tokens with messages from their strongest neighbours.

    The defaults are the released behaviour; each option switches one point to the paper's text.

    Args:
        dim: channels D.
        neighbours: "classes" keeps ⌊C/2⌋ of class and patch tails; "patches" keeps ⌊N/2⌋ of
            patch tails only (paper).
        gate: "channel_sums" weighs an edge by the product of two sums over channels; "inner" by
            the inner product of tail and gate (paper).
        output: "released" adds residuals and a LayerNorm; "paper" has neither.
        similarity: "dot" scores edges by e·t/√D; "cosine" by the cosine (paper).

    Raises:
        ValueError: an option has an unknown value.
    """

    def __init__(self, dim: int, neighbours: str = "classes", gate: str = "channel_sums",
                 output: str = "released", similarity: str = "dot"):
        super().__init__()
        _check("neighbours", neighbours, ("classes", "patches"))
        _check("gate", gate, ("channel_sums", "inner"))
        _check("output", output, ("released", "paper"))
        _check("similarity", similarity, ("dot", "cosine"))
        self.neighbours, self.gate = neighbours, gate
        self.output, self.similarity = output, similarity
        self.head = nn.Linear(dim, dim)
        self.tail = Tails(dim, dim)
        self.sum_branch = nn.Linear(dim, dim)
        self.product_branch = nn.Linear(dim, dim)
        # eps 1e-5 as released, although the ViT uses 1e-6; the paper's output has no norm.
        self.norm = nn.LayerNorm(dim, eps=1e-5) if output == "released" else nn.Identity()

    def forward(self, class_tokens: Tensor, patch_tokens: Tensor) -> Tensor:
        """Class tokens [B,C,D] and patch tokens [B,N,D] to refined class tokens [B,C,D].

        The patch tokens are detached: no gradient reaches them through the graph.
        """
        patch_tokens = patch_tokens.detach()
        own = self.neighbours == "classes"
        count = (class_tokens if own else patch_tokens).shape[1] // 2
        sources = (class_tokens, patch_tokens) if own else (patch_tokens,)
        heads = self.head(class_tokens)
        message = self._message(heads, sources, count)
        return self._combine(class_tokens, heads, message.to(heads.dtype))

    def _message(self, heads: Tensor, sources: tuple[Tensor, ...], count: int) -> Tensor:
        """Message [B,C,D] from the tails of all sources, in float32."""
        tails = sum(source.shape[1] for source in sources)
        if self.similarity == "dot" and 2 * heads.shape[1] * count <= tails:
            # Few neighbours are kept: rank all tokens by (e·W)·t, which equals e·(W t), and
            # compute tails for the kept ones only.
            products = [self.tail(source, heads) for source in sources]
            index = self.best(torch.cat(products, dim=-1), count)
            near = self.tail(_pick(sources, index))
            with full_precision(heads, near) as (heads32, near32):
                return message(heads32, near32, None, self._scale(heads32, None, index), self.gate)
        # One call per source: patches need no gradient of their own.
        tails = torch.cat([self.tail(source) for source in sources], dim=1)
        # A softmax over products of channel sums needs float32: its arguments reach thousands.
        with full_precision(heads, tails) as (heads32, tails32):
            return self.gather(heads32, tails32, count)

    def scores(self, heads: Tensor, tails: Tensor) -> Tensor:
        """Edge scores [B,C,T] of heads [B,C,D] and tails [B,T,D]."""
        if self.similarity == "cosine":
            heads, tails = F.normalize(heads, dim=-1), F.normalize(tails, dim=-1)
            return heads @ tails.transpose(1, 2)
        return heads @ tails.transpose(1, 2) / heads.shape[-1] ** 0.5

    def gather(self, heads: Tensor, tails: Tensor, count: int) -> Tensor:
        """Message [B,C,D] of the `count` best tails of each head; zero for `count` 0."""
        with torch.no_grad():
            index = self.best(self.scores(heads, tails), count)
        return message(heads, tails, index, self._scale(heads, tails, index), self.gate)

    @staticmethod
    def best(scores: Tensor, count: int) -> Tensor:
        """Places [B,C,K] of the `count` largest of scores [B,C,T], in any order."""
        return scores.topk(count, dim=-1, sorted=False).indices

    def _scale(self, heads: Tensor, tails: Tensor | None, index: Tensor) -> Tensor:
        """Factor that turns an edge's inner product into its score, [B,C,K]."""
        if self.similarity == "dot":
            return heads.new_full(index.shape, heads.shape[-1] ** -0.5)
        long = [x.norm(dim=-1).clamp(min=1e-12) for x in (heads, tails)]
        return 1 / (long[0][..., None] * long[1].gather(1, index.flatten(1)).view(index.shape))

    def _combine(self, tokens: Tensor, heads: Tensor, message: Tensor) -> Tensor:
        if self.output == "released":
            added = tokens + RESIDUAL * (heads + message)
            product = tokens + RESIDUAL * heads * message
        else:
            added, product = heads + message, heads * message
        total = (F.leaky_relu(self.sum_branch(added))
                 + F.leaky_relu(self.product_branch(product)))
        return self.norm(total)


def _pick(sources: tuple[Tensor, ...], index: Tensor) -> Tensor:
    """Rows [B,C·K,D] of one or two sources [B,·,D] laid end to end."""
    index = index.flatten(1)
    batch = torch.arange(len(index), device=index.device)[:, None]
    if len(sources) == 1:
        return sources[0][batch, index]
    first, second = sources
    size = first.shape[1]
    rows = second[batch, (index - size).clamp(min=0)].to(first.dtype)
    return torch.where((index < size)[..., None], first[batch, index.clamp(max=size - 1)], rows)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


# The layer's messages, tile by tile, so that all edges are never in memory at once. Nothing
# larger than the tails is kept between forward and backward; the gates are computed again in the
# backward pass. R = B·C heads.

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
        """The messages, tile by tile."""
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
    def backward(ctx, upstream) -> tuple[Tensor | None, ...]:
        """Gradients for heads, tails and scale; the edges of a tile are made again."""
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
