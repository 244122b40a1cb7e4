"""Merge and split refuse before any work, name damage, and survive being killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools import split as splitting
from data_tools.merge import merge
from data_tools.split import split
from more.data.shards.format import shard_name
from more.data.shards.reader import ShardSet
from more.data.split_parts import parse_parts
from more.errors import UserError
from tests.data.sets import flip_a_byte, small_set
from tests.data_tools.layout import digests, tool
from tests.data_tools.random_sets import ROUTE, a_set, ids


@pytest.mark.parametrize(("other", "text"), [
    ({"kind": "seeds"}, "two holds seeds, .*one images"),
    ({"names": ["cat", "cow", "dog"]},
     "another order: class 2 is cow, not dog, class 3 is dog, not cow"),
    ({"names": ["cat", "dog", "pig", "hen"]}, "it lacks cow; only it has pig, hen"),
    ({"ids": ["new", *ids("a", 9)[2:9]]}, "two: 7 ids are also in .*one: a-Ü写 2, a-Ü写 3, .*, …"),
])
def test_merge_refuses(tmp_path, other, text):
    one = a_set(tmp_path / "one", ids("a", 9))
    two = a_set(tmp_path / "two", **{"ids": ids("b", 3), **other})
    with pytest.raises(UserError) as caught:
        merge(tmp_path / "all", [one, two], workers=1)
    assert re.search(text, caught.value.message), caught.value.message
    assert caught.value.fix and not (tmp_path / "all").exists()


def test_merge_refuses_seeds_of_another_route_and_a_single_set(tmp_path):
    one = a_set(tmp_path / "one", ids("a", 3), "seeds", provenance=ROUTE)
    two = a_set(tmp_path / "two", ids("b", 3), "seeds", provenance={**ROUTE, "map": "lam"})
    with pytest.raises(UserError, match="made in another way than .*one: LAM .*decoder"):
        merge(tmp_path / "all", [one, two], workers=1)
    with pytest.raises(UserError, match="needs two sets"):
        merge(tmp_path / "all", [one], workers=1)


def test_a_damaged_source_is_refused(tmp_path):
    """Fault 16."""
    broken = flip_a_byte(small_set(tmp_path / "set"), tmp_path / "broken")
    with pytest.raises(UserError, match="broken/shard-00000.h5.*sha256"):
        split(broken, tmp_path / "out", parse_parts(["a=0.5"]), workers=1)
    with pytest.raises(UserError, match="broken/shard-00000.h5.*sha256"):
        merge(tmp_path / "out", [a_set(tmp_path / "a", ids("a", 2)), broken], workers=1)
    assert not (tmp_path / "out").exists()


def test_damage_that_comes_later_fails_its_shard_with_all_names(tmp_path, monkeypatch, capsys):
    source = small_set(tmp_path / "set")
    quick = ShardSet(source)
    path, data = source / shard_name(1), bytearray((source / shard_name(1)).read_bytes())
    for row in (6, 8):
        data[bytes(data).index(quick.blob("image", row)) + 40] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(splitting, "open_source", ShardSet)
    assert splitting.main(source, tmp_path / "out", ["all=1"], shard_size=5, workers=1) == 1
    said = capsys.readouterr().err
    assert "shard-00001.h5: " in said and "'image_6' is damaged" in said
    assert "'image_8' is damaged" in said and "done 10, skipped 0, failed 1" in said
    assert not (tmp_path / "out/all/manifest.json").exists()


def test_other_parameters_and_a_busy_folder_are_refused(tmp_path):
    """Faults 25 and 18."""
    one, two = a_set(tmp_path / "one", ids("a", 9)), a_set(tmp_path / "two", ids("b", 9))
    merge(tmp_path / "all", [one, two], workers=1)
    assert merge(tmp_path / "all", [one, two], workers=1).skipped == 18
    with pytest.raises(UserError, match=r"other parameters \(inputs.0"):
        merge(tmp_path / "all", [two, one], workers=1)
    with pytest.raises(UserError, match="shard_size: 32 there, 4 now"):
        merge(tmp_path / "all", [one, two], shard_size=4, workers=1)
    with pytest.raises(UserError, match="other parameters"):
        merge(one, [one, two], workers=1)
    split(one, tmp_path / "out", parse_parts(["t=0.5"]), workers=1)
    for parts, seed in ((["t=0.5"], 1), (["t=0.4"], 0), (["t=0.5", "v=0.5"], 0)):
        with pytest.raises(UserError, match="other parameters .*parameters.(seed|parts)"):
            split(one, tmp_path / "out", parse_parts(parts), seed, workers=1)
    with pytest.raises(UserError, match="is the set to split"):
        split(one, tmp_path, parse_parts(["one=0.5"]), workers=1)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "new")],
                              stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on .* writes here"):
            merge(tmp_path / "new", [one, two], workers=1)
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()
    merge(tmp_path / "new", [one, two], workers=1)
    assert digests(tmp_path / "new") == digests(tmp_path / "all")


HOLD = ("import sys, time; from more.data.shards.lock import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)")


def killed_at_random(command: list[str], out: Path, times: int, seed: int) -> None:
    """Start and kill a command, each time after it wrote something new."""
    rng, killed, groups = np.random.default_rng(seed), 0, []
    for _ in range(times):
        before = set(out.rglob("*.h5*"))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        groups.append(process.pid)
        while set(out.rglob("*.h5*")) <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()  # the parent alone: its workers end by themselves, a little later
        killed += process.wait() == -signal.SIGKILL
    assert killed
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.mark.parametrize("times", [2, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["merge", "split"])
def test_killed_and_finished_gives_the_same_bytes_for_any_workers(tmp_path, name, times):
    """Fault 17."""
    one = a_set(tmp_path / "one", ids("a", 120), size=60_000)
    two = a_set(tmp_path / "two", ids("b", 60), size=60_000)

    def arguments(out: str, workers: int) -> list[str]:
        where = tmp_path / out
        named = [where, one, two] if name == "merge" else [
            one, where, "--part", "t=2/3", "--part", "v=1/3"]
        return [*map(str, named), "--shard-size", "6", "--workers", str(workers)]

    whole = tool(name, *arguments("whole", 1))
    assert whole.returncode == 0, whole.stderr
    killed_at_random([sys.executable, "-m", f"data_tools.{name}", *arguments("set", 2)],
                     tmp_path / "set", times, seed=times)
    done = tool(name, *arguments("set", 2))
    assert done.returncode == 0, done.stderr
    folders = ["."] if name == "merge" else ["t", "v"]
    for folder in folders:
        assert digests(tmp_path / "set" / folder) == digests(tmp_path / "whole" / folder)
    print(done.stderr)
    assert "skipped" in done.stderr and "Traceback" not in done.stderr


def test_command_lines(tmp_path):
    one, two = a_set(tmp_path / "one", ids("a", 3)), a_set(tmp_path / "two", ids("b", 3))
    assert "done 6, skipped 0, failed 0" in tool("merge", tmp_path / "all", one, two).stderr
    for arguments in (("merge", tmp_path / "x", one, one), ("split", one, tmp_path / "x"),
                      ("split", one, tmp_path / "x", "--part", "a=2")):
        refused = tool(*arguments)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stderr
    assert not (tmp_path / "x").exists()
