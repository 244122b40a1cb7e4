"""How a set of seeds or masks was made, as one sentence with the inference route's letter.

Three routes give numbers that must never be compared with each other (method.md §6): (a) the
decoder with multi-scale, flip and CRF; (b) CAM or LAM with the true tags, as in the
pseudo-labels of a training set; (c) CAM or LAM with predicted tags and CRF.
"""

from __future__ import annotations

import re
from typing import Any

MAPS = {"cam": "CAM", "lam": "LAM", "fused": "fused CAM and LAM", "decoder": "decoder"}
UNKNOWN = "route unknown: the set's manifest does not say how it was made"


def facts(provenance: dict[str, Any] | None) -> dict[str, Any]:
    """The provenance with its `parameters` lifted to the top level."""
    provenance = provenance or {}
    return {**provenance, **(provenance.get("parameters") or {})}


def seed_facts(provenance: dict[str, Any] | None) -> dict[str, Any]:
    """What localize recorded: of the set itself, or of the seeds that a mask set came from."""
    own = facts(provenance)
    return facts(own["seeds"]) if isinstance(own.get("seeds"), dict) else own


def describe_route(provenance: dict[str, Any] | None, threshold: float | None = None) -> str:
    """The sentence printed beside every score.

    Args:
        provenance: the manifest's provenance, with `parameters`, or the parameters themselves.
        threshold: background threshold applied to seeds; None when none was.

    Returns:
        For example "LAM seeds, true image tags, 4 scales + flip, threshold 0.50 (pseudo-labels
        of a training set: route b)".
    """
    seeds = seed_facts(provenance)
    if seeds.get("map") not in MAPS:
        return UNKNOWN
    refined = facts(provenance).get("stage") == "refine" or "crf" in facts(provenance)
    parts = [_subject(seeds, refined), *_tags(seeds), _views(seeds)]
    if refined:
        parts += _crf(facts(provenance))
    elif threshold is not None:
        parts.append(f"threshold {threshold:.2f}")
    return f"{', '.join(parts)} ({_letter(seeds, refined)})"


def route_letter(sentence: str) -> str | None:
    """Which of the routes a sentence of `describe_route` names; None where it is unknown.

    Returns:
        "a", "b", "c", or "a with true tags": the decoder told what to find is a route of its own.
    """
    found = re.search(r"route ([abc])(?! or)\b", sentence)
    if not found:
        return None
    return found[1] + (" with true tags" if "given the true tags" in sentence else "")


def _subject(seeds: dict[str, Any], refined: bool) -> str:
    name = MAPS[seeds["map"]]
    return name if seeds["map"] == "decoder" else f"{name} {'masks' if refined else 'seeds'}"


def _tags(seeds: dict[str, Any]) -> list[str]:
    """The decoder needs no tags; where they were used all the same, that must be said."""
    tags = seeds.get("tags")
    if seeds["map"] == "decoder":
        return ["restricted to the true image tags"] if tags == "true" else []
    return [{"true": "true image tags", "predicted": "predicted image tags"}.get(
        tags, "tags unknown")]


def _views(seeds: dict[str, Any]) -> str:
    count = len(seeds.get("scales") or [1.0])
    scales = "1 scale" if count == 1 else f"{count} scales"
    return scales + (" + flip" if seeds.get("flip") else "")


def _crf(masks: dict[str, Any]) -> list[str]:
    """Threshold, CRF, engine where they are not the usual ones, and what was left unlabelled."""
    engine, least = masks.get("engine"), masks.get("ignore_below")
    threshold = masks.get("threshold")
    usual = engine in (None, "auto", "fast", "pydensecrf")
    chosen = " chosen by the seeds' values" if masks.get("threshold_chosen") else ""
    parts = [] if threshold in (None, 0.5) and not chosen else [f"threshold {threshold:g}{chosen}"]
    parts += ["dense CRF" if usual else f"dense CRF ({engine} engine)"]
    parts += [f"confidence below {least:g} unlabelled"] if least else []
    return parts + (["labels changed by the CRF unlabelled"]
                    if masks.get("ignore_disagreement") else [])


def _letter(seeds: dict[str, Any], refined: bool) -> str:
    if seeds["map"] == "decoder":
        lacks = [] if len(seeds.get("scales") or []) > 1 else ["multi-scale"]
        lacks += [] if seeds.get("flip") else ["flip"]
        lacks += [] if refined else ["CRF"]
        letter = f"route a without {', '.join(lacks)}" if lacks else "route a"
        # With true tags the decoder is told what to find: no published figure is made so.
        return f"{letter}, but given the true tags" if seeds.get("tags") == "true" else letter
    if seeds.get("tags") == "true":
        return "pseudo-labels of a training set: route b"
    if seeds.get("tags") == "predicted":
        return "route c" if refined else "route c without CRF"
    return "route b or c: tags unknown"
