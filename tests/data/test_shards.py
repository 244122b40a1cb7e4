"""Shard format 1: what is written comes back, what is damaged is named."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from more.data.shards.codec import decode_image, decode_mask, encode_mask, mask_values
from more.data.shards.format import check_id, sha256_file, shard_name
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from tests.data.sets import NAMES, picture, small_set

ids = st.text(st.characters(exclude_characters="/\\", exclude_categories=("Cc", "Cs")),
              min_size=1, max_size=40).filter(lambda text: text not in (".", ".."))
row = st.tuples(st.lists(st.integers(0, 1), min_size=3, max_size=3),
                st.integers(1, 3000), st.integers(1, 3000), st.binary(max_size=300),
                st.none() | st.binary(max_size=100))


@given(st.dictionaries(ids, row, min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(tmp_path_factory, rows, per_shard):
    folder = tmp_path_factory.mktemp("set")
    items = list(rows.items())
    entries = []
    for number, start in enumerate(range(0, len(items), per_shard)):
        with ShardWriter(folder / shard_name(number), "seeds", NAMES) as writer:
            for name, (tags, height, width, image, seed) in items[start:start + per_shard]:
                writer.add(name, tags, (height, width), image=image, seed=seed)
        entries.append(writer.entry)
    write_manifest(folder, "seeds", NAMES, entries, {})
    found = ShardSet(folder, kind="seeds", check="full")
    assert found.ids == list(rows)
    assert verify_set(folder) == []
    for i, (name, (tags, height, width, image, seed)) in enumerate(items):
        assert found.index_of(name) == i and found.tags[i].tolist() == tags
        assert found.sizes[i].tolist() == [height, width]
        assert found.blob("image", i) == image and found.blob("seed", i) == (seed or b"")


def test_layout_needs_only_h5py(tmp_path):
    folder = small_set(tmp_path)
    with h5py.File(folder / "shard-00001.h5") as file:
        start, stop = file["image/offsets"][2:4]
        data = file["image/bytes"][start:stop].tobytes()
        assert file["ids"].asstr()[2] == "image_7" and file["tags"][2].tolist() == [0, 1, 0]
        assert file["sizes"][2].tolist() == [37, 40] and file["image/bytes"].fletcher32
        assert file["crc32"].shape == (5, 2) and list(file.attrs["payloads"]) == ["image", "mask"]
    assert data == picture(7, 37, 40)


def test_same_input_same_bytes(tmp_path):
    first, second = small_set(tmp_path / "a"), small_set(tmp_path / "b")
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_same_bytes_also_where_datasets_are_closed_late(tmp_path, monkeypatch):
    """As h5py does when another thread holds its lock (a dask worker's event loop)."""
    first, kept, create = small_set(tmp_path / "a"), [], h5py.File.create_dataset

    def keep(*args, **options):
        kept.append(create(*args, **options))
        return kept[-1]

    monkeypatch.setattr(h5py.File, "create_dataset", keep)
    second = small_set(tmp_path / "b")
    assert kept
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_reading(tmp_path):
    shards = ShardSet(small_set(tmp_path))
    assert len(shards) == 15 and shards.locate(7) == (1, 2) and shards.shard_rows == [5, 5, 5]
    assert list(shards.rows_of(2)) == [10, 11, 12, 13, 14]
    assert shards.image(14).shape == (44, 40, 3) and set(mask_values(shards.mask(4))) == {2, 255}
    assert shards.has("mask") and not shards.has("seed") and shards.blob("seed", 0) == b""
    assert np.array_equal(pickle.loads(pickle.dumps(shards)).image(3), shards.image(3))
    only = ShardSet(tmp_path, only=[2])
    assert only.ids == shards.ids[10:] and np.array_equal(only.image(0), shards.image(10))
    with pytest.raises(IndexError):
        shards.locate(15)
    with pytest.raises(UserError, match="no image 'nobody'"):
        shards.index_of("nobody")
    with pytest.raises(UserError, match="holds images, not masks"):
        ShardSet(tmp_path, kind="masks")


def _read_all(shards, queue):
    inherited = set(shards._files.descriptors())  # none after spawn
    total = sum(int(shards.image(i).sum()) for i in shards)
    queue.put((total, len(inherited & set(shards._files.descriptors()))))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_handles_are_not_shared_between_processes(tmp_path, context):
    """Fault 22."""
    shards = ShardSet(small_set(tmp_path))
    expected = sum(int(shards.image(i).sum()) for i in shards)  # opens handles in the parent
    mp = multiprocessing.get_context(context)
    queue = mp.Queue()
    children = [mp.Process(target=_read_all, args=(shards, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [(expected, 0)] * 2
    assert expected == sum(int(shards.image(i).sum()) for i in shards)
    for child in children:
        child.join()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _foreign(path):
    """Another HDF5 file of the same size."""
    size = path.stat().st_size
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(10)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])


@pytest.mark.parametrize(("damage", "text"), [
    (lambda path: path.unlink(), "missing"), (_truncate, "bytes, the manifest says"),
    (lambda path: path.write_bytes(b""), "0 bytes"), (_foreign, "not a readable shard"),
    (lambda path: path.write_bytes(bytes(path.stat().st_size)), "not a readable shard")])
def test_bad_shard_is_named_at_once(tmp_path, damage, text):
    """Fault 15: truncated, missing, zero-byte, foreign."""
    folder = small_set(tmp_path)
    damage(folder / "shard-00001.h5")
    with pytest.raises(UserError, match=f"shard-00001.h5.*{text}") as caught:
        ShardSet(folder)
    assert caught.value.fix
    problems = verify_set(folder)
    assert {problem.file for problem in problems} == {"shard-00001.h5"} and problems


def test_row_count_and_classes_against_the_manifest(tmp_path):
    """Fault 15: the manifest does not fit the shards."""
    folder = small_set(tmp_path)
    path = folder / "manifest.json"
    original = json.loads(path.read_text())
    for change, text in (
            (lambda m: m["shards"][2].update(rows=4), "shard-00002.h5.*the manifest says 4"),
            (lambda m: m["class_names"].reverse(), "classes are not those"),
            (lambda m: m.update(format=7), "not a shard set of format 1"),
            (lambda m: m["shards"][0].pop("sha256"), "damaged manifest"),
            (lambda m: m.update(shards=[]), "no shard")):
        changed = json.loads(json.dumps(original))
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=text):
            ShardSet(folder)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged manifest"):
        ShardSet(folder)
    path.unlink()
    with pytest.raises(UserError, match="unfinished"):
        ShardSet(folder)


@pytest.mark.parametrize("name", ["image", "mask"])
def test_flipped_byte_is_found(tmp_path, name):
    """Fault 16: both by the full check and, without it, when the item is read."""
    folder = small_set(tmp_path)
    path = folder / "shard-00001.h5"
    data, blob = bytearray(path.read_bytes()), ShardSet(folder).blob(name, 8)
    data[bytes(data).index(blob) + len(blob) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard-00001.h5.*sha256"):
        ShardSet(folder, check="full")
    quick = ShardSet(folder)
    assert all(quick.blob(name, i) for i in quick if i != 8)  # also those in the same chunk
    with pytest.raises(UserError, match=f"shard-00001.h5: {name} of 'image_8' is damaged"):
        quick.blob(name, 8)
    problems = verify_set(folder)
    assert [(p.file, p.image) for p in problems] == [("shard-00001.h5", ""),
                                                     ("shard-00001.h5", "image_8")]


def test_any_flipped_byte_fails_the_full_check(tmp_path):
    folder = small_set(tmp_path, shards=1)
    path = folder / "shard-00000.h5"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(data), 40):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="shard-00000.h5"):
            ShardSet(folder, check="full")


def test_verify_finds_repeated_ids_and_strays(tmp_path):
    folder = small_set(tmp_path, shards=1)
    with ShardWriter(folder / shard_name(1), "images", NAMES) as writer:
        writer.add("image_2", [1, 0, 0], (30, 40), image=picture(0))
    entries = read_manifest(folder).shards
    assert [p.what for p in verify_set(folder)] == ["not in the manifest"]
    write_manifest(folder, "images", NAMES, [*entries, writer.entry], {})
    assert [p.image for p in verify_set(folder)] == ["image_2"]


def test_verify_decodes(tmp_path):
    with ShardWriter(tmp_path / shard_name(0), "images", NAMES) as writer:
        writer.add("fine", [1, 0, 0], (30, 40), image=picture(0))
        writer.add("broken", [1, 0, 0], (30, 40), image=b"not an image")
        writer.add("size", [1, 0, 0], (31, 40), image=picture(0))
        writer.add("value", [1, 0, 0], (30, 40), image=picture(0),
                   mask=encode_mask(np.full((30, 40), 4, np.uint8)))
    write_manifest(tmp_path, "images", NAMES, [writer.entry], {})
    assert [p.image for p in verify_set(tmp_path)] == ["broken", "size"]  # as headers show
    assert [p.image for p in verify_set(tmp_path, decode=True)] == ["broken", "size", "value"]


def test_writer_refuses(tmp_path):
    writer = ShardWriter(tmp_path / shard_name(0), "images", NAMES)
    with pytest.raises(UserError, match="at least one row"):
        writer.close()
    writer.add("a", [0, 0, 0], (1, 1), image=picture(0, 1, 1))
    with pytest.raises(UserError, match="comes twice"):
        writer.add("a", [0, 0, 0], (1, 1))
    with pytest.raises(ValueError, match="3 zeros and ones"):
        writer.add("b", [0, 1], (1, 1))
    with pytest.raises(ValueError, match="3 zeros and ones"):
        writer.add("b", [0, 1, 2], (1, 1))
    for name in ("", "..", "a/b", "a\\b", "a\n", "é" * 101, "\ud800"):
        with pytest.raises(UserError, match="id "):
            check_id(name)
    assert list(tmp_path.iterdir()) == []


def test_exception_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), \
            ShardWriter(tmp_path / shard_name(0), "images", NAMES) as writer:
        writer.add("a", [0, 0, 0], (1, 1), image=picture(0, 1, 1))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_disk_full_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(ShardWriter, "_read_back", full)
    with pytest.raises(OSError, match="No space"), \
            ShardWriter(tmp_path / shard_name(0), "images", NAMES) as writer:
        writer.add("a", [0, 0, 0], (1, 1), image=picture(0, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_grow_is_an_error_and_not_a_crash(tmp_path):
    """A limit on file sizes stands for a full disk; HDF5 itself would die on it when it closes."""
    code = f"""
import resource
from more.data.shards.writer import ShardWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    with ShardWriter({str(tmp_path / shard_name(0))!r}, "seeds", ["a"]) as writer:
        writer.add("x", [1], (1, 1), seed=bytes(range(256)) * 400)
except OSError as error:
    print("refused", error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.startswith(f"refused {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def set_with_id(folder, image_id: str):
    """A set whose middle shard holds an id that the writer would refuse."""
    small_set(folder)
    path, manifest = folder / shard_name(1), json.loads((folder / "manifest.json").read_text())
    with h5py.File(path, "r+") as file:
        names = [text.decode() for text in file["ids"][:]]
        del file["ids"]
        file["ids"] = np.array([image_id.encode(), *(name.encode() for name in names[1:])],
                               h5py.string_dtype("utf-8", 40))
    entry = manifest["shards"][1]
    entry["bytes"], entry["sha256"] = path.stat().st_size, sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("image_id", ["../x", "/etc/x", "a/b", "..", ""])
def test_an_id_that_leads_out_of_the_folder_is_refused_on_opening(tmp_path, image_id):
    folder = set_with_id(tmp_path / "set", image_id)
    for options in ({}, {"check": "full"}, {"only": [1]}):
        with pytest.raises(UserError, match="shard-00001.h5: id .* cannot be a file name"):
            ShardSet(folder, **options)
    problems = [str(problem) for problem in verify_set(folder)]
    assert len(problems) == 1 and "cannot be a file name" in problems[0], problems


def test_a_shard_file_outside_the_set_is_refused(tmp_path):
    folder = small_set(tmp_path / "set")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../shard-00000.h5"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be a file name"):
        ShardSet(folder)


def test_codec():
    mask = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    assert np.array_equal(decode_mask(encode_mask(mask), "m"), mask)
    assert mask_values(np.array([[3, 255], [0, 3]], np.uint8)).tolist() == [0, 3, 255]
    for data in (b"", b"nonsense"):
        with pytest.raises(UserError, match="x: cannot be decoded"):
            decode_image(data, "x")
        with pytest.raises(UserError, match="x: mask is not"):
            decode_mask(data, "x")
    with pytest.raises(UserError, match="x: mask is not"):
        decode_mask(picture(0), "x")


def test_no_torch_in_the_import_path():
    code = ("import sys, data_tools.voc, data_tools.shapes, data_tools.verify, "
            "data_tools.inspect, more.data.batch_order; sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
