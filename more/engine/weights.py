"""The weights of a checkpoint, without DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from more.engine.folders import WEIGHTS
from more.errors import UserError


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Read `model.safetensors` of a checkpoint folder into a network.

    Raises:
        UserError: the file is missing or damaged, or names or shapes differ.
    """
    file = path / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file}: missing", "the checkpoint is incomplete; use another one")
    try:
        weights = load_file(str(file))
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})",
                        "restore it from a copy, or use another checkpoint") from error
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the run's configuration: {error}",
                        "use the config.json that was written with this checkpoint") from error
