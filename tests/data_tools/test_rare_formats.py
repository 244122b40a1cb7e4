"""Formats that not every reader knows, unusual endings, and names that are not UTF-8."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image, features

from data_tools.convert import Record, convert
from more.data.image_files import IMAGE_ENDINGS, shown
from more.data.index_masks import read_index_png
from more.data.shards.codec import COMMON, RARE, decode_image, file_ending
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from more.export import export_masks
from more.inference.inputs import find_pictures
from tests.data_tools.layout import save_picture
from tests.data_tools.odd import encoded, quadrants, ramp
from tests.data_tools.test_folder import run

FORMATS = {"avif": ("AVIF", {"quality": 90}), "jp2": ("JPEG2000", {}), "ppm": ("PPM", {}),
           "tga": ("TGA", {}), "tif-lzma": ("TIFF", {"compression": "lzma"}),
           "tif": ("TIFF", {"compression": "tiff_lzw"}), "jpg": ("JPEG", {}), "png": ("PNG", {})}
KEPT = ("tif", "jpg", "png")


def picture(name: str) -> bytes:
    """The ramp in a format, or a skip where Pillow was built without it."""
    kind, options = FORMATS[name]
    if kind in ("AVIF", "JPEG2000") and not features.check({"AVIF": "avif"}.get(kind, "jpg_2000")):
        pytest.skip(f"Pillow without {kind}")
    return encoded(ramp(), kind, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_every_later_command_reads_what_decodes(tmp_path, name, capsys):
    """Stored as it came, or as PNG with the same pixels: export said "the stored bytes are no
    image", and readers of the exported folder may know no AVIF."""
    data = picture(name)
    (tmp_path / "x.jpg").write_bytes(data)  # as photographs are named by mistake
    mask = tmp_path / "x.png"
    Image.fromarray(quadrants() % 4).save(mask)
    tally = convert(tmp_path / "set", [Record("x", tmp_path / "x.jpg", mask)],
                    ["cat", "dog", "cow"], {}, read_index_png, workers=1)
    tally.print()
    said, shards = capsys.readouterr().err, ShardSet(tmp_path / "set")
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(shards.image(0), np.asarray(opened.convert("RGB")))
    kept = name in KEPT
    assert (shards.blob("image", 0) == data) is kept
    assert any(shards.blob("image", 0).startswith(start) for start in COMMON)
    assert ("stored as PNG, without loss" in said) is not kept and (kept or "format: 1" in said)
    assert verify_set(tmp_path / "set", decode=True) == []
    for format, out, options in (("training", "folder", {"val_share": 0.0}),
                                 ("rle", "masks.json", {})):
        done = export_masks(tmp_path / "set", tmp_path / out, format, progress=False,
                            data=tmp_path / "set", **options)
        assert (done.done, done.failures) == (1, []), done.summary()


@pytest.mark.parametrize("name", FORMATS)
def test_predict_decodes_the_same_formats(name):
    data = picture(name)
    assert decode_image(data, "x").shape == np.asarray(ramp()).shape


@pytest.mark.parametrize(("name", "ending"), [
    ("avif", "avif"), ("jp2", "jp2"), ("ppm", "ppm"), ("tif-lzma", "tif"), ("jpg", "jpg")])
def test_sets_of_earlier_versions_can_be_exported(name, ending):
    """They hold such files as they came."""
    assert file_ending(picture(name)) == ending
    assert file_ending(b"text") is None and file_ending(b"") is None
    assert not set(COMMON) & set(RARE)


def test_16_bits_and_32_bits_through_pillow():
    deep = encoded(Image.fromarray(np.full((4, 5), 0x1234, np.uint16)), "TIFF", compression="lzma")
    assert (decode_image(deep, "x") == 0x12).all()
    real = encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF")
    with pytest.raises(UserError, match="32 bits"):
        decode_image(real, "x")


def test_jfif_and_avif_are_image_names(tmp_path):
    assert ".jfif" in IMAGE_ENDINGS and (".avif" in IMAGE_ENDINGS) == features.check("avif")
    save_picture(tmp_path / "photos/dog/a.jfif")
    if features.check("avif"):
        save_picture(tmp_path / "photos/cat/b.AVIF")
    assert run(tmp_path / "photos", tmp_path / "set", tags_from_folders=True) == 0
    assert "dog__a" in ShardSet(tmp_path / "set").ids


def test_a_name_that_is_not_utf8_is_named_so_that_it_can_be_found(tmp_path, capsys):
    photos = tmp_path / "photos"
    save_picture(photos / "dog/a.jpg")
    odd = os.fsencode(photos / "dog") + b"/caf\xe9 'x'.jpg"
    os.rename(photos / "dog/a.jpg", odd)
    save_picture(photos / "dog/b.jpg")
    for refused in (lambda: run(photos, tmp_path / "set", tags_from_folders=True),
                    lambda: find_pictures([str(photos)], tmp_path / "out")):
        with pytest.raises(UserError) as caught:
            refused()
        message = str(caught.value)
        message.encode("utf-8")
        assert r"\xe9" in message and "1 file names are not UTF-8" in message
    name = shown(os.fsdecode(b"dog/caf\xe9 'x'.jpg"))
    assert name == r"$'dog/caf\xe9 \x27x\x27.jpg'" and shown("Übung") == "Übung"
    os.rename(odd, os.fsencode(photos) + b"/note\xff.txt")  # no image: said, not refused
    assert run(photos, tmp_path / "set", tags_from_folders=True) == 0
    assert r"$'note\xff.txt'" in capsys.readouterr().err
