"""From a checkpoint to seeds: what is stored, for any number of ranks, and bad runs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from more import run_folder
from more.config.load import changed, config_from_dict, to_dict
from more.config.schema import Config
from more.data.seeds import decode_seed, encode_seed
from more.data.shards.format import sha256_file
from more.data.shards.manifest import read_manifest, write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.data.transforms import inference_image
from more.errors import UserError
from more.filtering.parameters import CRFParams
from more.inference import seed_shard, trained
from more.inference.localize import Request, load_run, localize
from more.inference.localizer import Localizer, seed_item
from more.jobs.bookkeeping import failures_path
from more.refinement.image import Refinement
from more.refinement.refine import refine
from more.train import checkpoint_files
from more.train.engine import make_network
from tests.claimed_gpu import GPU, claimed_gpu
from tests.data.sets import flip_a_byte, small_set
from tests.refinement.sets import make_sets

SETTINGS = {
    "model": {"backbone": "custom", "weights": "none", "num_classes": 3, "decoder_width": 8,
              "vit": {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
              "token_init": "perturbed"},
    "data": {"crop": 56, "workers": 0},
    "inference": {"size": 56, "scales": [1.0, 0.5], "segment_scales": [1.0, 1.5], "batch": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


def make_run(folder: Path, step: int = 5) -> Path:
    """A run folder with the settings and one complete checkpoint of an untrained network."""
    config = config_from_dict(SETTINGS)
    target = folder / "checkpoints" / run_folder.step_name(step)
    place = checkpoint_files.start_folder(target)
    save_file(make_network(config).state_dict(), str(place / run_folder.WEIGHTS))
    checkpoint_files.commit_folder(place, target, {"step": step, "world": 1})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def seeds(run, data, tmp_path_factory) -> Path:
    """All kinds of seeds of the set, in sub-folders."""
    out = tmp_path_factory.mktemp("seeds")
    tally = localize(run, data, out, Request(("cam", "lam", "fused", "decoder"), "true", 0))
    assert (tally.done, tally.skipped, tally.exit_code) == (15, 0, 0)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


@pytest.mark.parametrize("kind", ["cam", "lam", "fused"])
def test_seeds_hold_the_classes_of_the_image_in_the_order_of_the_set(seeds, data, kind):
    made, source = ShardSet(seeds / kind, kind="seeds", check="full"), ShardSet(data)
    assert made.ids == source.ids and np.array_equal(made.sizes, source.sizes)
    for row in range(len(made)):
        item = decode_seed(made.blob("seed", row))
        assert item.keys.tolist() == (np.flatnonzero(source.tags[row]) + 1).tolist()
        assert item.maps.shape == (1, 14, 14), "two cells a token of a 7×7 grid"
        assert 0 <= item.maps.min() and item.maps.max() <= 1


def test_decoder_seeds_are_probabilities_with_background(seeds):
    made = ShardSet(seeds / "decoder")
    for row in range(len(made)):
        item = decode_seed(made.blob("seed", row))
        assert item.keys[0] == 0
        np.testing.assert_allclose(item.maps.astype(float).sum(0), 1, atol=0.04)


def test_the_record_says_how_the_seeds_were_made(seeds, run, data):
    provenance = read_manifest(seeds / "lam").provenance
    assert provenance["map"] == "lam" and provenance["tags"] == "true"
    assert provenance["scales"] == [1.0, 0.5] and provenance["flip"] is True
    assert provenance["checkpoint"] == "step-000005"
    assert provenance["data"] == read_manifest(data).digest
    assert read_manifest(seeds / "decoder").provenance["tags"] == "none"


def test_a_rerun_does_nothing_and_a_lost_shard_is_made_again(run, data, tmp_path):
    request = Request(("lam",), "true", 0)
    localize(run, data, tmp_path, request)
    before = contents(tmp_path)
    assert localize(run, data, tmp_path, request).skipped == 15
    (tmp_path / "shard-00001.h5").unlink()
    tally = localize(run, data, tmp_path, request)
    assert (tally.done, tally.skipped) == (5, 10) and contents(tmp_path) == before


def test_two_ranks_and_another_batch_give_the_same_seeds(run, data, seeds, tmp_path):
    for rank in (1, 0):
        assert not (tmp_path / "manifest.json").exists(), "a rank finished before its peer"
        localize(run, data, tmp_path, Request(("lam",), "true", 2), rank=rank, world=2)
    assert contents(tmp_path) == contents(seeds / "lam")
    localize(run, data, tmp_path / "one", Request(("lam",), "true", 1))
    one, other = ShardSet(tmp_path / "one"), ShardSet(seeds / "lam")
    for row in range(len(one)):
        np.testing.assert_allclose(decode_seed(one.blob("seed", row)).maps,
                                   decode_seed(other.blob("seed", row)).maps, atol=2e-3)


def test_predicted_tags_are_those_of_the_classifier(run, data, tmp_path):
    localize(run, data, tmp_path, Request(("lam",), "predicted", 0))
    made, source = ShardSet(tmp_path), ShardSet(data)
    config, network, _ = load_run(run)
    for row in range(len(made)):
        image = torch.from_numpy(inference_image(source.image(row), 56, config.data.mean,
                                                 config.data.std))
        with torch.no_grad():
            logits = network(image[None], mode="maps")["logits"][0]
        wanted = (logits.sigmoid() > 0.5).nonzero().flatten().tolist() or [int(logits.argmax())]
        assert decode_seed(made.blob("seed", row)).keys.tolist() == [k + 1 for k in wanted]


@pytest.mark.parametrize("which", ["never", "step-000007", "nowhere/step-000005"])
def test_an_unknown_checkpoint_is_refused_and_the_run_left_alone(run, which):
    with pytest.raises(UserError, match=which):
        load_run(run, which)
    assert (run / "checkpoints" / "step-000005").is_dir()


def test_a_checkpoint_goes_by_its_name_too(run):
    assert load_run(run, "step-000005")[2] == run / "checkpoints" / "step-000005"


def test_other_maps_in_the_same_folder_are_refused(run, data, seeds):
    with pytest.raises(UserError, match="'cam' there, 'lam' now"):
        localize(run, data, seeds / "cam", Request(("lam",), "true", 0))


def test_a_set_of_other_classes_is_refused(tmp_path, run):
    with pytest.raises(UserError, match="4 classes"):
        localize(run, make_sets(tmp_path, 3)[1], tmp_path / "out", Request())


def test_an_output_under_a_file_is_refused(run, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        localize(run, data, tmp_path / "file" / "out", Request())


@pytest.mark.parametrize(("damage", "message"), [
    (lambda run: (run / "config.json").write_text('{"x"'), "config.json: damaged"),
    (lambda run: (run / "config.json").unlink(), "config.json: missing"),
    (lambda run: next(run.glob("checkpoints/*/COMPLETE")).unlink(), "no complete checkpoint"),
    (lambda run: overwrite(next(run.glob("checkpoints/*/model.safetensors"))),
     "model.safetensors is damaged"),
    (lambda run: overwrite(next(run.glob("checkpoints/*/model.safetensors")), 100),
     "model.safetensors has 100 bytes")])
def test_a_damaged_run_is_named(tmp_path, damage, message):
    damage(make_run(tmp_path))
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def overwrite(path: Path, size: int | None = None) -> None:
    """Replace a file by bytes of no meaning, as many as it had unless given."""
    path.write_bytes(b"\xff" * (size or path.stat().st_size))


@pytest.mark.parametrize(("setting", "able", "half"), [
    ("auto", True, True), ("auto", False, False), ("fp32", True, False), ("bf16", False, True)])
def test_precision_auto_is_what_the_gpu_is_able_to(run, setting, able, half):
    config, network, _ = load_run(run)
    config = changed(config, [f"precision={setting}"], "inference", "precision")
    plain = Localizer(config, network, Request(), torch.device("cpu"))
    assert plain.half == (setting == "bf16"), "a CPU has no use for it"
    with claimed_gpu(bf16=able):
        assert Localizer(config, network, Request(), GPU).half == half


def test_another_precision_is_part_of_the_record(run, data, tmp_path):
    """The run left it open: with fp32, as before, its seeds have no record of it."""
    localize(run, data, tmp_path / "fp32", Request(), overrides=["precision=fp32"])
    assert "precision" not in read_manifest(tmp_path / "fp32").provenance
    localize(run, data, tmp_path / "bf16", Request(), overrides=["precision=bf16"])
    assert read_manifest(tmp_path / "bf16").provenance["precision"] == "bf16"
    assert contents(tmp_path / "bf16") != contents(tmp_path / "fp32")
    with pytest.raises(UserError, match="precision"):
        localize(run, data, tmp_path / "bf16", Request(), overrides=["precision=auto"])


def test_seeds_of_a_damaged_set_are_not_made(run, data, tmp_path):
    broken = flip_a_byte(data, tmp_path / "set")
    with pytest.raises(UserError, match="sha256"):
        localize(run, broken, tmp_path / "out", Request())
    assert not (tmp_path / "out").exists()


def damaged_set(data: Path, folder: Path, names: dict[str, bytes]) -> Path:
    """A copy of the set in which the named images hold other bytes, with checksums that fit."""
    source = ShardSet(data)
    folder.mkdir()
    entries = []
    for shard in range(len(source.shard_rows)):
        with ShardWriter(folder / f"shard-{shard:05d}.h5", "images", source.class_names) as writer:
            for row in source.rows_of(shard):
                name = source.ids[row]
                writer.add(name, source.tags[row], tuple(source.sizes[row]),
                           image=names.get(name, source.blob("image", row)))
        entries.append(writer.entry)
    write_manifest(folder, "images", source.class_names, entries, {})
    return folder


def test_damaged_images_are_left_out_by_name_and_tried_again(run, data, seeds, tmp_path):
    source = ShardSet(data)
    bad = {source.ids[1]: b"junk", source.ids[7]: bytes(source.blob("image", 7))[:60]}
    broken, request = damaged_set(data, tmp_path / "set", bad), Request(("cam", "lam"), "true", 2)
    for again in (False, True):
        tally = localize(run, broken, tmp_path / "seeds", request)
        assert [name for name, _ in tally.failures] == list(bad) and tally.exit_code == 1
        assert (tally.done, tally.skipped) == ((0, 13) if again else (13, 0))
        assert all("decoded" in why for _, why in tally.failures)
    for kind in request.maps:
        made, whole = ShardSet(tmp_path / "seeds" / kind, check="full"), ShardSet(seeds / kind)
        assert made.ids == [name for name in source.ids if name not in bad]
        for row, name in enumerate(made.ids):
            np.testing.assert_allclose(
                decode_seed(made.blob("seed", row)).maps,
                decode_seed(whole.blob("seed", whole.index_of(name))).maps, atol=2e-3)
        listed = read_manifest(tmp_path / "seeds" / kind).extra["failures"]
        assert [name for name, _ in listed] == list(bad)
    # What follows works on the images that are there.
    how = Refinement(CRFParams(iterations=1))
    tally = refine(tmp_path / "seeds/lam", broken, tmp_path / "masks", how, workers=1,
                   progress=False, make_executor=partial(ThreadPoolExecutor, 1))
    assert (tally.done, tally.exit_code) == (13, 0)


def test_once_the_cause_is_gone_only_the_failed_images_are_made(run, data, tmp_path, monkeypatch):
    true = seed_shard.decode_image

    def flaky(content, name):
        if repr(ShardSet(data).ids[7]) in name:
            raise UserError(f"{name}: gone for now")
        return true(content, name)

    with monkeypatch.context() as patch:
        patch.setattr(seed_shard, "decode_image", flaky)
        assert localize(run, data, tmp_path, Request()).exit_code == 1
    before = contents(tmp_path)
    with monkeypatch.context() as patch:  # killed while it is tried again
        patch.setattr("more.jobs.rows.finish_shard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            localize(run, data, tmp_path, Request())
    assert contents(tmp_path) == before and len(ShardSet(tmp_path, check="full")) == 14
    prepared = []
    monkeypatch.setattr(seed_shard, "decode_image",
                        lambda content, name: (prepared.append(name), true(content, name))[1])
    tally = localize(run, data, tmp_path, Request())
    assert (tally.done, tally.skipped, tally.exit_code) == (1, 14, 0) and len(prepared) == 1
    localize(run, data, tmp_path / "whole", Request())
    assert contents(tmp_path) == contents(tmp_path / "whole")
    assert read_manifest(tmp_path).extra["failures"] == []
    assert not list(tmp_path.glob("failures-*"))


def test_seeds_without_their_list_of_failures_are_made_again(run, data, tmp_path):
    """Else no call would find the set finished: the shard has fewer rows than images."""
    broken = damaged_set(data, tmp_path / "set", {ShardSet(data).ids[7]: b"junk"})
    out = tmp_path / "seeds"
    localize(run, broken, out, Request())
    whole = (out / "manifest.json").read_bytes()
    failures_path(out / "shard-00001.h5").unlink()
    (out / "manifest.json").unlink()
    tally = localize(run, broken, out, Request())
    assert (tally.done, tally.skipped, len(tally.failures)) == (4, 10, 1)
    assert (out / "manifest.json").read_bytes() == whole


def test_a_shard_without_a_good_image_has_no_file_and_the_set_is_finished(run, data, tmp_path):
    source = ShardSet(data)
    bad = dict.fromkeys(source.ids[5:10], b"junk")
    broken = damaged_set(data, tmp_path / "set", bad)
    tally = localize(run, broken, tmp_path / "seeds", Request())
    assert (tally.done, len(tally.failures)) == (10, 5)
    made = ShardSet(tmp_path / "seeds", check="full")
    assert made.ids == source.ids[:5] + source.ids[10:]


def test_maps_that_are_not_finite_cost_their_image_only(run, data, tmp_path, monkeypatch):
    true, victim = Localizer.__call__, ShardSet(data).ids[2]

    def spoil(self, images, tags):
        made = true(self, images, tags)
        if not spoiled:
            spoiled.append(made[2]["lam"].maps)
            made[2]["lam"].maps[0, 3, 3] = np.nan
        return made

    spoiled = []
    monkeypatch.setattr(Localizer, "__call__", spoil)
    tally = localize(run, data, tmp_path, Request())
    (name, why), = tally.failures
    assert name == victim and "not finite" in why and len(ShardSet(tmp_path)) == 14


def test_two_ranks_account_for_failures_together(run, data, tmp_path):
    broken = damaged_set(data, tmp_path / "set", {ShardSet(data).ids[6]: b"junk"})
    for rank in (1, 0):
        assert not (tmp_path / "seeds/manifest.json").exists()
        tally = localize(run, broken, tmp_path / "seeds", Request(), rank=rank, world=2)
        assert len(tally.failures) == rank
    assert len(ShardSet(tmp_path / "seeds")) == 14


def test_images_are_prepared_ahead_in_order_and_not_without_bound():
    lock, done, states = threading.Lock(), [], []

    def work(item):
        time.sleep(0.002 * (item % 3))
        with lock:
            done.append(item)
        return item * 10

    with ThreadPoolExecutor(3) as pool:
        for item, future in seed_shard.ahead(pool, work, range(40), 5):
            time.sleep(0.004)
            states.append(max(done, default=0) - item)
            assert future.result() == item * 10
    assert sorted(done) == list(range(40))
    assert 2 <= max(states) <= 5, "work goes on while the caller is busy, but five ahead at most"


def test_what_is_left_is_cancelled_when_the_caller_gives_up():
    started = []
    with ThreadPoolExecutor(1) as pool:
        ready = seed_shard.ahead(pool, lambda item: (time.sleep(0.05), started.append(item)),
                                 range(100), 20)
        next(ready)
        ready.close()
    assert len(started) < 10


def test_an_error_keeps_its_place():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    with ThreadPoolExecutor(2) as pool:
        found = [(item, future.exception()) for item, future in
                 seed_shard.ahead(pool, work, range(6), 2)]
    assert [item for item, error in found if error] == [3] and len(found) == 6


def test_seeds_of_coco_take_less_than_15_gb_at_default_settings():
    """118,287 training and 5,000 validation images with 2.9 classes on average, as stored."""
    config = Config()
    assert "patch16" in config.model.backbone
    encoder = SimpleNamespace(encoder=SimpleNamespace(patch_size=16))
    side = Localizer(config, encoder, Request(), torch.device("cpu")).side
    assert side == 56, "two cells a token of a 28×28 grid"
    maps = np.random.default_rng(0).random((80, side, side), np.float32)
    sizes = [len(encode_seed(seed_item(maps, np.arange(80) < count))) for count in range(5)]
    each = sizes[1] - sizes[0]
    assert np.diff(sizes).tolist() == [each] * 4, "absent classes take no place"
    assert (118_287 + 5_000) * (sizes[0] + 2.9 * each) < 15e9


def test_a_decoder_that_was_not_trained_is_refused(run, data, tmp_path):
    settings = json.loads((run / "config.json").read_text())
    settings["loss"]["weights"]["seg"] = 0.0
    config = config_from_dict(settings)
    network = make_network(config)
    with pytest.raises(UserError, match="decoder of this run was not trained"):
        Localizer(config, network, Request(("lam", "decoder")), torch.device("cpu"))
    Localizer(config, network, Request(("lam",)), torch.device("cpu"))


def test_settings_of_inference_can_change_and_are_recorded(run, data, tmp_path):
    localize(run, data, tmp_path / "plain", Request(("lam", "decoder")))
    localize(run, data, tmp_path / "spread", Request(("lam", "decoder")),
             overrides=["inference.spread=3", "inference.spread_temperature=0.1"])
    plain, wide = (ShardSet(tmp_path / name / "lam") for name in ("plain", "spread"))
    assert "spread" not in plain.manifest.provenance
    assert (wide.manifest.provenance["spread"],
            wide.manifest.provenance["spread_temperature"]) == (3, 0.1)
    for row in wide:
        before, after = (decode_seed(s.blob("seed", row)).maps for s in (plain, wide))
        if len(after):
            assert not np.allclose(before, after) and 0.9 < after.max() <= 1
    decoders = [ShardSet(tmp_path / name / "decoder").manifest for name in ("plain", "spread")]
    assert decoders[0].digest == decoders[1].digest


def test_stage_two_says_how_likely_a_class_is_by_its_decoder(run):
    config = config_from_dict({**json.loads((run / "config.json").read_text()), "stage": 2})
    network = make_network(config).eval()
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    found = Localizer(config, network, Request(("lam",)), torch.device("cpu")).probabilities(images)
    with torch.no_grad():
        logits = network(images, mode="segment")
    expected = logits.softmax(1)[:, 1:].flatten(2).sort(-1, descending=True).values
    torch.testing.assert_close(found, expected[..., :max(1, round(49 / 32))].mean(-1))


def test_the_weights_are_hashed_once_for_all_kinds_of_maps(data, tmp_path, monkeypatch):
    run, hashed = make_run(tmp_path / "run"), []
    for module in (run_folder, trained):
        monkeypatch.setattr(module, "sha256_file", lambda path: (
            hashed.append(path.name), sha256_file(path))[1])
    localize(run, data, tmp_path / "seeds", Request(("cam", "lam"), "true", 1))
    assert hashed == [run_folder.WEIGHTS]
    recorded = read_manifest(tmp_path / "seeds" / "lam").provenance["weights"]
    assert recorded == sha256_file(run / "checkpoints" / "step-000005" / run_folder.WEIGHTS)


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": 3}'])
def test_damaged_notes_of_a_run_are_named(tmp_path, text):
    run = make_run(tmp_path / "run")
    (run / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json: damaged"):
        trained.class_names(run)
    (run / "run.json").write_text("{}")
    assert trained.class_names(run) == []
