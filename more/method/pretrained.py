"""Build the network from a backbone's name, with pretrained weights or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from more.errors import UserError, nearest
from more.method.encoder import BACKBONE_ADVICE, ClassTokenEncoder, check_backbone
from more.method.gcr import GraphCategoryRepresentation
from more.method.network import MoReNetwork
from more.method.released_names import is_network_state
from more.method.tokens import TokenStart
from more.method.weight_files import load_backbone, load_released_state, read_weights

CUSTOM = "custom"
FAMILIES = ("vision_transformer", "deit")  # timm's modules with backbones that fit


def build_network(
        backbone: str, num_classes: int, image_size: int, weights: str | Path = "timm", *,
        aux_layer: int = -3, regularising_tokens: int = 4, decoder_width: int = 512,
        pooling: str = "max", token_init: str = "copied", token_noise: float = 0.1,
        regularising_std: float = 1.0, register_init: str = "random",
        token_attention: str = "full", frozen_blocks: int = 0, graph: bool = True,
        graph_neighbours: str = "classes", graph_gate: str = "channel_sums",
        graph_output: str = "released", graph_similarity: str = "dot", lam_similarity: str = "dot",
        vit_kwargs: dict[str, Any] | None = None) -> MoReNetwork:
    """Build a MoRe network and give it its starting weights.

    Args:
        backbone: name of a timm ViT, or "custom" for a ViT made from `vit_kwargs`.
        num_classes: foreground classes C.
        image_size: native side in pixels; sets the grid of the position embedding.
        weights: "timm" (hub), "none", or a `.safetensors`/`.pth` file: a ViT in timm's names,
            a released MoRe checkpoint or one of ours.
        aux_layer: block output that feeds the auxiliary classifier.
        regularising_tokens: register-like tokens before the class tokens.
        decoder_width: hidden channels of the decoder.
        pooling: "max", "average", "lse" or "competitive".
        token_init: "copied" (released) or "perturbed" with noise of `token_noise`.
        token_noise: see `token_init`.
        regularising_std: spread of the regularising tokens' position vectors.
        register_init: "random" (released), "small" or "registers", see `TokenStart`.
        token_attention: "full" (released) or "shared", see `ClassTokenEncoder`.
        frozen_blocks: see `ClassTokenEncoder`.
        graph: False leaves GCR out.
        graph_neighbours: this and the next three are the options of
            GraphCategoryRepresentation.
        graph_gate: "channel_sums" or "inner".
        graph_output: "released" or "paper".
        graph_similarity: "dot" or "cosine".
        lam_similarity: similarity of LAM, "dot" or "cosine".
        vit_kwargs: arguments of timm's VisionTransformer, e.g. patch_size, embed_dim, depth,
            num_heads.

    Raises:
        UserError: unknown or unfit backbone, weights that are missing or do not fit.
    """
    start = TokenStart(token_init, token_noise, register_init, regularising_std)
    state = read_weights(weights) if str(weights) not in ("timm", "none") else None
    vit = create_backbone(backbone, image_size, vit_kwargs)
    encoder = ClassTokenEncoder(vit, num_classes, image_size, regularising_tokens, aux_layer,
                                token_attention, frozen_blocks)
    # Built in any case: with and without GCR, one seed gives the other layers equal weights.
    layer = GraphCategoryRepresentation(
        encoder.embed_dim, graph_neighbours, graph_gate, graph_output, graph_similarity)
    network = MoReNetwork(encoder, num_classes, decoder_width, pooling,
                          layer if graph else None, lam_similarity)
    if state is not None and is_network_state(state):
        load_released_state(network, state, str(weights))
        return network
    origin = str(weights)
    if str(weights) == "timm":
        state, origin = hub_state(backbone, vit_kwargs), f"timm's weights of {backbone}"
    elif state is None:
        state, origin = vit.state_dict(), f"backbone {backbone}"
    load_backbone(encoder, state, positioned_tokens(vit), start, origin)
    return network


def create_backbone(backbone: str, image_size: int, vit_kwargs: dict[str, Any] | None = None
                    ) -> VisionTransformer:
    """An untrained timm ViT for images of `image_size` pixels.

    Raises:
        UserError: unknown name (with the nearest ones), wrong arguments, or no plain ViT.
    """
    arguments = {"num_classes": 0, **(vit_kwargs or {})}
    sizes = {"img_size": image_size, "dynamic_img_size": True}
    if backbone == CUSTOM:
        try:
            return VisionTransformer(**sizes, **arguments)
        except (TypeError, AssertionError) as error:
            raise UserError(f"model.vit_kwargs do not make a ViT: {error}",
                            "give patch_size, embed_dim, depth and num_heads") from error
    check_name(backbone)
    if backbone.partition(".")[0] not in known_backbones():
        raise UserError(f"backbone {backbone!r} is no plain ViT with learned positions, so it "
                        "cannot carry class tokens", BACKBONE_ADVICE)
    try:
        vit = timm.create_model(backbone, pretrained=False, **sizes, **arguments)
    except (TypeError, RuntimeError, AssertionError, AttributeError) as error:
        raise UserError(f"backbone {backbone!r} cannot be built for images of {image_size} "
                        f"pixels: {error}", BACKBONE_ADVICE) from error
    check_backbone(vit)
    return vit


def check_name(backbone: str) -> None:
    """Refuse names that timm does not know.

    Raises:
        UserError: with the nearest names among timm's ViTs.
    """
    name, _, tag = backbone.partition(".")
    if not timm.is_model(name):
        close = nearest(name, known_backbones())
        raise UserError(f"unknown backbone {backbone!r}",
                        f"did you mean {close}?" if close else
                        "choose a ViT of timm, e.g. vit_base_patch16_224")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise UserError(f"backbone {name} has no weights tagged {tag!r}",
                        f"choose one of {', '.join(tags)}" if tags else f"use {name}")


def known_backbones() -> list[str]:
    """Names of timm's models that can serve as backbone."""
    return [name for family in FAMILIES for name in timm.list_models(module=family)]


def hub_state(backbone: str, vit_kwargs: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Download (or read from the cache) timm's pretrained weights at their own image size.

    Raises:
        UserError: there are none, or they cannot be fetched, with the cure.
    """
    fix = ("connect to the hub once, or download the weights on another machine and give the "
           "file as model.weights=PATH.safetensors; model.weights=none starts from scratch")
    if backbone == CUSTOM or not timm.is_model_pretrained(backbone.partition(".")[0]):
        raise UserError(f"backbone {backbone!r} has no pretrained weights in timm",
                        "set model.weights to a file or to none")
    try:
        vit = timm.create_model(backbone, pretrained=True, **(vit_kwargs or {}))
    # Hub, network and cache each raise errors of their own; all of them mean the same here.
    except Exception as error:
        raise UserError(f"pretrained weights of {backbone} cannot be fetched: {error}",
                        fix) from error
    return vit.state_dict()


def backbone_normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (RGB, 0..255) that a backbone was trained with.

    A custom backbone gets ImageNet's.

    Raises:
        UserError: unknown backbone.
    """
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if backbone != CUSTOM:
        check_name(backbone)
        config = timm.get_pretrained_cfg(backbone)
        if config is not None:
            mean, std = config.mean, config.std
    return tuple(255.0 * value for value in mean), tuple(255.0 * value for value in std)


def positioned_tokens(vit: VisionTransformer) -> int:
    """Leading tokens of a timm ViT that have a vector in its position embedding."""
    return 0 if vit.no_embed_class else vit.num_prefix_tokens

