"""One HTML file about a run that opens from disk: scores, curves, pictures; nothing external."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from more import __version__
from more.data.shards.format import write_atomic
from more.data.shards.manifest import read_manifest
from more.errors import UserError
from more.evaluation.gallery import make_gallery
from more.evaluation.new_images import new_image_cards
from more.evaluation.pictures import curve_svg, kept_svg, reliability_svg
from more.evaluation.routes import describe_route, seed_facts
from more.evaluation.run_scores import read_json, read_scores, stage_notes
from more.evaluation.score_result import percent, ratio

TEMPLATES = Path(__file__).parent / "templates"
TERMS = ("total", "cls", "cls_aux", "mcl", "cre", "ure", "ptc", "seg", "energy")
SERIES = ("#3b7dd8", "#e07b39", "#2f9e6e", "#b04fb5", "#c9a227", "#6b7a8f", "#d1495b", "#3aa6b9",
          "#8c6d46", "#7d9b2c", "#5a4fcf", "#e08bb5")
FACTS = (("backbone", "model.backbone"), ("weights", "model.weights"), ("variant", "variant"),
         ("iterations", "train.iterations"), ("global batch", "train.global_batch"),
         ("crop", "data.crop"), ("learning rate", "optim.lr"), ("precision", "precision"),
         ("seed", "train.seed"), ("GCR", "model.graph"), ("CRE weight", "loss.weights.cre"),
         ("URE weight", "loss.weights.ure"))


def build_report(run: Path, data: Path | None = None, images: int = 12) -> Path:
    """Write `report.html` into a run folder.

    Args:
        run: run folder with any of `config.json`, `log.jsonl`, `scores/*.json`, `seeds/*`,
            `masks/*`; whatever is missing is named on the page. Folders of stage two inside it
            add their scores.
        data: image set for the pictures; None: looked for in the run's records.
        images: images to show, the worst first.

    Returns:
        Path of the page.

    Raises:
        UserError: no such folder, nothing of a run in it, or `data` holds other images.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder", fix="give the folder that training wrote")
    notes: list[str] = []
    config = read_json(run / "config.json", notes)
    log, scores = read_log(run, notes), read_scores(run, notes)
    sets = _provenance(run, notes)
    if not (config or log or scores or sets):
        raise UserError(f"{run}: holds no record of a run",
                        fix="train, localize or evaluate into this folder first")
    gallery = make_gallery(run, data, max(images, 1))
    new_images = new_image_cards(run, max(images // 2, 1), notes)
    page = _environment().get_template("report.html.j2").render(
        name=(config or {}).get("name") or run.resolve().name, run=run.resolve().name,
        version=__version__, made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        facts=_facts(config or {}, log), config=json.dumps(config, indent=1) if config else "",
        scores=scores, subset=_subset(scores), bars=_bars(scores), series=SERIES,
        outlined=any(row.get("boundary_iou") is not None for row in scores),
        shared=any(row["share"] is not None for row in scores), stages=stage_notes(scores),
        trust=_trust(scores),
        curves=_curves(log), gallery=gallery, new_images=new_images, sets=sets,
        notes=notes + gallery.notes)
    out = run / "report.html"
    write_atomic(out, page.encode("utf-8"))
    return out


def read_log(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Records of `log.jsonl` by step; of steps that a resumed run wrote twice, the later one.

    Lines that do not parse (a run killed while writing) are counted in `notes`.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        notes.append("log.jsonl is not in this run: no curves.")
        return []
    merged: dict[int, dict[str, Any]] = {}
    bad = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            merged.setdefault(int(record["step"]), {}).update(record)
        except (ValueError, KeyError, TypeError):
            bad += bool(line.strip())
    if bad:
        notes.append(f"log.jsonl: {bad} unreadable line{'s' if bad > 1 else ''} left out.")
    return [merged[step] for step in sorted(merged)]


def _provenance(run: Path, notes: list[str]) -> list[dict[str, str]]:
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
                      "detail": json.dumps(manifest.provenance, indent=1)})
    return found


def _facts(config: dict[str, Any], log: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Label and value of the settings that explain a result, and how far the run got."""
    found = [(label, _get(config, key)) for label, key in FACTS]
    rows = [(label, _show(value)) for label, value in found if value is not None]
    trained = [record for record in log if "terms" in record]
    if trained:
        rows.append(("last step", f"{trained[-1]['step']}"))
        speeds = sorted(float(record["images_per_s"]) for record in trained
                        if record.get("images_per_s"))
        if speeds:
            rows.append(("throughput", f"{speeds[len(speeds) // 2]:.1f} images/s"))
    return rows


def _get(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _subset(scores: list[dict[str, Any]]) -> list[str]:
    """Classes of the additional mean; the page shows the column when any result has one."""
    return next((record["subset"] for record in scores if record.get("subset")), [])


def _bars(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per class, in the classes' order: its IoU in every result."""
    names = list(dict.fromkeys(name for record in scores for name in record["classes"]))
    return [{"name": name, "values": [
        (record["classes"].get(name) or {}).get("iou") for record in scores]} for name in names]


def _trust(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two charts for every set that stores confidence: its reliability, and what leaving out
    doubtful pixels gains."""
    charts = []
    for record in scores:
        found = record.get("calibration")
        if not found:
            continue
        filled = [row for row in found["bins"] if row["pixels"]]
        steps = [row for row in found["curve"] if row["kept"] and row["miou"] is not None]
        name = f"{record['name']} on {record.get('data', '?')}"
        charts += [
            {"name": f"{name}: reliability", "last": f"error {percent(found['error'])} %",
             "svg": reliability_svg(f"reliability {name}", [row["confidence"] for row in filled],
                                    [row["accuracy"] for row in filled],
                                    [row["pixels"] / found["pixels"] for row in filled])},
            {"name": f"{name}: pixels kept", "last": "",
             "svg": kept_svg(f"pixels kept {name}", [row["kept"] for row in steps],
                             [row["miou"] for row in steps],
                             [row["threshold"] for row in steps])}]
    return charts


def _curves(log: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Charts of every loss term, the evaluations, the learning rate and the throughput."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in log:
        for name, value in _numbers(record).items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(record["step"])
            values.append(value)
    known = {f"loss {name}": place for place, name in enumerate(TERMS)}
    names = sorted(series, key=lambda name: (known.get(name, len(TERMS)),
                                             not name.startswith("loss"), name))
    return [{"name": name, "svg": curve_svg(name, *series[name], name.startswith("eval")),
             "last": f"{series[name][1][-1]:.4g}"} for name in names]


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Plain numbers of one record under the names of their charts."""
    out = {f"loss {name}": value for name, value in (record.get("terms") or {}).items()}
    rates = record.get("lr")
    if isinstance(rates, dict):
        rates = next(iter(rates.values()), None)
    out |= {"learning rate": rates, "images per second": record.get("images_per_s")}
    out |= {f"eval {name}": value for name, value in (record.get("eval") or {}).items()
            if name != "images"}
    return {name: float(value) for name, value in out.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
            and math.isfinite(value)}


def _environment() -> Environment:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: percent(_number(value))
    environment.filters["ratio"] = lambda value: ratio(_number(value))
    return environment


def _number(value: Any) -> float | None:
    """A JSON figure as a float; None for null and for anything that is not a number."""
    return float(value) if isinstance(value, int | float) else None
