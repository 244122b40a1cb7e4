"""`more bench refine`: consistent figures, the same masks before any time, sound projections."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from more.bench import refine_engines, refine_worker
from more.bench.measure import show_tables
from more.bench.refine_projection import (
    KNOWN,
    Measured,
    Project,
    project,
    read_cores,
    read_project,
)
from more.bench.refine_sets import draw_sets, take_sets
from more.bench.refine_worker import Spent
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.filtering.bilateral import bilateral_features
from more.filtering.permutohedral import PermutohedralLattice
from more.refinement.refine import ROWS_PER_SHARD
from tests.refinement.sets import make_sets
from tests.train.conftest import ROOT, command

pytest.importorskip("pydensecrf")
MEASURED = Measured(seconds=0.5, labels=3.0, pixels=1000.0, curve={2: 1.0, 4: 2.0, 21: 19.0},
                    seed_bytes=1500.0, mask_bytes=20_000.0)


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict:
    """What the command prints about three small images."""
    seeds, data = make_sets(tmp_path_factory.mktemp("sets"), count=6)
    done = command("bench", "refine", "--data", data, "--seeds", seeds, "--images", 3,
                   "--workers", 2, "--rounds", 1, "--project", "mine:130:3", "--project", "voc",
                   "--cores", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_overhead_is_the_quotient_of_both_ways(facts):
    assert facts["bench"] == "refine" and facts["images"] == 3 and facts["pictures"] == "given"
    bare, whole = facts["path"]
    assert bare["CPU overhead %"] is None
    for clock in ("CPU", "wall"):
        quotient = whole[f"{clock} s per image"] / bare[f"{clock} s per image"]
        assert whole[f"{clock} overhead %"] == pytest.approx(100 * (quotient - 1))
        assert bare[f"{clock} s per image"] > 0


def test_scaling_compares_several_workers_with_one(facts):
    assert [line["workers"] for line in facts["scaling"]] == [1, 2, 1, 2]
    assert [line["workers"] for line in facts["start-up"]] == [1, 2]
    assert all(line["s until all are ready"] > 0.02 for line in facts["start-up"])
    for one, two in (facts["scaling"][:2], facts["scaling"][2:]):
        assert one["what"] == two["what"] and one["of workers × one"] == 1
        for line in (one, two):
            assert line["images/s"] == pytest.approx(
                line["workers"] / line["s per image of a worker"])
            assert 0 < line["CPU s per image"] < 1.5 * line["s per image of a worker"]
        assert two["of workers × one"] == pytest.approx(
            two["images/s"] / (2 * one["images/s"]))


def test_labels_and_engines_agree(facts):
    assert [(line["labels"], line["engine"]) for line in facts["labels"]] == [
        (count, engine) for count in (2, 4, 21, 81)
        for engine in ("pydensecrf", "fast", "lattice")]
    for usual, *others in zip(*(facts["labels"][k::3] for k in range(3)), strict=True):
        assert usual["labels equal %"] == 100
        for other in others:
            assert other["labels equal %"] > 99
            assert other["time of pydensecrf ×"] == pytest.approx(
                other["CPU s per image"] / usual["CPU s per image"])
        assert usual["images/s"] == pytest.approx(1 / usual["CPU s per image"])
    seconds = {line["labels"]: line["CPU s per image"] for line in facts["labels"][::3]}
    assert seconds[81] > 2 * seconds[4]  # 3 to 6 where nothing else runs
    for line in facts["subset"]:
        assert line["times faster"] == pytest.approx(
            seconds[line["of all"]] / seconds[line["shown"]])
        assert line["labels equal %"] > 99.5


def test_engines_take_turns_on_the_same_images(facts):
    usual, fast = facts["engines"]
    assert (usual["engine"], fast["engine"]) == ("pydensecrf", "fast")
    assert usual["times faster"] == 1 and usual["worst image %"] == 100
    assert fast["times faster"] == pytest.approx(
        usual["CPU s per image"] / fast["CPU s per image"])
    assert 95 < fast["worst image %"] <= fast["labels equal %"] <= 100
    assert "mIoU %" not in fast  # these images have no masks


def test_scores_where_there_are_true_masks():
    truth = np.array([[0, 0, 1, 255]])
    labels = {"pydensecrf": [np.array([[0, 1, 1, 0]])], "fast": [np.array([[0, 0, 1, 1]])]}
    line = refine_engines._line("fast", {"pydensecrf": 6.0, "fast": 2.0}, labels, [truth], 2, 1)
    assert line["mIoU %"] == 100 and line["times faster"] == 3 and line["CPU s per image"] == 1
    assert line["labels equal %"] == line["worst image %"] == 50
    other = refine_engines._line("pydensecrf", {"pydensecrf": 6.0, "fast": 2.0}, labels, [truth],
                                 2, 1)
    assert other["mIoU %"] == pytest.approx(50)


def test_memory_of_a_worker_is_that_of_a_fresh_process(facts):
    usual, fast = facts["memory"]
    assert (usual["size"], fast["labels"]) == ("480×640", 3)
    assert 80 < usual["worker, MB"] < 400 and 100 < fast["worker, MB"] <= 310


def test_projection_follows_from_the_other_tables(facts):
    mine, theirs, shown, every, *_ = facts["projection"]
    assert (mine["set"], mine["run"], shown["run"], every["labels"]) == ("mine", "shown", "shown",
                                                                        21)
    assert (mine["engine"], theirs["engine"]) == ("fast", "pydensecrf")
    curve = {line["labels"]: line["CPU s per image"] for line in facts["labels"][1::3]}
    known = sorted(curve)
    growth = np.interp([3, facts["labels per image"]], known, [curve[k] for k in known])
    seconds = facts["scaling"][-1]["s per image of a worker"] * growth[0] / growth[1]
    assert mine["s per image"] == pytest.approx(seconds)
    assert mine["core hours"] == pytest.approx(130 * seconds / 3600)
    assert mine["hours on 1"] == pytest.approx(mine["core hours"])
    assert mine["hours on 2"] == pytest.approx(2 * ROWS_PER_SHARD * seconds / 3600)  # 3 shards
    measured = facts["scaling"][-1]["s per image of a worker"]
    assert f"{measured:.3g} s per image" in facts["notes"][0] and len(facts["notes"]) == 3


def test_projection_by_hand():
    both = project(Project("x", 1000, 2.5, 2000, 21), MEASURED, [4, 100])
    shown, every = both
    # time 1.25 of 1.5 at three labels, twice the pixels
    assert shown["s per image"] == pytest.approx(0.5 * 1.25 / 1.5 * 2)
    assert every["s per image"] == pytest.approx(0.5 * 19 / 1.5 * 2)
    assert shown["core hours"] == pytest.approx(1000 * shown["s per image"] / 3600)
    assert shown["hours on 4"] == pytest.approx(4 * 64 * shown["s per image"] / 3600)  # 16 shards
    assert shown["hours on 100"] == pytest.approx(64 * shown["s per image"] / 3600)
    assert shown["GB of seeds"] == pytest.approx(1000 * 1.5 * 1500 / 1e9) == every["GB of seeds"]
    assert shown["GB of masks"] == pytest.approx(1000 * 20_000 * 2 / 1e9)
    alone, = project(read_project("few:10:3"), MEASURED, [1])
    assert alone["s per image"] == pytest.approx(0.5)
    assert alone["hours on 1"] == pytest.approx(10 * 0.5 / 3600)


@pytest.mark.parametrize("text", ["ade", "a:b:c", "a:10", ":10:3", "a:0:3", "a:10:1", "a:10:82",
                                  "a:10:3:4", "a:10:nan"])
def test_projects_that_are_none(text):
    with pytest.raises(UserError, match="NAME:IMAGES:LABELS"):
        read_project(text)
    assert read_project("coco") is KNOWN["coco"]


@pytest.mark.parametrize("text", ["", "16,", "0,4", "many", "-2"])
def test_cores_that_are_none(text):
    with pytest.raises(UserError, match="16,64"):
        read_cores(text)
    assert read_cores("16,64") == [16, 64]


@pytest.mark.parametrize(("options", "message"), [
    (("--data", "somewhere"), "give both"), (("--project", "ade"), "NAME:IMAGES:LABELS"),
    (("--cores", "0"), "16,64")])
def test_options_are_refused_before_anything_runs(options, message):
    done = command("bench", "refine", *options)
    assert done.returncode == 2 and message in done.stderr


def test_taken_rows_have_a_class_and_keep_their_bytes(tmp_path):
    seeds, data = make_sets(tmp_path / "all", count=8)
    few = [ShardSet(path) for path in take_sets(seeds, data, tmp_path / "few", 5)]
    source, images = ShardSet(seeds), ShardSet(data)
    assert len(few[0]) == 5 and few[0].ids == few[1].ids and "image-00" not in few[0].ids
    assert few[0].manifest.provenance == source.manifest.provenance
    for row, image_id in enumerate(few[0].ids):
        old = source.index_of(image_id)
        assert few[0].blob("seed", row) == source.blob("seed", old)
        assert few[1].blob("image", row) == images.blob("image", images.index_of(image_id))
        assert few[0].tags[row].tolist() == source.tags[old].tolist()
    every = take_sets(seeds, data, tmp_path / "every", 100)
    with_class = int((source.tags.sum(1) > 0).sum())
    assert len(ShardSet(every[0])) == with_class < 8
    only, pictures = make_sets(tmp_path / "one", count=1)  # the image without a tag
    with pytest.raises(UserError, match="no seed has a class"):
        take_sets(only, pictures, tmp_path / "none", 1)


def test_drawn_pictures_are_as_hard_as_photographs(tmp_path):
    seeds, images = (ShardSet(path) for path in draw_sets(tmp_path / "set", 8))
    assert seeds.tags.sum(1).tolist() == [1, 2] * 4 and len(set(seeds.ids)) == 8
    points = []
    for row in range(8):
        image = torch.from_numpy(images.image(row)).permute(2, 0, 1)[None]
        assert image.shape == (1, 3, 375, 500)
        points.append(PermutohedralLattice(bilateral_features(image, 67, 3)).points / (375 * 500))
    assert 0.8 < np.mean(points) < 1.5 and min(points) < 0.8 and max(points) > 1.4
    again = ShardSet(draw_sets(tmp_path / "again", 8)[1])
    assert again.manifest.digest == images.manifest.digest


def test_times_are_refused_where_results_differ(tmp_path, monkeypatch):
    pair = draw_sets(tmp_path / "set", 2, 40, 56)
    specs = refine_worker.make_specs(pair, tmp_path / "out", 2)
    assert refine_worker.check_equal(pair, specs) > 100
    honest = refine_worker.bare
    monkeypatch.setattr(refine_worker, "bare", lambda item: honest(item)[::-1])
    with pytest.raises(RuntimeError, match="mask is not what the bare CRF gives"):
        refine_worker.check_equal(pair, specs)


def test_an_image_that_fails_ends_the_bench(tmp_path):
    pair = make_sets(tmp_path, count=3, damage="image-02")
    spec, = refine_worker.make_specs(pair, tmp_path / "out", 3)
    with pytest.raises(RuntimeError, match="1 images failed"):
        refine_worker.whole(spec)


def test_both_clocks_take_turns():
    spents = {"a": iter([Spent(9, 90), Spent(3, 10), Spent(1, 30), Spent(2, 20)]),
              "b": iter([Spent(7, 70), Spent(4, 44), Spent(6, 40), Spent(5, 41)])}
    found = refine_worker.in_turn({name: lambda name=name: next(spents[name]) for name in spents},
                                 3)
    assert found == {"a": Spent(2, 20), "b": Spent(5, 41)}


def test_absent_classes_have_no_probability():
    few = refine_engines._probabilities(0, 2, 2, (30, 40))
    all_of_them = refine_engines._probabilities(0, 2, 21, (30, 40))
    assert np.array_equal(all_of_them[:2], few) and not all_of_them[2:].any()
    assert few[1].max() > 0.5 and not np.array_equal(
        few, refine_engines._probabilities(1, 2, 2, (30, 40)))


def test_the_printed_tables_hold_the_figures_of_the_json(capsys):
    tables = {"times": [{"what": "one", "s": 0.12345, "part": None}, {"what": "two", "s": 2345.6,
                                                                    "part": 3}], "empty": []}
    show_tables("demo", tables, {"images": 7}, ["A sentence."], as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["bench"] == "demo" and facts["times"] == tables["times"]
    assert facts["images"] == 7 and facts["notes"] == ["A sentence."]
    show_tables("demo", tables, {"images": 7}, ["A sentence."], as_json=False)
    printed = capsys.readouterr().out
    for text in ("times", "part", "0.123", "2346", "images 7", "A sentence."):
        assert text in printed
    assert "empty" not in printed and "None" not in printed


def test_workers_import_no_torch():
    code = "import sys, more.bench.refine_scaling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
