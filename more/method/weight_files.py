"""Weight files: reading them, and loading them with clear words about what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from more.config.schema import ModelConfig
from more.errors import UserError, first_few
from more.method.encoder import ClassTokenEncoder
from more.method.network import MoReNetwork
from more.method.released_names import from_released, unwrap
from more.method.tokens import source_tokens, start_above, start_tokens

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
OWN_TOKENS = ("cls_token", "pos_embed", "prefix", "reg_token", "register_tokens", "dist_token",
              "mask_token")
BACKBONE_PARTS = ("patch_embed.", "norm_pre.", "blocks.", "norm.")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or a torch file (tensors only, no foreign pickles).

    Wrappers ("state_dict", "model", "teacher", …) and prefixes ("module.", "backbone.", …) are
    taken off, see `more.method.released_names`.

    Raises:
        UserError: the file is missing, damaged, of an unknown kind, holds foreign objects, or
            holds no tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist",
                        "correct model.weights; 'timm' downloads, 'none' starts from scratch")
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        raise UserError(f"weights file {path} has an unknown ending",
                        "give a .safetensors file or a torch file (.pth, .pt, .bin, .ckpt)")
    state = unwrap(content) if isinstance(content, Mapping) else {}
    if not state:
        raise UserError(f"weights file {path} holds no named tensors",
                        "save the model's state_dict() into it")
    return dict(state)


def load_backbone(encoder: ClassTokenEncoder, state: Mapping[str, Tensor], prefix: int,
                  start: ModelConfig, origin: str) -> None:
    """Start an encoder from a plain ViT's state dict in timm's names; heads are dropped.

    Args:
        encoder: filled in place.
        state: the ViT's tensors, any floating type.
        prefix: leading tokens with a position vector in timm's model of this backbone.
        start: its `token_*`, `register*` settings say how our tokens begin.
        origin: file or source, for messages.

    Raises:
        UserError: tensors are missing, too many or of another shape.
    """
    parts = {_backbone_name(name): tensor for name, tensor in state.items()}
    parts = {name: tensor for name, tensor in parts.items() if name.startswith(BACKBONE_PARTS)}
    wanted = {name: tensor for name, tensor in encoder.state_dict().items()
              if name not in OWN_TOKENS}
    load_exactly(encoder, parts, wanted, origin,
                 "give the weights of this backbone in timm's names, or change model.backbone",
                 state)
    source = source_tokens(dict(state), prefix, origin)
    check_finite({name: state[name] for name in OWN_TOKENS if name in state}, origin)
    _check_width(source.class_token, "cls_token", encoder, origin)
    _check_width(source.patch_positions, "pos_embed", encoder, origin)
    if encoder.frozen_blocks:
        start_above(encoder.cls_token, encoder.pos_embed, encoder.prefix, source, start)
    else:
        start_tokens(encoder.cls_token, encoder.pos_embed, source,
                     encoder.regularising_tokens, start)


def load_released_state(network: MoReNetwork, state_dict: Mapping[str, Tensor],
                        origin: str = "checkpoint") -> None:
    """Load a whole network under the release's names or ours, wrapped or not.

    Graph layers of the checkpoint are ignored by a network without GCR.

    Raises:
        UserError: tensors are missing, too many or of another shape.
    """
    state = from_released(unwrap(state_dict))
    wanted = network.state_dict()
    if not any(name.startswith("graph.") for name in wanted):
        state = {name: t for name, t in state.items() if not name.startswith("graph.")}
    # The paper's GCR output has no norm, a released checkpoint always does.
    state = {name: t for name, t in state.items()
             if name in wanted or not name.startswith("graph.norm.")}
    load_exactly(network, state, wanted, origin,
                 "set model.backbone, num_classes, image_size, regularising_tokens and "
                 "decoder_width as they were in training")


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor],
                 origin: str, fix: str, held: Mapping[str, Tensor] | None = None) -> None:
    """Copy `state` into `module` after checking that it holds `wanted`, name by name.

    Args:
        module: filled in place.
        state: the tensors to copy, by name.
        wanted: the tensors that the module needs, by name.
        origin: file or source, for messages.
        fix: what to do when they do not fit, for messages.
        held: all tensors of the file, for the message; None: `state`.

    Raises:
        UserError: naming the first tensor of another shape with both shapes and the likely
            cause, or the missing and surplus tensors; or values that are not finite.
    """
    for name in (name for name in wanted if name in state):
        found, expected = tuple(state[name].shape), tuple(wanted[name].shape)
        if found != expected:
            raise UserError(f"{origin}: tensor {name} has shape {list(found)}, the model "
                            f"needs {list(expected)} ({_likely_cause(name)})", fix)
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or surplus:
        problems = [f"{len(names)} tensors {what}: {first_few(names, 3)}"
                    for what, names in (("missing", missing), ("not in the model", surplus))
                    if names]
        held = state if held is None else held
        raise UserError(f"{origin} does not fit the model: {'; '.join(problems)}. It holds "
                        f"{len(held)} tensors ({first_few(list(held), 3)}), wanted are "
                        f"{len(wanted)} ({first_few(list(wanted), 3)})", fix)
    check_finite(state, origin)
    module.load_state_dict({name: state[name] for name in wanted}, strict=False)


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that no update could mend.

    Raises:
        UserError: naming the first tensor with NaN or infinite values.
    """
    for name, tensor in state.items():
        if tensor.is_meta:
            continue  # no values: only the memory of a training is asked for
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise UserError(f"{origin}: tensor {name} holds {bad} values of {tensor.numel()} that "
                            "are not finite",
                            "use weights from before the training that made them went wrong, or "
                            "download them again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"weights file {path} cannot be read: {error}",
                        "download or copy it again") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"weights file {path} is damaged or holds objects other than tensors",
                        "save only the state_dict into it, or convert it to .safetensors"
                        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"weights file {path} cannot be read: {error}",
                        "download or copy it again") from error


def _backbone_name(name: str) -> str:
    # Models with average pooling call their final norm fc_norm.
    return "norm." + name.removeprefix("fc_norm.") if name.startswith("fc_norm.") else name


def _check_width(tokens: Tensor, name: str, encoder: ClassTokenEncoder, origin: str) -> None:
    if tokens.shape[-1] != encoder.embed_dim:
        raise UserError(f"{origin}: tensor {name} has {tokens.shape[-1]} channels, the model "
                        f"needs {encoder.embed_dim}",
                        "give the weights of this backbone, or change model.backbone")


def _likely_cause(name: str) -> str:
    if name.endswith("cls_token"):
        return "another number of classes or regularising tokens, or another width"
    if name.endswith("pos_embed"):
        return "another image size, number of classes or width"
    if name.endswith("patch_embed.proj.weight"):
        return "another patch size or width"
    if name.startswith(("classifier", "aux_classifier", "decoder.conv8")):
        return "another number of classes or width"
    if name.startswith("decoder"):
        return "another decoder width or backbone"
    return "weights of another backbone"
