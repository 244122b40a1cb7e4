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
WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "teacher", "student")
"""Keys under which a file keeps a state dict; of a teacher and a student the teacher counts."""
PREFIXES = ("teacher", "student", "module", "model", "backbone", "encoder")
HEAD = "aux_classifier."  # only a MoRe network has it
PATCHES = "patch_embed.proj.weight"  # every ViT in timm's names has it


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
    return without_prefix({str(name): tensor for name, tensor in content.items()
                           if isinstance(tensor, Tensor)})


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the ViT, or of the whole MoRe network, without what stands before their names.

    Taken off are `PREFIXES` in any order, such as "module." of data parallelism or
    "teacher.backbone."; with several ViTs in a file the teacher's, else the first is taken.
    """
    found = [name.removesuffix(PATCHES) for name in state if name.endswith(PATCHES)]
    found = [one for one in found if set(one.split(".")[:-1]) <= set(PREFIXES)]
    prefix = min(found, key=lambda one: "teacher." not in one, default="")
    outer = prefix.removesuffix("encoder.")
    if any(name.startswith(f"{outer}{HEAD}") for name in state):
        prefix = outer  # a MoRe network, whose encoder is one of its parts
    elif not found:
        prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()
            if name.startswith(prefix)}


def is_network_state(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of a whole MoRe network, released or ours, not of a plain ViT."""
    return any(name.startswith(HEAD) for name in state)
