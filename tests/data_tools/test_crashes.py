"""A worker that dies costs the image that killed it, which is named with its file."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from data_tools import copy_rows
from data_tools.build import build_set
from data_tools.convert import Record, convert
from data_tools.tool import parallel
from more.data.shards.reader import ShardSet
from more.jobs.driver import Workers
from tests.data_tools.layout import convert_voc, voc_folder
from tests.refinement.sets import segfault

BAD = ("id05", "id06")  # of one shard


def _mask_or_crash(name: str) -> np.ndarray:
    """A mask, or the end of the process, as a native library ends it."""
    if name in BAD:
        segfault()
    return np.ones((8, 9), np.uint8)


def _records(folder, count: int) -> list[Record]:
    folder.mkdir()
    records = []
    for number in range(count):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.full((8, 9, 3), number, np.uint8))
        records.append(Record(f"id{number:02d}", path, f"id{number:02d}"))
    return records


@pytest.mark.timeout(120)
def test_a_crashing_image_costs_a_conversion_that_image_only(tmp_path, capsys):
    records = _records(tmp_path / "images", 12)
    tally = convert(tmp_path / "set", records, ["cat"], {"tool": "test"}, _mask_or_crash,
                    shard_size=4, workers=1, skip_bad=True)
    assert (tally.done, tally.skipped) == (10, 2)
    assert ShardSet(tmp_path / "set").ids == [record.id for record in records
                                              if record.id not in BAD]
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["extra"]["left_out"] == list(BAD)
    said = " ".join(capsys.readouterr().err.split())
    assert all(f"{tmp_path}/images/{int(name[2:])}.png" in said.replace(" ", "") for name in BAD)
    assert not list((tmp_path / "set").glob("*.tmp.*"))


@pytest.mark.timeout(120)
def test_without_skip_bad_a_crashing_image_is_a_failure_and_its_shard_waits(tmp_path):
    records = _records(tmp_path / "images", 8)
    tally = convert(tmp_path / "set", records, ["cat"], {"tool": "test"}, _mask_or_crash,
                    shard_size=4, workers=2)
    assert tally.exit_code == 1 and tally.done == 4
    assert sorted(name for name, _ in tally.failures) == list(BAD)
    assert all(f"{tmp_path}/images" in why and "died" in why for _, why in tally.failures)


def _copy_or_crash(part):
    copy = copy_rows._copy

    def crash(writer, source, row):
        if row.id == "id3":
            segfault()
        copy(writer, source, row)

    copy_rows._copy = crash
    try:
        return copy_rows.copy_rows(part)
    finally:
        copy_rows._copy = copy


@pytest.mark.timeout(120)
def test_a_row_that_kills_the_copying_worker_is_named(tmp_path):
    voc_folder(tmp_path / "voc", images=8)
    assert convert_voc(tmp_path / "voc", tmp_path / "set") == 0
    source = ShardSet(tmp_path / "set")
    tally = build_set(tmp_path / "copy", "images", source.class_names, {"tool": "test"},
                      copy_rows.rows_of(source), _copy_or_crash, shard_size=4, workers=1)
    assert tally.done == 4 and len(tally.failures) == 1
    assert "'id3'" in tally.failures[0][1] and str(tmp_path / "set") in tally.failures[0][1]


def _die_or_square(value: int) -> int:
    if value == 3:
        segfault()
    return value * value


@pytest.mark.timeout(60)
def test_a_dead_worker_costs_no_other_task():
    results = dict(parallel(_die_or_square, [1, 2, 3, 4, 5, 6], 2))
    assert "a worker process died" in str(results.pop(3))
    assert results == {1: 1, 2: 4, 4: 16, 5: 25, 6: 36}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_workers_are_counted_by_the_cores_that_this_process_may_use(monkeypatch):
    asked = []
    here = Workers(lambda: ThreadPoolExecutor(1), lambda: 1)
    monkeypatch.setattr("data_tools.tool.local_workers",
                        lambda workers, make: asked.append(workers) or here)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7, 9})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    list(parallel(_die_or_square, [1, 2, 4, 5], 0))
    assert asked == [3]
