"""Every odd image, mask and name has a defined result (table in data_tools/image_checks.py)."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_tools.build import ShardJob
from data_tools.convert import Record, _Options, convert, write_shard
from more.data.index_masks import align_mask, exif_orientation, read_index_png
from more.data.shards.codec import decode_image, image_size
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from tests.data_tools.odd import (
    ORIENTATION,
    PICTURES,
    H,
    W,
    encoded,
    glass,
    png,
    quadrants,
    ramp,
    turned,
)

NAMES = ["cat", "dog", "cow"]


def convert_one(folder: Path, data: bytes, mask: np.ndarray | bytes | None = None,
                image_id: str = "x", ending: str = ".jpg", **options: object) -> Path:
    """One image and, for an array or bytes, a mask as the shard set `folder / "set"`."""
    image, mask_file = folder / f"{image_id}{ending}", folder / f"{image_id}-mask.png"
    image.write_bytes(data)
    if mask is not None:
        mask_file.write_bytes(mask if isinstance(mask, bytes)
                              else encoded(Image.fromarray(mask), "PNG"))
    record = Record(image_id, image, mask_file if mask is not None else None, tags=(0,))
    tally = convert(folder / "set", [record], NAMES, {}, read_index_png, workers=1, **options)
    assert tally.exit_code == 0, tally.summary()
    return folder / "set"


@pytest.mark.parametrize("name", PICTURES)
def test_pixels(tmp_path, name):
    """What OpenCV decodes is what Pillow decodes; size in the header, stored size and pixels."""
    data = PICTURES[name]
    shards = ShardSet(convert_one(tmp_path, data))
    with Image.open(io.BytesIO(data)) as opened:
        # Pillow itself clips 16-bit grey to white.
        picture = ramp().convert("L") if name == "deep-grey" else opened
        expected = np.asarray(picture.convert("RGB"), int)
    found = shards.image(0)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert tuple(shards.sizes[0]) == found.shape[:2] == image_size(data, "x")
    inks = name.startswith(("cmyk", "ycck"))  # the decoders round in different places
    assert np.abs(found - expected).max() <= (2 if inks else 0)
    assert shards.blob("image", 0) == data and not verify_set(tmp_path / "set", decode=True)


def test_the_ramp_comes_through_where_nothing_is_lost():
    """The comparison above would not notice if both decoders turned or mixed up the picture."""
    for name in ("deep", "alpha", "webp-alpha", "webp", "apng", "pages", "bmp", "exif-png-6"):
        assert np.array_equal(decode_image(PICTURES[name], name), np.asarray(ramp())), name
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(decode_image(red, "red").astype(int) - (255, 0, 0)).max() <= 3


def test_an_animation_with_a_cover_shows_its_first_frame():
    """Viewers show the cover of an APNG only where they cannot play it."""
    cover = encoded(Image.new("RGB", (W, H), "white"), "PNG", save_all=True, default_image=True,
                    append_images=[ramp(), Image.new("RGB", (W, H), "blue")], duration=90)
    assert np.array_equal(decode_image(cover, "x"), np.asarray(ramp()))


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_turned_images(tmp_path, orientation, square):
    """(a) drawn on the stored pixels, (b) drawn on the picture as viewers turn it."""
    size = (H, H) if square else (H, W)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = quadrants(*size)
    labelled = Image.fromarray(stored)
    data = encoded(ramp().resize(size[::-1]), "JPEG", exif=exif)
    assert exif_orientation(data) == orientation
    assert np.array_equal(align_mask(stored, size, data, "m"), stored)
    labelled.getexif()[ORIENTATION] = orientation
    seen = np.asarray(ImageOps.exif_transpose(labelled))
    back = align_mask(seen, size, data, "m")
    if orientation >= 5 and not square:
        assert seen.shape == size[::-1]
        assert np.array_equal(back, stored)
        (tmp_path / "b").mkdir()
        made = ShardSet(convert_one(tmp_path / "b", data, seen))
        assert np.array_equal(made.mask(0), stored)
    else:  # its size does not tell: taken as it is
        assert np.array_equal(back, seen)
    (tmp_path / "a").mkdir()
    assert np.array_equal(ShardSet(convert_one(tmp_path / "a", data, stored)).mask(0), stored)


def test_a_turned_tiff_is_turned_with_its_mask(tmp_path):
    data = turned(6, "TIFF")
    shards = ShardSet(convert_one(tmp_path, data, quadrants(W, H)))
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(shards.image(0), np.asarray(opened.convert("RGB")))
    assert shards.image(0).shape == (W, H, 3)
    assert np.array_equal(shards.mask(0), quadrants(W, H))
    assert not verify_set(tmp_path / "set", decode=True)


@pytest.mark.parametrize(("kind", "ending"), [("PNG", ".jpg"), ("JPEG", ".png")])
def test_the_content_decides_not_the_ending(tmp_path, kind, ending):
    data = encoded(ramp(), kind)
    shards = ShardSet(convert_one(tmp_path, data, ending=ending))
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == kind
        assert np.array_equal(shards.image(0), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("image_id", ["Übung-写真", "e\u0301", "\u00e9", "🐄 кот", "a b'c\"$&"])
def test_ids_in_any_script_are_kept_letter_for_letter(tmp_path, image_id):
    shards = ShardSet(convert_one(tmp_path, encoded(ramp(), "PNG"), quadrants(), image_id))
    assert shards.ids == [image_id] and shards.index_of(image_id) == 0


@pytest.mark.parametrize("ids", [("x", "y", "x"), ("x", "a/b"), ("..",), ("x\n",), ("é" * 101,)])
def test_repeated_and_impossible_ids_are_refused_before_any_work(tmp_path, ids):
    records = [Record(name, tmp_path / "x.png", None, (0,)) for name in ids]
    with pytest.raises(UserError, match="id "):
        convert(tmp_path / "set", records, NAMES, {}, read_index_png, workers=1)
    assert not (tmp_path / "set").exists()


SHORT = encoded(ramp().resize((300, 200)), "JPEG")
GREY_4 = png(4, 0, (b"\0" + b"\x01" * (W // 2)) * H, (H, W))
GREY_2 = png(2, 0, (b"\0" + b"\x1b" * (W // 4)) * H, (H, W))
HUGE = png(8, 2, b"", (60_000, 60_000))
GOOD = encoded(ramp(), "PNG")


@pytest.mark.parametrize(("image", "mask", "text"), [
    (b"", None, "x.jpg: cannot be decoded"), (b"just a text\n", None, "x.jpg: cannot be decoded"),
    (SHORT[:len(SHORT) // 2], None, "x.jpg: "), (SHORT[:-20], None, "x.jpg: "),
    (GOOD[:-40], None, "x.jpg: "), (PICTURES["gif"][:200], None, "x.jpg: "),
    (HUGE, None, "x.jpg: "),
    (GOOD, quadrants(H, W + 1), "x-mask.png: mask is 40x61, the image 40x60"),
    (GOOD, quadrants(W, H), "x-mask.png: mask is 60x40, the image 40x60"),  # no EXIF tag
    (turned(3), quadrants(W, H), "x-mask.png: mask is 60x40, the image 40x60"),
    (GOOD, np.full((H, W), 4, np.uint8), "x-mask.png: mask value 4, but there are 3 classes"),
    (GOOD, np.full((H, W), 256, np.uint16), "x-mask.png: mask value 256 is above 255"),
    (GOOD, encoded(Image.fromarray(quadrants()), "JPEG"), "x-mask.png: mask is a L JPEG"),
    (GOOD, GOOD, "x-mask.png: mask is a RGB PNG"),
    (GOOD, encoded(glass().convert("LA"), "PNG"), "x-mask.png: mask is a LA PNG"),
    (GOOD, GREY_4, "x-mask.png: mask is grey with 4 bits"),
    (GOOD, GREY_2, "x-mask.png: mask is grey with 2 bits"),
    (GOOD, b"", "x-mask.png: unreadable mask"), (GOOD, b"text", "x-mask.png: unreadable mask"),
    (GOOD, GREY_4[:40], "x-mask.png: unreadable mask"),
    (GOOD, HUGE, "x-mask.png: unreadable mask")])
def test_refused(tmp_path, image, mask, text):
    with pytest.raises(AssertionError) as caught:
        convert_one(tmp_path, image, mask)
    assert "failed 1" in str(caught.value) and f"x: {tmp_path}/{text}" in str(caught.value)
    assert not list((tmp_path / "set").glob("*.h5"))


@pytest.mark.parametrize("mask", [
    encoded(Image.fromarray(quadrants()).convert("P"), "PNG"),
    encoded(Image.fromarray(quadrants().astype(np.uint16)), "PNG"),
    encoded(Image.fromarray(quadrants()), "PNG")], ids=["palette", "16-bit", "grey"])
def test_indices_of_masks(tmp_path, mask):
    assert np.array_equal(ShardSet(convert_one(tmp_path, GOOD, mask)).mask(0), quadrants())


def test_masks_of_one_bit_and_small_palettes(tmp_path):
    """Four colours in a palette are stored with 2 bits, and are indices all the same."""
    bits = Image.fromarray(quadrants() == 1)
    assert np.array_equal(ShardSet(convert_one(tmp_path, GOOD, encoded(bits, "PNG"))).mask(0),
                          quadrants() == 1)
    few = Image.fromarray(quadrants() % 4).convert("P")
    few.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    (tmp_path / "few.png").write_bytes(encoded(few, "PNG", bits=2))
    assert np.array_equal(read_index_png(tmp_path / "few.png"), quadrants() % 4)


def _two_images(folder: Path) -> ShardJob:
    """The task of a shard of two good images with masks, `--skip-bad` given."""
    for name in "ab":
        (folder / f"{name}.png").write_bytes(encoded(ramp(), "PNG"))
        (folder / f"{name}-mask.png").write_bytes(encoded(Image.fromarray(quadrants()), "PNG"))
    rows = [Record(name, folder / f"{name}.png", folder / f"{name}-mask.png") for name in "ab"]
    return ShardJob(folder / "shard-00000.h5", "images", NAMES, {}, rows,
                _Options(read_index_png, True))


@pytest.mark.parametrize("reads", ["image", "mask"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM, errno.ESTALE])
def test_an_error_of_the_machine_is_no_bad_image(tmp_path, monkeypatch, reads, number):
    """`--skip-bad` would leave the image out of the set, and no later call would take it in."""
    def fail(path, *_):
        raise OSError(number, os.strerror(number), str(path))

    part = _two_images(tmp_path)
    if reads == "image":
        monkeypatch.setattr(Path, "read_bytes", fail)
    else:
        monkeypatch.setattr(Image, "open", lambda path: fail(path) if "mask" in str(path) else None)
        monkeypatch.setattr("data_tools.convert.check_image", lambda data, _: (data, (H, W)))
    with pytest.raises(OSError) as caught:
        write_shard(part)
    assert caught.value.errno == number and str(caught.value.filename).startswith(str(tmp_path))
    assert not list(tmp_path.glob("shard-*"))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_an_error_of_one_file_is_a_bad_image(tmp_path, monkeypatch, number):
    def fail(path):
        if path.name == "a.png":
            raise OSError(number, os.strerror(number), str(path))
        with open(path, "rb") as file:
            return file.read()

    part = _two_images(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        result = write_shard(part)
    assert result.rows == 1 and [name for name, _ in result.bad] == ["a"]
    assert str(tmp_path / "a.png") in result.bad[0][1]


def test_an_error_of_the_machine_ends_a_conversion_with_its_sentence(tmp_path, monkeypatch):
    for text in ("open more files", "keeps the shards"):
        number = errno.EMFILE if "files" in text else errno.ESTALE
        error = OSError(number, os.strerror(number), "/a.png")
        monkeypatch.setattr("data_tools.build.parallel",
                            lambda write, parts, *_, error=error: [(part, error) for part in parts])
        records = [Record(str(n), tmp_path / f"{n}.png") for n in range(40)]
        with pytest.raises(UserError, match="/a.png: ") as caught:
            convert(tmp_path / "set", records, NAMES, {}, read_index_png, skip_bad=True)
        assert text in caught.value.fix and not (tmp_path / "set" / "manifest.json").exists()
