"""Graph Category Representation (GCR): class tokens gather from the tokens most like them.

Class tokens are the heads of a directed graph, tokens are its tails (method of MoRe,
arXiv 2412.11076). B batch, C classes, N patches, T tails, K kept neighbours, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from more.method.gcr_messages import message
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
