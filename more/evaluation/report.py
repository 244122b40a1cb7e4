"""One HTML file about a run that opens from disk: scores, pictures, curves; nothing external."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from more import __version__
from more.data.shards.format import make_folder, write_atomic
from more.data.shards.manifest import read_manifest
from more.errors import UserError
from more.evaluation.confusion import confusion_table
from more.evaluation.decoder_layer import Decode
from more.evaluation.gallery import Gallery, make_gallery
from more.evaluation.headline import facts, headline
from more.evaluation.new_images import new_images
from more.evaluation.next_step import next_step
from more.evaluation.routes import describe_route, seed_facts
from more.evaluation.run_scores import read_json, read_scores, stage_notes
from more.evaluation.score_result import dominance_note, percent, ratio
from more.evaluation.training_record import curves, progress, read_log
from more.evaluation.trust_charts import trust_charts
from more.evaluation.words import ROUTES, TERMS, route_lines
from more.palette import palette as colours_of

__all__ = ["build_report", "read_log"]
TEMPLATES = Path(__file__).parent / "templates"
SERIES = ("#3b7dd8", "#e07b39", "#2f9e6e", "#b04fb5", "#c9a227", "#6b7a8f", "#d1495b", "#3aa6b9",
          "#8c6d46", "#7d9b2c", "#5a4fcf", "#e08bb5")
BYTES = 3_600_000  # for photographs; with maps and masks the page stays below 5 MB
_ROOTED = re.compile(r"(?<![\w.:/~…])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"<>,;:]+[/\\])+")


def build_report(run: Path, data: Path | None = None, images: int = 12, palette: str = "voc",
                 out: Path | None = None, decode: Decode | None = None) -> Path:
    """Write one page about a run.

    Args:
        run: run folder with any of `config.json`, `log.jsonl`, `scores/*.json`, `seeds/*`,
            `masks/*`; whatever is missing is named on the page. Folders of stage two inside it
            add their scores.
        data: image set for the pictures; None: looked for in the run's records.
        images: training images to show, the worst first, and half as many new ones.
        palette: colours of the classes, see `palettes.palette`.
        out: the file; None: `report.html` in the run folder.
        decode: asks the decoder about the training images of the page, where no stored set has
            its answer; None: such pictures are left out.

    Returns:
        Path of the page.

    Raises:
        UserError: no such folder, nothing of a run in it, `data` holds other images, or the
            palette is unknown.
    """
    run, colours = Path(run), colours_of(palette)
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder", fix="give the folder that training wrote")
    notes: list[str] = []
    config = read_json(run / "config.json", notes)
    config = config if isinstance(config, dict) else {}
    log, scores = read_log(run, notes), read_scores(run, notes)
    sets = _provenance(run, notes)
    if not (config or log or scores or sets):
        raise UserError(f"{run}: holds no record of a run",
                        fix="train, localize or evaluate into this folder first")
    galleries = _galleries(run, data, max(images, 1), colours, notes, decode)
    page = _page(run, config, log, scores, galleries, sets, notes)
    out = out or run / "report.html"
    make_folder(out.parent)
    write_atomic(out, page.encode("utf-8"))
    return out


def _galleries(run: Path, data: Path | None, count: int, colours: np.ndarray, notes: list[str],
               decode: Decode | None) -> list[Gallery]:
    """Training images and half as many new ones; what could not be shown becomes notes."""
    most = BYTES // (count + max(count // 2, 1))
    galleries = [make_gallery(run, data, count, colours, most, decode),
                 new_images(run, max(count // 2, 1), colours, most)]
    for gallery in galleries:
        notes += gallery.notes
    return galleries


def _page(run: Path, config: dict[str, Any], log: list[dict[str, Any]],
          scores: list[dict[str, Any]], galleries: list[Gallery], sets: list[dict[str, Any]],
          notes: list[str]) -> str:
    """The template filled in."""
    state, name = progress(run, log, config), run.resolve().name
    charts, few = curves(log)
    return _environment().get_template("report.html.j2").render(
        css=_file("report.css"), js=_file("report.js"), version=__version__,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        name=config.get("name") or name, run=name, state=state,
        headline=headline(run, scores, log, galleries[0].scored, galleries[0].known),
        step=next_step(run, _place(run), scores, state["state"]),
        facts=shared(facts(run, config, log, state), run),
        config=_dump(config, run) if config else "",
        scores=[{**row, "dominance": dominance_note(row["classes"])} for row in scores],
        subset=_subset(scores), bars=_bars(scores), series=SERIES,
        outlined=any(row.get("boundary_iou") is not None for row in scores),
        routes=ROUTES, terms=_terms(log),
        meanings=route_lines(str(row.get("route")) for row in scores),
        share=any(row["share"] is not None for row in scores), stages=stage_notes(scores),
        trust=trust_charts(scores), curves=charts, few=few,
        galleries=[gallery for gallery in galleries if gallery.cards],
        confusions=[confusion_table(gallery.scored) for gallery in galleries if gallery.scored],
        sets=sets, notes=shared(list(dict.fromkeys(notes)), run))


def shared(value: Any, run: Path | None = None) -> Any:
    """The value without the folders of absolute paths, which tell readers elsewhere nothing.

    Args:
        value: a text, or lists and dicts of them.
        run: the run folder: what lies beside it and in the home folder is found in any spelling,
            blanks included.
    """
    if isinstance(value, dict):
        return {shared(key, run): shared(item, run) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shared(item, run) for item in value]
    if not isinstance(value, str):
        return value
    for folder in _own_folders(run):
        value = value.replace(f"{folder}/", "…/").replace(folder, "…")
    return _ROOTED.sub("…/", value)


def _own_folders(run: Path | None) -> list[str]:
    """The folder above the run, as written and as it is, and the home folder; the longest first."""
    beside = [] if run is None else [run.absolute().parent, run.resolve().parent]
    found = {str(path) for path in (*beside, Path.home()) if len(path.parts) > 1}
    return sorted(found, key=lambda text: (-len(text), text))


def _terms(log: list[dict[str, Any]]) -> dict[str, str]:
    """Meanings of the loss terms that a log has."""
    held = {name for record in log for name in record.get("terms") or {}}
    return {name: meaning for name, meaning in TERMS.items() if name in held}


def _place(run: Path) -> str:
    """How commands name the run: as it was given, but by its last part where that is absolute."""
    return run.resolve().name if run.is_absolute() or ".." in run.parts else run.as_posix()


def _dump(value: Any, run: Path) -> str:
    return json.dumps(shared(value, run), indent=1, ensure_ascii=False)


def _provenance(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Route and origin of every set of seeds and masks in the run."""
    found = []
    for path in sorted(run.glob("seeds/*")) + sorted(run.glob("masks/*")):
        if not path.is_dir():
            continue
        name = f"{path.parent.name}/{path.name}"
        try:
            manifest = read_manifest(path)
        except UserError as error:
            notes.append(f"{name} cannot be read: {error.message}.")
            continue
        found.append({"name": name, "images": manifest.rows,
                      "route": describe_route(manifest.provenance,
                                              seed_facts(manifest.provenance).get("threshold")),
                      "detail": _dump(manifest.provenance, run)})
    return found


def _subset(scores: list[dict[str, Any]]) -> list[str]:
    """Classes of the additional mean; the page shows the column when any result has one."""
    return next((record["subset"] for record in scores if record.get("subset")), [])


def _bars(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per class, in the classes' order: its IoU in every result."""
    names = list(dict.fromkeys(name for record in scores for name in record["classes"]))
    return [{"name": name, "values": [
        (record["classes"].get(name) or {}).get("iou") for record in scores]} for name in names]


def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = _percent
    environment.filters["ratio"] = lambda value: ratio(_number(value))
    return environment


def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _percent(value: Any) -> str:
    """The one form of all percentages on the page."""
    text = percent(_number(value))
    return text if text == "–" else f"{text} %"


def _number(value: Any) -> float | None:
    """A JSON figure as a float; None for null and for anything that is not a number."""
    return float(value) if isinstance(value, int | float) else None
