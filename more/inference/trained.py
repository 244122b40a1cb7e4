"""Weights for inference: from a run's checkpoint or an exported file, without DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

import more
from more import run_folder
from more.config.load import config_from_dict, to_dict
from more.config.schema import Config
from more.data.shards.format import make_folder, sha256_file, write_atomic
from more.errors import UserError
from more.method.make_network import make_network
from more.method.weight_files import check_finite


def load_run(run: Path, which: str = "latest") -> tuple[Config, torch.nn.Module, Path]:
    """Configuration, network in eval mode, and the checkpoint folder or file they came from.

    Args:
        run: run folder, or a file that `export_weights` made.
        which: "latest", "best", the name of a checkpoint of the run, or a checkpoint folder.

    Returns:
        The three.

    Raises:
        UserError: no run, damaged settings, no complete checkpoint.
    """
    if run.is_file():
        config, path = exported_config(run), run
    else:
        config, path = run_config(run), find_checkpoint(run, which)
    network = make_network(config, load_weights=False)
    load_weights(network, path)
    return config, network.eval(), path


def run_config(run: Path) -> Config:
    """The settings a run folder was trained with."""
    settings = run / "config.json"
    if not settings.is_file():
        raise UserError(f"{settings}: missing", "give the --run folder of `more train`, or a file "
                        "of `more export-weights`")
    try:
        recorded = json.loads(settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{settings}: damaged ({error})",
                        "restore it; a checkpoint's COMPLETE file has it under `config`") from error
    return config_from_dict(recorded, source=str(settings))


def find_checkpoint(run: Path, which: str = "latest") -> Path:
    """A complete checkpoint of a run (see `load_run`)."""
    if which == "best":
        best = run_folder.read_best(run / "checkpoints")
        if best is None:
            raise UserError(f"{run}/checkpoints: no best checkpoint is recorded",
                            "train with checkpoint.best=lam (or cam, decoder), or take "
                            "--checkpoint latest")
        which = best["checkpoint"]
    inside = run / "checkpoints" / which
    path = run_folder.choose(run, "auto" if which == "latest" else
                          str(inside) if inside.is_dir() else which)
    if path is None:
        raise UserError(f"{run}/checkpoints: no checkpoint yet", "train first")
    return path


def weights_file(path: Path) -> Path:
    """The weights in a checkpoint folder; an exported file is its own."""
    return path / run_folder.WEIGHTS if path.is_dir() else path


def weights_digest(path: Path) -> str:
    """sha256 of the weights in a checkpoint folder or an exported file.

    Of a folder it is the one in its marker, which `find_checkpoint` has compared with the file.

    Args:
        path: the folder or file.

    Returns:
        Hexadecimal sha256.
    """
    if path.is_dir():
        return str(run_folder.info(path)["files"][run_folder.WEIGHTS]["sha256"])
    return sha256_file(path)


def export_weights(run: Path, out: Path, which: str = "latest") -> Path:
    """One safetensors file with weights, settings and class names of a run.

    Args:
        run: run folder.
        out: file to write, `.safetensors`.
        which: as in `load_run`.

    Returns:
        `out`.

    Raises:
        UserError: as `load_run`; another ending.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: not a .safetensors file", "let the name end with .safetensors")
    config, network, path = load_run(run, which)
    notes = {"format": "more-weights-1", "version": more.__version__, "checkpoint": path.name,
             "config": json.dumps(to_dict(config)), "classes": json.dumps(class_names(run))}
    make_folder(out.parent)
    write_atomic(out, save({name: value.contiguous() for name, value in
                            network.state_dict().items()}, notes))
    return out


def class_names(run: Path) -> list[str]:
    """Class names of a run folder or an exported file; empty where none were recorded.

    Raises:
        UserError: the record is damaged.
    """
    if run.is_file():
        return json.loads(_notes(run).get("classes", "[]"))
    about = run / "run.json"
    try:
        return list(json.loads(about.read_text(encoding="utf-8")).get("classes", []))
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{about}: damaged ({error})",
                        "restore it; the next start of the training writes it anew") from error


def exported_config(file: Path) -> Config:
    """The settings in a file of `export_weights`.

    Args:
        file: made by `export_weights`.

    Returns:
        The settings.

    Raises:
        UserError: damaged, or another kind of file.
    """
    return config_from_dict(json.loads(_notes(file)["config"]), source=str(file))


def _notes(file: Path) -> dict[str, str]:
    """What `export_weights` wrote beside the weights."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            notes = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})", "give a file of `more "
                        "export-weights`, or export the weights again") from error
    if notes.get("format") != "more-weights-1":
        raise UserError(f"{file}: was not made by `more export-weights`",
                        "give a run folder, or export the weights of one")
    return notes


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Read the weights of a checkpoint folder, or of an exported file, into a network.

    Args:
        network: takes the weights.
        path: checkpoint folder or exported file.

    Raises:
        UserError: the file is missing or damaged, or names or shapes differ.
    """
    file = weights_file(path)
    if not file.is_file():
        raise UserError(f"{file}: missing", "the checkpoint is incomplete; use another one")
    try:
        weights = load_file(str(file))
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})",
                        "restore it from a copy, or use another checkpoint") from error
    check_finite(weights, str(file))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the run's configuration: {error}",
                        "use the config.json that was written with this checkpoint") from error
