"""Stage two in whole runs: what it takes over, what it trains, what it keeps, what it refuses."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from more.data.seeds import decode_seed
from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.filtering.parameters import CRFParams
from more.inference.localize import Request, localize
from more.inference.trained import load_run
from more.refinement.image import Refinement
from more.refinement.refine import refine
from tests.data.sets import flip_a_byte, mask_set
from tests.train.conftest import command, records
from tests.train.jobs import run_jobs

UPDATES = 6


def train(tiny, *words: object, settings=()):
    options = [part for setting in settings for part in ("--set", setting)]
    return command("train", tiny["config"], "--train", tiny["train"], *words, *options)


@pytest.fixture(scope="module")
def one(tiny, tmp_path_factory) -> Path:
    """A run of stage one."""
    run = tmp_path_factory.mktemp("one") / "run"
    done = train(tiny, "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def masks(tiny, one, tmp_path_factory) -> Path:
    """Masks that `more refine` makes of the seeds of stage one."""
    folder = tmp_path_factory.mktemp("masks")
    localize(one, tiny["train"], folder / "seeds", Request())
    tally = refine(folder / "seeds", tiny["train"], folder / "masks",
                   Refinement(CRFParams(iterations=2)), workers=1, progress=False,
                   make_executor=partial(ThreadPoolExecutor, 1))
    assert (tally.done, tally.exit_code) == (24, 0)
    return folder / "masks"


@pytest.fixture(scope="module")
def runs(tiny, one, masks, tmp_path_factory) -> Path:
    """Runs of stage two in one process."""
    folder = tmp_path_factory.mktemp("two") / "runs"
    run_jobs(tiny, folder, 1, {
        "decoder": ["segment.confidence=weight", "checkpoint.keep=9"],
        "images": ["segment.confidence=weight", "tokens.gb=0"],
        "room for one": ["segment.confidence=weight", "tokens.gb=1.5e-4"],
        "blocks": ["segment.blocks=2", "segment.tags=0.5", "checkpoint.keep=9"],
        "blocks, images": ["segment.blocks=2", "segment.tags=0.5", "tokens.gb=0"],
        "all": ["segment.blocks=-1", "segment.loss=plain"],
        "kept": ["segment.decoder=kept", "optim.lr=1e-9"],
        "fresh": ["optim.lr=1e-9"]}, masks, one)
    return folder


def step(run: Path, number: int = UPDATES) -> Path:
    return run / "checkpoints" / f"step-{number:06d}"


def weights(run: Path, number: int = UPDATES) -> dict[str, torch.Tensor]:
    return load_file(step(run, number) / "model.safetensors")


def changed(run: Path, start: Path) -> set[str]:
    """Parts of the network that differ: decoder, norm, numbers of blocks, other names."""
    before, after, found = weights(start), weights(run), set()
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == torch.float32
        if not torch.equal(value, before[name]):
            parts = name.removeprefix("encoder.").split(".")
            found.add(parts[1] if parts[0] == "blocks" else parts[0])
    return found


def terms(run: Path) -> list[dict[str, float]]:
    return [line["terms"] for line in records(run)]


@pytest.mark.parametrize(("name", "parts", "names"), [
    ("decoder", {"decoder"}, {"seg", "total"}),
    ("blocks", {"2", "3", "norm", "decoder"}, {"seg", "tags", "total"}),
    ("all", {"0", "1", "2", "3", "norm", "decoder", "patch_embed", "cls_token", "pos_embed"},
     {"seg", "total"})])
def test_what_is_not_trained_stays_as_it_was_to_the_bit(one, runs, name, parts, names):
    assert changed(runs / name, one) == parts
    found = terms(runs / name)
    assert len(found) == UPDATES
    for values in found:
        assert set(values) == names and all(map(np.isfinite, values.values()))
        assert values["total"] == pytest.approx(
            values["seg"] + 0.5 * values.get("tags", 0), rel=1e-6)


def test_a_run_says_what_it_was_made_of(tiny, one, masks, runs):
    about = json.loads((runs / "decoder" / "run.json").read_text())
    assert (about["stage"], about["supervision"]) == (2, "tags")
    assert (about["masks"], about["init"]) == (str(masks.resolve()), str(one.resolve()))
    config = json.loads((runs / "decoder" / "config.json").read_text())
    assert config["stage"] == 2 and config["train"]["seed"] == 2
    marker = json.loads((step(runs / "decoder") / "COMPLETE").read_text())
    assert marker["masks"] == read_manifest(masks).digest
    lines = [json.loads(line) for line in
             (runs / "decoder" / "log.jsonl").read_text().splitlines()]
    assert set(lines[-1]["eval"]) == {"decoder"}, "only the decoder is scored"
    said = (runs / "blocks" / "train.log").read_text()
    assert f"starts from {step(one)}, with a fresh decoder" in said and "M trained" in said


def test_the_decoder_starts_anew_or_goes_on(one, runs):
    """At a rate of next to nothing."""
    before, kept, fresh = (weights(run) for run in (one, runs / "kept", runs / "fresh"))
    for name in (name for name in before if name.startswith("decoder.")):
        assert torch.allclose(kept[name], before[name], atol=1e-6), name
    assert not torch.allclose(fresh["decoder.conv6.weight"], before["decoder.conv6.weight"],
                              atol=1e-2)


@pytest.mark.parametrize(("kept", "images"), [("decoder", "images"), ("blocks", "blocks, images")])
def test_with_and_without_a_store_it_is_one_training(runs, kept, images):
    """But for the rounding of what is kept."""
    one, two = terms(runs / kept), terms(runs / images)
    assert one != two
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-2 if step else 2e-3), (step, name)
    assert list((runs / kept / "tokens").glob("*/store.json"))
    assert not (runs / images / "tokens").exists()
    said = (runs / images / "train.log").read_text()
    assert "tokens.gb = 0 holds no view of 24 images: the frozen blocks are run in every" in said


def test_less_room_means_fewer_views(runs):
    assert "tokens.gb = 0.00015 holds 1 of tokens.views = 2 views" in (
        runs / "room for one" / "train.log").read_text()
    sizes = {name: [json.loads(path.read_text())["rows"] for path in
                    (runs / name / "tokens").glob("*/store.json")]
             for name in ("decoder", "room for one")}
    assert sizes == {"decoder": [48], "room for one": [24]}
    # An epoch has six updates: only in the next one the views would differ.
    assert terms(runs / "room for one") == terms(runs / "decoder")


@pytest.mark.parametrize(("name", "settings"), [
    ("decoder", ("segment.confidence=weight",)),
    ("blocks", ("segment.blocks=2", "segment.tags=0.5"))])
def test_an_interrupted_run_ends_with_the_same_bits(tiny, one, masks, runs, tmp_path, name,
                                                    settings):
    run = tmp_path / "resumed"
    shutil.copytree(runs / name, run)
    shutil.rmtree(step(run))
    done = train(tiny, "--val", tiny["val"], "--masks", masks, "--init", one, "--run", run,
                 settings=settings)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "resumed after 3 updates" in said, said
    assert "tokens of 48 views are there" in said, "what was trained has no part in them"
    for file in ("model", "training", "ranks"):
        first, second = (load_file(step(path) / f"{file}.safetensors")
                         for path in (runs / name, run))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), file
    assert terms(run)[-3:] == terms(runs / name)[-3:]
    assert (step(run) / "state.json").read_text() == (step(runs / name) / "state.json").read_text()


@pytest.fixture(scope="module")
def supervised(tiny, one, tmp_path_factory) -> tuple[Path, str]:
    """Stage two on true masks by the command line, in the folder that it takes by itself; and
    what it said."""
    start = tmp_path_factory.mktemp("supervised") / "one"
    shutil.copytree(one, start)
    done = train(tiny, "--val", tiny["val"], "--masks", tiny["train"], "--init", start)
    assert done.returncode == 0, done.stderr
    return start / "two", done.stdout + done.stderr


def test_true_masks_are_the_supervised_reference(tiny, one, supervised):
    run, said = supervised
    assert "with a fresh decoder" in said
    about = json.loads((run / "run.json").read_text())
    assert about["supervision"] == "true masks"
    assert about["masks"] == about["train"] == str(tiny["train"].resolve())
    assert changed(run, one) == {"decoder"} and len(terms(run)) == UPDATES
    config = load_run(run)[0]
    assert config.stage == 2 and config.segment.supervision == "true masks"


@pytest.mark.parametrize("which", ["supervised", "decoder"])
def test_its_decoder_makes_seeds_as_a_run_and_as_a_file(tiny, runs, supervised, tmp_path, which):
    run = supervised[0] if which == "supervised" else runs / which
    made = command("export-weights", "--run", run, "--out", tmp_path / "net.safetensors")
    assert made.returncode == 0, made.stderr
    for source, out in ((run, "run"), (tmp_path / "net.safetensors", "file")):
        done = command("localize", "--run", source, "--data", tiny["val"], "--map", "decoder",
                       "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    one, two = (ShardSet(tmp_path / out, kind="seeds") for out in ("run", "file"))
    assert len(one) == 8
    for row in one:
        assert one.blob("seed", row) == two.blob("seed", row)
        item = decode_seed(one.blob("seed", row))
        assert item.keys[0] == 0 and item.maps.shape[1:] == (16, 16)
    told = {"supervised": "true masks", "decoder": "masks from tags"}[which]
    assert one.manifest.provenance["trained_on"] == told


def test_stage_two_of_an_exported_file(tiny, one, masks, tmp_path):
    """With the settings of stage one's model, whatever the file of settings has now."""
    from more.inference.trained import export_weights

    file = export_weights(one, tmp_path / "one.safetensors")
    done = train(tiny, "--masks", masks, "--init", file, "--run", tmp_path / "two",
                 settings=["model.aux_layer=-2", "model.decoder_width=8", "train.iterations=2"])
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["model"]["aux_layer"] == -3 and config["model"]["decoder_width"] == 8
    made = load_file(step(tmp_path / "two", 2) / "model.safetensors")
    assert made["decoder.conv6.weight"].shape[0] == 8
    before = weights(one)
    assert all(torch.equal(value, before[name]) for name, value in made.items()
               if not name.startswith("decoder."))


def test_without_a_run_to_start_from_it_starts_from_the_backbone(tiny, masks, tmp_path):
    done = train(tiny, "--masks", masks, "--run", tmp_path / "two",
                 settings=["train.iterations=2", "segment.blocks=-1"])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["init"] is None


def test_the_backbones_own_weights_are_not_read_again(tiny, one, masks, tmp_path):
    """All weights are those of stage one; the file that it began with may be gone."""
    start = tmp_path / "one"
    shutil.copytree(one, start)
    config = json.loads((start / "config.json").read_text())
    config["model"]["weights"] = "gone.pth"
    (start / "config.json").write_text(json.dumps(config))
    done = train(tiny, "--masks", masks, "--init", start, settings=["train.iterations=1"])
    assert done.returncode == 0, done.stderr
    assert load_run(start / "two")[0].model.weights == "gone.pth"


def test_images_without_a_mask_are_named_and_left_out(tiny, one, tmp_path):
    few = mask_set(tmp_path / "masks", tiny["train"], range(2, 24, 3),
                   names=ShardSet(tiny["train"]).class_names)
    done = train(tiny, "--masks", few, "--init", one, "--run", tmp_path / "two",
                 settings=["data.workers=1"])
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert "16 images have no mask and are left out: shapes_000000, shapes_000001, " in said
    assert "8 images, 1 rank" in said
    store, = (tmp_path / "two" / "tokens").glob("*/store.json")
    assert json.loads(store.read_text())["rows"] == 16
    assert terms(tmp_path / "two")[0]["seg"] > 0


def test_runs_share_a_store_where_nothing_differs(tiny, one, masks, tmp_path):
    jobs = {"first": [], "same": ["optim.lr=1e-4"], "seed": ["train.seed=7"],
            "deeper": ["segment.blocks=1"]}
    run_jobs(tiny, tmp_path / "runs", 1, {
        name: [*options, "train.iterations=1", f"tokens.folder={tmp_path / 'store'}"]
        for name, options in jobs.items()}, masks, one)
    said = {name: (tmp_path / "runs" / name / "train.log").read_text() for name in jobs}
    assert [name for name in jobs if "tokens of 48 views are there" in said[name]] == ["same"]
    assert len(list((tmp_path / "store").glob("*/store.json"))) == 3
    assert not any((tmp_path / "runs" / name / "tokens").exists() for name in jobs)


def refused(done, *texts: str) -> None:
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "fix:" in said and "Traceback" not in said, said
    for text in texts:
        assert text in said, said


def test_other_masks_do_not_go_on_with_a_run(tiny, one, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "decoder", run)
    before = (run / "log.jsonl").read_bytes()
    refused(train(tiny, "--masks", tiny["train"], "--init", one, "--run", run,
                  settings=["train.iterations=8"]), "was trained with other masks")
    assert (run / "log.jsonl").read_bytes() == before and not step(run, 8).exists()


def test_another_start_does_not_go_on_with_a_run(tiny, one, masks, runs, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(runs / "decoder", run)
    assert train(tiny, "--run", other, settings=["train.iterations=2", "train.seed=5"]
                 ).returncode == 0
    refused(train(tiny, "--masks", masks, "--init", other, "--run", run,
                  settings=["train.iterations=8"]), "was trained with other weights of --init")
    assert not step(run, 8).exists()


def test_a_dry_run_knows_the_folder_and_the_start(tiny, one, masks, runs, tmp_path):
    def start(*words, settings=()):
        done = train(tiny, "--masks", masks, "--dry-run", "--json", *words, settings=settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["start"]

    place = tmp_path / "one"
    shutil.copytree(one, place)
    # What --init gives needs no file of the backbone.
    assert start("--init", place, settings=["model.weights=none.pth"]) == (
        f"the weights of {place}")
    shutil.copytree(runs / "decoder", place / "two")
    assert start("--init", place) == str(step(place / "two"))


@pytest.mark.parametrize("precision", ["fp16", "bf16_weights"])
def test_in_16_bits_frozen_weights_are_kept_as_they_came(tiny, one, masks, tmp_path, precision):
    run_jobs(tiny, tmp_path / "runs", 1, {"half": [
        f"precision={precision}", "train.iterations=2"]}, masks, one)
    before, after = weights(one), load_file(
        step(tmp_path / "runs" / "half", 2) / "model.safetensors")
    for name, value in after.items():
        if not name.startswith("decoder."):
            assert value.dtype == torch.float32 and torch.equal(value, before[name]), name


def test_a_best_that_is_not_scored_is_refused(tiny, one, masks, tmp_path):
    refused(train(tiny, "--masks", masks, "--init", one, "--run", tmp_path / "run",
                  settings=["checkpoint.best=lam"]), "checkpoint.best = 'lam' is not scored")


def test_damaged_images_are_left_out_of_true_masks_too(tiny, one, tmp_path):
    broken = flip_a_byte(tiny["train"], tmp_path / "set")
    done = command("train", tiny["config"], "--train", broken, "--masks", broken, "--init", one,
                   "--run", tmp_path / "run", "--set", "data.quarantine=0.1",
                   "--set", "train.iterations=1")
    assert done.returncode == 0, done.stderr
    assert "23 images" in done.stdout + done.stderr


def test_stages_do_not_go_on_with_each_other(tiny, one, masks, runs):
    refused(train(tiny, "--masks", masks, "--init", one, "--run", one,
                  settings=["train.iterations=8"]),
            "belongs to stage 1 (training on tags), this is stage 2", "--run folder of its own")
    refused(train(tiny, "--run", runs / "decoder", settings=["train.iterations=8"]),
            "belongs to stage 2 (training on masks), this is stage 1")
    assert not step(one, 8).exists() and not step(runs / "decoder", 8).exists()


def test_what_cannot_be_is_refused_before_anything_is_written(tiny, one, masks, tmp_path):
    run = tmp_path / "run"
    refused(train(tiny, "--init", one, "--run", run), "--init without --masks")
    refused(train(tiny, "--masks", masks.parent / "seeds", "--init", one, "--run", run),
            "holds seeds, not masks")
    refused(train(tiny, "--masks", tiny["val"], "--init", one, "--run", run),
            "belong to no image of")
    refused(train(tiny, "--masks", masks, "--init", tmp_path / "none", "--run", run), "missing")
    refused(train(tiny, "--masks", masks, "--init", one, "--run", run,
                  settings=["segment.blocks=5"]), "segment.blocks = 5, but the backbone has 4")
    assert not list(run.glob("checkpoints/*"))


def test_two_ranks_give_the_losses_of_one(tiny, one, masks, runs, tmp_path):
    """Each time another ZeRO stage; the full table is that of the slow tests."""
    run_jobs(tiny, tmp_path / "runs", 2, {
        "decoder": ["segment.confidence=weight", "deepspeed.zero_stage=0"],
        "blocks": ["segment.blocks=2", "segment.tags=0.5", "deepspeed.zero_stage=2"],
        "all": ["segment.blocks=-1", "segment.loss=plain", "deepspeed.zero_stage=3",
                "deepspeed.json={folder}/cut-all.json"]}, masks, one)
    for name in ("decoder", "blocks", "all"):
        alone, together = terms(runs / name), terms(tmp_path / "runs" / name)
        assert len(together) == UPDATES
        for step, (a, b) in enumerate(zip(alone, together, strict=True)):
            for key, value in a.items():
                assert b[key] == pytest.approx(value, rel=1e-4, abs=1e-8), (name, step, key)
        assert changed(tmp_path / "runs" / name, one) == changed(runs / name, one)
