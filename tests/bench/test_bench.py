"""Benches: what they print is consistent, and the tools under them measure what they say."""

from __future__ import annotations

import itertools
import json

import pytest

from more.bench import measure
from more.bench.bench_data import write_pictures
from more.bench.bench_train import bench_settings
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.train.conftest import command

SMALL = """
model = dict(backbone="custom", num_classes=3, decoder_width=8,
             vit=dict(patch_size=8, embed_dim=16, depth=4, num_heads=2, mlp_ratio=1.0))
data = dict(crop=56, workers=0)
cam = dict(scales=(1.0,))
train = dict(iterations=50, global_batch=2, threads=1)
inference = dict(size=56, scales=(1.0,), segment_scales=(1.0,))
"""


def consistent(lines: list[dict]) -> bool:
    """Rates are inverse seconds, and every ratio is the quotient of two lines' seconds."""
    seconds = {line["name"]: line["seconds"] for line in lines}
    for line in lines:
        assert line["seconds"] > 0 and line["per_second"] == pytest.approx(1 / line["seconds"])
        if line["against"]:
            assert line["ratio"] == pytest.approx(seconds[line["against"]] / line["seconds"])
        else:
            assert line["ratio"] is None
    return True


def test_bench_data_is_consistent():
    done = command("bench", "data", "--images", 16, "--crop", 64, "--rounds", 1, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["bench"] == "data" and facts["images"] == 16 and facts["crop"] == 64
    assert consistent(facts["rows"])
    assert sum(bool(line["against"]) for line in facts["rows"]) == 3


def test_bench_data_refuses_another_pipeline():
    done = command("bench", "data", "--pipeline", "gpu")
    assert done.returncode == 2 and "choose one of device, pil" in done.stderr


def test_bench_train_is_consistent(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(SMALL)
    code = "import sys; from pathlib import Path; from more.bench.bench_train import run; " \
           "run(Path(sys.argv[1]), steps=2, rounds=1, as_json=True)"
    done = command(code, config, start=("tests.code",))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout[done.stdout.index("{"):])
    assert facts["crop"] == 56 and facts["batch"] == 2 and consistent(facts["rows"])
    assert facts["difference of losses"] <= 1e-6
    assert [line["name"] for line in facts["rows"]] == ["bare PyTorch", "DeepSpeed"]
    assert facts["MB per checkpoint"] > 0.1 and facts["s per checkpoint"] > 0
    for kind in ("", ", background"):
        assert 0 <= facts[f"% of time, one every 500 steps{kind}"] < 100


def test_bench_train_measures_every_term_and_reads_no_weights(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(SMALL + 'optim = dict(clip=1.0)\nloss = dict(start=dict(seg=9))\n')
    settings = bench_settings(config)
    assert settings.model.weights == "none" and settings.optim.clip == 0
    assert set(vars(settings.loss.start).values()) == {-1}
    assert bench_settings(None).data.crop == 64 and bench_settings(None).model.num_classes == 7
    images = ShardSet(write_pictures(tmp_path / "set", 5, 40, 56, classes=3))
    assert images.num_classes == 3 and images.sizes.tolist() == [[40, 56]] * 5
    assert images.tags.tolist()[:4] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    config.write_text(SMALL + 'precision = "fp16"\n')
    with pytest.raises(UserError, match="fp16"):
        bench_settings(config)


def test_drawn_pictures_make_a_sound_set(tmp_path):
    shards = ShardSet(write_pictures(tmp_path / "set", 5, 64, 80, per_shard=2), kind="images",
                      check="full")
    assert shards.shard_rows == [2, 2, 1] and len(set(shards.ids)) == 5
    images = [shards.image(row) for row in range(5)]
    assert {image.shape for image in images} == {(64, 80, 3)} and shards.tags.all()
    assert all(20 < image.std() for image in images)
    assert all((a != b).any() for a, b in itertools.combinations(images, 2))
    again = ShardSet(write_pictures(tmp_path / "again", 5, 64, 80, per_shard=2))
    assert again.manifest.digest == shards.manifest.digest


def test_candidates_alternate_and_the_first_round_does_not_count():
    order: list[str] = []
    clocks = {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([100.0, 8.0, 6.0, 40.0])}

    def work(name: str) -> float:
        order.append(name)
        return next(clocks[name])

    found = measure.alternate({"a": lambda: work("a"), "b": lambda: work("b")}, 3)
    assert found == {"a": 2.0, "b": 8.0} and order == ["a", "b"] * 4
    first, second = measure.rows(found, {"b": "a"})
    assert (first.per_second, first.ratio) == (0.5, None)
    assert (second.against, second.ratio) == ("a", 0.25)


def test_time_is_per_unit(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    done: list[int] = []
    assert measure.timed(done.append, [1, 2, 3]) == 2.0 and done == [1, 2, 3]


def test_a_table_says_the_same_as_json(capsys):
    lines = measure.rows({"old": 0.002, "new": 0.001}, {"new": "old"})
    measure.show("demo", lines, {"rounds": 3}, "step", as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["bench"] == "demo" and facts["rounds"] == 3 and consistent(facts["rows"])
    measure.show("demo", lines, {"rounds": 3}, "step", as_json=False)
    printed = capsys.readouterr().out
    assert "2.00 × old" in printed and "1000" in printed and "rounds 3" in printed
