"""The archive for VOC's test server: layout, pixels, ids, refusals."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from more.data.shards.codec import encode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.data.tags import VOC_CLASSES
from more.errors import UserError
from more.export import voc_server as module
from more.export.voc_server import FOLDER, export_voc_server
from more.palette import voc_palette
from tests.command.conftest import refused

IDS = ["2008_000006", "2008_000011", "2008_000004"]


CLASSES = list(VOC_CLASSES)


def voc_set(folder, ignore=(), classes=CLASSES, top=21):
    rng = np.random.default_rng(1)
    folder.mkdir()
    with ShardWriter(folder / "shard-00000.h5", "masks", list(classes)) as writer:
        for k, name in enumerate(IDS):
            mask = rng.integers(0, top, (20 + k, 30)).astype(np.uint8)
            if name in ignore:
                mask[:2] = 255
            writer.add(name, np.ones(len(classes)), mask.shape, mask=encode_mask(mask))
    write_manifest(folder, "masks", list(classes), [writer.entry], {})
    return folder


def test_layout_pixels_and_palette(tmp_path):
    masks, out = voc_set(tmp_path / "masks"), tmp_path / "results.tar.gz"
    (tmp_path / "test.txt").write_text("\n".join(sorted(IDS)) + "\n")
    tally = export_voc_server(masks, out, tmp_path / "test.txt", progress=False)
    source = ShardSet(masks)
    assert (tally.done, tally.exit_code) == (3, 0)
    with tarfile.open(out) as archive:
        members = archive.getmembers()
        assert [item.name for item in members] == [f"{FOLDER}/{name}.png" for name in sorted(IDS)]
        for item in members:
            assert (item.mtime, item.uid, item.gid, item.uname) == (0, 0, 0, "")
            picture = Image.open(io.BytesIO(archive.extractfile(item).read()))
            row = source.index_of(item.name.split("/")[-1][:-4])
            assert picture.mode == "P" and picture.size == tuple(source.sizes[row][::-1])
            np.testing.assert_array_equal(np.asarray(picture), source.mask(row))
            assert picture.getpalette() == voc_palette().reshape(-1).tolist()
    again = tmp_path / "again.tar.gz"
    export_voc_server(masks, again, progress=False)
    assert again.read_bytes() == out.read_bytes()


def test_ignored_pixels_are_refused_or_filled(tmp_path, run):
    masks, out = voc_set(tmp_path / "masks", ignore=IDS[:2]), tmp_path / "a.tar.gz"
    words = ("more", "export", masks, "--format", "voc-server", "--out", out)
    assert refused(run(*words), "2 of 3", *IDS[:2], "--fill-ignore background")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks"]
    assert refused(run(*words, "--fill-ignore", "cow"), "cow")
    ended = run(*words, "--fill-ignore", "background")
    assert ended.code == 0 and "done 3" in ended.err
    source = ShardSet(masks)
    with tarfile.open(out) as archive:
        picture = Image.open(archive.extractfile(f"{FOLDER}/{IDS[0]}.png"))
        mask = source.mask(0)
        np.testing.assert_array_equal(np.asarray(picture), np.where(mask == 255, 0, mask))


def test_missing_and_surplus_ids_are_named(tmp_path, run):
    masks, ids = voc_set(tmp_path / "masks"), tmp_path / "ids.txt"
    words = ("more", "export", masks, "--format", "voc-server", "--list", ids, "--out",
             tmp_path / "a.tar.gz")
    assert refused(run(*words), "ids.txt: no such file")
    ids.write_text("2008_000006\n2008_000004\r\n2009_1\n")
    assert refused(run(*words), "1 missing: 2009_1", "1 not in the list: 2008_000011")
    ids.write_text("x\nx\n")
    assert refused(run(*words), "twice")
    ids.write_text("\n")
    assert refused(run(*words), "empty")


@pytest.mark.parametrize("classes", [CLASSES[::-1], ["cat", "dog"], CLASSES + ["more"]])
def test_other_classes_are_refused(tmp_path, classes):
    masks = voc_set(tmp_path / "masks", classes=classes, top=2)
    with pytest.raises(UserError, match="not VOC's 20"):
        export_voc_server(masks, tmp_path / "a.tar.gz", progress=False)


def test_a_bad_mask_keeps_the_archive_back(tmp_path):
    masks = voc_set(tmp_path / "masks", top=23)
    tally = export_voc_server(masks, tmp_path / "a.tar.gz", progress=False)
    assert tally.exit_code == 1 and len(tally.failures) == 3
    assert not (tmp_path / "a.tar.gz").exists()


@pytest.mark.parametrize("damage", ["cut", "swap"])
def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch, damage):
    masks, add = voc_set(tmp_path / "masks"), module.add_file

    def wrong(archive, name, data):
        add(archive, name, data[:-20] if damage == "cut" else
            module.encode_png(np.zeros((3, 3), np.uint8), voc_palette()))

    monkeypatch.setattr(module, "add_file", wrong)
    with pytest.raises(UserError, match="does not read back"):
        export_voc_server(masks, tmp_path / "a.tar.gz", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks"]


@pytest.mark.parametrize("name", ["a.zip", "a", "folder.tar.gz"])
def test_another_name_is_refused(tmp_path, name):
    (tmp_path / "folder.tar.gz").mkdir()
    with pytest.raises(UserError, match="a folder" if name.startswith("f") else "NAME.tar.gz"):
        export_voc_server(tmp_path / "nowhere", tmp_path / name, progress=False)
