"""From settings to the network, with the weights that it starts from."""

from __future__ import annotations

import torch

from more.config.schema import Config, ModelConfig
from more.errors import UserError
from more.method.backbones import create_backbone, hub_state, positioned_tokens
from more.method.encoder import ClassTokenEncoder
from more.method.gcr import GraphCategoryRepresentation
from more.method.network import MoReNetwork
from more.method.released_names import is_network_state
from more.method.weight_files import load_backbone, load_released_state, read_weights

SMALLEST_GRID = 7
"""Patches a side that the uncertain-region term needs."""


def make_network(config: Config, load_weights: bool = True) -> MoReNetwork:
    """The network of a configuration, seeded by `train.seed`.

    Args:
        config: the run's settings.
        load_weights: read the backbone's pretrained weights; False when a checkpoint follows.

    Raises:
        UserError: unknown backbone, weights that do not fit, a patch grid too small for URE.
    """
    model = config.model
    torch.manual_seed(config.train.seed)
    network = build_network(model, model.image_size or config.data.crop, load_weights)
    if model.gradient_checkpointing:
        network.encoder.set_grad_checkpointing(True)
    network.encoder.set_recompute_cheap(model.recompute_cheap)
    _check_views(config, network.encoder.patch_size)
    side = config.data.crop // network.encoder.patch_size
    if config.loss.weights.ure and side < SMALLEST_GRID:
        raise UserError(
            f"data.crop = {config.data.crop} gives a grid of {side}×{side} patches; the "
            f"uncertain-region term needs at least {SMALLEST_GRID}",
            f"set data.crop to {SMALLEST_GRID * network.encoder.patch_size} or more, or "
            "loss.weights.ure=0")
    return network


def build_network(model: ModelConfig, image_size: int, load_weights: bool = True) -> MoReNetwork:
    """Build a MoRe network and give it its starting weights.

    Args:
        model: backbone, tokens, heads, and the weights: "timm" (hub), "none", or a file of a ViT
            in timm's names, of a released MoRe checkpoint or of one of ours.
        image_size: native side in pixels; sets the grid of the position embedding.
        load_weights: False takes no weights, whatever `model.weights` says.

    Raises:
        UserError: unknown or unfit backbone, weights that are missing or do not fit.
    """
    weights = str(model.weights) if load_weights else "none"
    state = read_weights(weights) if weights not in ("timm", "none") else None
    vit = create_backbone(model.backbone, image_size, model.vit)
    network = _assemble(model, ClassTokenEncoder(
        vit, model.num_classes, image_size, model.regularising_tokens, model.aux_layer,
        model.token_attention, model.frozen_blocks))
    if state is not None and is_network_state(state):
        load_released_state(network, state, weights)
        return network
    origin = weights
    if weights == "timm":
        state = hub_state(model.backbone, model.vit)
        origin = f"timm's weights of {model.backbone}"
    elif state is None:
        state, origin = vit.state_dict(), f"backbone {model.backbone}"
    load_backbone(network.encoder, state, positioned_tokens(vit), model, origin)
    return network


def _assemble(model: ModelConfig, encoder: ClassTokenEncoder) -> MoReNetwork:
    """The network around an encoder."""
    # Built in any case: with and without GCR, one seed gives the other layers equal weights.
    graph = GraphCategoryRepresentation(
        encoder.embed_dim, model.graph_neighbours, model.graph_gate, model.graph_output,
        model.graph_similarity)
    return MoReNetwork(encoder, model.num_classes, model.decoder_width, model.pooling,
                       graph if model.graph else None, model.lam_similarity)


def _check_views(config: Config, patch: int) -> None:
    """Every view of an image must hold a patch; found out after training it would be too late."""
    sizes = {"data.crop": (config.data.crop, config.cam.scales),
             "inference.scales": (config.inference.size, config.inference.scales),
             "inference.segment_scales": (config.inference.size, config.inference.segment_scales)}
    for key, (size, scales) in sizes.items():
        if int(size * min(scales)) < patch:
            raise UserError(f"{key}: the smallest view has {int(size * min(scales))} pixels, less "
                            f"than a patch of {patch}", "raise the size or the smallest scale")
