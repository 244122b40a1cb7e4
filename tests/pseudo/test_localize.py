"""From a checkpoint to seeds: what is stored, for any number of ranks, and bad runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from more.config.load import config_from_dict, to_dict
from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.data.transforms import inference_image
from more.engine import folders
from more.engine.build import make_network
from more.errors import UserError
from more.pseudo.localize import Request, load_run, localize
from more.pseudo.seeds import decode_seed
from tests.data.sets import flip_a_byte, small_set
from tests.pseudo.sets import make_sets

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
    target = folder / "checkpoints" / folders.step_name(step)
    place = folders.start_folder(target)
    save_file(make_network(config).state_dict(), str(place / folders.WEIGHTS))
    folders.commit_folder(place, target, {"step": step, "world": 1})
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


def test_seeds_of_a_damaged_set_are_not_made(run, data, tmp_path):
    broken = flip_a_byte(data, tmp_path / "set")
    with pytest.raises(UserError, match="sha256"):
        localize(run, broken, tmp_path / "out", Request())
    assert not (tmp_path / "out").exists()
