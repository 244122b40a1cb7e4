"""What has been counted so far: one line of JSON a finished task, reused by any later grid."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from more.data.shards.format import sha256_bytes, to_json
from more.refinement.image import Refinement
from more.tuning.count_task import Cells, CountReport


class CountStore:
    """Cells by point and image, kept in a folder. One writer a name: others may read meanwhile.

    A line is written when its task is finished and stands on the disk before the next one is
    taken; a line cut by a kill is dropped on reading and its task done again.

    Args:
        folder: where the files `counts*.jsonl` lie; all are read.
        context: what the counts depend on besides point and image (digests, version). Lines of
            another context stay in the files and are not used.
        name: of the file to write.
    """

    def __init__(self, folder: Path, context: dict[str, Any], name: str = "counts.jsonl"):
        self.folder, self.path = folder, folder / name
        self.context = sha256_bytes(to_json(context))
        self._known: dict[str, dict[str, Cells]] = {}
        if self.path.is_file():
            _mend(self.path)
        self.reload()

    def reload(self) -> None:
        """Take in what others have written meanwhile."""
        for path in sorted(self.folder.glob("counts*.jsonl")):
            self._read(path.read_bytes())

    def has(self, how: Refinement, image_id: str) -> bool:
        """Whether this image has been counted at this point."""
        return image_id in self._known.get(_key(how), {})

    def add(self, hows: Iterable[Refinement], report: CountReport) -> None:
        """Keep what a task found, on the disk as well."""
        records = [how.record() for how in hows]
        self._take(records, report.cells)
        if report.cells:
            line = json.dumps({"context": self.context, "settings": records,
                               "images": report.cells}, ensure_ascii=False)
            with open(self.path, "ab") as file:
                file.write(line.encode("utf-8") + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def counts(self, how: Refinement, ids: Iterable[str], num_classes: int) -> np.ndarray:
        """Pixels of images at a point.

        Args:
            how: the point.
            ids: images that have been counted at it.
            num_classes: K, background included.

        Returns:
            int64 [N, K, K + 1]: image, true class, label; the last label is "left out".
        """
        known, ids = self._known[_key(how)], list(ids)
        out = np.zeros((len(ids), num_classes * (num_classes + 1)), np.int64)
        for row, image_id in enumerate(ids):
            for cell, pixels in known[image_id]:
                out[row, cell] = pixels
        return out.reshape(len(ids), num_classes, num_classes + 1)

    def _read(self, data: bytes) -> None:
        for line in data.splitlines():
            try:
                entry = json.loads(line)
                if entry["context"] == self.context:
                    self._take(entry["settings"], entry["images"])
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line costs its task

    def _take(self, records: list[dict[str, Any]], cells: dict[str, list[Cells]]) -> None:
        for place, record in enumerate(records):
            known = self._known.setdefault(_record_key(record), {})
            known.update({image_id: found[place] for image_id, found in cells.items()})


def _mend(path: Path) -> None:
    """Cut off a last line without end: the next line must not be glued to it."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _key(how: Refinement) -> str:
    return _record_key(how.record())


def _record_key(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)
