"""The launch scripts: syntax, how they call torchrun, signals, exit codes, the run folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess

import pytest

from launch import address
from tests.conftest import ROOT, pytest_configure
from tests.launch.project import Project, clean_environment, ended, program, status

SCRIPTS = sorted(path.relative_to(ROOT) for pattern in ("*.sh", "slurm/*.sbatch")
                 for path in (ROOT / "launch").glob(pattern))
TRAIN = ("launch/train.sh", "a.py", "--train", "set", "--run", "dir")
STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def test_what_the_user_set_for_launchers_does_not_reach_the_tests(monkeypatch):
    users = ("MORE_VENV", "RANKS", "PYTHON", "SLURM_JOB_ID")
    for name in users:
        monkeypatch.setenv(name, "/elsewhere")
    assert not clean_environment().keys() & set(users)
    pytest_configure()
    assert not os.environ.keys() & set(users)


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


def options(call: str) -> list[str]:
    """torchrun's own options of a recorded call."""
    return call.split(" -m more -- ")[0].split()


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_the_syntax_is_sound(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck_finds_nothing(script):
    """Left out: files it cannot follow, names of another file, cd without `|| exit`."""
    done = subprocess.run(["shellcheck", "-s", "bash", "-e", "SC1091,SC2034,SC2154,SC2164",
                           script],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["train", "nodes", "quickstart"])
def test_help_is_the_head_of_the_script(script):
    done = subprocess.run(["bash", ROOT / "launch" / f"{script}.sh", "-h"], capture_output=True,
                          text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and f"launch/{script}.sh" in done.stdout
    assert not [line for line in lines if line.startswith(("#", "set "))] and len(lines) >= 3


@pytest.mark.parametrize(("state", "code", "expected"), [
    ("finished", 0, 0), ("stopped", 0, 75), ("stopped", 1, 75), ("running", 1, 1),
    ("failed", 2, 2), ("", 0, 0), ("", 3, 3)])
def test_a_stopped_run_is_told_from_a_finished_one(project, state, code, expected):
    project.torchrun(state, code)
    done = project.call(*TRAIN, RANKS="2")
    assert done.returncode == expected, done.stderr
    assert project.calls("torchrun") == [
        "--standalone --nproc_per_node=2 -m more -- train a.py --train set --run dir"]


def test_what_an_earlier_start_left_behind_does_not_count(project):
    project.torchrun("stopped")
    assert project.call(*TRAIN, RANKS="2").returncode == 75
    (project.run / "stop").touch()
    project.fake("torchrun", "[ ! -e dir/stop ] || exit 4; exit 2")
    assert project.call(*TRAIN, RANKS="2").returncode == 2


def test_restarts_are_asked_of_torchrun_even_for_one_rank(project):
    project.fake("torchrun", '[ "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" = 1 ]')
    assert project.call(*TRAIN, RANKS="1", RESTARTS="2").returncode == 0
    assert options(project.calls("torchrun")[0]) == [
        "--standalone", "--nproc_per_node=1", "--max_restarts=2"]


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_signal_becomes_a_stop_file_and_torchrun_lives_on(project, number):
    project.stoppable_torchrun()
    running = project.start(*TRAIN, RANKS="2")
    project.signal(running, number)
    done = ended(running)
    assert done.returncode == 75, done.stderr
    assert "asked to stop" in done.stderr and not (project.run / "terminated").exists()
    assert not (project.run / "stop").exists()


def test_a_second_signal_ends_the_ranks_at_once(project):
    project.stoppable_torchrun()
    project.run.mkdir()
    (project.run / "stubborn").touch()
    running = project.start(*TRAIN, RANKS="2")
    project.signal(running, signal.SIGTERM, signal.SIGTERM)
    assert ended(running).returncode == 1
    assert (project.run / "terminated").exists() and not (project.run / "stop").exists()


def test_a_wish_to_stop_outlives_ranks_that_begin_again(project):
    """A trainer removes a stop file that is there when it starts."""
    project.fake("torchrun", "mkdir -p dir; echo > dir/started; until rm dir/stop; do sleep .1; "
                 f"done; for n in $(seq 100); do [ ! -e dir/stop ] || break; sleep .1; done; "
                 f"rm dir/stop && {status('stopped')}")
    running = project.start(*TRAIN, RANKS="2")
    project.signal(running, signal.SIGTERM)
    assert ended(running).returncode == 75
    assert not (project.run / "stop").exists()


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_torchrun_does_not_die_of_a_signal_sent_to_all(project, number):
    """A container's runtime or SLURM can signal every process: that is for the ranks."""
    project.fake("torchrun", f'kill -{number.value} $$; [ "$PET_SIGNALS_TO_HANDLE" = SIGQUIT ] && '
                             "exit 5")
    assert project.call(*TRAIN, RANKS="2").returncode == 5


@pytest.mark.parametrize(("arguments", "expected"), [
    (("--run", "x/y"), "x/y"), (("--run-dir", "x"), "x"), (("--run=a b",), "a b"),
    (("--run-dir=x", "--resume", "never"), "x"), ((), "checkpoints/shapes_micro"),
    (("--set", "optim.lr=1", "--set=name=other"), "checkpoints/other"),
    (("--val", "--run", "--set", "name=mine"), "checkpoints/mine")], ids=str)
def test_the_run_folder_is_the_trainers(project, arguments, expected):
    program(project.folder / "find", "set -euo pipefail; source launch/stoppable.sh\n"
            'find_run "$@"; echo "$run"')
    done = project.call("find", "configs/shapes_micro.py", "--train", "set", *arguments)
    assert done.stdout.strip() == expected, done.stderr


def test_stage_two_has_its_run_folder_in_that_of_stage_one(project):
    program(project.folder / "find", "set -euo pipefail; source launch/stoppable.sh\n"
            'find_run "$@"; echo "$run"')
    (project.folder / "one").mkdir()
    for words, expected in ((("--init", "one/"), "one/two"), (("--init=one",), "one/two"),
                            (("--init", "one", "--run", "own"), "own"),
                            (("--init", "one.safetensors"), "checkpoints/shapes_micro")):
        done = project.call("find", "configs/shapes_micro.py", "--masks", "masks", *words)
        assert done.stdout.strip() == expected, done.stderr


def test_a_missing_configuration_is_named_before_torchrun(project):
    project.torchrun("finished")
    done = project.call("launch/train.sh", "configs/shape_micro.py", "--train", "set", RANKS="2")
    assert done.returncode == 2 and "no such configuration file" in done.stderr
    assert not project.calls("torchrun")


def test_each_machine_gets_its_part_of_the_line(project):
    """The loopback address stands for a first machine of which we know nothing but the address."""
    project.torchrun("finished")
    done = project.call("launch/nodes.sh", "127.0.0.1", "2", *TRAIN[1:], RANKS="3", PORT="29777",
                        RDZV_ID="job7")
    assert done.returncode == 0, done.stderr
    assert project.calls("torchrun") == [
        "--nnodes=2 --nproc_per_node=3 --max_restarts=3 --rdzv_backend=c10d "
        "--rdzv_endpoint=127.0.0.1:29777 --rdzv_id=job7 "
        "--rdzv_conf=read_timeout=600,join_timeout=600 --local_addr=127.0.0.1 "
        "-m more -- train a.py --train set --run dir"]


def test_machines_agree_on_a_name_that_the_arguments_decide(project):
    project.torchrun("finished")
    for arguments in (TRAIN[1:], TRAIN[1:], (*TRAIN[1:], "--resume", "never")):
        project.call("launch/nodes.sh", "127.0.0.1", "2", *arguments, RANKS="1")
    first, again, other = (next(word for word in options(call) if "rdzv_id" in word)
                           for call in project.calls("torchrun"))
    assert first == again != other


@pytest.mark.parametrize(("state", "code", "step", "expected"), [
    ("stopped", 0, None, 75), ("finished", 0, None, 0), ("running", 1, None, 1),
    ("stopped", 0, "0", 0)])
def test_a_machine_tells_stopped_from_finished_unless_a_batch_script_does(
        project, state, code, step, expected):
    project.torchrun(state, code)
    extra = {"SLURM_STEP_ID": step} if step else {}
    done = project.call("launch/nodes.sh", "localhost", "2", *TRAIN[1:], RANKS="1", **extra)
    assert done.returncode == expected, done.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    (("host0", "two", "a.py"), "not a number"), (("no-such-host.invalid", "2", "a.py"), "fix:"),
    (("host0", "2"), "launch/nodes.sh")])
def test_a_line_that_cannot_work_is_refused(project, arguments, words):
    project.torchrun("finished")
    done = project.call("launch/nodes.sh", *arguments, RANKS="1")
    assert done.returncode == 2 and words in done.stderr + done.stdout
    assert not project.calls("torchrun")


def test_the_first_machine_is_known_by_its_address(monkeypatch):
    names = {"first": "10.0.0.1", "loop": "127.0.1.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: [
        (0, 0, 0, "", (names.get(host, host), 0))])
    monkeypatch.setattr(address, "address_towards", lambda host: "10.0.0.1")
    assert address.locate("first") == ("10.0.0.1", "1")
    assert address.locate("10.0.0.2") == ("10.0.0.1", "0")
    assert address.locate("loop") == ("10.0.0.1", "1")  # its peers could not reach 127.0.1.1
    assert address.locate("127.0.0.1") == ("127.0.0.1", "")


def test_no_script_is_forgotten_in_its_page():
    page = (ROOT / "launch" / "README.md").read_text()
    for script in SCRIPTS:
        assert script.name in page, script
    assert os.path.exists(ROOT / "launch" / "address.py") and "address.py" in page
