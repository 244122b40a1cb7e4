"""Own pictures: masks, what is written, what is skipped, which inputs count, exit codes."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from more.cli import main
from more.data.seeds import decode_seed, seed_label
from more.data.shards.codec import decode_image
from more.data.shards.format import write_atomic
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.inference import predict_files
from more.inference.contact_sheet import SHEET
from more.inference.localize import Request, localize
from more.inference.predict import predict
from more.inference.predict_job import Options
from more.inference.trained import export_weights
from more.refinement.refine import refine
from tests.data.sets import NAMES, picture, small_set
from tests.data_tools.odd import PICTURES
from tests.inference.test_localize import make_run

PLAIN = Options(crf=False, overlay=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"))
    (run / "run.json").write_text(json.dumps({"classes": NAMES}))
    return run


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three pictures at three depths, and a text."""
    folder = tmp_path / "photos"
    (folder / "sub" / "deep").mkdir(parents=True)
    for k, name in enumerate(("a.jpg", "sub/b.JPEG", "sub/deep/c.jpg")):
        (folder / name).write_bytes(picture(k, 30 + 7 * k, 50))
    (folder / "notes.txt").write_text("a day at the sea")
    return folder


def made(out: Path) -> list[str]:
    """Names of all results; the contact sheet is none."""
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*")
                  if path.is_file() and path.name != SHEET)


def values(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert opened.mode == "P", "an index PNG with a palette"
        return np.asarray(opened)


def facts(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["lam", "cam", "fused"])
def test_the_mask_holds_predicted_classes_only(run, photos, tmp_path, kind):
    every, some = tmp_path / "every", tmp_path / "some"
    predict([str(photos)], run, every, Options(kind, tag_threshold=0.0))
    scores = [entry["probability"] for entry in facts(every / "a.json")["classes"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    threshold = (scores[0] + scores[1]) / 2
    tally = predict([str(photos)], run, some, Options(kind, tag_threshold=threshold))
    assert (tally.done, tally.skipped, tally.exit_code) == (3, 0, 0)
    for k, name in enumerate(("a", "sub/b", "sub/deep/c")):
        mask, about = values(some / f"{name}.png"), facts(some / f"{name}.json")
        assert mask.shape == (30 + 7 * k, 50) == tuple(about["size"])
        tags = {entry["value"] for entry in about["classes"] if entry["tag"]}
        assert set(np.unique(mask)) <= {0, *tags}
        for entry in about["classes"]:
            assert entry["tag"] == (entry["probability"] > threshold)
            assert entry["pixels"] == (mask == entry["value"]).sum()
            assert entry["name"] == NAMES[entry["value"] - 1]
        with Image.open(some / f"{name}_overlay.jpg") as overlay:
            assert overlay.size == mask.shape[::-1]


def test_without_a_class_all_is_background_and_the_record_says_how(run, photos, tmp_path):
    predict([str(photos / "a.jpg")], run, tmp_path / "out", Options(tag_threshold=1.0))
    assert made(tmp_path / "out") == ["a.json", "a.png", "a_overlay.jpg"]
    assert not values(tmp_path / "out" / "a.png").any()
    about = facts(tmp_path / "out" / "a.json")
    record = about["provenance"]
    assert about["file"].endswith("a.jpg") and about["background_pixels"] == 30 * 50
    assert record["map"] == "lam" and record["checkpoint"] == "step-000005"
    assert record["tag_threshold"] == 1.0 and record["crf"]["parameters"]["iterations"] == 10
    assert len(record["weights"]) == len(record["image"]) == 64


@pytest.mark.parametrize("kind", ["lam", "cam"])
def test_the_masks_are_those_of_localize_and_refine(run, tmp_path, kind):
    source = ShardSet(small_set(tmp_path / "set", shards=1, rows=4))
    lines = ["id,tags"]
    (tmp_path / "files").mkdir()
    for row, name in enumerate(source.ids):
        (tmp_path / "files" / f"{name}.jpg").write_bytes(source.blob("image", row))
        lines.append(f"{name},{NAMES[int(source.tags[row].argmax())]}")
    tags = tmp_path / "tags.csv"
    tags.write_text("\n".join(lines))
    localize(run, tmp_path / "set", tmp_path / "seeds", Request((kind,), "true", 0))
    refine(tmp_path / "seeds", tmp_path / "set", tmp_path / "masks", workers=1)
    seeds, masks = ShardSet(tmp_path / "seeds"), ShardSet(tmp_path / "masks")
    for out, crf in (("crf", True), ("plain", False)):
        predict([str(tmp_path / "files")], run, tmp_path / out, Options(kind, tags, crf=crf))
        for row, name in enumerate(source.ids):
            wanted = masks.mask(row) if crf else seed_label(
                decode_seed(seeds.blob("seed", row)), tuple(source.sizes[row]), 0.5)
            assert np.array_equal(values(tmp_path / out / f"{name}.png"), wanted)


def test_given_tags_hold_for_the_decoder_and_every_picture_needs_a_line(run, photos, tmp_path):
    tags = tmp_path / "tags.csv"
    tags.write_text("id,tags\na.jpg,dog\n./sub\\b.JPEG,cat cow\n")
    tally = predict([str(photos)], run, tmp_path / "out", Options("decoder", tags, crf=False))
    assert tally.done == 2 and len(tally.failures) == 1
    assert tally.failures[0][0].endswith("c.jpg") and "no line in" in tally.failures[0][1]
    assert set(np.unique(values(tmp_path / "out" / "a.png"))) <= {0, 2}
    assert set(np.unique(values(tmp_path / "out" / "sub/b.png"))) <= {0, 1, 3}
    assert facts(tmp_path / "out" / "a.json")["provenance"]["tags"] == ["dog"]
    tags.write_text("id,tags\na,dgo\n")
    with pytest.raises(UserError, match="unknown class 'dgo'"):
        predict([str(photos)], run, tmp_path / "out", Options("decoder", tags))


def test_damaged_files_are_named_and_the_others_done(run, photos, tmp_path, capsys):
    (photos / "cut[1].jpg").write_bytes(picture(9, 60, 60)[:-40])
    (photos / "empty.png").write_bytes(b"")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere")
    (photos / f"{'n' * 250}.jpg").write_bytes(picture(9))  # too long with another ending
    tally = predict([str(photos)], run, tmp_path / "out", PLAIN)
    assert tally.done == 3 and tally.exit_code == 1
    reasons = {Path(name).name: why for name, why in tally.failures}
    assert "image" in reasons["cut[1].jpg"] and "No such file" in reasons["gone.png"]
    assert "cannot be decoded" in reasons["empty.png"] and len(reasons) == 4
    assert "cut[1].jpg: " in capsys.readouterr().err, "brackets are no markup"
    assert not list((tmp_path / "out").glob("cut*"))


def test_a_rerun_does_only_what_changed(run, photos, tmp_path):
    out, inputs = tmp_path / "out", [str(photos)]

    def again(**changes) -> tuple[int, int]:
        tally = predict(inputs, run, out, Options(**changes))
        return tally.done, tally.skipped

    assert again() == (3, 0)
    assert again() == (0, 3)
    (out / "sub/b_overlay.jpg").unlink()
    (photos / "a.jpg").write_bytes(picture(77, 31, 50))
    assert again() == (2, 1) and values(out / "a.png").shape == (31, 50)
    assert again(overlay=False) == (0, 3), "more than was asked for is there"
    assert again(tag_threshold=0.2, overlay=False) == (3, 0)
    assert not list(out.rglob("*.jpg")), "overlays of other masks"
    assert again(tag_threshold=0.2) == (3, 0)
    assert again(map="cam", tag_threshold=0.2) == (3, 0)
    assert again(map="cam", tag_threshold=0.2, crf=False) == (3, 0)
    (out / "sub" / "b.json").write_text("{")
    (out / "sub" / "b.png.tmp.more-host-123-0a1b2c3d").write_text("left by a killed writer")
    assert again(map="cam", tag_threshold=0.2, crf=False) == (1, 2)
    assert not list(out.rglob("*.tmp.*"))


def test_a_full_disk_ends_the_work_and_the_rest_is_done_later(run, photos, tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        if path.name == "b.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, data)

    monkeypatch.setattr(predict_files, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        predict([str(photos)], run, tmp_path / "out", Options(crf=False, batch=1))
    monkeypatch.undo()
    tally = predict([str(photos)], run, tmp_path / "out", Options(crf=False, batch=1))
    assert (tally.done, tally.skipped) == (2, 1)


@pytest.mark.parametrize(("inputs", "names"), [
    (["P/a.jpg"], ["a"]), (["P/a.jpg", "P/sub/b.JPEG", "P/sub/../a.jpg"], ["a", "sub/b"]),
    (["P/sub"], ["b", "deep/c"]), (["P/*.jpg"], ["a"]), (["P/**/*.jpg"], ["a", "sub/deep/c"]),
    (["P/s*"], ["sub/b", "sub/deep/c"]), (["P", "P/sub"], ["a", "sub/b", "sub/deep/c"])],
    ids=" ".join)
def test_inputs_and_names(run, photos, tmp_path, inputs, names):
    predict([text.replace("P", str(photos), 1) for text in inputs], run, tmp_path / "out", PLAIN)
    assert made(tmp_path / "out") == sorted(
        f"{name}{end}" for name in names for end in (".png", ".json"))


def test_no_result_overwrites_another(run, photos, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(picture(5))
    (tmp_path / "one" / "a.png").write_bytes(PICTURES["alpha"])
    predict([str(tmp_path / "one")], run, tmp_path / "out", PLAIN)
    assert made(tmp_path / "out") == ["a.json", "a.png", "a.png.json", "a.png.png"]
    assert values(tmp_path / "out" / "a.png.png").shape == (40, 60)
    with pytest.raises(UserError, match="both would be called a"):
        predict([str(tmp_path / "one"), str(tmp_path / "two")], run, tmp_path / "out", PLAIN)
    with pytest.raises(UserError, match="where the results go"):
        predict([str(photos)], run, photos, PLAIN)
    inside = photos / "out"
    for done in (3, 0):  # results inside the input are no input
        assert predict([str(photos)], run, inside, Options(crf=False)).done == done


def test_pictures_of_every_kind(run, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, data in PICTURES.items():
        (folder / f"{name}.jpg").write_bytes(data)
    tally = predict([str(folder)], run, tmp_path / "out", Options(tag_threshold=0.0))
    assert (tally.done, tally.failures) == (len(PICTURES), [])
    for name, data in PICTURES.items():
        assert values(tmp_path / "out" / f"{name}.png").shape == decode_image(data, "").shape[:2]


def test_exported_weights_give_the_same_masks(run, photos, tmp_path):
    file = export_weights(run, tmp_path / "w.safetensors")
    for source, out in ((run, "a"), (file, "b")):
        assert predict([str(photos)], source, tmp_path / out, Options(tag_threshold=0.3)).done == 3
    for name in ("a", "sub/b", "sub/deep/c"):
        assert (tmp_path / "a" / f"{name}.png").read_bytes() == (
            tmp_path / "b" / f"{name}.png").read_bytes()
    assert facts(tmp_path / "a/a.json")["classes"] == facts(tmp_path / "b/a.json")["classes"]


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*arguments, listed=…)` gives exit code and stderr of `more predict`."""

    def call(*arguments: object, listed: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["more", "predict", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, " ".join(capsys.readouterr().err.split())

    return call


def test_the_command_line_and_its_exit_codes(command, run, photos, tmp_path):
    out = ("--run", run, "--out", tmp_path / "out", "--no-overlay", "--device", "cpu")
    listed = f"{photos / 'a.jpg'}\n{photos / 'sub/b.JPEG'}\r\n\n{photos / 'a.jpg'}\n"
    code, text = command("-", *out, listed=listed)
    assert code == 0 and "done 2, skipped 0, failed 0" in text
    assert made(tmp_path / "out") == ["a.json", "a.png", "sub/b.json", "sub/b.png"]
    code, text = command("-", photos / "sub", *out, listed=f"{photos / 'a.jpg'}\0{photos}/x.jpg")
    assert code == 1 and "done 2, skipped 1, failed 1" in text and "x.jpg: No such file" in text
    for arguments, word in (
            ((photos / "none.jpg", *out), "none.jpg: no such file"),
            (("-", *out), "no image found"), ((photos, *out, "--map", "map"), "--map map"),
            ((photos, *out, "--tags", tmp_path / "no.csv"), "no.csv: no such file"),
            ((photos, *out, "--tag-threshold", "2"), "--tag-threshold"),
            ((photos, *out[:-1], "tpu"), "--device tpu"),
            ((photos, "--run", tmp_path / "norun", *out[2:]), "norun")):
        code, text = command(*arguments)
        assert code == 2 and word in text, text


def test_predict_does_not_import_deepspeed():
    code = "import sys, more.inference.predict; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_map_the_decoder_of_a_finished_stage_two_is_taken(run, photos, tmp_path, capsys):
    def provenance(folder, out):
        predict([str(photos / "a.jpg")], folder, out, Options(crf=False))
        return json.loads((out / "a.json").read_text())["provenance"]

    both = make_run(tmp_path / "both", step=7)
    assert provenance(both, tmp_path / "one")["map"] == "lam"
    two = make_run(both / "two", step=9)
    settings = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**settings, "stage": 2}))
    assert provenance(both, tmp_path / "unfinished")["map"] == "lam"
    (two / "status.json").write_text(json.dumps({"state": "finished", "step": 9}))
    record = provenance(both, tmp_path / "finished")
    assert (record["map"], record["checkpoint"]) == ("decoder", "step-000009")
    assert record["trained_on"] == "masks from tags"
    assert "stage two, trained on masks from tags" in capsys.readouterr().err
    asked = Options(map="lam", crf=False)
    predict([str(photos / "a.jpg")], both, tmp_path / "asked", asked)
    assert json.loads((tmp_path / "asked" / "a.json").read_text())["provenance"]["map"] == "lam"
    file = export_weights(two, tmp_path / "two.safetensors")
    assert provenance(file, tmp_path / "file")["map"] == "decoder"


def test_the_palette_colours_mask_overlay_and_json_alike(run, photos, tmp_path):
    """Another palette is another result: it is made again."""
    from more.palette import palette

    out, found = tmp_path / "out", set()
    for name in ("voc", "okabe-ito"):
        tally = predict([str(photos / "a.jpg")], run, out, Options(crf=False, palette=name))
        assert (tally.done, tally.skipped) == (1, 0)
        facts = json.loads((out / "a.json").read_text())
        assert facts["provenance"]["palette"] == name
        with Image.open(out / "a.png") as mask:
            assert bytes(mask.getpalette()[:24]) == palette(name)[:8].tobytes()
        found.add((out / "a_overlay.jpg").read_bytes())
    assert len(found) == 2
    with pytest.raises(UserError, match="palette"):
        predict([str(photos / "a.jpg")], run, out, Options(palette="rainbow"))
