"""`data_tools.inspect`: counts, sizes, pixels per class, and the sheet of sample pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from data_tools import inspect
from data_tools.facts import count_pixels, describe, histogram_edges, payload_lengths
from data_tools.sheet import drawable, write_sheet
from more.data.shards.codec import encode_mask
from more.data.shards.format import shard_name
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.errors import UserError
from tests.data.sets import NAMES, picture, small_set
from tests.data_tools.layout import tool
from tests.data_tools.random_sets import a_set, ids


def odd_set(folder, kind="images", with_image=True):
    """Ids in several scripts, long names, many tags, a mask here and there, a broken picture."""
    names = [f"class_number_{k}" for k in range(20)] + ["[bold]", "写真"]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("Übung-写真", (30, 40)), ("x" * 150, (40, 300)), ("🐄 кот $x^2$", (1, 1)),
            ("broken", (30, 40)), ("wide", (300, 700))]
    with ShardWriter(folder / shard_name(0), kind, names) as writer:
        for number, (image_id, size) in enumerate(rows):
            mask = np.zeros(size, np.uint8)
            mask[:size[0] // 2], mask[-1] = number + 1, 255
            tags = np.ones(len(names), int) if number == 1 else np.eye(len(names), dtype=int)[-2]
            image = (b"no image" if image_id == "broken" else picture(number, *size)
                     ) if with_image else None
            writer.add(image_id, tags, size, image=image,
                       mask=encode_mask(mask) if number != 2 or not with_image else None)
    write_manifest(folder, kind, names, [writer.entry], {})
    return folder


def test_numbers(tmp_path):
    facts = describe(ShardSet(small_set(tmp_path / "set")))
    assert facts["images"] == 15 and facts["classes"] == {"cat": 5, "dog": 5, "cow": 5}
    assert facts["smallest"] == [30, 40] and facts["largest"] == [44, 40]
    assert facts["median"] == [37, 40] and facts["present"] == {"image": 15, "mask": 15}
    assert facts["longer_side"]["p0"] == 40 and facts["longer_side"]["p100"] == 44
    assert facts["aspect"]["p100"] == round(40 / 30, 4)
    assert facts["longer_side_counts"] == {"40": 11, "41": 1, "42": 1, "43": 1, "44": 1}
    json.dumps(facts)


def test_payloads_are_counted_by_row(tmp_path):
    shards = ShardSet(a_set(tmp_path / "set", ids("x", 9), rows=2))
    expected = [len(shards.blob("mask", row)) for row in shards]
    assert payload_lengths(shards, "mask").tolist() == expected and 0 in expected
    assert describe(shards)["present"]["mask"] == sum(length > 0 for length in expected)
    assert payload_lengths(shards, "seed").tolist() == [0] * 9


@pytest.mark.parametrize(("values", "edges"), [
    ([7], [7, 8]), ([0, 9], list(range(11))), ([0, 10], [0, 2, 4, 6, 8, 10, 12]),
    ([151, 500], [150, 200, 250, 300, 350, 400, 450, 500, 550]), ([1, 30_000], None)])
def test_bins_of_sizes(values, edges):
    found = histogram_edges(np.array(values))
    assert edges is None or found == edges
    assert len(found) <= 11 and found[0] <= min(values) and found[-1] > max(values)
    assert np.histogram(values, found)[0].sum() == len(values)


def test_pixels_per_class(tmp_path, capsys):
    folder = small_set(tmp_path / "set")
    one, two = (count_pixels(ShardSet(folder), workers) for workers in (1, 2))
    shards = ShardSet(folder)
    masks = [shards.mask(row) for row in shards]
    values = {"background": 0, "cat": 1, "dog": 2, "cow": 3, "ignore": 255}
    assert one == two == {name: {"pixels": sum(int((m == v).sum()) for m in masks),
                                 "images": sum(bool((m == v).any()) for m in masks)}
                          for name, v in values.items()}
    assert inspect.main(folder, pixels=True, workers=1) == 0
    assert "ignore" in (said := capsys.readouterr().out) and "background" in said
    assert inspect.main(folder) == 0 and "ignore" not in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no masks"):
        inspect.main(a_set(tmp_path / "seeds", ids("x", 3), "seeds"), pixels=True)


def test_a_value_that_is_no_class_is_not_counted_away(tmp_path):
    with ShardWriter(tmp_path / shard_name(0), "masks", NAMES) as writer:
        writer.add("x", [1, 0, 0], (2, 2), mask=encode_mask(np.full((2, 2), 4, np.uint8)))
    write_manifest(tmp_path, "masks", NAMES, [writer.entry], {})
    with pytest.raises(UserError, match="masks hold 4, which is no class"):
        count_pixels(ShardSet(tmp_path), 1)


def test_tables_show_bars_and_odd_names_as_they_are(tmp_path, capsys):
    assert inspect.main(odd_set(tmp_path / "[red]set")) == 0
    said = capsys.readouterr().out
    assert "[bold]" in said and "写真" in said and "█" in said and "30 x 40" in said
    assert "with mask" in said and "[red]set" in said.replace("\n", "")


def test_the_sheet_shows_every_kind_of_row(tmp_path):
    folder, path = odd_set(tmp_path / "set"), tmp_path / "new" / "sheet.png"
    shards = ShardSet(folder)
    assert write_sheet(shards, path, images=99) == shards.ids
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.mode == "RGB" and sheet.width <= 1900
        pixels = np.asarray(sheet)
    assert {tuple(colour) for colour in pixels.reshape(-1, 3)[::7]} >= {(255, 255, 255)}
    first = path.read_bytes()
    write_sheet(shards, path, images=99)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_sheet_contains_the_pictures(tmp_path):
    """An image as it is, its mask beside it in the colour of its class."""
    with ShardWriter(tmp_path / shard_name(0), "images", NAMES) as writer:
        flat = cv2.imencode(".png", np.full((50, 60, 3), (30, 120, 200), np.uint8))[1].tobytes()
        writer.add("x", [0, 1, 0], (50, 60), image=flat,
                   mask=encode_mask(np.full((50, 60), 2, np.uint8)))
    write_manifest(tmp_path, "images", NAMES, [writer.entry], {})
    write_sheet(ShardSet(tmp_path), tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    image, painted = (200, 120, 30), np.rint(np.array((200, 120, 30)) * 0.45
                                             + np.array((0, 128, 0)) * 0.55)
    assert (pixels == image).all(1).sum() == 50 * 60
    assert (np.abs(pixels - painted).max(1) <= 1).sum() == 50 * 60


def test_samples_follow_the_seed(tmp_path):
    shards = ShardSet(small_set(tmp_path / "set"))
    chosen = [write_sheet(shards, tmp_path / "a.png", 6, seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and len(set(chosen[0])) == 6
    assert chosen[0] == [name for name in shards.ids if name in chosen[0]]


def test_masks_alone_and_seeds(tmp_path):
    masks = odd_set(tmp_path / "masks", "masks", with_image=False)
    assert write_sheet(ShardSet(masks), tmp_path / "masks.png", 3) and (
        tmp_path / "masks.png").stat().st_size > 500
    seeds = a_set(tmp_path / "seeds", ids("x", 3), "seeds")
    done = tool("inspect", seeds, "--sheet", tmp_path / "seeds.png")
    assert done.returncode == 2 and "seeds hold no pictures to draw" in done.stderr
    assert "fix: " in done.stderr and not (tmp_path / "seeds.png").exists()
    with pytest.raises(UserError, match="a sheet is a PNG file"):
        write_sheet(ShardSet(masks), tmp_path / "sheet.jpg")


def test_letters_without_a_glyph_are_spelled_out():
    assert drawable("Übung-кот") == "Übung-кот" and drawable("写🐄") == "\\u5199\\U0001f404"


def test_command_line(tmp_path):
    folder = small_set(tmp_path / "set")
    done = tool("inspect", folder, "--json", "--pixels", "--sheet", tmp_path / "s.png",
                "--images", 4, "--seed", 3, "--workers", 1)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert len(facts["sheet"]) == 4 and facts["pixels"]["ignore"]["images"] == 15
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size[0] > 300
