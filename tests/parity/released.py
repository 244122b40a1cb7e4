"""Networks built to the sizes that the fixtures' arrays tell."""

from __future__ import annotations

import numpy as np
import torch

from more.config.schema import ModelConfig
from more.method.make_network import build_network
from more.method.network import MoReNetwork
from more.method.released_names import from_released
from more.method.weight_files import load_released_state


def tensors(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The arrays under a prefix as tensors, prefix cut off."""
    return {name.removeprefix(prefix): torch.from_numpy(np.array(array))
            for name, array in arrays.items() if name.startswith(prefix)}


def fixture_network(arrays: dict[str, np.ndarray], native: int, heads: int) -> MoReNetwork:
    """A network with the fixture's `sd.*` weights; `native` is the native image side.

    No array of a state dict tells the number of heads: `heads_of(parity("encoder"))` does.
    """
    state = tensors(arrays, "sd.")
    width, _, patch, _ = state["encoder.patch_embed.proj.weight"].shape
    classes = len(state["classifier.weight"])
    depth = len({name.split(".")[2] for name in state if name.startswith("encoder.blocks.")})
    hidden = state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
    network = build_network(ModelConfig(
        backbone="custom", num_classes=classes, weights="none",
        regularising_tokens=state["encoder.cls_token"].shape[1] - classes,
        decoder_width=len(state["decoder.conv6.weight"]),
        vit={"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads,
             "mlp_ratio": hidden / width}), native)
    load_released_state(network, state, "fixture")
    return network.eval()


def heads_of(encoder_arrays: dict[str, np.ndarray]) -> int:
    """Attention heads of the fixtures' ViT, read from encoder.npz."""
    return encoder_arrays["native.attn_last"].shape[1]


def encoder_network(arrays: dict[str, np.ndarray]) -> MoReNetwork:
    """A network whose encoder has encoder.npz's weights; its heads are arbitrary."""
    state = tensors(arrays, "sd.")
    classes = arrays["native.class_tokens"].shape[1]
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    network = build_network(ModelConfig(
        backbone="custom", num_classes=classes, weights="none",
        regularising_tokens=state["cls_token"].shape[1] - classes, decoder_width=8,
        vit={"patch_size": patch, "embed_dim": width, "depth": depth,
             "num_heads": heads_of(arrays),
             "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width}),
        arrays["native.image"].shape[-1])
    own = from_released({"encoder." + name: tensor for name, tensor in state.items()})
    network.encoder.load_state_dict(
        {name.removeprefix("encoder."): tensor for name, tensor in own.items()})
    return network.eval()
