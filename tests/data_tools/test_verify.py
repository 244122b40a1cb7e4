"""`data_tools.verify`: damage in real files is named, whatever the number of workers."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from data_tools import verify
from data_tools.tool import parallel
from more.data.shards.codec import encode_mask
from more.data.shards.format import sha256_file, shard_name, to_json
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.verification import ShardTask, verify_set, verify_shard
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from tests.data.sets import NAMES, picture, small_set
from tests.data_tools.layout import tool


def one_shard(folder: Path, *rows: dict) -> Path:
    """A set of one shard; a row is id, size, image, mask."""
    with ShardWriter(folder / shard_name(0), "images", NAMES) as writer:
        for row in rows:
            writer.add(row["id"], [1, 0, 0], row.get("size", (30, 40)),
                       image=row.get("image", picture(0)), mask=row.get("mask"))
    write_manifest(folder, "images", NAMES, [writer.entry], {})
    return folder


def recorded_as_it_is(folder: Path, number: int) -> None:
    """Make the manifest agree with a shard that was changed: size and hash tell nothing then."""
    path = folder / "manifest.json"
    manifest, shard = json.loads(path.read_text()), folder / shard_name(number)
    manifest["shards"][number].update(bytes=shard.stat().st_size, sha256=sha256_file(shard))
    path.write_bytes(to_json(manifest))


def damage_every_shard(folder: Path) -> None:
    """Shard 0 truncated, 1 missing, 2 zero bytes, 3 of somebody else, 4 with a row too few."""
    shards = [folder / shard_name(number) for number in range(5)]
    shards[0].write_bytes(shards[0].read_bytes()[:-1000])
    shards[1].unlink()
    shards[2].write_bytes(b"")
    with h5py.File(shards[3], "w") as file:
        file["measurements"] = np.arange(100)
    recorded_as_it_is(folder, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][4]["rows"] += 1
    (folder / "manifest.json").write_bytes(to_json(manifest))


def test_bad_shards_are_named_on_the_command_line(tmp_path):
    """Fault 15: truncated, missing, zero-byte, foreign shards, a manifest with another count."""
    folder = small_set(tmp_path / "set", shards=6)
    assert tool("verify", folder).returncode == 0
    damage_every_shard(folder)
    done = tool("verify", folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 of 6 shards are sound, 5 problems" in done.stderr and "fix: " in done.stderr
    for line in ("shard-00000.h5: ", "shard-00001.h5: shard is missing",
                 "shard-00002.h5: 0 bytes, the manifest says",
                 "shard-00003.h5: not a readable shard (not a shard of format 1)",
                 "shard-00004.h5: not a readable shard (5 rows, the manifest says 6)"):
        assert f"\n  {line}" in done.stderr, line
    found = tool("verify", folder, "--json", "--decode", "--workers", 2)
    problems = json.loads(found.stdout)["problems"]
    assert found.returncode == 1
    assert [problem["file"] for problem in problems] == [shard_name(k) for k in range(5)]


def test_the_result_does_not_depend_on_the_workers(tmp_path):
    """Damage of every kind, and ids that come twice, both within reach of one worker and not."""
    folder = small_set(tmp_path / "set", shards=6)
    with ShardWriter(folder / shard_name(6), "images", NAMES) as writer:
        for name in ("image_27", "image_25", "new"):
            writer.add(name, [1, 0, 0], (30, 40), image=picture(0))
    entries = [*read_manifest(folder).shards, writer.entry]
    write_manifest(folder, "images", NAMES, entries, {})
    damage_every_shard(folder)
    shard = folder / shard_name(5)
    data, blob = bytearray(shard.read_bytes()), ShardSet(folder, only=[5]).blob("image", 3)
    data[bytes(data).index(blob) + 50] ^= 8
    shard.write_bytes(data)
    (folder / "stray.h5").write_bytes(b"")
    expected = verify_set(folder, decode=True)
    assert [(p.file, p.image) for p in expected if p.file in ("stray.h5", *map(shard_name, (5, 6)))
            ] == [("stray.h5", ""), (shard_name(5), ""), (shard_name(5), "image_28"),
                  (shard_name(6), "image_27"), (shard_name(6), "image_25")]
    assert "also in shard-00005.h5" in expected[-1].what and len(expected) == 10
    for workers in (1, 2, 3):
        rows = []
        assert verify_set(folder, True, rows.append,
                          lambda f, tasks, n=workers: parallel(f, tasks, n)) == expected
        assert sum(rows) == read_manifest(folder).rows


def test_headers_are_checked_without_decoding(tmp_path):
    wide = encode_mask(np.ones((30, 41), np.uint8))
    folder = one_shard(tmp_path, {"id": "fine"}, {"id": "size", "size": (31, 40)},
                       {"id": "turned", "size": (40, 30)}, {"id": "text", "image": b"no image"},
                       {"id": "none", "image": None}, {"id": "mask", "mask": wide})
    problems = {p.image: p.what for p in verify_set(folder)}
    assert problems == {
        "size": "image is 30x40, the shard says 31x40 (height x width)",
        "turned": "image is 30x40, the shard says 40x30 (height x width)",
        "text": "image: cannot be decoded as an image",
        "none": "image: cannot be decoded as an image",
        "mask": "mask is 30x41, the shard says 30x40 (height x width)"}
    assert {p.image: p.what for p in verify_set(folder, decode=True)} == problems


def test_pixels_are_checked_with_decode(tmp_path):
    half = encode_mask(np.random.default_rng(0).integers(0, 3, (30, 40), dtype=np.uint8))
    colour = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    folder = one_shard(
        tmp_path, {"id": "fine", "mask": half}, {"id": "cut", "image": picture(0)[:700]},
        {"id": "class", "mask": encode_mask(np.full((30, 40), 4, np.uint8))},
        {"id": "cut mask", "mask": half[:len(half) // 2]}, {"id": "colour", "mask": colour})
    assert verify_set(folder) == []
    problems = {p.image: p.what for p in verify_set(folder, decode=True)}
    assert list(problems) == ["cut", "class", "cut mask", "colour"]
    assert problems["class"] == "mask holds [4], known are 0..3 and 255"
    assert verify.main(folder, decode=False) == 0 and verify.main(folder, decode=True) == 1


@pytest.mark.parametrize("name", ["image/bytes", "mask/bytes", "image/offsets", "tags", "ids"])
def test_a_virtual_dataset_with_a_missing_source_is_an_error(tmp_path, capsys, name):
    """Fault 21: HDF5 would give zeros. The manifest knows nothing: its hash fits the file."""
    folder = small_set(tmp_path / "set")
    with h5py.File(folder / shard_name(1), "r+") as file:
        old = file[name]
        layout = h5py.VirtualLayout(old.shape, old.dtype)
        layout[:] = h5py.VirtualSource(tmp_path / "gone.h5", "data", old.shape, old.dtype)
        del file[name]
        file.create_virtual_dataset(name, layout)
        if name != "ids":  # this is what must never be read
            assert not file[name][:].any()
    recorded_as_it_is(folder, 1)
    with pytest.raises(UserError, match="shard-00001.h5.*virtual"):
        ShardSet(folder)
    assert verify.main(folder, as_json=True) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [p["file"] for p in problems] == [shard_name(1)] and "virtual" in problems[0]["what"]


def _die_on_shard_1(task: ShardTask):
    if task.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return verify_shard(task)


def test_a_worker_that_dies_is_a_problem_of_its_shard(tmp_path):
    folder = small_set(tmp_path / "set")
    problems = verify_set(folder, run=lambda _, tasks: parallel(_die_on_shard_1, tasks, 2))
    found = {p.file: p.what for p in problems}
    assert found[shard_name(1)].startswith("could not be checked: a worker process died")


def test_a_set_without_shards_is_not_sound(tmp_path):
    write_manifest(tmp_path, "images", NAMES, [], {})
    assert verify.main(tmp_path) == 1
    (tmp_path / "manifest.json").write_text("{")
    assert [p.what for p in verify_set(tmp_path)][0].startswith(f"{tmp_path}/manifest.json: dama")
    assert tool("verify", tmp_path).returncode == 2


def test_a_sound_set_says_so(tmp_path, capsys):
    folder = small_set(tmp_path / "set")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert verify.main(folder, decode=True, as_json=True, workers=2) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"images": 15, "shards": 3, "problems": []}
    assert "3 of 3 shards are sound, 0 problems; 15 images, " in err and " MB/s" in err
    assert "verifying: 15/15 images, " in err and " images/s" in err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert asdict(read_manifest(folder))["kind"] == "images"
