"""Masks whose values or colours are not class indices: binary masks, colour masks, none at all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_tools.mask_meaning import parse_values, read_colours
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.layout import pictures, save_mask
from tests.data_tools.test_folder import run

LABELMAP = ("# label:color_rgb:parts:actions\nbackground:0,0,0::\ntraffic_light:250,50,83::\n"
            "__ignore__:1,2,3::\ndog:51,221,255:head,tail:run\n")


def photos(root, mask, count=3):
    """`root` with images/ and masks/; `mask(k)` is an array to store, or a Pillow image."""
    pictures(root / "images", [f"p{k}.jpg" for k in range(count)])
    (root / "masks").mkdir()
    for k in range(count):
        made = mask(k)
        image = made if isinstance(made, Image.Image) else Image.fromarray(made)
        image.save(root / "masks" / f"p{k}.png")
    return root


def halves(*values, dtype=np.uint8):
    """A mask of equal bands of values (or colours)."""
    rows = np.repeat(np.asarray(values, dtype), 24 // len(values), axis=0)
    return np.repeat(rows[:, None], 32, axis=1)


def stored(folder):
    shards = ShardSet(folder)
    return [sorted(set(shards.mask(row).ravel().tolist())) for row in shards]


def refuse(*arguments, **options):
    with pytest.raises(UserError) as caught:
        run(*arguments, **options)
    return str(caught.value)


def test_masks_of_0_and_255_are_refused_with_the_fix(tmp_path):
    """255 means ignore: every object was ignored and every score empty."""
    root = photos(tmp_path / "p", lambda k: halves(0, 255))
    (root / "classes.txt").write_text("coin\n")
    message = refuse(root, tmp_path / "set")
    assert "only 0 (background) and 255 (ignore)" in message
    assert "--mask-values 255=NAME" in message and not (tmp_path / "set").exists()


def test_masks_without_any_class_are_refused(tmp_path):
    root = photos(tmp_path / "p", lambda k: halves(0))
    (root / "classes.txt").write_text("coin\n")
    message = refuse(root, tmp_path / "set")
    assert "only 0 (background)" in message and "mask-values" not in message


def test_one_mask_with_a_class_is_enough_wherever_it_is(tmp_path):
    """Only some masks are looked at first: the others are before the set is refused."""
    root = photos(tmp_path / "p", lambda k: halves(0, 1 if k == 81 else 255), count=82)
    (root / "classes.txt").write_text("coin\n")
    assert run(root, tmp_path / "set", shard_size=82) == 0
    assert ShardSet(tmp_path / "set").tags.sum() == 1


def test_mask_values_say_what_values_mean(tmp_path):
    """Any value, several of one class, no list of classes needed; 255 stays ignore unless named."""
    root = photos(tmp_path / "p", lambda k: halves(0, 255, 128, 7))
    assert run(root, tmp_path / "one", mask_values=["255=coin", "128=coin,7=ignore"]) == 0
    shards = ShardSet(tmp_path / "one")
    assert shards.class_names == ["coin"] and stored(tmp_path / "one")[0] == [0, 1, 255]
    assert (shards.mask(0)[6:18] == 1).all() and shards.tags.tolist() == [[1]] * 3
    assert shards.manifest.provenance["parameters"]["mask_values"]["128"] == "coin"
    (root / "classes.txt").write_text("note\ncoin\n")
    assert run(root, tmp_path / "two", mask_values=["128=coin", "7=note"]) == 0
    assert stored(tmp_path / "two")[0] == [0, 1, 2, 255]


def test_mask_values_in_worker_processes(tmp_path):
    root = photos(tmp_path / "p", lambda k: halves(0, 255), count=4)
    assert run(root, tmp_path / "set", mask_values=["255=coin"], workers=2) == 0
    assert stored(tmp_path / "set") == [[0, 1]] * 4


@pytest.mark.parametrize(("options", "words"), [
    ({"mask_values": ["255=coin"]}, ["mask value 9", "--mask-values 9=CLASS"]),
    ({"mask_values": ["coin=255"]}, ["not VALUE=CLASS"]),
    ({"mask_values": ["256=coin"]}, ["not VALUE=CLASS"]),
    ({"mask_values": ["9=coin", "9=dog"]}, ["9 is given twice"]),
    ({"mask_values": ["9=coin"], "colours": "c.txt"}, ["two meanings"])])
def test_mask_values_that_do_not_fit_are_refused(tmp_path, options, words):
    root = photos(tmp_path / "p", lambda k: halves(0, 9))
    message = refuse(root, tmp_path / "set", **options)
    assert all(word in message for word in words), message


def test_mask_values_need_masks_and_known_classes(tmp_path):
    root = photos(tmp_path / "p", lambda k: halves(0, 9))
    (root / "classes.txt").write_text("note\n")
    assert "unknown class 'coin'" in refuse(root, tmp_path / "set", mask_values=["9=coin"])
    assert "no masks" in refuse(root / "images", tmp_path / "set", mask_values=["9=coin"])


def colours(*names):
    table = {"background": (0, 0, 0), "light": (250, 50, 83), "dog": (51, 221, 255),
             "ignore": (1, 2, 3), "border": (224, 224, 192), "other": (9, 9, 9)}
    return halves(*(table[name] for name in names))


@pytest.mark.parametrize("place", ["labelmap.txt", "masks/labelmap.txt", "elsewhere"])
def test_rgb_masks_with_cvats_labelmap(tmp_path, place, capsys):
    root = photos(tmp_path / "p", lambda k: colours("background", "dog", "light", "ignore",
                                                    "border", "dog"))
    (root / place).write_text(LABELMAP)
    given = root / place if place == "elsewhere" else None
    assert run(root, tmp_path / "set", colours=given) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["traffic_light", "dog"]
    assert shards.mask(0)[::4, 0].tolist() == [0, 2, 1, 255, 255, 2]
    assert "left out: 1 (labelmap.txt)" not in capsys.readouterr().err
    assert shards.manifest.provenance["parameters"]["colours"]["51,221,255"] == "dog"


@pytest.mark.parametrize("form", ["RGBA", "P"])
def test_colour_masks_with_palette_or_alpha(tmp_path, form):
    """The palette's colours decide, in whatever order it has them."""
    def mask(k):
        image = Image.fromarray(colours("background", "dog", "light"))
        return image.quantize(8) if form == "P" else image.convert(form)

    root = photos(tmp_path / "p", mask)
    (root / "labelmap.txt").write_text(LABELMAP)
    assert run(root, tmp_path / "set") == 0
    assert stored(tmp_path / "set") == [[0, 1, 2]] * 3


def test_an_unknown_colour_is_refused_by_name(tmp_path):
    root = photos(tmp_path / "p", lambda k: colours("background", "other"))
    (root / "labelmap.txt").write_text(LABELMAP)
    message = refuse(root, tmp_path / "set")
    assert "colour 9,9,9" in message and "384 pixels" in message and "labelmap.txt" in message


def test_rgb_masks_without_colours_name_the_option(tmp_path):
    root = photos(tmp_path / "p", lambda k: colours("background", "dog"))
    (root / "classes.txt").write_text("dog\n")
    assert "--colours FILE" in refuse(root, tmp_path / "set")


@pytest.mark.parametrize("text", [
    LABELMAP, "name,r,g,b\ntraffic_light,250,50,83\ndog,51,221,255\n__ignore__,1,2,3\n",
    "250 50 83\ttraffic_light\n51, 221, 255 dog\n1,2,3,ignore\n"])
def test_forms_of_colour_lists(tmp_path, text):
    (tmp_path / "c.txt").write_text("\ufeff" + text)
    found = read_colours(tmp_path / "c.txt")
    assert found.classes == ["traffic_light", "dog"]
    assert found.names[51, 221, 255] == "dog" and found.names[224, 224, 192] == "ignore"
    assert dict(found.reader(["dog", "traffic_light"]).indices)[250, 50, 83] == 2


@pytest.mark.parametrize(("text", "words"), [
    ("dog:::\n", "line 1: 'dog:::' is no class"), ("dog:1,2,300::\n", "line 1"),
    ("a:1,2,3::\nb:1,2,3::\n", "a and b have one colour"), ("# nothing\n", "no colour in it")])
def test_colour_lists_that_are_refused(tmp_path, text, words):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_colours(tmp_path / "c.txt")


def test_a_class_name_with_a_blank_in_options_and_lists(tmp_path):
    (tmp_path / "c.txt").write_text("traffic  light:1,2,3::\n")
    assert read_colours(tmp_path / "c.txt").classes == ["traffic light"]
    assert parse_values(["1=traffic light"]).classes == ["traffic light"]


def test_a_voc_folder_is_sent_to_its_own_tool(tmp_path):
    """Its masks were taken for pictures."""
    pictures(tmp_path / "v/JPEGImages", ["a.jpg"])
    (tmp_path / "v/SegmentationClass").mkdir()
    save_mask(tmp_path / "v/SegmentationClass/a.png", halves(0, 1))
    assert "data_tools.voc" in refuse(tmp_path / "v", tmp_path / "set", tags_from_folders=True)
