"""What is predicted for one picture: its mask, probabilities and classes; shown, and saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from more.data.image_files import IMAGE_ENDINGS
from more.errors import UserError
from more.evaluation.pictures import mask_overlay
from more.inference.predict_files import Result, class_table
from more.palette import palette as colours_of

BACKGROUND = "background"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Mask and probabilities of one picture; plain data, which can be pickled.

    H and W are the sides of the picture, C counts all classes, K the labels that the picture may
    have: background and the classes that were found or given (of a decoder: all that are likely
    anywhere).

    Attributes:
        mask: uint8 `[H, W]`: 0 background, v the class `classes[v - 1]`.
        probabilities: float32 `[K, H, W]`, of the CRF; without CRF the maps themselves, which
            need not sum to one. Row k belongs to `labels[k]`.
        values: `[K]`, the pixel value of each row; 0, the background, comes first.
        classes: names of all C classes.
        scores: float32 `[C]`: how likely the picture shows each class.
        tagged: bool `[C]`: the classes that were found, or given.
        image: uint8 `[H, W, 3]` RGB, the picture itself.
        file: where the picture came from, if from a file.
        provenance: everything that decided the mask, as `more predict` writes it down.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    values: np.ndarray
    classes: tuple[str, ...]
    scores: np.ndarray
    tagged: np.ndarray
    image: np.ndarray
    file: Path | None
    provenance: Mapping[str, Any]

    @property
    def labels(self) -> list[str]:
        """Names of the rows of `probabilities`: "background", then classes."""
        return [self.classes[value - 1] if value else BACKGROUND for value in self.values.tolist()]

    @property
    def tags(self) -> dict[str, float]:
        """The classes that were found or given, most likely first, each with its score."""
        found = sorted(np.flatnonzero(self.tagged).tolist(), key=lambda k: (-self.scores[k], k))
        return {self.classes[k]: float(self.scores[k]) for k in found}

    def __repr__(self) -> str:
        height, width = self.mask.shape
        shown = ", ".join(f"{name} {score:.2f}" for name, score in self.tags.items())
        return f"Prediction({self.file or 'picture'}, {height} × {width}: {shown or 'no class'})"

    def overlay(self, palette: str = "voc") -> Image.Image:
        """The mask painted over the picture, with the names of its classes.

        Args:
            palette: "voc", or "okabe-ito" for colours that colour-blind people tell apart.

        Returns:
            An RGB image of the picture's size.
        """
        colours = colours_of(palette)
        return Image.fromarray(mask_overlay(self.image, self.mask, colours, self.classes))

    def save(self, path: str | os.PathLike[str], overlay: bool = True,
             palette: str = "voc") -> Path:
        """Write the files that `more predict` writes: index PNG, overlay, JSON.

        Args:
            path: `FOLDER/NAME.png`, with or without ending, gives `NAME.png`, `NAME_overlay.jpg`
                and `NAME.json` there; a folder, one that exists or a text that ends with `/`,
                takes the name of the picture's file.
            overlay: also write the overlay; otherwise an older one there is removed.
            palette: as for `overlay`, of both pictures.

        Returns:
            The path of the mask.

        Raises:
            UserError: another ending, no name, or a file that would replace the picture itself.
        """
        result = self._result(Path(path), str(path).endswith(("/", os.sep)))
        written = (result.mask, result.overlay, result.facts)
        if self.file is not None and os.path.realpath(self.file) in map(os.path.realpath, written):
            raise UserError(f"{self.file}: is the picture itself, and would be replaced",
                            fix="save to another folder or name")
        self.write(result, overlay, palette)
        return result.mask

    def write(self, result: Result, overlay: bool, palette: str) -> None:
        """Write the files of a result, each complete or not at all; the JSON comes last.

        Args:
            result: where they go.
            overlay, palette: as for `save`.
        """
        colours = colours_of(palette)
        facts = {
            "file": None if self.file is None else str(self.file), "size": list(self.mask.shape),
            "classes": class_table(self.classes, self.scores, self.tagged, self.mask, colours),
            "background_pixels": int((self.mask == 0).sum()),
            "no_class": not self.mask.any(),
            "provenance": {**self.provenance, "palette": palette}}
        result.save(self.image, self.mask, facts, overlay, self.classes, colours)

    def _result(self, path: Path, folder: bool) -> Result:
        """Where the files go; `folder`: the path is meant as a folder, though none is there yet."""
        if folder or path.is_dir():
            if self.file is None:
                raise UserError(f"{path}: a folder, and the picture has no file name",
                                fix=f"give a name, as in {path / 'mask.png'}")
            return Result(path, self.file.stem)
        ending = path.suffix.lower()
        if ending in IMAGE_ENDINGS and ending != ".png":
            raise UserError(f"{path}: masks are written as PNG, which loses nothing",
                            fix=f"give {path.with_suffix('.png')}")
        return Result(path.parent, path.name.removesuffix(path.suffix if ending == ".png" else ""))
