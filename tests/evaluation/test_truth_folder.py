"""Scores against masks in a folder, whose classes are matched to the set's by name."""

import json
import subprocess
import sys
import unicodedata

import cv2
import numpy as np
import pytest

from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from more.evaluation.compare import compare
from more.evaluation.score import evaluate
from more.evaluation.truth_folder import TruthFolder, match_files
from tests.evaluation.conftest import CLASSES, image_payload, mask_payload, write_set

# CLASSES is dog, cat, train: the folder has another order, and background first.
ORDER = ["background", "train", "dog", "cat"]


def bare_payload(row):
    return {"image": image_payload(row)["image"]}


def renumbered(truth, order=ORDER):
    """A true mask in the numbers of another list."""
    table = np.arange(256, dtype=np.uint8)
    for number, name in enumerate(CLASSES, 1):
        table[number] = order.index(name)
    return table[truth]


@pytest.fixture(scope="module")
def bare(rows, tmp_path_factory):
    """The image set without masks."""
    return write_set(tmp_path_factory.mktemp("bare") / "mine", "images", rows, bare_payload)


@pytest.fixture(scope="module")
def masks(rows, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("made") / "masks" / "lam", "masks", rows,
                     mask_payload)


@pytest.fixture
def folder(rows, tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    for row in rows:
        cv2.imwrite(str(folder / f"{row.name}.png"), renumbered(row.truth))
    (folder / "classes.txt").write_text("\n".join(ORDER) + "\n")
    return folder


def score(masks, bare, folder, classes=None, unknown="refuse", **options):
    return evaluate(masks, bare, progress=False,
                    truth_folder=TruthFolder(folder, classes, unknown), **options)


def refuse(*args, **options):
    with pytest.raises(UserError) as error:
        score(*args, **options)
    assert error.value.fix
    return str(error.value)


def test_figures_are_those_of_a_set_with_masks(masks, bare, data, folder):
    inside, outside = evaluate(masks, data, progress=False), score(masks, bare, folder)
    np.testing.assert_array_equal(outside.matrix, inside.matrix)
    assert outside.per_image == inside.per_image and 0.3 < outside.miou < 1
    np.testing.assert_array_equal(outside.boundary, inside.boundary)
    assert outside.digests[0] != inside.digests[0] and outside.digests[1] == inside.digests[1]
    with pytest.raises(UserError, match="no true masks"):
        evaluate(masks, bare, progress=False)


def test_255_counts_nowhere(masks, bare, rows, folder):
    before = score(masks, bare, folder)
    assert before.matrix.sum() == sum((row.truth != 255).sum() for row in rows)
    cv2.imwrite(str(folder / "img_00.png"), np.full_like(rows[0].truth, 255))
    after = score(masks, bare, folder)
    assert before.matrix.sum() - after.matrix.sum() == (rows[0].truth != 255).sum()
    assert before.digests[0] != after.digests[0], "another truth is not the same data"


def test_images_without_truth_are_counted_and_named(masks, bare, folder, rows):
    for name in ("img_04", "img_07"):
        (folder / f"{name}.png").unlink()
    found = score(masks, bare, folder)
    assert found.images == len(rows) - 2 and "img_04" not in found.per_image
    assert any("2 images have no mask" in line and "img_04, img_07" in line
               for line in found.notes())
    assert found.to_json()["truth"]["without"] == 2
    both = compare(masks, masks, bare, truth_folder=TruthFolder(folder), progress=False)
    assert any("img_04" in line for line in both.notes) and len(both.images) == len(rows) - 2


def test_a_mask_of_another_size_is_an_error_that_names_the_file(masks, bare, folder):
    cv2.imwrite(str(folder / "img_05.png"), np.ones((7, 9), np.uint8))
    said = refuse(masks, bare, folder)
    assert str(folder / "img_05.png") in said and "7x9" in said


def test_a_number_beyond_the_list_and_a_picture_in_colour_are_named(masks, bare, folder, rows):
    cv2.imwrite(str(folder / "img_05.png"), np.full_like(rows[5].truth, 9))
    said = refuse(masks, bare, folder)
    assert str(folder / "img_05.png") in said and "mask value 9" in said and "3 classes" in said
    cv2.imwrite(str(folder / "img_05.png"), rows[5].image)
    said = refuse(masks, bare, folder)
    assert str(folder / "img_05.png") in said and "--colours" not in said


def test_classes_without_partner(masks, bare, folder, rows, tmp_path):
    """zebra is in the truth alone; by explicit option its pixels are background or ignored."""
    listed = tmp_path / "others.txt"
    listed.write_text("train\ndog\ncat\nzebra\n")
    truth = renumbered(rows[1].truth)
    truth[:5] = 4
    cv2.imwrite(str(folder / "img_01.png"), truth)
    assert "zebra" in refuse(masks, bare, folder, listed)
    background = score(masks, bare, folder, listed, "background")
    ignored = score(masks, bare, folder, listed, "ignore")
    assert background.matrix.sum() - ignored.matrix.sum() == (truth == 4).sum() > 0
    assert any("taken as background: zebra" in line for line in background.notes())
    assert background.to_json()["truth"]["unknown"] == ["zebra"]
    assert "one of" in refuse(masks, bare, folder, listed, "drop")


def test_classes_of_the_set_that_the_truth_lacks_are_named(masks, bare, folder, tmp_path, rows):
    listed = tmp_path / "two.txt"
    listed.write_text("train\ndog\n")
    for row in rows:
        mask = renumbered(row.truth)
        mask[mask == 3] = 0
        cv2.imwrite(str(folder / f"{row.name}.png"), mask)
    found = score(masks, bare, folder, listed)
    assert any("the truth lacks" in line and line.endswith(": cat") for line in found.notes())
    listed.write_text("horse\nsheep\n")
    assert "none of its classes" in refuse(masks, bare, folder, listed)
    (folder / "classes.txt").unlink()
    assert "--truth-classes" in refuse(masks, bare, folder)


def test_a_damaged_mask_is_to_be_replaced_and_one_in_colour_made_again(masks, bare, folder):
    (folder / "img_02.png").write_bytes(b"broken")
    assert "img_02.png: unreadable mask" in (said := refuse(masks, bare, folder))
    assert "replace the file" in said and "one class index" not in said
    cv2.imwrite(str(folder / "img_02.png"), np.zeros((8, 8, 3), np.uint8))
    said = refuse(masks, bare, folder)
    assert "one class index per pixel" in said and "--colours" not in said


def _named_set(path, name, row):
    """A set of one image."""
    path.mkdir()
    with ShardWriter(path / "shard-00000.h5", "images", CLASSES, {}) as writer:
        writer.add(name, row.tags, row.truth.shape, file=f"{name}.jpg", **bare_payload(row))
    write_manifest(path, "images", CLASSES, [writer.entry], {})
    return ShardSet(path)


def test_masks_are_found_by_id_by_path_and_by_name(tmp_path, rows):
    names = ["cats/a.jpg", "dogs/a.jpg", "b.c.png", "deep/er/d.webp", "e.jpg"]
    (tmp_path / "set").mkdir()
    with ShardWriter(tmp_path / "set" / "shard-00000.h5", "images", CLASSES, {}) as writer:
        for name, row in zip(names, rows, strict=False):
            writer.add(name.rsplit(".", 1)[0].replace("/", "__"), row.tags, row.truth.shape,
                       file=name, **bare_payload(row))
    write_manifest(tmp_path / "set", "images", CLASSES, [writer.entry], {})
    images, folder = ShardSet(tmp_path / "set"), tmp_path / "truth"
    for name in ("cats__a.png", "dogs/a.png", "b.c.PNG", "d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    found = match_files(images, folder)
    assert [path and path.relative_to(folder).as_posix() for path in found] == [
        "cats__a.png", "dogs/a.png", "b.c.PNG", "d.png", None]
    (folder / "cats__a.png").unlink()
    assert match_files(images, folder)[:2] == [None, folder / "dogs/a.png"], "not that of dogs/a"
    (folder / "dogs/a.png").rename(folder / "a.png")
    with pytest.raises(UserError, match="mask of cats__a and of dogs__a"):
        match_files(images, folder)
    for path in folder.rglob("*.*"):
        path.unlink()
    (folder / unicodedata.normalize("NFD", "é.png")).write_bytes(b"")  # as macOS stores it
    assert match_files(_named_set(tmp_path / "accents", "é", rows[0]), folder)[0] is not None
    next(folder.rglob("*.*")).unlink()
    (folder / "zz.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of its 1 PNG files"):
        match_files(images, folder)


def test_the_command(masks, bare, folder, tmp_path):
    def run(*options):
        return subprocess.run([sys.executable, "-m", "more", "evaluate", masks, "--data", bare,
                               *options], capture_output=True, text=True, check=False)

    done = run("--truth", folder, "--truth-classes", folder / "classes.txt", "--json",
               "--save", tmp_path / "score.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["truth"]["folder"] == "truth"
    assert json.loads((tmp_path / "score.json").read_text())["miou"] > 0.3
    assert "--truth" in run("--truth-unknown", "ignore").stderr
