"""The report's first row of figures, and the settings that explain them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from more.evaluation.run_scores import TAGS, read_json, stage_folders
from more.evaluation.score_result import Result, percent
from more.evaluation.training_record import progress, read_log, seconds_of, throughput

FACTS = (("backbone", "model.backbone"), ("weights", "model.weights"), ("variant", "variant"),
         ("global batch", "train.global_batch"), ("crop", "data.crop"),
         ("learning rate", "optim.lr"), ("precision", "precision"), ("seed", "train.seed"),
         ("GCR", "model.graph"), ("CRE weight", "loss.weights.cre"),
         ("URE weight", "loss.weights.ure"))


def headline(run: Path, scores: list[dict[str, Any]], log: list[dict[str, Any]],
             scored: Result | None, known: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Figures as `label`, `value` and `about`: masks, decoder, of full supervision, minutes.

    Args:
        run: the run folder.
        scores: rows of `read_scores`.
        log: of `read_log`.
        scored: what the gallery was ranked by; used where no score of the masks was saved.
        known: classes that training images are tagged with, background included; None: unknown.
    """
    second = _decoder(scores)
    found = [_masks(scores, scored, known)]
    if second is None:
        found.append(_figure("decoder on new images", None, "no network was scored yet"))
    else:
        found.append(_figure("decoder on new images", second["miou"],
                             _what(second, known)))
    share = None if second is None else second["share"]
    found.append(_figure("of full supervision", share,
                         "the decoder's mIoU over that of the same network trained on true masks"
                         if share is not None else "no reference on true masks yet"))
    minutes, stages = _minutes(run, log, "" if second is None else second["folder"])
    found.append({"label": "minutes of training",
                  "value": "–" if minutes is None else f"{minutes:.1f}",
                  "about": "not recorded" if minutes is None else f"the updates of {stages}"})
    return found


def facts(run: Path, config: dict[str, Any], log: list[dict[str, Any]], state: dict[str, Any]
          ) -> list[tuple[str, str]]:
    """Label and value of the settings that explain a result; how far the run and every stage two
    inside it got, and how fast."""
    found = [(label, _get(config, key)) for label, key in FACTS]
    rows = [(label, _show(value)) for label, value in found if value not in (None, "")]
    rows += _pace("", log, state)
    for folder, _ in stage_folders(run, []):
        other = read_log(run / folder, [])
        settings = read_json(run / folder / "config.json", [])
        rows += _pace(f"{folder}: ", other, progress(
            run / folder, other, settings if isinstance(settings, dict) else {}))
    return rows


def _pace(prefix: str, log: list[dict[str, Any]], state: dict[str, Any]
          ) -> list[tuple[str, str]]:
    """Updates and throughput of one folder."""
    rows = []
    if state["step"] is not None:
        rows.append((f"{prefix}updates", f"{state['step']} of {state['iterations']}"
                     if state["iterations"] else f"{state['step']}"))
    speed = throughput(log)
    if speed:
        rows.append((f"{prefix}throughput", f"{speed:.1f} images/s over all updates"))
    return rows


def _masks(scores: list[dict[str, Any]], scored: Result | None, known: Sequence[str] | None
           ) -> dict[str, str]:
    """The last stage-one row: masks, or seeds where there are none."""
    first = [row for row in scores if row["stage"] == 1]
    masks = [row for row in first if row.get("kind") == "masks"] if first else []
    if not masks and scored is not None:
        return _figure(scored.kind, scored.miou, _what(scored.to_json(), known))
    if not first:
        return _figure("masks", None, "not scored: that needs true masks")
    row = (masks or first)[-1]
    return _figure(row.get("kind") or "masks", row["miou"], _what(row, known))


def _what(row: dict[str, Any], known: Sequence[str] | None) -> str:
    """What a figure is of, and over which classes its mean goes."""
    true = {name: figures["iou"] for name, figures in row["classes"].items()
            if figures.get("recall") is not None}
    text = (f"{row['name']} on {row.get('images', '?')} images of {row.get('data', '?')}; mIoU, "
            f"mean over all {len(true)} classes that have truth")
    learned = [name for name in true if known is None or name in known]
    if learned and len(learned) < len(true):
        mean = sum(true[name] for name in learned) / len(learned)
        text += (f"; over the {len(learned)} of them that training images show: "
                 f"{percent(mean)} %")
    return text


def _decoder(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The stage-two row trained on tags that the page leads with: masks before seeds, those with
    a reference before others, none that was given the true tags."""
    rows = [row for row in scores if row["stage"] == 2 and row["supervision"] == TAGS
            and "true tags" not in str(row.get("route"))]
    return min(rows, key=lambda row: (row["share"] is None, row.get("kind") != "masks"),
               default=None)


def _minutes(run: Path, log: list[dict[str, Any]], folder: str) -> tuple[float | None, str]:
    """Minutes of all updates, of stage one and of the stage two that the page leads with."""
    first = seconds_of(log)
    second = seconds_of(read_log(run / folder, [])) if folder else None
    known = [value for value in (first, second) if value is not None]
    names = [name for name, value in (("stage one", first), ("stage two", second))
             if value is not None]
    if not folder:
        names = ["this run"]
    return (sum(known) / 60 if known else None), " and ".join(names)


def _figure(label: str, value: float | None, about: str) -> dict[str, str]:
    return {"label": label, "value": "–" if value is None else f"{percent(value)} %",
            "about": about}


def _get(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
