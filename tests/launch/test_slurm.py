"""The SLURM scripts with stand-ins for srun and scontrol: who is put back into the queue."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from more.data.shards.reader import ShardSet
from tests.conftest import ROOT
from tests.faults.nodes import steps
from tests.launch.project import REQUIREMENTS, Project, clean_environment, ended, wait_for
from tests.processes import free_port

JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
       "RANKS": "1"}
TRAIN = ("launch/slurm/train.sbatch", "a.py", "--train", "set", "--run", "dir")
LABELS = "launch/slurm/pseudo_labels.sbatch"

# One task a machine, one after the other: what each would see.
SRUN = """while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""
# As many processes at once as --ntasks says.
PARALLEL = """tasks="${1#--ntasks=}"; shift; code=0
for rank in $(seq 0 $((tasks - 1))); do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$tasks SLURM_PROCID=$rank SLURM_LOCALID=$rank \\
        SLURM_NTASKS_PER_NODE=$tasks "$@" &
done
for rank in $(seq "$tasks"); do wait -n || code=$?; done
exit $code
"""
WORLD = """
import torch
from more.device import launched_world
from more.train.distributed import setup, teardown
share = launched_world()
world = setup(1)
assert share == (world.rank, world.size), (share, world)
assert (world.local_rank, world.local_size) == (world.rank, 2), world
total = world.sum(torch.tensor([world.rank + 1])).item()
print(f"rank {world.rank} of {world.size}: {total}\\n", end="", flush=True)
teardown()
"""


@pytest.fixture
def project(tmp_path) -> Project:
    made = Project(tmp_path)
    made.fake("srun", SRUN)
    made.fake("scontrol", '[ "$1" != show ] || printf "127.0.0.1\\nnode2\\n"')
    return made


def requeued(project: Project) -> list[str]:
    return [call for call in project.calls("scontrol") if call.startswith("requeue")]


@pytest.mark.parametrize(("state", "code", "expected"), [
    ("stopped", 0, 75), ("stopped", 143, 75), ("finished", 0, 0), ("running", 1, 1),
    ("failed", 2, 2), ("", 1, 1)])
def test_exactly_a_stopped_run_goes_back_into_the_queue(project, state, code, expected):
    project.torchrun(state, code)
    done = project.call(*TRAIN, **JOB)
    assert done.returncode == expected, done.stderr
    assert requeued(project) == (["requeue 4711"] if state == "stopped" else [])


@pytest.mark.parametrize("script", [TRAIN[0], LABELS])
def test_scripts_of_an_installed_package_work_in_any_folder(tmp_path, script):
    folder = tmp_path / "site-packages" / "more"
    installed = Project(folder)
    for name in REQUIREMENTS:
        (folder / name).unlink()  # a package has none: its environment is the active one
    place = tmp_path / "mine"
    place.mkdir()
    installed.fake("scontrol", 'echo node1')
    installed.fake("srun", 'echo "$PWD"')
    installed.fake("python", '[ "$1" = -c ] || echo "$PWD"')
    arguments = TRAIN[1:] if script in TRAIN else ("localize", "--run", "dir", "--data", "set")
    launch = folder / "launch"
    extra = {"SLURM_SUBMIT_DIR": str(place), "MORE_LAUNCH": str(launch)}
    done = installed.call(script, *arguments, **{**JOB, **extra})
    assert str(place) in done.stdout.splitlines(), done.stderr
    called = installed.calls("srun" if script in TRAIN else "python")[-1]
    assert (f"bash {launch}/nodes.sh node1 2 a.py" in called if script in TRAIN
            else called.startswith("-m more localize"))
    del extra["MORE_LAUNCH"]
    refused = installed.call(script, *arguments, **{**JOB, **extra})
    assert refused.returncode == 2 and "MORE_LAUNCH" in refused.stderr


def test_a_start_that_fails_is_not_taken_for_the_stopped_run_before_it(project):
    project.torchrun("stopped")
    assert project.call(*TRAIN, **JOB).returncode == 75
    project.torchrun("", 2)
    assert project.call(*TRAIN, **JOB, SLURM_RESTART_COUNT="1").returncode == 2
    assert requeued(project) == ["requeue 4711"]


def test_the_command_to_continue_is_named_where_requeueing_is_forbidden(project):
    project.torchrun("stopped")
    project.fake("scontrol", '[ "$1" = show ] && echo 127.0.0.1')
    done = project.call(*TRAIN, **JOB)
    assert done.returncode == 75
    assert "sbatch launch/slurm/train.sbatch a.py --train set --run dir" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda n: n.name)
def test_a_warning_stops_the_run_and_requeues_the_job(project, number):
    project.stoppable_torchrun()
    running = project.start(*TRAIN, **JOB)
    project.signal(running, number)
    done = ended(running)
    assert done.returncode == 75, done.stderr
    assert requeued(project) == ["requeue 4711"]
    assert not (project.run / "terminated").exists()


def test_a_warning_that_comes_after_the_last_step_changes_nothing(project):
    project.fake("torchrun", "mkdir -p dir; echo > dir/started; sleep 1; "
                 """echo '{"state": "finished"}' > dir/status.json""")
    running = project.start(*TRAIN, **JOB)
    project.signal(running, signal.SIGUSR1)
    assert ended(running).returncode == 0
    assert requeued(project) == [] and not (project.run / "stop").exists()


def test_one_torchrun_a_machine_meets_under_the_jobs_own_name(project):
    project.torchrun("finished")
    project.fake("srun", 'echo "$SRUN_CPUS_PER_TASK" > cpus\n' + SRUN)
    done = project.call(*TRAIN, **JOB, SLURM_CPUS_PER_TASK="6", SLURM_RESTART_COUNT="2")
    assert done.returncode == 0, done.stderr
    assert project.calls("srun") == ["--kill-on-bad-exit=1 bash launch/nodes.sh 127.0.0.1 2 "
                                     "a.py --train set --run dir"]
    words = project.calls("torchrun")[0].split()
    assert {"--nnodes=2", "--nproc_per_node=1", "--rdzv_id=4711-2",
            "--rdzv_endpoint=127.0.0.1:24711", "--max_restarts=3"} <= set(words)
    assert (project.folder / "cpus").read_text() == "6\n"


def test_the_job_is_described_before_anything_runs():
    for name in ("train", "pseudo_labels"):
        lines = (ROOT / "launch" / "slurm" / f"{name}.sbatch").read_text().splitlines()
        head = lines[:next(i for i, line in enumerate(lines) if line and line[0] != "#")]
        assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(head)
        if name == "train":
            assert {"#SBATCH --signal=B:USR1@120", "#SBATCH --ntasks-per-node=1"} <= set(head)


def test_a_job_of_another_folder_says_where_to_submit(project, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for script in (TRAIN[0], LABELS):
        done = project.call(script, "a.py", **JOB, SLURM_SUBMIT_DIR=str(tmp_path / "elsewhere"))
        assert done.returncode == 2 and "not the project folder" in done.stderr


def test_srun_alone_makes_a_working_group(project):
    """Without torchrun: rank, size and local rank are SLURM's, the address is the user's."""
    project.fake("srun", PARALLEL)
    done = subprocess.run(
        [project.bin / "srun", "--ntasks=2", sys.executable, "-c", WORLD], cwd=ROOT, text=True,
        capture_output=True, timeout=100,
        env=clean_environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()))
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank")) == [
        "rank 0 of 2: 3", "rank 1 of 2: 3"]


def array(task: int, count: int, first: int = 0) -> dict[str, str]:
    """SLURM's variables in one task of a job array."""
    return {"SLURM_JOB_ID": str(4800 + task), "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": str(count), "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_MAX": str(first + count - 1)}


def test_the_tasks_of_an_array_are_the_ranks_of_localize(project):
    project.fake("python", 'echo "$RANK/$WORLD_SIZE $*"')
    done = project.call(LABELS, "localize", "--run", "r", "--out", "o", **array(2, 4))
    assert done.stdout.strip() == "2/4 -m more localize --run r --out o", done.stderr


@pytest.mark.parametrize("said", [(), ("--executor", "ranks"), ("--executor=ranks",)])
def test_the_tasks_of_an_array_are_the_ranks_of_refine(project, said):
    """And they take no lock of each other away, as a job alone does with its own."""
    project.fake("python", 'echo "$RANK/$WORLD_SIZE $*"')
    call = ("refine", "seeds", "--data", "d", "--out", "o", *said)
    done = project.call(LABELS, *call, **array(1, 3))
    words = " ".join([*call, *(() if said else ("--executor", "ranks"))])
    assert done.stdout.strip() == f"1/3 -m more {words}", done.stderr
    assert not (project.folder / "o" / ".job").exists()


def test_refine_alone_is_not_a_rank(project):
    project.fake("python", 'echo "${RANK:-}/${WORLD_SIZE:-} $*"')
    call = ("refine", "seeds", "--out", "o", "--executor", "dask://host:1")
    done = project.call(LABELS, *call, SLURM_JOB_ID="1")
    assert done.stdout.strip() == f"/ -m more {' '.join(call)}", done.stderr


@pytest.mark.parametrize(("stage", "variables", "words", "more"), [
    ("refine", array(0, 2), "another executor in an array", ("--executor", "dask://host:1")),
    ("refine", array(0, 2), "another executor in an array", ("--executor=local",)),
    ("localize", array(1, 3, 1), "not 0-2", ()), ("refine", array(1, 3, 1), "not 0-2", ()),
    ("train", {}, "not a stage", ())])
def test_a_job_that_would_miss_shards_is_refused(project, stage, variables, words, more):
    done = project.call(LABELS, stage, "--out", "o", *more,
                        **{"SLURM_JOB_ID": "1", **variables})
    assert done.returncode == 2 and words in done.stderr and "fix:" in done.stderr


@pytest.mark.parametrize(("job", "left"), [("1", False), ("2", True)])
def test_only_the_jobs_own_lock_is_taken_away(project, job, left):
    """The lock of a job that was killed on another machine, and the lock of another job."""
    project.fake("python")
    out = project.folder / "masks"
    call = (LABELS, "refine", "seeds", "--data", "set", "--out", "masks")
    assert project.call(*call, SLURM_JOB_ID="1").returncode == 0
    (out / ".lock").write_text('{"pid": 1, "host": "another"}')
    assert project.call(*call, SLURM_JOB_ID=job).returncode == 0
    assert (out / ".lock").exists() == left


@pytest.mark.slow
def test_a_preempted_job_ends_like_an_undisturbed_one(project, tiny):
    """Real ranks: a warning, a checkpoint, the queue, the same job again, then seeds and masks."""
    train = (TRAIN[0], str(tiny["config"]), "--train", str(tiny["train"]), "--set",
             "train.iterations=60", "--set", "checkpoint.every=50", "--run")
    job = {**JOB, "SLURM_JOB_NUM_NODES": "1", "RANKS": "2"}
    running = project.start(*train, "dir", **job)
    wait_for(lambda: steps(project.run), "the first step", 120)
    running.send_signal(signal.SIGUSR1)
    done = ended(running, 120)
    assert done.returncode == 75 and requeued(project) == ["requeue 4711"], done.stderr
    stopped_at = json.loads((project.run / "status.json").read_text())["step"]
    assert 0 < stopped_at < 50
    for run in ("dir", "straight"):
        done = ended(project.start(*train, run, **job, SLURM_RESTART_COUNT="1"), 200)
        assert done.returncode == 0, done.stderr
    assert f"resumed after {stopped_at} updates" in (project.run / "train.log").read_text()
    first, second = (load_file(project.folder / run / "checkpoints" / "step-000060"
                               / "model.safetensors") for run in ("dir", "straight"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for task in (0, 1):
        done = ended(project.start(LABELS, "localize", "--run", "dir", "--data",
                                   str(tiny["train"]), "--out", "seeds", **array(task, 2)), 120)
        assert done.returncode == 0, done.stderr
    for task in (0, 1):
        done = ended(project.start(LABELS, "refine", "seeds", "--data", str(tiny["train"]), "--out",
                                   "masks", "--workers", "1", **array(task, 2)), 120)
        assert done.returncode == 0, done.stderr
    assert len(ShardSet(project.folder / "masks", kind="masks")) == 24
