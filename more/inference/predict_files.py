"""The files of one predicted picture: index PNG, overlay, JSON; and whether they are up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from more.data.shards.format import TEMPORARY, is_temporary, make_folder, to_json, write_atomic
from more.errors import UserError
from more.evaluation.pictures import mask_overlay
from more.export.png import encode_png
from more.palette import PALETTE, colour_of

LISTED = 0.1
QUALITY = 90


@dataclass(frozen=True)
class Result:
    """Where the files of a picture go: `OUT/NAME.png`, `OUT/NAME_overlay.jpg`, `OUT/NAME.json`."""

    out: Path
    name: str

    @property
    def mask(self) -> Path:
        """Index PNG at the size of the picture."""
        return self.out / f"{self.name}.png"

    @property
    def overlay(self) -> Path:
        """The mask painted over the picture, with the names of its classes."""
        return self.out / f"{self.name}_overlay.jpg"

    @property
    def facts(self) -> Path:
        """JSON; written last, so that where it is the others are."""
        return self.out / f"{self.name}.json"

    def up_to_date(self, provenance: dict[str, Any], overlay: bool) -> bool:
        """True when an earlier call made all that is wanted, from the same picture and settings."""
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        wanted = {self.mask.name, *([self.overlay.name] if overlay else [])}
        return (isinstance(facts, dict) and facts.get("provenance") == provenance
                and all(name in facts.get("files", ()) for name in wanted)
                and all((self.facts.parent / name).is_file() for name in wanted))

    def without_class(self) -> bool:
        """True when the mask that is there is background everywhere, as its JSON says."""
        facts = json.loads(self.facts.read_text(encoding="utf-8"))
        height, width = facts["size"]
        return facts["background_pixels"] == height * width

    def save(self, image: np.ndarray, label: np.ndarray, facts: dict[str, Any],
             overlay: bool, names: Sequence[str] = (), colours: np.ndarray = PALETTE) -> None:
        """Write the files, each complete or not at all.

        Args:
            image: uint8 `[H, W, 3]` RGB.
            label: uint8 `[H, W]`.
            facts: content of the JSON but for the names of the files.
            overlay: paint the mask over the picture; otherwise an older painting is removed.
            names: of all classes, written on the overlay.
            colours: uint8 `[256, 3]` by pixel value, of the overlay and the index PNG.

        Raises:
            UserError: the folder cannot be made, or the picture is too large for a JPEG.
            OSError: a file cannot be written.
        """
        painted = _jpeg(mask_overlay(image, label, colours, names)) if overlay else None
        make_folder(self.mask.parent)
        self.facts.unlink(missing_ok=True)  # it would describe files that change
        write_atomic(self.mask, encode_png(np.ascontiguousarray(label), colours))
        if painted is not None:
            write_atomic(self.overlay, painted)
        else:
            self.overlay.unlink(missing_ok=True)
        files = [self.mask.name, *([self.overlay.name] if overlay else [])]
        write_atomic(self.facts, to_json({**facts, "files": files}))


def class_table(names: Sequence[str], probabilities: np.ndarray, tags: np.ndarray,
                label: np.ndarray, colours: np.ndarray = PALETTE) -> list[dict[str, Any]]:
    """Classes of a picture, most probable first: those above 0.1, the tags, those in the mask.

    Args:
        names: of all classes.
        probabilities: `[C]` of the classifier.
        tags: `[C]`, true for the classes that were given or found.
        label: uint8 `[H, W]`.

    Returns:
        A record for each class that is listed.
    """
    pixels = np.bincount(label.reshape(-1), minlength=256)[1:len(names) + 1]
    kept = np.flatnonzero((probabilities > LISTED) | tags | (pixels > 0))
    kept = sorted(kept.tolist(), key=lambda k: (-probabilities[k], k))
    return [{"name": names[k], "value": k + 1, "probability": round(float(probabilities[k]), 4),
             "tag": bool(tags[k]), "pixels": int(pixels[k]), "colour": colour_of(k + 1, colours)}
            for k in kept]


def remove_leftovers(out: Path) -> None:
    """Delete what killed writers left at any depth; call it while holding the folder's lock."""
    for path in list(out.rglob(f"*{TEMPORARY}*")):
        if is_temporary(path.name):
            path.unlink(missing_ok=True)


def _jpeg(image: np.ndarray) -> bytes:
    try:
        done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                                  [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    except cv2.error:
        done = False
    if not done:
        raise UserError("the overlay is too large for a JPEG",
                        fix="leave it out: --no-overlay, or overlay=False in Python")
    return data.tobytes()
