"""Names of parameters in released MoRe checkpoints and ours, in both directions.

Encoder, classifiers and decoder carry the same names in both; the layers of GCR differ. Two parts
of a released checkpoint are never used by the method and are dropped: the ImageNet head and
GCR's first layer.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

GRAPH_LAYERS = {
    "graph_layer.head_proj.": "graph.head.",
    "graph_layer.tail_proj.": "graph.tail.",
    "graph_layer.linear1.": "graph.sum_branch.",
    "graph_layer.linear2.": "graph.product_branch.",
    "graph_layer.norm.": "graph.norm.",
}
UNUSED = ("encoder.head.", "graph_layer._fc1.")
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")


def own_name(released: str) -> str | None:
    """Our name of a released parameter; None where it is unused. Own names stay as they are."""
    if released.startswith(UNUSED):
        return None
    for theirs, ours in GRAPH_LAYERS.items():
        if released.startswith(theirs):
            return ours + released.removeprefix(theirs)
    return released


def released_name(own: str) -> str:
    """The release's name of one of our parameters."""
    for theirs, ours in GRAPH_LAYERS.items():
        if own.startswith(ours):
            return theirs + own.removeprefix(ours)
    return own


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names, unused parameters left out."""
    named = {own_name(name): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under the release's names."""
    return {released_name(name): tensor for name, tensor in state.items()}


def unwrap(content: Mapping) -> Mapping[str, Tensor]:
    """The state dict inside the usual wrappings, without the "module." of data parallelism."""
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return unwrap(content[key])
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()
            if isinstance(tensor, Tensor)}


def is_network_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a whole MoRe network, released or ours, not of a plain ViT."""
    return any(name.startswith("encoder.") for name in state)
