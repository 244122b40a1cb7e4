"""Entry files, mixing of parameters, and one writer per folder."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from more.data.shards.format import remove_temporaries, temporary_path, write_atomic
from more.data.shards.lock import LOCK, RENEWED, STALE, folder_lock
from more.data.shards.manifest import finished_shards
from more.errors import UserError
from tests.data.sets import small_set

MADE = {"tool": "t", "parameters": {"a": 1, "b": [1, 2]}}


def test_finished_shards_are_those_that_verify(tmp_path):
    folder = small_set(tmp_path, provenance=MADE)
    assert list(finished_shards(folder, MADE)) == [f"shard-0000{k}.h5" for k in range(3)]
    data = bytearray((folder / "shard-00000.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shard-00000.h5").write_bytes(data)
    (folder / "shard-00001.json").unlink()
    assert list(finished_shards(folder, MADE)) == ["shard-00002.h5"]
    (folder / "shard-00002.json").write_text("{")
    assert finished_shards(folder, MADE) == {}


@pytest.mark.parametrize("with_manifest", [True, False])
def test_other_parameters_are_refused(tmp_path, with_manifest):
    """Fault 25."""
    folder = small_set(tmp_path, provenance=MADE)
    if not with_manifest:
        (folder / "manifest.json").unlink()
    for other in ({**MADE, "parameters": {"a": 2, "b": [1, 2]}}, {"tool": "t"}):
        with pytest.raises(UserError, match=r"parameters.a: 1 there, (2|None) now"):
            finished_shards(folder, other)


def test_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_stale_temporaries_go(tmp_path):
    (tmp_path / "shard-00000.h5.tmp.77").write_bytes(b"half")
    (tmp_path / "shard-00000.h5").write_bytes(b"")
    assert remove_temporaries(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.h5"]


def test_only_our_own_temporary_files_go(tmp_path):
    theirs = ["drawing.tmp.png", "a.tmp.1", "image_1.png.tmp.77", "notes.tmp.row", "b.tmp.more-1",
              f"x.tmp.{'0' * 32}", "report.tmp.through"]
    ours = [temporary_path(tmp_path / "image_1.png").name, "shard-00000.h5.tmp.row",
            "manifest.json.tmp.77", "rank-0-of-2.tmp.id-29500-0.works", f"task.tmp.{'a' * 32}"]
    for name in (*theirs, *ours):
        (tmp_path / name).touch()
    assert remove_temporaries(tmp_path) == len(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_temporary_names_differ_between_writers_of_one_process_id(tmp_path):
    """As ranks in containers have: host and a random part tell them apart; names stay legal."""
    names = {temporary_path(tmp_path / ("i" * 200 + ".png")).name for _ in range(20)}
    assert len(names) == 20 and max(map(len, names)) <= 255
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:12]
    assert all(f"-{host}-{os.getpid()}-" in name for name in names)


HOLD = ("import sys, time; from more.data.shards.lock import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)")


def test_second_writer_is_refused_and_a_killed_one_forgotten(tmp_path):
    """Fault 18."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        expected = f"process {holder.pid} on {socket.gethostname()} writes here"
        with pytest.raises(UserError, match=expected), folder_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / LOCK).exists()
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == []
    finally:
        holder.kill()
        holder.stdout.close()
        holder.wait()


def test_lock_of_another_host_is_believed(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(UserError, match="process 1 on elsewhere") as caught, folder_lock(tmp_path):
        pass
    assert "delete" in caught.value.fix
    (tmp_path / LOCK).write_text("")  # written by nobody: a crash before the first byte
    with folder_lock(tmp_path):
        pass


def test_lock_of_another_host_counts_until_it_is_not_renewed_for_long(tmp_path):
    lock = tmp_path / LOCK
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "renewed_every": RENEWED}))
    with pytest.raises(UserError, match="on elsewhere") as caught, folder_lock(tmp_path):
        pass
    assert "15 minutes" in caught.value.fix and f"delete {lock}" in caught.value.fix
    old = lock.stat().st_mtime - STALE - 5
    os.utime(lock, (old, old))
    with folder_lock(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr("more.data.shards.lock.RENEWED", 0.01)
    with folder_lock(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime < 100 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 100


def test_a_lock_removed_between_opening_and_locking_is_seen(tmp_path, monkeypatch):
    """Its owner removes it on release; a lock on the removed file would keep nobody out."""
    real, removed = fcntl.flock, []

    def flock(file, how):
        if not removed:
            removed.append(True)
            (tmp_path / LOCK).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("write", ["write_atomic", "shard"])
def test_a_file_is_forced_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}"))), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (
        done.append(("name", str(old))), replace(old, new)))
    if write == "shard":
        small_set(tmp_path, shards=1)
    else:
        write_atomic(tmp_path / "a.json", b"{}")
    named = [place for place, (what, _) in enumerate(done) if what == "name"]
    assert named
    for place in named:
        assert done[place - 1] == ("sync", done[place][1])
        assert done[place + 1] == ("sync", str(tmp_path))


def test_the_entry_file_comes_after_its_shard(tmp_path, monkeypatch):
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (
        names.append(os.path.basename(new)), replace(old, new)))
    small_set(tmp_path, shards=1)
    assert names == ["shard-00000.h5", "shard-00000.json", "manifest.json"]


def test_lock_on_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"), folder_lock(tmp_path / "file"):
        pass
