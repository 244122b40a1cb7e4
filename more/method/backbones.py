"""Backbones: timm's ViTs by name, their pretrained weights, and what a backbone has to be."""

from __future__ import annotations

from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from more.errors import UserError, nearest

CUSTOM = "custom"
FAMILIES = ("vision_transformer", "deit")  # timm's modules with backbones that fit
BACKBONE_ADVICE = (
    "use a ViT with learned positions, e.g. vit_base_patch16_224, vit_small_patch14_dinov2, "
    "vit_small_patch16_224.dino or deit_small_patch16_224")


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
        also = " and model.vit_kwargs" if vit_kwargs else ""
        raise UserError(f"backbone {backbone!r} cannot be built for images of {image_size} pixels"
                        f"{also}: {error or type(error).__name__}", BACKBONE_ADVICE) from error
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


def check_backbone(vit: nn.Module) -> None:
    """Refuse models without plain blocks and learned absolute positions.

    Raises:
        UserError: naming what is missing and backbones that work.
    """
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"a backbone of type {type(vit).__name__} cannot carry class tokens: "
                        "only timm's VisionTransformer can", BACKBONE_ADVICE)
    if vit.pos_embed is None:
        raise UserError("the backbone has no learned position embedding", BACKBONE_ADVICE)


def check_frozen(frozen: int, aux_index: int, vit: nn.Module) -> None:
    """Refuse frozen blocks that cannot work.

    Raises:
        UserError: they hold the auxiliary layer, or the backbone has no class token for ours to
            start from.
    """
    if not 0 < frozen <= aux_index:
        raise UserError(f"model.frozen_blocks = {frozen}, but the auxiliary classifier looks at "
                        f"block {aux_index + 1} of {len(vit.blocks)}, which has to be trained",
                        f"choose 0 to {aux_index}, or raise model.aux_layer")
    if not vit.num_prefix_tokens:
        raise UserError("model.frozen_blocks needs a backbone with a class token",
                        f"{BACKBONE_ADVICE}; or set model.frozen_blocks=0")


def patch_side(vit: VisionTransformer) -> int:
    """Side of a ViT's patches in pixels.

    Raises:
        UserError: they are not square.
    """
    height, width = vit.patch_embed.feat_ratio(as_scalar=False)
    if height != width:
        raise UserError(f"patches of {height}x{width} pixels are not square",
                        "use a backbone with square patches")
    return int(height)


def auxiliary_index(aux_layer: int, depth: int) -> int:
    """The number, from 0, of the block that `model.aux_layer` means.

    Raises:
        UserError: there is no such block.
    """
    if not -depth <= aux_layer < depth:
        raise UserError(f"model.aux_layer = {aux_layer} is outside a backbone of {depth} blocks",
                        f"choose a value from {-depth} to -1")
    return aux_layer % depth
