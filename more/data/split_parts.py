"""Splitting a set into parts by share or by list: `NAME=0.8`, `NAME=1/3`, `NAME=ids.txt`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from more.data.shards.format import check_id, sha256_bytes
from more.data.tags import read_text
from more.errors import UserError, first_few

_NUMBER = re.compile(r"-?\d*\.?\d+(/\d+)?")


@dataclass(frozen=True)
class SplitPart:
    """One part of a set, given by a share or by a list: either `share` or `ids` is None.

    Attributes:
        name: name of the part.
        text: what the user wrote, for messages.
        share: part of the ids that no list names, above 0 and at most 1.
        ids: the ids of the part.
    """

    name: str
    text: str
    share: Fraction | None = None
    ids: tuple[str, ...] | None = None

    @property
    def recorded(self) -> str:
        """What provenance says of the part: its share, or number and sha256 of the listed ids."""
        if self.ids is None:
            return str(self.share)
        lines = "\n".join(sorted(self.ids))
        return f"{len(self.ids)} ids, sha256 {sha256_bytes(lines.encode('utf-8'))}"


def parse_parts(texts: Sequence[str], option: str = "--part") -> list[SplitPart]:
    """Read texts such as `NAME=SHARE` and `NAME=LIST`, and the files of lists.

    A share is a number (`0.8`) or a fraction (`1/3`). Anything else is a text file with one id a
    line (a file whose name is a number: `./1`).

    Args:
        texts: what the user wrote.
        option: name of the option, for messages.

    Returns:
        The parts, in the order given.

    Raises:
        UserError: no part, a bad or repeated name, a share out of range, shares above 1 in sum,
            no such file, an empty list, an id twice in a list.
    """
    if not texts:
        raise UserError(f"{option}: no part", fix=f"give {option} NAME=SHARE or NAME=LIST.txt")
    parts: list[SplitPart] = []
    for text in texts:
        part = _parse(text, option)
        if any(part.name == other.name for other in parts):
            raise UserError(f"{option} {text}: the name {part.name!r} comes twice",
                            fix="give every part a name of its own")
        parts.append(part)
    total = sum(part.share for part in parts if part.share is not None)
    if total > 1:
        raise UserError(f"{option}: the shares add up to {float(total):g}",
                        fix="make them add up to 1 at most")
    return parts


def _parse(text: str, option: str) -> SplitPart:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{option} {text}: not NAME=SHARE or NAME=LIST",
                        fix=f"write it like {option} train=0.8 or {option} val=val.txt")
    try:
        check_id(name)
    except UserError as error:
        raise UserError(f"{option} {text}: {name!r} cannot be the name of a folder",
                        fix="use letters and digits") from error
    try:
        share = Fraction(value) if _NUMBER.fullmatch(value) else None
    except (ValueError, ZeroDivisionError):
        share = None
    if share is None:
        return SplitPart(name, text, ids=_read_list(Path(value), text, option))
    if not 0 < share <= 1:
        raise UserError(f"{option} {text}: a share is above 0 and at most 1",
                        fix="write 0.8 for 80 %; for a list whose file name is a number: ./NAME")
    return SplitPart(name, text, share=share)


def _read_list(path: Path, text: str, option: str) -> tuple[str, ...]:
    if not path.is_file():
        raise UserError(f"{option} {text}: {path} is neither a share nor a file",
                        fix="give a share such as 0.8 or 1/3, or a text file with one id a line")
    lines = (line.strip() for line in read_text(path).splitlines())
    ids = tuple(line for line in lines if line)
    if not ids:
        raise UserError(f"{path}: the list is empty", fix="write one id a line")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {first_few(twice)} twice in the list", fix="remove one of them")
    return ids


def assign(ids: Sequence[str], parts: Sequence[SplitPart], seed: int = 0) -> dict[str, list[str]]:
    """Assign ids to parts; which ids a part gets does not depend on the order of `ids`.

    Parts with a list get the ids in it. The other ids are sorted, permuted by `seed` and handed out
    in the order of the parts; their numbers are rounded by the largest remainder. Ids that are left
    over belong to no part.

    Args:
        ids: all ids, in the order of the set.
        parts: from `parse_parts`.
        seed: 0 to 2^32 - 1.

    Returns:
        By name of the part its ids, in the order of `ids`; no id is in two parts.

    Raises:
        UserError: an id twice in `ids`, a listed id that is not in `ids` or is in two lists, or a
            part without ids.
    """
    if len(set(ids)) < len(ids):
        raise UserError("an id comes twice", fix="run data_tools.verify, which names it")
    owner = _listed(set(ids), parts)
    free = sorted(set(ids) - owner.keys())
    # RandomState is frozen: the same seed gives the same parts with every version of numpy.
    order = np.random.RandomState(seed).permutation(len(free))
    shared = [part for part in parts if part.share is not None]
    start = 0
    for part, size in zip(shared, _sizes(len(free), [part.share for part in shared]), strict=True):
        if size == 0:
            raise UserError(f"{part.text}: no id is left for this part ({len(free)} to share out)",
                            fix="give it a larger share, or leave the part out")
        owner.update(dict.fromkeys((free[k] for k in order[start:start + size]), part.name))
        start += size
    dealt: dict[str, list[str]] = {part.name: [] for part in parts}
    for name in ids:
        if name in owner:
            dealt[owner[name]].append(name)
    return dealt


def _listed(known: set[str], parts: Sequence[SplitPart]) -> dict[str, str]:
    """By id that a list names, the name of the part."""
    owner: dict[str, str] = {}
    for part in parts:
        strangers = [name for name in part.ids or () if name not in known]
        if strangers:
            raise UserError(f"{part.text}: {len(strangers)} listed ids are not in the set: "
                            f"{first_few(strangers)}", fix="correct the list")
        both = [name for name in part.ids or () if name in owner]
        if both:
            raise UserError(f"{part.text}: {len(both)} ids are also in the list of "
                            f"{owner[both[0]]}: {first_few(both)}", fix="keep each in one list")
        owner.update(dict.fromkeys(part.ids or (), part.name))
    return owner


def _sizes(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Divide `total` by shares, rounded by the largest remainder; the rest counts as one more."""
    quotas = [total * share for share in (*shares, 1 - sum(shares, Fraction(0)))]
    sizes = [int(quota) for quota in quotas]
    by_rest = sorted(range(len(quotas)), key=lambda k: sizes[k] - quotas[k])
    for k in by_rest[:total - sum(sizes)]:
        sizes[k] += 1
    return sizes[:-1]
