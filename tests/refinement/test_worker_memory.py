"""Memory of CRF workers: foreseen, kept to, and what becomes of images that are too large."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest

from more.data.seeds import SeedItem, encode_seed
from more.data.shards.codec import encode_mask
from more.data.shards.manifest import write_manifest
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter
from more.filtering.parameters import ENGINES, CRFParams
from more.refinement import plan as planning
from more.refinement import worker_memory
from more.refinement.image import Refinement, refine_item
from more.refinement.plan import plan
from more.refinement.refine import refine
from more.refinement.worker_memory import COSTS, image_bytes, ranks_here, workers_that_fit
from tests.refinement.sets import make_sets, textured

GB = 1e9
INLINE = dict(workers=2, make_executor=partial(ThreadPoolExecutor, 1), progress=False)


@pytest.mark.parametrize("needs, workers, free, fit", [
    ([1, 1, 1, 1], 4, 100, 4),          # room enough
    ([1, 1, 1, 1], 4, 2.8, 2),          # each 1 and its process of 0.23, of 90 %
    ([4, .1, .1, .1], 4, 6.0, 4),       # one large image meets only one worker
    ([4, 4, .1, .1], 4, 6.0, 1),        # two of them may meet
    ([50], 4, 6.0, 1), ([], 4, 6.0, 4), ([.1], 3, 0.6, 1)])
def test_as_many_workers_as_the_largest_images_allow(needs, workers, free, fit):
    assert workers_that_fit("fast", np.array(needs) * GB, workers, free * GB) == fit


def test_more_pixels_labels_and_older_engines_need_more():
    assert image_bytes("fast", 10**6, 3) < image_bytes("fast", 10**6, 4)
    assert image_bytes("fast", 10**6, 3) < image_bytes("pydensecrf", 10**6, 3) \
        < image_bytes("lattice", 10**6, 3)
    # The goal for a worker at 480×640 with 3 labels.
    assert COSTS["fast"].process + image_bytes("fast", 480 * 640, 3) < 300e6


@pytest.mark.parametrize("environment, ranks", [
    ({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),3"}, 8)])
def test_ranks_of_a_machine_share_its_memory(environment, ranks):
    assert ranks_here(environment) == ranks


@pytest.mark.parametrize("files, expected", [
    ({"memory.max": "4000000000", "memory.current": "1000"}, (4000000000, 1000)),
    ({"memory.max": "max", "memory.current": "1000"}, (0, 0)),
    ({"memory/memory.limit_in_bytes": "123456789", "memory/memory.usage_in_bytes": "5"},
     (123456789, 5)),
    ({"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "5"},
     (0, 0)), ({}, (0, 0))])
def test_the_limit_of_the_control_group(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert worker_memory._group_memory(tmp_path) == expected


def test_the_job_starts_fewer_workers_and_says_so(tmp_path, monkeypatch, capsys):
    seeds, data = make_sets(tmp_path, count=6, size=(30, 36))
    monkeypatch.setattr("more.refinement.worker_memory.free_memory", lambda: 0.4 * GB)
    made = []

    def executor():
        made.append(1)
        return ThreadPoolExecutor(1)
    tally = refine(seeds, data, tmp_path / "out", Refinement(CRFParams(iterations=1), "fast"),
                   workers=4, rows_per_shard=1, make_executor=executor, progress=False)
    assert tally.done == 6 and len(made) == 1
    assert "1 of 4 workers" in capsys.readouterr().err


def large_set(root, size):
    """One small and one large picture, a seed of one class each."""
    sizes, rng = {"small": (40, 50), "large": size}, np.random.default_rng(0)
    for name, kind in (("data", "images"), ("seeds", "seeds")):
        folder = root / name
        folder.mkdir()
        writer = ShardWriter(folder / "shard-00000.h5", kind, ["a", "b"], {})
        for image_id, (height, width) in sizes.items():
            picture = np.kron(textured(rng, 10, 10),
                              np.ones((height // 10 + 1, width // 10 + 1, 1), np.uint8))
            maps = np.zeros((1, 8, 8), np.float16)
            maps[:, 2:6, 2:6] = 0.9
            payload = {"seed": encode_seed(SeedItem(np.array([1]), maps))} if kind == "seeds" else {
                "image": cv2.imencode(".png", picture[:height, :width])[1].tobytes(),
                "mask": encode_mask(np.zeros((height, width), np.uint8))}
            writer.add(image_id, np.array([1, 0], np.uint8), (height, width), **payload)
        writer.close()
        write_manifest(folder, kind, ["a", "b"], [writer.entry], {"map": "lam", "tags": "true"})
    return root / "seeds", root / "data"


def test_an_image_that_cannot_fit_is_listed_with_the_figure(tmp_path, monkeypatch):
    seeds, data = large_set(tmp_path, (400, 500))
    monkeypatch.setattr("more.refinement.worker_memory.process_limit", lambda: 10e6)
    how = Refinement(CRFParams(iterations=1), "fast")
    tally = refine(seeds, data, tmp_path / "out", how, **INLINE)
    assert tally.done == 1 and tally.exit_code == 1
    ((image_id, why),) = json.loads((tmp_path / "out" / "manifest.json").read_text())["extra"][
        "failures"]
    assert image_id == "large" and "0.2 megapixels and 2 labels" in why and "--max-pixels" in why
    # The same job finishes it at a reduced size, elsewhere: it is another set of masks.
    smaller = refine(seeds, data, tmp_path / "less", replace(how, max_pixels=20_000), **INLINE)
    assert smaller.done == 2 and smaller.exit_code == 0
    masks = ShardSet(tmp_path / "less")
    assert masks.mask(masks.index_of("large")).shape == (400, 500)
    assert masks.manifest.provenance["max_pixels"] == 20_000


def test_reduced_labels_come_back_by_nearest_neighbour():
    rng = np.random.default_rng(1)
    image = np.kron(textured(rng, 20, 24), np.ones((8, 8, 1), np.uint8))
    maps = np.zeros((1, 10, 12), np.float16)
    maps[:, 3:7, 3:9] = 0.9
    item, how = SeedItem(np.array([3]), maps), Refinement(CRFParams(iterations=2), "lattice")
    label, confidence = refine_item(image, item, replace(how, max_pixels=40 * 48))
    assert label.shape == confidence.shape == (160, 192)
    blocks = label.reshape(40, 4, 48, 4)
    assert (blocks == blocks[:, :1, :, :1]).all() and set(np.unique(label)) == {0, 3}
    same, _ = refine_item(image, item, replace(how, max_pixels=160 * 192))
    assert (same == refine_item(image, item, how)[0]).all()  # not larger: as it is


@pytest.mark.slow
def test_a_photograph_of_24_megapixels_in_4_gb_of_address_space(tmp_path):
    seeds, data = large_set(tmp_path, (4000, 6000))

    def command(name, *options):
        return subprocess.run(
            [sys.executable, "-m", "more", "refine", str(seeds), "--data", str(data), "--out",
             str(tmp_path / name), "--workers", "1", "--engine", "fast", *options],
            capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)))
    whole = command("whole")
    assert whole.returncode == 1 and "24.0 megapixels" in whole.stderr, whole.stderr
    assert ShardSet(tmp_path / "whole").ids == ["small"]
    less = command("less", "--max-pixels", "1000000")
    assert less.returncode == 0, less.stderr
    assert ShardSet(tmp_path / "less").mask(1).shape == (4000, 6000)


def test_a_worker_opens_the_shards_of_its_task_alone(tmp_path, monkeypatch):
    seeds, data = make_sets(tmp_path, count=12, size=(20, 24))
    source, images = ShardSet(seeds), ShardSet(data)
    assert len(source.manifest.shards) > 1 or len(images.manifest.shards) > 1
    specs = plan(source, images, tmp_path / "out", Refinement(engine="fast"), 2)
    opened = []
    monkeypatch.setattr(planning, "ShardSet", lambda path, kind, only: (
        opened.append((kind, only)), ShardSet(path, kind=kind, only=only))[1])
    for spec in specs:
        planning._open_set.cache_clear()
        opened.clear()
        own, pictures = planning.open_sets(spec)
        assert set(spec.ids) <= set(own.ids) and set(spec.ids) <= set(pictures.ids)
        assert opened == [("seeds", spec.shards[0]), ("images", spec.shards[1])]
        for set_, folder in ((own, source), (pictures, images)):
            needed = {folder.locate(folder.index_of(image_id))[0] for image_id in spec.ids}
            assert len(set_.manifest.shards) == len(needed)
    planning._open_set.cache_clear()


def test_every_engine_has_its_cost():
    assert set(COSTS) == set(ENGINES)
