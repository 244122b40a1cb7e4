"""A set knows the files it was made from by their content, not by their sizes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from data_tools import coco, source_files
from data_tools.convert import Record, convert
from data_tools.voc_files import read_mask
from more.data.shards.manifest import read_manifest
from more.errors import UserError
from tests.data_tools.coco_layout import plain_folder, run
from tests.data_tools.layout import convert_voc, digests, voc_folder


def _swap_bytes(path):
    """Another content of the same size and, as a copy that keeps times makes it, the same time."""
    times = os.stat(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))



@pytest.fixture(params=["settled", "just made"])
def age(request, monkeypatch):
    """With notes of the files' times, and without (files that have just changed get none)."""
    if request.param == "settled":
        monkeypatch.setattr(source_files, "_SETTLED", -60)


@pytest.mark.parametrize("folder", ["JPEGImages", "SegmentationClass"])
def test_a_source_replaced_by_another_of_its_size_is_refused(tmp_path, age, folder):
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out, tags_from="xml") == 0
    if folder == "JPEGImages":
        _swap_bytes(root / folder / "id3.jpg")
    else:
        old, new = (root / folder / f"{name}.png" for name in ("id3", "id4"))
        assert old.stat().st_size == new.stat().st_size
        old.write_bytes(new.read_bytes())
    with pytest.raises(UserError, match="made from other files: .*Compared are ids, tags, and the "
                       r"content \(sha256\) of every image and mask file"):
        convert_voc(root, out, tags_from="xml")


def test_the_changed_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "_SETTLED", -60)
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out) == 0
    _swap_bytes(root / "JPEGImages/id3.jpg")
    with pytest.raises(UserError, match="made from other files: [^,]*/id3.jpg. Compared"):
        convert_voc(root, out)


def test_an_image_of_coco_replaced_by_another_of_its_size_is_refused(tmp_path, age):
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    assert run(folder, out) == 0
    _swap_bytes(sorted(folder.image_dir.glob("*.jpg"))[0])
    with pytest.raises(UserError, match="made from other files"):
        run(folder, out)


def test_a_mere_copy_of_the_sources_goes_on(tmp_path, age, capsys):
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out) == 0
    before = digests(out)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)  # other times
    capsys.readouterr()
    assert convert_voc(tmp_path / "copy", out) == 0
    assert "done 0, skipped 12" in capsys.readouterr().err and digests(out) == before
    assert convert_voc(tmp_path / "copy", tmp_path / "other") == 0
    assert digests(tmp_path / "other") == before


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "_SETTLED", -60)
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out) == 0
    read = []
    monkeypatch.setattr(source_files, "sha256_file",
                        lambda path: read.append(path.name) or "0" * 64)
    assert convert_voc(root, out) == 0 and not read


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    """Two changes within a step of the file system's clock look like one."""
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out) == 0
    assert source_files.read_notes(out) == {}


def _as_an_earlier_version_wrote_it(out, records):
    """The manifest and entries with the digest over sizes."""
    for path in out.glob("*.json"):
        about = json.loads(path.read_text())
        del about["provenance"]["sources"]
        about["provenance"]["inputs"]["sha256"] = source_files._sizes_digest(records)
        path.write_text(json.dumps(about))
    (out / source_files.NOTES).unlink()


def _records(root):
    return [Record(f"id{k}", root / f"JPEGImages/id{k}.jpg", root / f"SegmentationClass/id{k}.png",
                   None) for k in range(12)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_set_of_an_earlier_version_goes_on_and_says_what_is_compared(tmp_path, capsys, finished):
    root, out = voc_folder(tmp_path / "voc"), tmp_path / "set"
    assert convert_voc(root, out) == 0
    _as_an_earlier_version_wrote_it(out, _records(root))
    if not finished:
        (out / "manifest.json").unlink()
        (out / "shard-00002.json").unlink()
    capsys.readouterr()
    assert convert_voc(root, out) == 0
    said = capsys.readouterr().err
    assert "begun by an earlier version" in " ".join(said.split())
    assert f"done {0 if finished else 2}, skipped {12 if finished else 10}" in said
    assert "sources" not in read_manifest(out).provenance
    (root / "JPEGImages/id3.jpg").write_bytes((root / "JPEGImages/id3.jpg").read_bytes() + b"0")
    with pytest.raises(UserError, match="Compared are ids, tags and sizes"):
        convert_voc(root, out)


def test_a_coco_set_of_an_earlier_version_is_finished(tmp_path, capsys):
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    assert run(folder, out) == 0
    for path in out.glob("*.json"):
        about = json.loads(path.read_text())
        del about["provenance"]["sources"]
        path.write_text(json.dumps(about))
    capsys.readouterr()
    assert run(folder, out) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "begun by an earlier version" in said and "done 0" in said


def test_an_unreadable_file_fails_its_image_only(tmp_path):
    records = _records(voc_folder(tmp_path / "voc"))
    records[3].image.unlink()
    records[3].image.mkdir()  # reading it fails, for root too
    tally = convert(tmp_path / "set", records, ["cat", "dog", "cow"], {"tool": "test"},
                    read_mask, shard_size=5, workers=1, skip_bad=True)
    assert (tally.done, tally.skipped) == (11, 1)


def test_finished_coco_sets_are_recognised_without_reading_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(source_files, "_SETTLED", -60)
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    assert run(folder, out) == 0
    monkeypatch.setattr(coco, "read_work", None)
    assert run(folder, out) == 0
