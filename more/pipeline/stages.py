"""The stages of `more run`, each a command line of its own, with the folders of a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from more.config.schema import Config
from more.run_folder import STAGE_TWO, finished


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage, in the record and for the user.
        words: after `python -m`: module, command and arguments.
        result: what the stage makes; a file, or a folder whose `manifest.json` is written last, or
            a run folder.
        spread: one process for each GPU serves it.
        always: its command runs at every call, for it alone knows whether its sources changed.
    """

    name: str
    words: tuple[str, ...]
    result: Path
    spread: bool = False
    always: bool = False

    @property
    def trains(self) -> bool:
        """Whether the result is a run folder."""
        return self.words[:2] == ("more", "train")

    @property
    def tolerant(self) -> bool:
        """Whether the result can be used although some images failed (exit code 1)."""
        return self.words[:2] in (("more", "localize"), ("more", "refine"))

    def line(self, ranks: int = 1) -> str:
        """The command as a line for a shell, with so many processes where it is spread."""
        if self.spread and ranks > 1:
            module, *rest = self.words
            words = ("torchrun", "--standalone", f"--nproc_per_node={ranks}", "-m", module, "--",
                     *rest)
            return shlex.join(words)
        return shlex.join(("python", "-m", *self.words))

    def present(self) -> bool:
        """Whether the result is there, as its command leaves it at its end."""
        if self.trains:
            return finished(self.result)
        return self.result.is_file() or (self.result / "manifest.json").is_file()


@dataclass(frozen=True)
class Plan:
    """What `more run` is asked for.

    Attributes:
        run: run folder.
        data: shard set of the pictures.
        val: shard set with true masks, or None.
        config: recipe's name or file.
        overrides: `section.key=value` of both stages.
        stage_two: `section.key=value` of stage two alone.
        map: the seeds that become masks.
    """

    run: Path
    data: Path
    val: Path | None
    config: str
    overrides: tuple[str, ...]
    stage_two: tuple[str, ...]
    map: str

    @property
    def masks(self) -> Path:
        """The masks that stage two learns from."""
        return self.run / "masks" / self.map

    @property
    def two(self) -> Path:
        """The run folder of stage two."""
        return self.run / STAGE_TWO


def convert_stage(pictures: Path, tags: Path, out: Path) -> Stage:
    """A folder of pictures with tags becomes a shard set; changed pictures or tags are refused."""
    return Stage("data", ("data_tools.folder", str(pictures), str(out), "--tags", str(tags)), out,
                 always=True)


def make_stages(plan: Plan, truth: bool, settings: Config) -> list[Stage]:
    """All stages after the conversion, in their order.

    Args:
        plan: what is asked for.
        truth: whether the pictures have true masks, so that seeds and masks can be scored.
        settings: of stage one, for those of the dense CRF.
    """
    run, two, seeds = plan.run, plan.two, plan.run / "seeds"
    kinds = ("cam", plan.map)
    crf = _crf_words(plan, settings)
    stages = [
        _train(plan, "stage one", run, plan.overrides),
        _more("seeds", seeds / plan.map, "localize", "--run", run, "--data", plan.data, "--out",
              seeds, *(word for kind in kinds for word in ("--map", kind)), spread=True),
        _more("masks", plan.masks, "refine", seeds / plan.map, "--data", plan.data, "--out",
              plan.masks, "--threshold", "auto", *crf),
        _train(plan, "stage two", two, (*plan.overrides, *plan.stage_two),
               "--masks", plan.masks, "--init", run)]
    if plan.val is not None:
        new = two / "seeds" / "val"
        stages += [
            _more("seeds of new pictures", new, "localize", "--run", two, "--data", plan.val,
                  "--out", new, "--map", "decoder", spread=True),
            _more("masks of new pictures", two / "masks" / "val", "refine", new, "--data",
                  plan.val, "--out", two / "masks" / "val", *crf)]
    if truth:
        stages += [_score(run, name, plan.data) for name in
                   (*(f"seeds/{kind}" for kind in kinds), f"masks/{plan.map}")]
    if plan.val is not None:
        stages += [_score(two, name, plan.val) for name in ("seeds/val", "masks/val")]
    page = run / "report.html"
    return [*stages, _more("report", page, "report", "--run", run, "--data", plan.data)]


def _more(name: str, result: Path, *words: object, spread: bool = False) -> Stage:
    return Stage(name, ("more", *map(str, words)), result, spread)


def _train(plan: Plan, name: str, run: Path, overrides: Sequence[str], *more: object) -> Stage:
    val = () if plan.val is None else ("--val", plan.val)
    return _more(name, run, "train", plan.config, "--train", plan.data, *val, *more, "--run", run,
                 *(word for text in overrides for word in ("--set", text)), spread=True)


def _score(run: Path, name: str, data: Path) -> Stage:
    kept = run / "scores" / f"{name.replace('/', '_')}.json"
    return _more(f"score of {run.name if run.name == STAGE_TWO else ''} {name}".replace("  ", " "),
                 kept, "evaluate", run / name, "--data", data, "--save", kept)


def _crf_words(plan: Plan, settings: Config) -> list[str]:
    """Options of `refine` where the settings of the dense CRF are not the released ones."""
    if settings.crf == Config().crf:
        return []
    own = [text for text in plan.overrides if text.startswith("crf.")]
    return ["--config", plan.config, *(word for text in own for word in ("--set", text))]
