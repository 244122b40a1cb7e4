"""Refining as ranks of torchrun, srun or a job array: shares, deaths, the last one's manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from more.data.shards.manifest import read_manifest
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.inference import localize
from more.jobs.ranks import (
    LAUNCHERS,
    OVERRIDE,
    Departure,
    Rank,
    announced_world,
    rank_cores,
)
from more.jobs.resume import finished_beside_others
from more.refinement.plan import open_pair
from more.refinement.refine import refine
from tests.conftest import ROOT
from tests.launch.project import clean_environment
from tests.refinement.sets import (
    FAST,
    INLINE,
    POISON,
    full_disk_shard,
    make_sets,
    shard_bytes,
)

JOB = "tests.jobs.rank_job"


def run(seeds, data, out, **options):
    options = {"how": FAST, "rows_per_shard": 3, "progress": False, **INLINE, **options}
    return refine(seeds, data, out, **options)


def as_rank(monkeypatch, rank: int, world: int, **more: str) -> None:
    """The environment of a rank."""
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "MORE_RANKS": 1, **more}.items():
        monkeypatch.setenv(name, str(value))


def torchrun(sets, out, function: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "-m", JOB, *map(str, (*sets[:2], out)), function],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=200)


@pytest.mark.timeout(200)
def test_two_ranks_at_once_make_the_same_bytes(sets, tmp_path):
    """Fault 27, as srun and job arrays start them; no lock of one rank stops the other."""
    started = [subprocess.Popen(
        [sys.executable, "-m", JOB, *map(str, (*sets[:2], tmp_path / "masks")), "refine_shard"],
        cwd=ROOT, env=clean_environment(RANK=str(rank), WORLD_SIZE="2", MORE_RANKS="1"), text=True,
        stderr=subprocess.PIPE) for rank in (0, 1)]
    said = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    for rank in (0, 1):
        assert f"rank {rank} of 2, images: done 6, skipped 0, failed 0" in said[rank]
    assert "refine: " in said[0] and "refine: " not in said[1]  # progress on rank 0 alone
    assert shard_bytes(tmp_path / "masks") == shard_bytes(sets[2])


@pytest.mark.slow
@pytest.mark.timeout(250)
def test_a_poison_image_ends_neither_its_rank_nor_the_other(sets, tmp_path):
    """Fault 24 under torchrun: all other images are there, the exit code is not 0."""
    out = tmp_path / "masks"
    done = torchrun(sets, out, "poisoned_shard")
    assert done.returncode != 0
    assert "rank 1 of 2, images: done 5, skipped 0, failed 1" in done.stderr
    assert "rank 0 of 2, images: done 6, skipped 0, failed 0" in done.stderr
    assert [i for i in ShardSet(sets[2]).ids if i not in ShardSet(out).ids] == [POISON]
    listed = json.loads((out / "manifest.json").read_text())["extra"]["failures"]
    assert [name for name, _ in listed] == [POISON]
    assert not list(out.glob("*.tmp.*"))


def test_ranks_one_after_another(sets, tmp_path, monkeypatch):
    """Only the last one writes the manifest; a rerun does nothing (fault 25)."""
    out = tmp_path / "masks"
    for rank in (2, 0, 1):
        assert not (out / "manifest.json").exists()
        as_rank(monkeypatch, rank, 3)
        tally = run(*sets[:2], out, executor="ranks")
        assert (tally.done, tally.skipped) == ({0: 6, 1: 3, 2: 3}[rank], 0)
    assert shard_bytes(out) == shard_bytes(sets[2])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    for rank in range(5):  # another number of ranks; the last has no shard
        as_rank(monkeypatch, rank, 5)
        tally = run(*sets[:2], out, executor="ranks")
        assert (tally.done, tally.skipped) == (0, 3 if rank < 4 else 0)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_the_uneven_leftover_of_the_shards_is_one_ranks(sets, tmp_path, monkeypatch):
    """Three shards for two ranks, the last one with fewer rows."""
    seeds, data = make_sets(tmp_path, 5, rows=5)
    run(seeds, data, tmp_path / "alone", rows_per_shard=2)
    for rank, images in ((0, 3), (1, 2)):
        as_rank(monkeypatch, rank, 2)
        tally = run(seeds, data, tmp_path / "masks", rows_per_shard=2, executor="ranks")
        assert tally.done == images
    assert shard_bytes(tmp_path / "masks") == shard_bytes(tmp_path / "alone")


def test_a_rank_takes_away_its_own_leavings_only(sets, tmp_path, monkeypatch):
    out = tmp_path / "masks"
    out.mkdir()
    names = [f"{stem}.tmp.{end}" for number in (0, 1) for stem, end in (
        (f"shard-0000{number}.h5", "77"), (f"shard-0000{number}.h5", "row"),
        (f"shard-0000{number}.json", "77"), (f"failures-shard-0000{number}.json", "77"))]
    for name in names:
        (out / name).touch()
    as_rank(monkeypatch, 1, 2)
    run(*sets[:2], out, executor="ranks")
    left = {path.name for path in out.glob("*.tmp.*")}
    assert left == {name for name in names if "00000" in name}


def test_a_full_disk_of_one_rank_leaves_the_set_unfinished(sets, tmp_path, monkeypatch):
    """Fault 26: the others' shards stay, the same command finishes."""
    out = tmp_path / "masks"
    for rank, failed in ((0, 0), (1, 3)):
        as_rank(monkeypatch, rank, 2)
        tally = run(*sets[:2], out, executor="ranks", shard_function=full_disk_shard)
        assert (tally.done, len(tally.failures)) == (6 - failed, failed)
    assert not (out / "manifest.json").exists()
    assert run(*sets[:2], out, executor="ranks").done == 3
    assert shard_bytes(out) == shard_bytes(sets[2])


def test_the_last_to_finish_corrects_the_manifest(sets, tmp_path, monkeypatch):
    """Both ranks make a shard again: the manifest of the first still had the second's old one."""
    out = tmp_path / "masks"
    run(*sets[:2], out)
    old = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(old.replace(b'"rows": 3', b'"rows": 2', 1))
    as_rank(monkeypatch, 1, 2)
    assert run(*sets[:2], out, executor="ranks").skipped == 6
    assert (out / "manifest.json").read_bytes() == old


def test_a_rank_looks_again_after_it_has_written_the_manifest(sets, tmp_path, monkeypatch):
    """Another may have replaced a shard, and written its manifest, between its look and its
    writing."""
    from more.jobs import resume
    from more.refinement.plan import open_pair, plan
    from more.refinement.refine import planned_set

    out = tmp_path / "masks"
    run(*sets[:2], out)
    new, specs = read_manifest(out), plan(*open_pair(*sets[:2], Rank()), out, FAST, 3)
    looks = iter([replace(new, extra={"failures": [["image-00", "old"]]}), new, new])
    monkeypatch.setattr(resume, "_wanted", lambda *_: next(looks))
    assert resume.finish_set(planned_set(specs, new.class_names), alone=False)
    assert read_manifest(out) == new


@pytest.mark.parametrize(("environment", "cores"), [
    ({}, 16), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_WORLD_SIZE": "40"}, 1),
    ({"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_TASKS_PER_NODE": "2"}, 8),
    ({"SLURM_CPUS_PER_TASK": "64"}, 16), ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}, 2)])
def test_ranks_of_a_machine_share_its_cores(environment, cores):
    assert rank_cores(environment, 16) == cores


@pytest.fixture
def elastic(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/b")
    monkeypatch.setattr("more.jobs.ranks.POLL", 0.02)


def test_a_rank_with_failures_waits_for_the_others(elastic, tmp_path):
    """torchrun would end them with it."""
    first, second, third = (Departure(tmp_path, Rank(number, 3)) for number in range(3))
    left: list[int] = []

    def leave(number: int, departure: Departure) -> threading.Thread:
        def through():
            departure.through(failed=True)
            left.append(number)
        thread = threading.Thread(target=through, daemon=True)
        thread.start()
        return thread

    threads = [leave(0, first), leave(1, second)]
    threads[0].join(0.2)
    assert left == []
    third.through(failed=False)  # the last one, without failures: it does not wait
    for thread in threads:
        thread.join(5)
    assert sorted(left) == [0, 1] and not list(tmp_path.iterdir())


def test_nobody_waits_without_failures_alone_or_without_torchrun(elastic, tmp_path, monkeypatch):
    Departure(tmp_path, Rank(0, 2)).through(failed=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".through"]
    Departure(tmp_path, Rank(0, 2))  # a restart: not through any more
    assert [path.suffix for path in tmp_path.iterdir()] == [".works"]
    Departure(tmp_path, Rank(0, 1)).through(failed=True)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    Departure(tmp_path, Rank(1, 2)).through(failed=True)


@pytest.mark.parametrize("environment, said", [
    ({"RANK": "1", "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "a"},
     "rank 1 of 3: makes one shard in 3"),
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "unset SLURM_PROCID and SLURM_STEP_NUM"),
    ({"RANK": "0", "WORLD_SIZE": "1"}, ""), ({}, "")])
def test_one_of_several_ranks_says_so_first(environment, said, monkeypatch, capsys):
    """Variables left over in a shell must not pass a part of the work for all of it."""
    only(monkeypatch, environment)
    announced_world()
    err = capsys.readouterr().err
    assert said in err and bool(err) == bool(said)


def only(monkeypatch, environment: dict[str, str]) -> None:
    """The environment of a rank, and nothing left of other launchers."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", OVERRIDE, *LAUNCHERS):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


TWO = {"RANK": "1", "WORLD_SIZE": "2"}
STEP = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("environment", [
    TWO, {**TWO, "MORE_RANKS": "0"}, {**TWO, "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},
    {**TWO, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    {**STEP, "SLURM_PTY_PORT": "40000"}])
def test_a_world_that_nobody_launched_is_refused(environment, monkeypatch):
    only(monkeypatch, environment)
    with pytest.raises(UserError, match="no launcher started this process") as caught:
        announced_world()
    assert "unset " in caught.value.fix and "MORE_RANKS=1" in caught.value.fix


@pytest.mark.parametrize("environment", [
    {**TWO, "TORCHELASTIC_RUN_ID": "none"}, {**TWO, "CROSS_RANK": "0"}, STEP, {**STEP, **TWO},
    {**TWO, "OMPI_COMM_WORLD_RANK": "1"}, {**TWO, "PMI_RANK": "1"},
    {**TWO, "SLURM_ARRAY_TASK_ID": "1"}, {**TWO, "MORE_RANKS": "1"}])
def test_launched_worlds_are_taken(environment, monkeypatch):
    only(monkeypatch, environment)
    assert announced_world() == (1, 2)


def test_a_salloc_shell_is_alone(monkeypatch):
    only(monkeypatch, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert announced_world() == (0, 1)


@pytest.mark.parametrize("error", [FileNotFoundError("shard-00000.h5"), UserError("half read")])
def test_a_job_looks_again_when_another_rank_replaces_a_shard(error, tmp_path, monkeypatch):
    """`localize` and `refine` read finished shards through this function."""
    calls = []

    def finished(folder, provenance):
        calls.append(folder)
        if len(calls) < 3:
            raise error
        return {}

    monkeypatch.setattr("more.jobs.resume.finished_shards", finished)
    assert finished_beside_others(tmp_path, {}) == {} and len(calls) == 3


@pytest.mark.parametrize("tool", ["refine seeds", "refine data", "localize data"])
def test_ranks_hash_all_shards_of_their_inputs_between_them(tmp_path, tool):
    folders = dict(zip(("seeds", "data"), make_sets(tmp_path, 6, rows=2), strict=True))

    def refused(rank):
        try:
            if tool == "localize data":
                localize.localize(tmp_path / "no run", folders["data"], tmp_path / "out",
                                  localize.Request(), rank=rank, world=2)
            open_pair(folders["seeds"], folders["data"], Rank(rank, 2))
        except UserError as error:
            return "sha256 differs" in error.message
        return False

    for number in range(3):
        path = folders[tool.split()[1]] / f"shard-{number:05d}.h5"
        sound = path.read_bytes()
        path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        assert [rank for rank in range(2) if refused(rank)] == [number % 2]
        path.write_bytes(sound)
