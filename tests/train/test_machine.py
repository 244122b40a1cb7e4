"""What settings leave to the machine, and what a run tells about it."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.device import allow_tf32
from more.errors import UserError
from more.plan import dry_run, dry_run_tables
from more.run_folder import find_newest
from more.train import distributed
from more.train.checks import check_same_model
from more.train.distributed import World, settled_here
from more.train.meter import PHASES, Phases, Trace
from tests.train.conftest import command, records

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def settled(monkeypatch, device, bf16=True, cores=16, ranks=1, everyone=None, settings=()):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(distributed, "usable_cores", lambda: cores)
    world = None
    if everyone is not None:
        world = World(0, len(everyone), 0, 1, device)
        object.__setattr__(world, "gather", lambda own: [own, *everyone[1:]])
    return settled_here(load_config(None, settings), device, ranks, world)


def test_precision_auto_is_bf16_where_every_rank_has_it(monkeypatch):
    assert settled(monkeypatch, CPU).precision == "fp32"
    assert settled(monkeypatch, GPU).precision == "bf16"
    assert settled(monkeypatch, GPU, bf16=False).precision == "fp32"
    assert settled(monkeypatch, GPU, everyone=[True, True]).precision == "bf16"
    assert settled(monkeypatch, GPU, everyone=[True, False]).precision == "fp32"
    assert settled(monkeypatch, GPU, settings=["precision=fp32"]).precision == "fp32"


@pytest.mark.parametrize("cores, ranks, workers", [
    (1, 1, 1), (2, 1, 1), (16, 1, 8), (64, 8, 7), (8, 8, 1), (4, 8, 1)])
def test_loader_processes_follow_the_cores_of_a_rank(monkeypatch, cores, ranks, workers):
    assert settled(monkeypatch, CPU, cores=cores, ranks=ranks).data.workers == workers
    kept = settled(monkeypatch, CPU, cores=cores, ranks=ranks, settings=["data.workers=3"])
    assert kept.data.workers == 3


def test_tf32_is_allowed_by_the_setting_only():
    try:
        allow_tf32(True, CPU)
        assert torch.get_float32_matmul_precision() == "highest"
        allow_tf32(True, GPU)
        assert torch.get_float32_matmul_precision() == "high"
        allow_tf32(False, GPU)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_dry_run_says_what_the_machine_and_scale_to_make_of_the_settings(tiny, capsys):
    config = load_config(tiny["config"], ["train.scale_to=8", "data.workers=-1"])
    facts = dry_run.describe(config, ShardSet(tiny["train"], kind="images"), None, 1)
    assert facts["precision"] == "fp32" and facts["loader"]["workers"] >= 1
    assert facts["scaled"]["settings"]["train.iterations"] == 3
    dry_run_tables.show(facts)
    said = " ".join(capsys.readouterr().out.split())
    assert "from 4 to 8 images an update (× 2)" in said and "optim.lr 0.002" in said


def test_phases_add_up_to_the_time():
    phases = Phases(CPU)
    for name in ("data", "forward", "data"):
        phases.mark(name)
        sum(range(200_000))
    seconds = phases.read()
    assert list(seconds) == ["rest", "data", "forward"] and seconds["data"] > seconds["forward"] > 0
    assert 0 < phases.utilisation() < 1.5


def test_a_driver_that_does_not_say_how_busy_it_is_ends_nothing(monkeypatch):
    def refuse(_):
        raise RuntimeError("not supported")
    phases = Phases(CPU)
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    phases.cuda = True
    assert phases.utilisation() is None


def test_a_run_stopped_inside_the_span_leaves_the_trace_of_what_it_did(tmp_path):
    said = []
    trace = Trace("2:9", tmp_path, CPU, said.append)
    for step in range(4):
        trace.before(step)
        torch.ones(3).sum()
        trace.after(step)
    trace.close(4)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["updates-2-4.json.gz"]
    assert "updates 2 to 3 are recorded" in said[0]


def test_a_run_writes_a_trace_and_time_by_phase(tiny, tmp_path):
    done = command("train", tiny["config"], "--train", tiny["train"], "--run", tmp_path / "run",
                   "--set", "train.profile=1:3", "--set", "train.iterations=4")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "updates-1-3.json.gz"
    names = {event.get("name") for event in json.loads(gzip.open(path).read())["traceEvents"]}
    assert any("aten::addmm" in str(name) or "aten::linear" in str(name) for name in names)
    for record in records(tmp_path / "run"):
        assert set(record["phases"]) == set(PHASES)
        assert sum(record["phases"].values()) == pytest.approx(
            record["seconds_per_step"], rel=0.1)
        assert 0 < record["utilisation"]["least"] <= record["utilisation"]["mean"]
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["precision"] == "fp32"
    with pytest.raises(UserError, match="train.scale_to: 0 → 8"):
        check_same_model(load_config(tiny["config"], ["train.scale_to=8"]),
                         find_newest(tmp_path / "run" / "checkpoints")[0])
