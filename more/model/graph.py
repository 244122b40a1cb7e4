"""Graph Category Representation (GCR): class tokens gather their most related tokens.

Class tokens are the heads of a directed graph, tokens are its tails (method of MoRe,
arXiv 2412.11076). B batch, C classes, N patches, T tails, K kept neighbours, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from more.model.precision import full_precision

RESIDUAL = 0.1  # share of the graph's message that is added to a class token


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
        self.tail = nn.Linear(dim, dim)
        self.sum_branch = nn.Linear(dim, dim)
        self.product_branch = nn.Linear(dim, dim)
        # eps 1e-5 as released, although the ViT uses 1e-6; the paper's output has no norm.
        self.norm = nn.LayerNorm(dim, eps=1e-5) if output == "released" else nn.Identity()

    def forward(self, class_tokens: Tensor, patch_tokens: Tensor) -> Tensor:
        """Class tokens [B,C,D] and patch tokens [B,N,D] to refined class tokens [B,C,D].

        The patch tokens are detached: no gradient reaches them through the graph.
        """
        patch_tokens = patch_tokens.detach()
        if self.neighbours == "classes":
            source = torch.cat([class_tokens, patch_tokens], dim=1)
            count = class_tokens.shape[1] // 2
        else:
            source, count = patch_tokens, patch_tokens.shape[1] // 2
        heads = self.head(class_tokens)
        tails = self.tail(source)
        # A softmax over products of channel sums needs float32: its arguments reach thousands.
        with full_precision(heads, tails) as (heads32, tails32):
            message = self.gather(heads32, tails32, count)
        return self._combine(class_tokens, heads, message.to(heads.dtype))

    def scores(self, heads: Tensor, tails: Tensor) -> Tensor:
        """Edge scores [B,C,T] of heads [B,C,D] and tails [B,T,D]."""
        if self.similarity == "cosine":
            heads, tails = F.normalize(heads, dim=-1), F.normalize(tails, dim=-1)
            return heads @ tails.transpose(1, 2)
        return heads @ tails.transpose(1, 2) / heads.shape[-1] ** 0.5

    def gather(self, heads: Tensor, tails: Tensor, count: int) -> Tensor:
        """Message [B,C,D] of the `count` best tails of each head; zero for `count` 0."""
        kept, index = self.scores(heads, tails).topk(count, dim=-1, sorted=False)  # [B,C,K]
        batch = torch.arange(len(tails), device=tails.device)[:, None, None]
        neighbours = tails[batch, index]  # [B,C,K,D]
        share = kept.softmax(dim=-1)[..., None]  # [B,C,K,1]
        # e + r with the mixed edge r = (1-p)·e + p·n.
        gate = torch.tanh((2 - share) * heads[:, :, None] + share * neighbours)
        if self.gate == "channel_sums":
            weight = tails.sum(-1)[batch, index] * gate.sum(-1)
        else:
            weight = (neighbours * gate).sum(-1)
        return torch.einsum("bck,bckd->bcd", weight.softmax(dim=-1), neighbours)

    def _combine(self, tokens: Tensor, heads: Tensor, message: Tensor) -> Tensor:
        if self.output == "released":
            added = tokens + RESIDUAL * (heads + message)
            product = tokens + RESIDUAL * heads * message
        else:
            added, product = heads + message, heads * message
        total = (F.leaky_relu(self.sum_branch(added))
                 + F.leaky_relu(self.product_branch(product)))
        return self.norm(total)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
