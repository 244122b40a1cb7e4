"""The package in Python: the masks of `more predict`, maps, files, errors, and light imports."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import more
from more.cli import main
from more.data.seeds import decode_seed, seed_probabilities
from more.data.shards.codec import decode_image
from more.data.shards.reader import ShardSet
from more.evaluation.pictures import mask_overlay
from more.inference.localize import Request, localize
from more.inference.predict import predict
from more.inference.predict_job import Options
from more.inference.trained import export_weights
from tests.conftest import ROOT
from tests.data.sets import NAMES, picture, small_set
from tests.inference.test_localize import make_run
from tests.inference.test_predict import values

LOW = 0.1  # a threshold that an untrained network's classes reach


def named(run: Path) -> Path:
    (run / "run.json").write_text(json.dumps({"classes": NAMES}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return named(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def net(run) -> more.Network:
    return more.load(run, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Three pictures: with batches of two one is alone."""
    folder = tmp_path_factory.mktemp("photos")
    for k, name in enumerate("abc"):
        (folder / f"{name}.jpg").write_bytes(picture(k, 30 + 7 * k, 50))
    return sorted(folder.iterdir())


def code(text: str, *arguments: object) -> str:
    """What a new interpreter prints that runs `text`."""
    done = subprocess.run([sys.executable, "-c", text, *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_else():
    loaded = code("import sys; before = set(sys.modules); import more; print(more.__version__, "
                  "more.__all__, dir(more)); print(*sorted(set(sys.modules) - before))")
    first, modules = loaded.splitlines()
    assert more.__version__ in first and "'refine'" in first
    assert all(name == "more" or name.split(".")[0] in sys.stdlib_module_names
               for name in modules.split())
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = more.fit


def test_neither_deepspeed_nor_training_is_imported(run, tmp_path):
    small_set(tmp_path / "set", shards=1, rows=2)
    text = """
import sys, numpy as np, more
image, maps = np.zeros((9, 8, 3), np.uint8), np.full((2, 9, 8), 0.5, np.float32)
more.refine(image, maps)
print("torch" in sys.modules)
network = more.load(sys.argv[1])
network.predict(more.open(sys.argv[2])[0].image).overlay()
network.maps(image)
print([name for name in sys.modules if name.startswith(
    ("deepspeed", "more.train", "more.method.losses", "more.commands"))])
"""
    assert code(text, run, tmp_path / "set").split() == ["False", "[]"]


def test_the_lazy_names_are_those_that_editors_see():
    tree = ast.parse((ROOT / "more" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == more._HOME and sorted(seen) == sorted(more.__all__)
    assert all(getattr(more, name).__module__ == seen[name][0] for name in seen)


@pytest.mark.parametrize("kind", ["decoder", "lam", "cam", "fused"])
@pytest.mark.parametrize("crf", [True, False])
def test_the_files_are_those_of_more_predict(net, run, photos, tmp_path, monkeypatch, kind, crf):
    line = ["more", "predict", str(photos[1]), "--run", str(run), "--out", str(tmp_path / "cli"),
            "--map", kind, "--tag-threshold", str(LOW), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", line if crf else [*line, "--no-crf"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    made = net.predict(photos[1], map=kind, crf=crf, tag_threshold=LOW)
    assert made.save(tmp_path / "api" / "b.png") == tmp_path / "api" / "b.png"
    for name in ("b.png", "b_overlay.jpg", "b.json"):
        assert (tmp_path / "api" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes()
    assert np.array_equal(values(tmp_path / "cli" / "b.png"), made.mask)
    assert made.mask.any() and made.mask.dtype == np.uint8 and made.mask.shape == (37, 50)
    pixels = decode_image(photos[1].read_bytes(), "")
    for form in (str(photos[1]), pixels, Image.fromarray(pixels)):
        same = net.predict(form, map=kind, crf=crf, tag_threshold=LOW)
        assert np.array_equal(same.mask, made.mask)


def test_a_list_gives_the_masks_of_a_folder(net, run, photos, tmp_path):
    predict([str(photos[0].parent)], run, tmp_path, Options(tag_threshold=LOW))
    made = net.predict(photos, tag_threshold=LOW)
    assert len(made) == 3 and net.predict([]) == []
    for path, each in zip(photos, made, strict=True):
        assert np.array_equal(values(tmp_path / f"{path.stem}.png"), each.mask)
        each.save(tmp_path)
    assert predict([str(photos[0].parent)], run, tmp_path, Options(tag_threshold=LOW)).skipped == 3


@pytest.mark.parametrize("kind", ["lam", "decoder"])
def test_given_tags_are_those_of_a_tags_file(net, run, photos, tmp_path, kind):
    wanted = [["dog"], ["cat", "cow"], []]
    lines = [f'{path.name},"{",".join(names)}"' for path, names in zip(photos, wanted, strict=True)]
    (tmp_path / "tags.csv").write_text("\n".join(["id,tags", *lines]))
    options = Options(kind, tmp_path / "tags.csv", crf=False)
    predict([str(photos[0].parent)], run, tmp_path / "out", options)
    for path, names, each in zip(photos, wanted, net.predict(photos, map=kind, tags=wanted,
                                                             crf=False), strict=True):
        assert np.array_equal(values(tmp_path / "out" / f"{path.stem}.png"), each.mask)
        assert set(each.tags) == set(names) and set(each.labels) <= {"background", *names}
        facts = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
        assert facts["provenance"] == each.provenance
    assert list(net.predict(photos[0], tags="dog", map=kind).tags) == ["dog"]
    assert [list(each.tags) for each in net.predict(photos[:2], tags=["dog"])] == [["dog"]] * 2


def test_what_a_prediction_holds(net, photos):
    made = net.predict(photos[0], tag_threshold=LOW)
    assert net.classes == made.classes == tuple(NAMES) and net.map == "lam"
    assert made.probabilities.shape == (len(made.labels), 30, 50)
    assert np.allclose(made.probabilities.sum(0), 1, atol=1e-4)
    assert np.array_equal(made.values[made.probabilities.argmax(0)], made.mask)
    assert made.labels == ["background", *(NAMES[v - 1] for v in made.values[1:])]
    assert list(made.tags.values()) == sorted(made.tags.values(), reverse=True)
    assert min(made.tags.values()) >= LOW and set(made.tags) == set(made.labels[1:])
    painted = mask_overlay(made.image, made.mask, names=NAMES)
    assert np.array_equal(np.asarray(made.overlay()), painted)
    assert not np.array_equal(np.asarray(made.overlay("okabe-ito")), painted)
    assert repr(made).startswith(f"Prediction({photos[0]}, 30 × 50: ")
    assert np.array_equal(pickle.loads(pickle.dumps(made)).mask, made.mask)
    none = net.predict(photos[0], tag_threshold=1.0)
    assert not none.mask.any() and none.tags == {} and none.labels == ["background"]


def test_saving_never_replaces_the_picture(net, tmp_path):
    own = tmp_path / "own.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(own)
    before = own.read_bytes()
    with Image.open(own) as opened:
        for made in (net.predict(own), net.predict(opened)):
            for place in (own, tmp_path, tmp_path / "sub" / ".." / "own"):
                with pytest.raises(more.UserError, match="own.png: is the picture itself"):
                    made.save(place)
    assert own.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["own.png"]
    with pytest.raises(more.UserError, match="written as PNG"):
        made.save(tmp_path / "mask.jpg")
    array = net.predict(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(more.UserError, match="no file name"):
        array.save(tmp_path)
    assert array.save(tmp_path / "v1.5", overlay=False) == tmp_path / "v1.5.png"
    assert not (tmp_path / "v1.5_overlay.jpg").exists()
    assert json.loads((tmp_path / "v1.5.json").read_text())["file"] is None


def test_a_folder_that_is_not_there_yet_is_made(net, photos, tmp_path):
    made = net.predict(photos[0], crf=False)
    assert made.save(f"{tmp_path}/new/") == tmp_path / "new" / f"{photos[0].stem}.png"
    assert len(list((tmp_path / "new").iterdir())) == 3
    with pytest.raises(more.UserError, match="no file name"):
        net.predict(np.zeros((40, 60, 3), np.uint8), crf=False).save(f"{tmp_path}/other/")


def test_maps_are_those_of_localize(net, run, tmp_path):
    source = ShardSet(small_set(tmp_path / "set", shards=1, rows=2))
    localize(run, tmp_path / "set", tmp_path / "seeds", Request(("cam", "lam"), "true", 1))
    for row in range(2):
        tags = [NAMES[k] for k in np.flatnonzero(source.tags[row])]
        made = net.maps(source.image(row), tags)
        for kind, maps in made._asdict().items():
            item = decode_seed(ShardSet(tmp_path / "seeds" / kind).blob("seed", row))
            _, wanted = seed_probabilities(item, tuple(source.sizes[row]))
            assert list(maps) == tags and maps[tags[0]].dtype == np.float32
            assert np.allclose(maps[tags[0]], wanted[1], atol=2e-3)
            assert 0 <= maps[tags[0]].min() and maps[tags[0]].max() <= 1
    found = net.maps(source.image(0), tag_threshold=LOW)
    assert set(found.cam) == set(found.lam) == set(net.predict(source.image(0), crf=False,
                                                               tag_threshold=LOW).tags)
    assert net.maps(source.image(0), tag_threshold=1.0) == ({}, {})


def test_which_network_serves_is_the_choice_of_more_predict(tmp_path, photos):
    run = named(make_run(tmp_path / "run", step=7))
    two = named(make_run(run / "two", step=9))
    settings = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**settings, "stage": 2}))
    assert more.load(run).map == "lam"
    (two / "status.json").write_text(json.dumps({"state": "finished", "step": 9}))
    both = more.load(run)
    assert both.map == "decoder" and "step-000009: decoder, 3 classes, on cpu" in repr(both)
    for kind, step in ((None, "step-000009"), ("decoder", "step-000009"), ("lam", "step-000007")):
        made = both.predict(photos[0], map=kind, crf=False, tag_threshold=LOW)
        assert made.provenance["checkpoint"] == step
    assert more.load(run, map="lam").predict(photos[0]).provenance["checkpoint"] == "step-000007"
    file = more.load(export_weights(two, tmp_path / "two.safetensors"))
    assert file.map == "decoder" and np.array_equal(
        file.predict(photos[0]).mask, both.predict(photos[0]).mask)


@pytest.mark.parametrize(("path", "options", "words"), [
    ("none.safetensors", {}, "none.safetensors: no such file or folder"),
    ("text.safetensors", {}, "text.safetensors: cannot be read"),
    ("folder", {}, "config.json: missing"),
    ("run", {"map": "lamb"}, "map 'lamb': unknown"),
    ("run", {"device": "tpu"}, "device tpu: unknown"),
    ("run", {"checkpoint": "step-000001"}, "step-000001: not a usable checkpoint")])
def test_what_cannot_be_loaded_is_named(run, tmp_path, path, options, words):
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "folder").mkdir()
    with pytest.raises(more.UserError, match=words) as error:
        more.load(run if path == "run" else tmp_path / path, **options)
    assert error.value.fix


@pytest.mark.parametrize(("value", "options", "words"), [
    ("none.jpg", {}, "none.jpg: no such file"), ("", {}, "a folder, not an image"),
    ("text.jpg", {}, "text.jpg: cannot be decoded"), ("cut.jpg", {}, "cut.jpg: .* image"),
    (np.zeros((4, 5, 3)), {}, "not float64 4 × 5 × 3"),
    (np.zeros((4, 5), np.uint8), {}, "not uint8 4 × 5"), (3, {}, "of type int"),
    ([3], {}, "of type int"),
    ("a.jpg", {"tags": ["dgo"]}, "unknown class 'dgo'"),
    ("a.jpg", {"tags": [["dog"]]}, "several lists for one picture"),
    (["a.jpg", "a.jpg"], {"tags": [["dog"]]}, "1 lists for 2 pictures"),
    ("a.jpg", {"tag_threshold": 2}, "tag_threshold is 2"),
    ("a.jpg", {"map": "mean"}, "map 'mean': unknown")], ids=str)
def test_what_cannot_be_predicted_is_named(net, tmp_path, monkeypatch, value, options, words):
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(picture(1))
    Path("cut.jpg").write_bytes(picture(9, 60, 60)[:-40])
    Path("text.jpg").write_text("a day at the sea")
    with pytest.raises(more.UserError, match=words) as error:
        net.predict(value, **options)
    assert error.value.fix
