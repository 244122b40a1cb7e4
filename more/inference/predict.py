"""Masks and overlays of a user's own pictures, from a run or a file of exported weights.

The maps are those of `more localize` and the dense CRF is that of `more refine`, so a picture gets
the mask that it would get from shards with the same tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

import more
from more.config.schema import Config
from more.data.shards.lock import folder_lock
from more.data.tag_files import read_tag_file
from more.data.tags import class_indices, split_cells
from more.device import local_device
from more.errors import UserError
from more.filtering.parameters import CRFParams
from more.inference.contact_sheet import remove_contact_sheet, write_contact_sheet
from more.inference.inputs import find_pictures, plain
from more.inference.localize import maps_record
from more.inference.localizer import Localizer, Request
from more.inference.picture_masks import PictureMasks
from more.inference.predict_files import remove_leftovers
from more.inference.predict_job import Options, PictureJob
from more.inference.trained import class_names, exported_config, load_run, run_config
from more.palette import palette
from more.progress import Tally, console, track
from more.refinement.plan import announced_engine
from more.run_folder import STAGE_TWO, finished


def predict(inputs: Sequence[str], run: Path, out: Path, options: Options | None = None,
            which: str = "latest", device: torch.device | None = None,
            stdin: BinaryIO | None = None, progress: bool = True) -> Tally:
    """Write mask, overlay and JSON of every picture; results of an equal earlier call stay.

    A sheet shows the overlays of `out`, see `write_contact_sheet`.

    Args:
        inputs: files, folders, patterns, or `-` for a list on `stdin` (see `find_pictures`).
        run: run folder with a checkpoint, or a file of `more export-weights`.
        out: folder of the results, see `Result`.
        options: how to predict.
        which: the checkpoint, as in `load_run`.
        device: where to compute; None: this process's CUDA device if there is one, else CPU.
        stdin: where a list comes from.
        progress: show a progress line.

    Returns:
        Counts of pictures; one that cannot be read or written fails, the others go on.

    Raises:
        UserError: see `find_pictures`, `load_run`, `read_tag_file`; another process writes to
            `out`; the disk is full; the palette is unknown.
    """
    options = options or Options()
    palette(options.palette)  # an unknown name is refused before anything is loaded
    pictures = find_pictures(inputs, out, stdin)
    run, options = choose_network(run, options)
    config, network, path = load_run(run, which)
    console.print(f"{options.map} of {path}{_stage(config)}", highlight=False, markup=False)
    config = with_tag_threshold(config, options)
    names = names_or_numbers(run, config)
    given = _read_tags(options.tags, names) if options.tags else None
    device = device or local_device()
    localizer = Localizer(config, network.to(device), Request((options.map,), "true"), device)
    with folder_lock(out), track(len(pictures), "predict", disable=not progress) as bar:
        remove_leftovers(out)
        engine = announced_engine("auto") if options.crf else ""
        masks = PictureMasks(localizer, names,
                             record_of(config, options, path, given is not None, engine))
        job = PictureJob(masks, options, given, out, bar)
        job.run(pictures)
        if options.sheet:
            write_contact_sheet(out)
        elif job.tally.done:
            remove_contact_sheet(out)  # it shows masks that are no more
    return job.tally


def choose_network(run: Path, options: Options) -> tuple[Path, Options]:
    """Where no map is asked for: the decoder of stage two if there is one, else the LAM.

    A run folder has stage two in its folder `two` (the default of `more train --masks --init`),
    once that is finished.

    Args:
        run: run folder or exported file.
        options: how to predict.

    Returns:
        The folder or file to load, and the options with a map.
    """
    if options.map != "auto":
        return run, options
    for folder in (run / STAGE_TWO, run):
        try:
            config = exported_config(folder) if folder.is_file() else run_config(folder)
        except UserError:
            continue
        if config.stage == 2 and (folder == run or finished(folder)):
            return folder, replace(options, map="decoder")
    return run, replace(options, map="lam")


def with_tag_threshold(config: Config, options: Options) -> Config:
    """The settings with the options' tag threshold, where there is one."""
    if options.tag_threshold is None:
        return config
    return replace(config, inference=replace(config.inference,
                                             tag_threshold=options.tag_threshold))


def names_or_numbers(run: Path, config: Config) -> list[str]:
    """Class names of a run folder or exported file; `class_1`, `class_2`, … where it has none."""
    names, count = class_names(run), config.model.num_classes
    return names if len(names) == count else [f"class_{k + 1}" for k in range(count)]


def _stage(config: Config) -> str:
    if config.stage == 1:
        return " (stage one, trained on tags)"
    kind = "true masks" if config.segment.supervision == "true masks" else "masks from tags"
    return f" (stage two, trained on {kind})"


def choose_device(name: str, option: str = "--device") -> torch.device:
    """`cpu`, `cuda` or `cuda:1`; "" is this process's CUDA device if there is one, else CPU.

    Args:
        name: as on the command line.
        option: what the user calls it, for messages.

    Returns:
        The device.

    Raises:
        UserError: no such device here.
    """
    if not name:
        return local_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"{option} {name}: unknown", "give cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{option} {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices",
                        f"give cpu, or leave {option} out")
    return device


def record_of(config: Config, options: Options, path: Path, given: bool,
              engine: str, sha256: str = "") -> dict[str, Any]:
    """Everything but the picture that decides its files; `threshold` is that of a plain map.

    Args:
        config: the run's settings, with the options' tag threshold.
        options: how to predict.
        path: checkpoint folder or exported file.
        given: the tags are given, not predicted.
        engine: of the CRF, by its own name.
        sha256: of the weights, where that is known already.

    Returns:
        Values by name.
    """
    record = {"tool": "more predict", "version": more.__version__, "stage": "predict",
              **maps_record(options.map, config, path, sha256), "crf": None,
              "tags": "none" if options.map == "decoder" else "predicted",
              "tag_threshold": config.inference.tag_threshold, "palette": options.palette}
    if given:
        record["tag_threshold"] = None
    if options.crf:
        record["threshold"] = None
        record["crf"] = {"engine": engine,
                         "parameters": asdict(CRFParams(**asdict(config.crf)))}
    return record


def _read_tags(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    """bool `[C]` by what the file calls a picture."""
    tags = {}
    for name, line in split_cells(read_tag_file(file)[0], names)[0].items():
        tags[plain(name)] = np.zeros(len(names), bool)
        tags[plain(name)][list(class_indices(line.names, names, line.where))] = True
    return tags
