"""What values or colours in masks mean, if they are not class indices."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from more.data.index_masks import read_index_png
from more.data.shards.codec import UNREADABLE
from more.data.shards.format import IGNORE
from more.data.tags import class_indices, read_text, special_name
from more.errors import UserError, need_path
from more.progress import say

LABELMAP = "labelmap.txt"  # beside CVAT's masks
Colour = tuple[int, int, int]
# Colours with a meaning even if the list lacks them: black, and object borders in VOC's masks.
_USUAL: dict[Colour, str] = {(0, 0, 0): "background", (224, 224, 192): "ignore"}
_COLOUR = r"(\d{1,3})\s*[,\s]\s*(\d{1,3})\s*[,\s]\s*(\d{1,3})"
_FORMS = (re.compile(rf"(?P<name>.+?)\s*:\s*{_COLOUR}\s*(?::.*)?"),  # CVAT
          re.compile(rf"{_COLOUR}[,\s]+(?P<name>.+)"),
          re.compile(rf"(?P<name>.+?)\s*[,;\t]\s*{_COLOUR}"))


@dataclass(frozen=True)
class Meaning:
    """What the user says about the masks: a name for each value or colour.

    Attributes:
        where: option or file that says it, for messages.
        names: class, background or ignore, by value (0..255) or colour (R, G, B).
    """

    where: str
    names: Mapping[Any, str]

    @property
    def classes(self) -> list[str]:
        """The classes among the names, in the order given."""
        return list(dict.fromkeys(n for n in self.names.values() if special_name(n) is None))

    @property
    def recorded(self) -> dict[str, dict[str, str]]:
        """What the manifest records of it, as parameters."""
        colours = any(isinstance(key, tuple) for key in self.names)
        return {"colours" if colours else "mask_values": {
            ",".join(map(str, key)) if colours else str(key): name
            for key, name in self.names.items()}}

    def reader(self, class_names: Sequence[str]) -> MaskReader:
        """Make what reads the masks.

        Args:
            class_names: all classes in order.

        Returns:
            Reads a mask file.

        Raises:
            UserError: a name that is no class.
        """
        special = {"background": 0, "ignore": IGNORE}
        indices = {key: special[special_name(name)] if special_name(name) else
                   class_indices([name], class_names, self.where)[0] + 1
                   for key, name in self.names.items()}
        read = _by_colour if any(isinstance(key, tuple) for key in indices) else _by_value
        return MaskReader(self.where, tuple(sorted(indices.items())), read)


@dataclass(frozen=True)
class MaskReader:
    """Reads mask files; it is sent to workers.

    Attributes:
        where: option or file that says what values mean, for messages.
        indices: class index by value or colour.
        read: reads a mask with these.
    """

    where: str
    indices: tuple[tuple[Any, int], ...]
    read: Callable[[Path, MaskReader], np.ndarray]

    def __call__(self, path: Path) -> np.ndarray:
        """Read a mask.

        Args:
            path: the file.

        Returns:
            uint8 `[H, W]` of class indices.

        Raises:
            UserError: unreadable, or a value or colour of unknown meaning.
        """
        return self.read(path, self)


def find_meaning(values: Sequence[str] | None, colours: Path | None, masks: bool,
                 folders: Sequence[Path]) -> Meaning | None:
    """Find what values or colours in masks mean.

    Args:
        values: of `--mask-values`.
        colours: file of `--colours`.
        masks: whether there are masks.
        folders: that may hold a `labelmap.txt`, if neither option is given.

    Returns:
        The meaning; None if masks hold class indices.

    Raises:
        UserError: both options, one of them without masks, and see `parse_values`, `read_colours`.
    """
    if values and colours:
        raise UserError("--mask-values and --colours: two meanings of masks", fix="give one")
    if (values or colours) and not masks:
        raise UserError(f"{'--mask-values' if values else '--colours'}: there are no masks",
                        fix="give their folder with --masks DIR")
    if values:
        return parse_values(values)
    if colours is None and masks:
        colours = next((folder / LABELMAP for folder in folders
                        if (folder / LABELMAP).is_file()), None)
    if colours is None:
        return None
    say(f"masks are read by their colours, from {colours}")
    return read_colours(colours)


def parse_values(texts: Sequence[str]) -> Meaning:
    """Read what values mean. Unless given, 0 is background and 255 ignore.

    Args:
        texts: such as `255=coin`, or several in one, `1=cat,2=dog`.

    Returns:
        The meaning.

    Raises:
        UserError: another form, or a value twice.
    """
    names: dict[int, str] = {}
    for text in (part for given in texts for part in given.split(",")):
        value, _, name = (side.strip() for side in text.partition("="))
        if not value.isdecimal() or int(value) > 255 or not name:
            raise UserError(f"--mask-values {text}: not VALUE=CLASS",
                            fix="write a value from 0 to 255 and a class: --mask-values 255=coin")
        if int(value) in names:
            raise UserError(f"--mask-values: {value} is given twice", fix="give it once")
        names[int(value)] = name
    return Meaning("--mask-values", {0: "background", IGNORE: "ignore", **names})


def read_colours(path: Path) -> Meaning:
    """Read classes by colour: CVAT's `label:R,G,B:parts:actions`, `R G B label` or `label,R,G,B`.

    Lines that begin with # and a header do not count. Black is background and 224,224,192 (the
    borders in VOC's masks) ignore unless the file says otherwise.

    Args:
        path: the file.

    Returns:
        The meaning.

    Raises:
        UserError: no such file, a line of another form, no colour, or a colour of two classes.
    """
    need_path(path, f"give the list of colours, such as CVAT's {LABELMAP}")
    names: dict[Colour, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#") or (number == 1 and _is_header(line)):
            continue
        found = next((match for form in _FORMS if (match := form.fullmatch(line))), None)
        colour = _colour_of(found) if found else ()
        if not colour or max(colour) > 255:
            raise UserError(f"{path} line {number}: {line!r} is no class with its colour",
                            fix="write label:R,G,B with numbers from 0 to 255, as CVAT does")
        name = " ".join(found["name"].strip("\"'").split())
        if names.setdefault(colour, name) != name:
            raise UserError(f"{path}: {names[colour]} and {name} have one colour, "
                            f"{_text(colour)}", fix="give each class a colour of its own")
    if not names:
        raise UserError(f"{path}: no colour in it", fix="write one class a line: label:R,G,B")
    return Meaning(str(path), {**_USUAL, **names})


def _is_header(line: str) -> bool:
    cells = [cell.strip().lower() for cell in next(csv.reader([line]))]
    return {"r", "g", "b"} <= set(cells) or {"red", "green", "blue"} <= set(cells)


def _colour_of(found: re.Match) -> Colour:
    numbers = [found[group] for group in range(1, 5)
               if group != found.re.groupindex["name"]]
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _text(colour: Sequence[int]) -> str:
    return ",".join(map(str, colour))


def _by_value(path: Path, reader: MaskReader) -> np.ndarray:
    mask = read_index_png(path)
    table = np.zeros(256, np.int64) - 1
    for value, index in reader.indices:
        table[value] = index
    strange = np.flatnonzero((np.bincount(mask.reshape(-1), minlength=256) > 0) & (table < 0))
    if len(strange):
        raise UserError(f"{path}: mask value {int(strange[0])} is in no {reader.where}",
                        fix=f"add --mask-values {int(strange[0])}=CLASS (or =ignore, =background)")
    return table[mask].astype(np.uint8)


def _by_colour(path: Path, reader: MaskReader) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.format == "JPEG" or image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: a {image.mode} {image.format} holds no exact colours",
                                fix="store colour masks as PNG with 8 bits")
            mode, pixels = image.mode, np.asarray(image.convert("RGB")).astype(np.int64)
    except UNREADABLE as error:
        raise UserError(f"{path}: unreadable mask ({error})", fix="replace the file") from error
    codes = pixels @ np.array([1 << 16, 1 << 8, 1])
    keys = np.array([colour[0] << 16 | colour[1] << 8 | colour[2] for colour, _ in reader.indices])
    place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)  # sorted, as colours are
    strange = keys[place] != codes
    if strange.any():
        hint = f" (are these indices? then move {LABELMAP} away)" if mode in ("L", "1") else ""
        raise UserError(f"{path}: colour {_text(pixels[strange][0])} is not in {reader.where} "
                        f"({int(strange.sum())} pixels of this mask have no known colour)",
                        fix=f"add it there{hint}; smoothed edges have such colours, too: export "
                            "the masks without")
    return np.array([index for _, index in reader.indices], np.uint8)[place]
