"""The whole path on COCO: annotations → shards → training → seeds → masks → scores → PNG."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from more.data.shards.reader import ShardSet
from tests.data_tools.coco_layout import CATEGORIES, CocoFolder, box
from tests.train.conftest import TINY, command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of 64×80 px, three COCO categories with ids 1, 10 and 90."""
    folder = CocoFolder(tmp_path_factory.mktemp("coco"), noise=False)
    for k in range(12):
        number = folder.image(f"COCO_train2014_{k:012d}.jpg", (64, 80), f"{k:012d}.jpg")
        folder.add(number, CATEGORIES[k % 3]["id"], [box(8, 8, 40, 50)])
        folder.add(number, CATEGORIES[(k + 1) % 3]["id"], [box(30, 30, 60, 70)])
    return folder.write()


def test_from_annotations_to_masks(run, folder, tmp_path):
    data, out = tmp_path / "set", tmp_path / "run"
    assert run("coco", folder.json, folder.root, data, "--shard-size", 4).code == 0
    config = tmp_path / "coco_tiny.py"
    config.write_text(TINY.replace("num_classes=7", "num_classes=3"))
    trained = command("train", config, "--train", data, "--val", data, "--run", out,
                      "--set", "data.augment=coco", "--set", "checkpoint.every=6")
    assert trained.returncode == 0, trained.stderr
    assert json.loads((out / "run.json").read_text())["classes"] == [
        "person", "traffic light", "toothbrush"]
    for step in (("localize", "--run", out, "--data", data, "--map", "lam", "--out", out / "seeds"),
                 ("refine", out / "seeds", "--data", data, "--out", out / "masks", "--workers", 1),
                 ("export", out / "masks", "--out", out / "png")):
        ended = run("more", *step)
        assert ended.code == 0 and "failed 0" in ended.err, ended.err
    scores = run("more", "evaluate", out / "masks", "--data", data, "--json")
    assert scores.code == 0
    facts = json.loads(scores.out)
    assert facts["images"] == 12 and "traffic light" in facts["classes"]
    masks, images = ShardSet(out / "masks"), ShardSet(data)
    assert masks.ids == images.ids and masks.ids[0] == "COCO_train2014_000000000000"
    for row in masks:  # never a class outside the image's tags
        allowed = {0, 255, *(k + 1 for k in range(3) if images.tags[row, k])}
        assert set(masks.mask(row).reshape(-1).tolist()) <= allowed
    # Stage two on these masks, padded crops and all, and what it says of the images.
    second = command("train", config, "--train", data, "--val", data, "--masks", out / "masks",
                     "--init", out, "--set", "data.augment=coco", "--set", "checkpoint.every=6",
                     "--set", "segment.blocks=1")
    assert second.returncode == 0, second.stderr
    about = json.loads((out / "two" / "run.json").read_text())
    assert (about["stage"], about["supervision"]) == (2, "tags")
    for step in (("localize", "--run", out / "two", "--data", data, "--map", "decoder", "--out",
                  out / "two" / "seeds"),
                 ("evaluate", out / "two" / "seeds", "--data", data, "--save",
                  out / "two" / "scores" / "seeds.json")):
        ended = run("more", *step)
        assert ended.code == 0, ended.err
    assert json.loads((out / "two" / "scores" / "seeds.json").read_text())["images"] == 12
    with Image.open(out / "png" / f"{masks.ids[0]}.png") as png:
        assert png.size == (80, 64) and png.mode == "P"
