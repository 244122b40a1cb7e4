"""PNG export: indices and palette."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from more.data.shards.codec import encode_mask
from more.data.shards.format import temporary_path
from more.data.shards.lock import folder_lock
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.export import export_masks, export_png
from more.palette import voc_palette
from tests.refinement.sets import make_sets


@pytest.fixture
def masks(tmp_path):
    rng = np.random.default_rng(3)
    folder, names = tmp_path / "masks", [f"class {i}" for i in range(254)]
    folder.mkdir()
    with ShardWriter(folder / "shard-00000.h5", "masks", names) as writer:
        for name in ("2007_000032", "straße 7"):
            mask = rng.integers(0, 256, (13, 17)).astype(np.uint8)
            writer.add(name, np.ones(254), mask.shape, mask=encode_mask(mask))
    write_manifest(folder, "masks", names, [writer.entry], {})
    return folder


@pytest.mark.parametrize("palette", [True, False])
def test_indices_and_palette_round_trip(masks, tmp_path, palette):
    tally = export_png(masks, tmp_path / "png", palette=palette, progress=False)
    source = ShardSet(masks)
    assert tally.done == 2 and tally.exit_code == 0
    assert sorted(p.stem for p in (tmp_path / "png").glob("*.png")) == sorted(source.ids)
    for row, name in enumerate(source.ids):
        picture = Image.open(tmp_path / "png" / f"{name}.png")
        assert picture.mode == ("P" if palette else "L")
        np.testing.assert_array_equal(np.asarray(picture), source.mask(row))
        if palette:
            colours = np.array(picture.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(colours, voc_palette())


@pytest.mark.parametrize("palette", [True, False])
def test_classes_and_colours_lie_beside(masks, tmp_path, palette):
    """The colours are those that the PNG files show."""
    out = tmp_path / "png"
    export_png(masks, out, palette=palette, progress=False)
    names = ShardSet(masks).class_names
    assert (out / "classes.txt").read_text(encoding="utf-8").splitlines() == names
    with open(out / "colours.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["background", *names, "ignored"]
    assert [int(row["index"]) for row in rows] == list(range(256))
    with Image.open(out / "2007_000032.png") as picture:
        shown, indices = np.asarray(picture.convert("RGB")), np.asarray(picture)
    for place in ((0, 0), (5, 7), (12, 16)):
        assert rows[indices[place]]["colour"] == "#{:02x}{:02x}{:02x}".format(*shown[place])


@pytest.mark.parametrize("name", ["classes.txt", "colours.csv"])
def test_files_of_other_classes_are_not_written_over(masks, tmp_path, name):
    out = tmp_path / "png"
    out.mkdir()
    (out / name).write_text("cat\ndog\n")
    with pytest.raises(UserError, match=f"{name}: is not of an export of these classes"):
        export_png(masks, out, progress=False)
    assert (out / name).read_text() == "cat\ndog\n" and list(out.iterdir()) == [out / name]
    (out / name).unlink()
    for palette in (True, False):  # other colours are no other classes
        assert export_png(masks, out, palette=palette, progress=False).done == 2
    with open(out / "classes.txt", "a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match="classes.txt"):
        export_png(masks, out, progress=False)


def test_the_command_ends_with_the_next_step(masks, tmp_path, run):  # noqa: F811
    ended = run("more", "export", masks, "--out", tmp_path / "my png")
    assert ended.code == 0
    last = ended.err.splitlines()[-1]
    assert last.startswith("next: ") and last.endswith(
        f"--masks '{tmp_path}/my png' --classes '{tmp_path}/my png/classes.txt'")


def test_a_rerun_writes_nothing_and_repairs_what_is_broken(masks, tmp_path):
    out = tmp_path / "png"
    export_png(masks, out, progress=False)
    files = sorted(out.iterdir())
    assert len(files) == 4
    good = files[0].read_bytes()
    files[0].write_bytes(good[:40])
    tally = export_png(masks, out, progress=False)
    assert (tally.done, tally.skipped) == (1, 1)
    assert files[0].read_bytes() == good and sorted(out.iterdir()) == files


def test_a_set_without_masks_is_refused(tmp_path):
    _, data = make_sets(tmp_path, count=2)
    with pytest.raises(UserError, match="no masks"):
        export_png(data, tmp_path / "png", progress=False)


def test_an_export_leaves_the_users_files_alone(masks, tmp_path):
    out = tmp_path / "png"
    out.mkdir()
    for name in ("drawing.tmp.psd", "photo.tmp.2024", "2007_000032.png.tmp.1"):
        (out / name).write_bytes(b"the user's")
    left = temporary_path(out / "2007_000032.png")
    left.write_bytes(b"of a killed export")
    export_png(masks, out, progress=False)
    assert sorted(path.name for path in out.glob("*.tmp.*")) == [
        "2007_000032.png.tmp.1", "drawing.tmp.psd", "photo.tmp.2024"]
    assert not left.exists()


@pytest.mark.parametrize("out, options", [
    ("out", {}), ("out/a.json", {"format": "rle"}),
    ("out/a.json", {"format": "rle", "panoptic": True})])
def test_an_export_beside_another_one_is_refused(masks, tmp_path, out, options):
    with folder_lock(tmp_path / "out"), pytest.raises(UserError, match="writes here"):
        export_masks(masks, tmp_path / out, progress=False, **options)
    assert list((tmp_path / "out").iterdir()) == []
