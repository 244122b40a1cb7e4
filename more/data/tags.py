"""Class names and image tags as people write them: names of background, blanks, separators."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from more.errors import UserError, first_few, nearest

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor")
SEPARATORS = {"comma": ",", "semicolon": ";", "pipe": "|"}
TAG_SEPARATORS = ("auto", "blank", *SEPARATORS, "none")
_SPECIAL = {"background": "background", "bg": "background", "ignore": "ignore", "void": "ignore",
            "ignored": "ignore", "unlabeled": "ignore", "unlabelled": "ignore"}


@dataclass(frozen=True)
class TagLine:
    """What a file says of one image, and where (for messages).

    Attributes:
        where: file and line.
        names: class names; empty as long as `cell` is not split.
        cell: text that may hold several names; None once it is split into `names`.
    """

    where: str
    names: tuple[str, ...] = ()
    cell: str | None = None


def special_name(name: str) -> str | None:
    """Whether a name stands for background or for pixels to ignore, and not for a class.

    Args:
        name: in any case, with or without underscores around (`__ignore__`, `_background_`,
            `Unlabeled`).

    Returns:
        "background", "ignore", or None for a class.
    """
    return _SPECIAL.get(tidy(name).strip("_ ").casefold())


def tidy(name: str) -> str:
    """A name without blanks around it; runs of white space inside are one blank."""
    return " ".join(name.split())


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        UserError: another encoding, or not a text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})",
                        fix="save it as plain text in UTF-8") from error


class ClassNames:
    """Finds classes by name.

    `traffic_light` also finds `traffic light`, unless both are classes.

    Args:
        names: the classes in order.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(names)}
        plain = Counter(_plain(name) for name in names)
        self._plain = {_plain(name): number for number, name in enumerate(names)
                       if plain[_plain(name)] == 1}
        self.most_words = max((len(_plain(name).split("_")) for name in names), default=1)

    def find(self, name: str) -> int | None:
        """Number of the class of this name, from 0; None if there is none."""
        number = self._numbers.get(name)
        return self._plain.get(_plain(name)) if number is None else number

    def split(self, cell: str) -> list[str]:
        """Split a text at blanks into names; several words that name a class stay together."""
        words, found = cell.split(), []
        while words:
            count = next((count for count in range(min(self.most_words, len(words)), 1, -1)
                          if self.find(" ".join(words[:count])) is not None), 1)
            found.append(" ".join(words[:count]))
            words = words[count:]
        return found


def _plain(name: str) -> str:
    return "_".join(name.replace("_", " ").split())


def class_indices(names: Sequence[str], class_names: Sequence[str], where: str) -> tuple[int, ...]:
    """Indices of classes by their names; names of background are left out.

    Args:
        names: names of classes.
        class_names: all classes in order.
        where: file and line, for messages.

    Returns:
        Sorted indices from 0.

    Raises:
        UserError: a name that is no class.
    """
    classes, found = ClassNames(class_names), set()
    for name in names:
        number = classes.find(name)
        if number is not None:
            found.add(number)
        elif special_name(name) is None:
            close = nearest(name, class_names)
            raise UserError(f"{where}: unknown class {name!r}",
                            fix=f"{f'did you mean {close}? ' if close else ''}known: "
                                f"{first_few(class_names, 25)}")
    return tuple(sorted(found))


def split_cells(lines: Mapping[str, TagLine], class_names: Sequence[str] | None,
                separator: str | None = None) -> tuple[dict[str, TagLine], str]:
    """Split the cells of a tags file into names, all cells in the same way.

    If commas, semicolons or bars occur in the cells, they separate, and blanks belong to names.
    Otherwise blanks separate, if the classes are known (names of several words are found first) or
    if each of the words also stands alone in some line.

    Args:
        lines: by what the file calls the image.
        class_names: known classes, or None.
        separator: one of `TAG_SEPARATORS`; None for "auto" in a command that has no such option.

    Returns:
        The lines with names, and a text for the user about how the cells were split ("" if no cell
        held several names).

    Raises:
        UserError: several ways to read the cells are possible.
    """
    cells = {line.cell for line in lines.values() if line.cell is not None} - {""}
    if separator in (None, "auto"):
        separator = _separator(lines, cells, class_names, separator is not None)
    classes = ClassNames(class_names or ())

    def names(cell: str) -> list[str]:
        """The names in a cell."""
        if cell[:1] in ("[", "{") and (found := _json_names(cell)) is not None:
            return found
        if separator == "blank":
            return classes.split(cell)
        return cell.split(SEPARATORS[separator]) if separator in SEPARATORS else [cell]
    apart = {key: line if line.cell is None else
             replace(line, names=tuple(filter(None, map(tidy, names(line.cell)))), cell=None)
             for key, line in lines.items()}
    joined = any(line.cell is not None and len(apart[key].names) > 1
                 for key, line in lines.items())
    return apart, f"tags in a cell separated by {separator}s" if joined else ""


def _separator(lines: Mapping[str, TagLine], cells: Collection[str],
               class_names: Sequence[str] | None, option: bool) -> str:
    """Which sign separates the tags in these cells."""
    lists, cells = len(cells), [cell for cell in cells if _json_names(cell) is None]
    used = [name for name, sign in SEPARATORS.items() if any(sign in cell for cell in cells)]
    if len(used) == 1:
        return used[0]
    if not used and len(cells) < lists:
        return "none"  # several tags come as a list in this file
    if not used and class_names is not None:
        return "blank"
    alone = {cell for cell in cells if len(cell.split()) == 1}
    doubtful = [cell for cell in cells if used or not alone.issuperset(cell.split())]
    if not any(len(cell.split()) > 1 for cell in doubtful) and not used:
        return "blank"
    cell = max(doubtful, key=lambda text: (sum(s in text for s in SEPARATORS.values()), len(text)))
    where = next(line.where for line in lines.values() if line.cell == cell)
    raise UserError(f"{where}: {cell!r} may be one tag or several",
                    fix="say what separates tags: --tag-separator blank, comma, semicolon, pipe, "
                        "or none; or give the classes with --classes" if option else
                        "separate tags by the same sign in the whole file")


def _json_names(cell: str) -> list[str] | None:
    """`["cat", "dog"]` or `{"choices": ["cat", "dog"]}` in a cell; None for another text."""
    if cell[:1] not in ("[", "{"):
        return None
    try:
        content = json.loads(cell)
    except ValueError:  # Python's own way of writing lists is common, too: ['cat', 'dog']
        quoted = re.findall(r"'([^']*)'", cell)
        return quoted if re.fullmatch(r"\[\s*('[^']*'\s*,?\s*)*\]", cell) else None
    if isinstance(content, dict):
        content = next(iter(content.values()), None) if len(content) == 1 else None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    return None
