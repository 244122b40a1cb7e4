"""Repeating, sharing, filling the disk and killing the COCO converter (fault 17)."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data_tools import coco
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.errors import UserError
from tests.data_tools.coco_layout import box, plain_folder, run
from tests.data_tools.layout import digests, tool


def test_command_line(tmp_path, capsys, monkeypatch):
    """Workers do not change the files; a rerun reads no annotation; changes are refused."""
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "two"
    (folder.image_dir / "000000000011.jpg").rename(tmp_path / "taken.jpg")
    arguments = (folder.json, folder.image_dir, out, "--shard-size", 3, "--skip-bad")
    first = tool("coco", *arguments, "--workers", 2)
    assert first.returncode == 0 and "done 11, skipped 1, failed 0" in first.stderr
    assert "reading instances.json: 3/3 MB" in first.stderr
    run(folder, tmp_path / "one", shard_size=3, skip_bad=True)
    assert digests(out) == digests(tmp_path / "one")
    # Files of this moment count as old.
    monkeypatch.setattr("data_tools.source_files._SETTLED", -60)
    assert run(folder, out, shard_size=3, skip_bad=True) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(coco, "read_work", None)
        assert run(folder, out, shard_size=3, skip_bad=True) == 0
        assert run(folder, out, shard_size=0, skip_bad=True) == 0
        assert "done 0, skipped 12, failed 0" in capsys.readouterr().err
        for options, text in (({"shard_size": 4}, "shard_size: 3 there, 4 now"),
                              ({"masks": False}, "masks: True there, False now"),
                              ({"skip_bad": False}, "skip_bad: True there")):
            with pytest.raises(UserError, match=text):
                run(folder, out, **{"shard_size": 3, "skip_bad": True, **options})
    (out / "shard-00001.h5").unlink()
    assert run(folder, out, shard_size=3, skip_bad=True) == 0
    assert "done 3, skipped 9, failed 0" in capsys.readouterr().err
    assert digests(out) == digests(tmp_path / "one")
    (tmp_path / "taken.jpg").rename(folder.image_dir / "000000000011.jpg")
    with pytest.raises(UserError, match="rows.images: 11 there, 12 now"):
        run(folder, out, shard_size=3, skip_bad=True)
    refused = tool("coco", tmp_path / "nowhere.json", folder.image_dir, tmp_path / "three")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")


def test_the_database_is_temporary(tmp_path, monkeypatch):
    """It lies in the set's folder, ends with the command, and goes with the next run's start."""
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    out.mkdir()
    (out / "annotations.sqlite.tmp.1234567").write_bytes(b"of a killed run")
    seen = []

    def fail(*arguments, **options):
        seen.extend(path.name for path in out.glob("*.sqlite*"))
        raise UserError("no")

    with monkeypatch.context() as patch:
        patch.setattr(coco, "convert", fail)
        with pytest.raises(UserError, match="no"):
            run(folder, out)
    assert len(seen) == 1 and f"-{os.getpid()}-" in seen[0] and not list(out.glob("*sqlite*"))
    for side in (2, 3):  # a second database of the same name is not taken for the first
        folder.content["annotations"][0]["segmentation"] = [box(0, 0, side, side)]
        folder.write()
        shutil.rmtree(out)
        assert run(folder, out) == 0 and not list(out.glob("*sqlite*"))
        assert ShardSet(out).mask(0).sum() == side ** 2


def test_no_space_for_the_database(tmp_path):
    """A limit on the size of files stands in for the full disk."""
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    folder.content["annotations"] *= 500
    folder.write()
    done = tool("coco", folder.json, folder.image_dir, out, preexec_fn=lambda:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "annotations.sqlite.tmp." in done.stderr and "fix: free some space" in done.stderr
    assert not out.exists()


def test_a_second_converter_is_refused_before_it_reads(tmp_path, monkeypatch):
    folder, out = plain_folder(tmp_path / "coco"), tmp_path / "set"
    monkeypatch.setattr(coco, "read_work", None)
    with folder_lock(out):
        theirs = out / "annotations.sqlite.tmp.1234567"
        theirs.write_bytes(b"in use")
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* writes here"):
            run(folder, out)
        assert theirs.exists()


def _holds(out, pid):
    """Whether the process has taken the folder; killed ones leave their lock file behind."""
    try:
        return f'"pid": {pid},' in (out / ".lock").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_converter_ends_with_the_same_bytes(tmp_path, kills):
    """Killed at any moment, while reading or writing; the same command finishes the set."""
    folder, out = plain_folder(tmp_path / "coco", images=40, size=(160, 200)), tmp_path / "set"
    stray = {**folder.content["annotations"][0], "image_id": 999}
    folder.content["annotations"] += [stray] * 20_000  # makes reading take as long as writing
    folder.write()
    common = (folder.json, folder.image_dir)
    options = ("--shard-size", 4, "--skip-bad")  # most annotations are of no image
    assert tool("coco", *common, tmp_path / "whole", *options).returncode == 0
    whole = digests(tmp_path / "whole")
    command = [sys.executable, "-m", "data_tools.coco", *map(str, common), str(out),
               *map(str, options), "--workers", "2"]
    rng, killed, leftovers = np.random.default_rng(kills), 0, 0
    while killed < kills:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        while not _holds(out, process.pid) and process.poll() is None:
            time.sleep(0.005)  # past the imports
        time.sleep(rng.choice([rng.uniform(0, 0.2), rng.uniform(0, 0.9)]))
        process.kill()  # the parent alone: its workers must not outlive it
        killed += process.wait() == -signal.SIGKILL
        leftovers += bool(list(out.glob("annotations.sqlite.tmp.*")))
        time.sleep(rng.uniform(0, 0.3))
        if process.returncode == 0:  # finished before the kill: start again
            assert digests(out) == whole
            shutil.rmtree(out)
    assert leftovers or kills < 10
    done = tool("coco", *common, out, *options)
    assert done.returncode == 0, done.stderr
    assert digests(out) == whole
