"""The command lines of README.md and the pages, and which of them no test can run as they stand."""

from __future__ import annotations

import re

from tests.data_tools.test_tools import ROWS
from tests.test_readme import PAGES, prose

# What begins a command line in running text. Names such as `more refine` are no lines to type.
TYPED = re.compile(r"(python -m \S+|bash|pip|apt|sbatch|dask|torchrun|deepspeed|tensorboard|wandb|"
                   r"scontrol|touch|tests\.research|MORE_LAUNCH=\S+) \S|more config --list$")
ASSIGNED = re.compile(r'^(\w+)=("[^"]*"|[^\s$("]+)$')
INSTALLS = "an installation, minutes and a network"

# Lines that are not run here, and why: what they need, and what tests it instead. An entry that
# ends with a blank is the beginning of a line.
NEEDS = {
    # Set-up.
    "bash launch/quickstart.sh ": f"{INSTALLS}; each of its stages is a line of these pages",
    "bash launch/quickstart.sh": f"{INSTALLS}; each of its stages is a line of these pages",
    "bash launch/test.sh ": f"{INSTALLS}; it runs these tests: tests/launch/test_scripts.py",
    "bash launch/test.sh": f"{INSTALLS}; it runs these tests: tests/launch/test_scripts.py",
    "bash -c 'source launch/setup.sh'": INSTALLS,
    "source launch/setup.sh": INSTALLS,
    "pip install ": "a network: tests/package/test_wheel.py, tests/package/test_requirements.py",
    "apt install ": "root and a network",
    "bash FOLDER/train.sh": "an installed package: tests/package/test_wheel.py",
    # Several processes or machines.
    "RANKS=2 bash launch/train.sh ": "several processes: tests/train/test_matrix.py",
    "RESTARTS=3 bash launch/train.sh ": "torchrun: tests/launch/test_scripts.py, "
                                        "tests/faults/test_ranks.py",
    "bash launch/nodes.sh ": "several machines: tests/faults/test_nodes.py",
    "cat hosts": "several machines: tests/faults/test_nodes.py",
    "deepspeed ": "several processes or machines: tests/faults/test_nodes.py",
    "torchrun ": "several processes: tests/train/test_matrix.py, tests/jobs/test_ranks.py",
    "MORE_RANKS=1 ": "several processes: tests/jobs/test_ranks.py",
    "dask ": "a cluster of dask: tests/jobs/test_dask.py",
    "python -m more refine SEEDS --data SET --out MASKS --executor dask://HOST:8786":
        "a cluster of dask: tests/jobs/test_dask.py",
    "python -m more refine RUN/seeds/lam --data SET --out RUN/masks/lam --executor "
    "dask://HOST:8786": "a cluster of dask: tests/jobs/test_dask.py",
    # SLURM.
    "sbatch ": "SLURM: tests/launch/test_slurm.py",
    "job=$(sbatch ": "SLURM: tests/launch/test_slurm.py",
    "srun ": "SLURM: tests/launch/test_slurm.py",
    "export MASTER_ADDR=$(scontrol ": "SLURM: tests/launch/test_slurm.py",
    "MORE_LAUNCH=FOLDER sbatch ": "SLURM: tests/launch/test_slurm.py",
    "scontrol ": "SLURM: tests/launch/test_slurm.py",
    # Services of others.
    "tensorboard ": "it serves until it is ended; its files: tests/train/test_telemetry.py",
    "wandb ": "an account and a network",
    # Time, or a GPU.
    "python -m more bench train --config configs/voc12_vit_b.py --set precision=bf16 --set "
    "train.global_batch=8": "a GPU",
    "python -m tests.data_tools.test_coco_scale FOLDER": "minutes and 118,000 files",
    "python -m tests.research modules SET": "run by tests/research/test_modules.py",
    "python -m pytest ": "run by whoever runs this test",
    # No whole lines.
    "python -m more bench NAME": "a form of lines that stand below it",
    "python -m tests.research NAME": "a form of lines that stand below it",
    "python -m more train … --dry-run": "a form of lines of more/train/README.md",
}
# Beginnings of lines that take long all the same: run under `-m slow`.
SLOW = ("python -m more bench refine", "python -m more bench train", "python -m more bench data",
        "python -m tests.research train", "python -m tests.research step-count",
        "tests.research filter",
        "python -m more run photos", "python -m more run SET", "python -m more run quickstart",
        "python -m more export-weights --run checkpoints/mine/two --out mine.onnx")
# What stands in lines that need a package of an extra.
EXTRAS = {"telemetry.wandb": "wandb", "mine.onnx": "onnxruntime"}
# The table "From your tool".
TRIED = {f"python -m data_tools.{module} {words}" for _, module, words in ROWS}


def joined(block: str) -> list[str]:
    """The lines of a block of bash, without comments, `$NAME` put in where NAME is given."""
    found, values = [], {}
    for line in block.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
        if given := ASSIGNED.match(line):
            values[given[1]] = given[2].strip('"')
        elif line:
            found.append(re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), line))
    return found


def command_lines() -> dict[str, str]:
    """Every line to type, with the first page that has it."""
    found: dict[str, str] = {}
    for name, page in PAGES.items():
        typed = [line for block in re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M)
                 for line in joined(block)]
        for part in prose(page).split("\n\n"):
            inline = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", part))
            typed += [text for text in inline if TYPED.match(text)]
        for line in typed:
            found.setdefault(line, name)
    return found


def matches(line: str, entry: str) -> bool:
    """Whether an entry of NEEDS is this line, or one that ends with a blank its beginning."""
    return line.startswith(entry) if entry.endswith(" ") else line == entry


def reason(line: str) -> str | None:
    """Why a line is not run here, or None."""
    if line in TRIED:
        return "run by tests/data_tools/test_tools.py on an export of that form"
    return next((why for entry, why in NEEDS.items() if matches(line, entry)), None)
