"""The `next:` lines: which command follows on seeds, masks and scores, with its paths filled in."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

MORE = "python -m more"


def line(*words: object) -> str:
    """A command line of `python -m more` that a shell reads back as these words."""
    return f"{MORE} {shlex.join(str(word) for word in words)}"


def masks_place(seeds: Path) -> Path:
    """Where masks of seeds go: the folder `masks` beside `seeds`, else a name of their own."""
    parts = list(seeds.parts)
    if "seeds" in parts:
        place = len(parts) - 1 - parts[::-1].index("seeds")
        return Path(*parts[:place], "masks", *parts[place + 1:])
    return seeds.with_name(f"{seeds.name}_masks")


def run_of(path: Path) -> Path | None:
    """The run folder that seeds, masks or scores lie in; None where they lie elsewhere."""
    return next((folder for folder in path.parents if (folder / "run.json").is_file()), None)


def after_localize(folders: Sequence[Path], data: Path) -> str:
    """`refine` of the last of some seed sets; the threshold from their values, but of a decoder."""
    seeds = folders[-1]
    decoder = _about(seeds).get("map") == "decoder"
    threshold = [] if decoder else ["--threshold", "auto"]
    return line("refine", seeds, "--data", data, "--out", masks_place(seeds), *threshold)


def after_refine(masks: Path, data: Path, truth: bool) -> str:
    """`evaluate` where the images have true masks, else `export`."""
    if not truth:
        return line("export", masks, "--format", "png", "--out", "masks_png")
    return after_scores_of(masks, data)


def after_scores_of(path: Path, data: Path) -> str:
    """`evaluate` of a set so that its figures are kept: in its run, where it lies in one."""
    run = run_of(path)
    name = "_".join(path.relative_to(run).parts if run else path.parts[-2:])
    kept = (run or path.parent) / "scores" / f"{name}.json"
    return line("evaluate", path, "--data", data, "--save", kept)


def after_evaluate(path: Path, data: Path, saved: Path | None) -> str:
    """`report` of the run that the scores are in; else `evaluate --save`."""
    if saved is None:
        return after_scores_of(path, data)
    run = saved.parent.parent
    if saved.parent.name == "scores" and run.is_dir() and (run / "run.json").is_file():
        return line("report", "--run", run)
    return line("evaluate", "OTHER", "--data", data, "--against", saved)


def after_export(format: str, out: Path) -> str:
    """What to do with masks that were written for other tools."""
    place = shlex.quote(str(out))
    if format == "png":
        return (f"use {place} with its classes.txt; shards again: python -m data_tools.folder "
                f"IMAGES SET --masks {place} --classes {shlex.quote(str(out / 'classes.txt'))}")
    if format == "rle":
        return (f"load it with pycocotools; shards again: python -m data_tools.coco {place} "
                "IMAGES SET")
    if format == "voc-server":
        return f"upload {place} to VOC's test server as an entry of comp6"
    return ("pip install segmentation-models-pytorch && python "
            f"{shlex.quote(str(out / 'train_example.py'))} --epochs 20")


def step_of(run: Path) -> str:
    """The next command for a run: its first stage that is still missing."""
    from more.evaluation.next_step import next_step
    from more.evaluation.run_scores import read_scores
    from more.run_folder import read_status

    state = read_status(run).get("state")
    return next_step(run, str(run), read_scores(run, []), state and str(state))["command"]


def _about(shards: Path) -> dict[str, object]:
    """What made a shard set; empty where that cannot be read."""
    from more.data.shards.manifest import read_manifest
    from more.errors import UserError

    try:
        return read_manifest(shards).provenance
    except UserError:  # other ranks still write into it
        return {}
