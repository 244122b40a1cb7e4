"""Training over two machines; one of them is lost, comes back by the same line, and it goes on."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from tests.faults.nodes import Machine, steps, two_machines
from tests.launch.project import wait_for
from tests.train.conftest import command, records

pytestmark = pytest.mark.slow
STEPS = 30
PORT = str(29600 + os.getpid() % 300)  # where all share one host, other tests run beside these


@pytest.fixture
def pair(tmp_path):
    """Two machines with nothing running on them, before and after."""
    folder = tmp_path / "machines"
    folder.mkdir()
    with two_machines(folder) as made:
        yield made


def line(tiny, run: Path) -> tuple[object, ...]:
    """The training arguments, the same on every machine."""
    return (tiny["config"], "--train", tiny["train"], "--run", run,
            "--set", f"train.iterations={STEPS}", "--set", "checkpoint.every=5")


def join(machine: Machine, first: Machine, arguments: tuple[object, ...]):
    """Type the same line on a machine."""
    return machine.start("bash", "launch/nodes.sh", first.address, 2, *arguments, PORT=PORT)


def join_all(pair: list[Machine], arguments: tuple[object, ...]) -> None:
    """Type the same line on both machines."""
    for machine in pair:
        join(machine, pair[0], arguments)
        if not machine.namespace:  # on one host, whoever comes first is where all meet
            wait_for(lambda: listens(int(PORT)), "the meeting point")


def listens(port: int) -> bool:
    """Whether somebody listens at a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def finish(*machines: Machine, code: int = 0) -> None:
    """Wait for the last command of each machine; all must end with `code`."""
    for machine in machines:
        assert machine.started[-1].wait(150) == code, machine.output()


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory) -> Path:
    """The same run in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = command("train", *line(tiny, run))
    assert done.returncode == 0, done.stderr
    return run


def compare(run: Path, alone: Path) -> None:
    """Every step, some perhaps twice, with the losses of one process within 1e-4."""
    truth = {item["step"]: item["terms"] for item in records(alone)}
    assert sorted(set(steps(run))) == sorted(truth) == list(range(1, STEPS + 1))
    for item in records(run):
        for name, value in truth[item["step"]].items():
            assert item["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-9), item["step"]


def test_two_machines_give_the_losses_of_one_process(tiny, pair, alone, tmp_path):
    for machine in reversed(pair):  # the first machine may well be the last one to start
        join(machine, pair[0], line(tiny, tmp_path / "run"))
    finish(*pair)
    compare(tmp_path / "run", alone)


def test_a_lost_machine_joins_again_and_the_run_goes_on(tiny, pair, alone, tmp_path):
    run = tmp_path / "run"
    join_all(pair, line(tiny, run))
    wait_for(lambda: len(steps(run)) >= 8, "eight steps", 120)
    pair[1].lose()
    assert pair[0].started[-1].poll() is None
    join(pair[1], pair[0], line(tiny, run))
    finish(*pair)
    resumed = re.search(r"resumed after (\d+) updates", pair[0].output() + pair[1].output())
    assert resumed and int(resumed[1]) >= 5
    compare(run, alone)


def test_after_the_loss_of_the_first_machine_the_same_lines_go_on(tiny, pair, tmp_path):
    run = tmp_path / "run"
    join_all(pair, line(tiny, run))
    wait_for(lambda: len(steps(run)) >= 8, "eight steps", 120)
    pair[0].lose()
    assert pair[1].started[-1].wait(100) not in (0, 75)
    join_all(pair, line(tiny, run))
    finish(*pair)
    assert steps(run)[-1] == STEPS


def test_a_stop_on_one_machine_stops_all_and_the_same_lines_go_on(tiny, pair, tmp_path):
    run = tmp_path / "run"
    join_all(pair, line(tiny, run))
    wait_for(lambda: len(steps(run)) >= 3, "three steps", 120)
    script = next(process for process in pair[1].processes()
                  if "launch/nodes.sh" in process.cmdline())
    script.terminate()
    finish(*pair, code=75)
    assert steps(run)[-1] < STEPS
    join_all(pair, line(tiny, run))
    finish(*pair)
    assert steps(run)[-1] == STEPS


def test_the_deepspeed_launcher_takes_a_hostfile(tiny, pair, alone, tmp_path):
    """Without ssh here: the same line is typed on each machine, with its number."""
    if not pair[0].namespace:
        pytest.skip("a hostfile needs two addresses, and network namespaces are not permitted")
    hosts = tmp_path / "hosts"
    hosts.write_text("".join(f"{machine.address} slots=1\n" for machine in pair))
    for number, machine in enumerate(pair):
        machine.start("deepspeed", "--hostfile", hosts, "--no_ssh", "--node_rank", number,
                      "--master_addr", pair[0].address, "--module", "more", "train",
                      *line(tiny, tmp_path / "run"))
    finish(*pair)
    compare(tmp_path / "run", alone)
