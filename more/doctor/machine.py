"""Checks of `more doctor`: Python, packages, devices, DeepSpeed, two processes.

Packages are imported where they are asked about: any of them may be missing.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from more.config.recipes import INSTALLED
from more.doctor import probes
from more.doctor.probes import Check

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "timm", "deepspeed", "mmengine", "numpy", "h5py",
            "opencv-python", "numba", "pydensecrf2")
DISTRIBUTION = "more-wsss"
_EXTRA = re.compile(r"(\s*and)?\s*extra == ['\"][\w.-]+['\"]")
# Whether the first two fit is tried out with a compiler; the third is a placeholder.
NOT_ASKED = ("async_io", "gds", "deepspeed_not_implemented")


def python() -> Iterator[Check]:
    """Version and system."""
    what = f"{platform.python_version()} on {platform.system()} {platform.release()}"
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13) and sys.platform == "linux"
    yield Check("python", "ok" if fits else "problem", what,
                "" if fits else "use Python 3.10 to 3.13 on Linux")


def declared() -> list[str]:
    """Requirements of the project and its extras.

    Returns:
        Those in pyproject.toml of the project folder, else of the installed package; none if
        neither can be read.
    """
    file = ROOT / "pyproject.toml"
    with contextlib.suppress(ImportError):  # Python 3.10 has no tomllib
        import tomllib

        if not INSTALLED and file.is_file():
            project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
            return [*project["dependencies"],
                    *itertools.chain(*project["optional-dependencies"].values())]
    with contextlib.suppress(metadata.PackageNotFoundError):
        lines = metadata.requires(DISTRIBUTION) or []
        # The marker `extra == "dev"` says which list a line is from, not whether it holds here.
        return [_EXTRA.sub("", line).strip("; ") for line in lines]
    return []


def packages() -> Iterator[Check]:
    """Versions against the bounds of pyproject.toml, or of the installed package."""
    from packaging.requirements import Requirement

    bounds = {item.name: item for item in map(Requirement, declared())}
    for name in PACKAGES:
        bound = bounds.get(name)
        if bound is not None and bound.marker is not None and not bound.marker.evaluate():
            continue
        remedy = f"pip install '{name}{bound.specifier if bound else ''}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "pydensecrf2":  # an extra; `crf` below says which engine is taken
                yield Check(name, "ok", "not installed; it serves for comparison alone")
                continue
            optional = name == "numba"  # another CRF engine takes over
            yield Check(name, "warning" if optional else "problem", "not installed", remedy)
            continue
        inside = bound is None or bound.specifier.contains(version, prereleases=True)
        yield Check(name, "ok" if inside else "warning",
                    version if inside else f"{version} is outside {bound.specifier}",
                    "" if inside else remedy)


def device() -> Iterator[Check]:
    """What training would run on: each GPU adds numbers once; without any, cores and threads."""
    import torch

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        what = f"CPU with {cores} cores, {torch.get_num_threads()} threads; backend gloo"
        unused = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
        yield Check("device", "warning" if unused else "ok",
                    what + ("; there is a GPU that PyTorch cannot use" if unused else ""),
                    "compare `nvidia-smi` with torch.version.cuda, and CUDA_VISIBLE_DEVICES"
                    if unused else "")
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield Check("cuda", "ok", f"driver {_driver()}, CUDA {torch.version.cuda}, NCCL {nccl}")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        what = (f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability "
                f"{about.major}.{about.minor}")
        try:
            works = float(torch.ones(8, device=f"cuda:{index}").sum()) == 8
        except (RuntimeError, AssertionError) as error:
            works, what = False, f"{what}: {str(error).splitlines()[0]}"
        yield Check(f"cuda:{index}", "ok" if works else "problem", what,
                    "" if works else "end what fills this GPU, or install a torch that is built "
                    "for it; CUDA_VISIBLE_DEVICES can leave it out")


def _driver() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20,
                              check=True).stdout.splitlines()[0]
    return "unknown"


def precision() -> Iterator[Check]:
    """bf16 and fp16 on this device."""
    import torch

    from more.device import local_device

    place = local_device()
    bf16, fp16 = (probes.autocast_error(place, dtype)
                  for dtype in (torch.bfloat16, torch.float16))
    yield Check("bf16", "warning" if bf16 else "ok", bf16 or f"autocast works on {place.type}",
                "train with precision=fp32" if bf16 else "")
    _deepspeed()
    from deepspeed.accelerator import get_accelerator

    if not fp16 and not get_accelerator().is_fp16_supported():
        fp16 = f"DeepSpeed does not offer it on {place.type}"
    yield Check("fp16", "ok", f"not here ({fp16}); use bf16 or fp32" if fp16
                else f"works on {place.type}, with ZeRO 1 to 3")


def deepspeed() -> Iterator[Check]:
    """Whether DeepSpeed can be imported, and its C++ ops; builds nothing."""
    try:
        version = _deepspeed().__version__
    except Exception as error:  # noqa: BLE001 - its import looks for compilers and drivers
        yield Check("deepspeed ops", "problem",
                    f"deepspeed cannot be imported: {type(error).__name__}: {error}",
                    "install the version that `pip install -r requirements.txt` takes, or see "
                    "what the message says is missing")
        return
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    from deepspeed.ops.op_builder.builder import probe_is_compatible

    with contextlib.redirect_stdout(io.StringIO()):
        fitting = [name for name, builder in ALL_OPS.items()
                   if name not in NOT_ASKED and probe_is_compatible(builder)]
    built = [name for name, there in installed_ops.items() if there]
    tools = [name for name in ("ninja", "c++", "nvcc") if shutil.which(name)]
    yield Check("deepspeed ops", "ok",
                f"{version}, accelerator {get_accelerator().device_name()}; ops installed: "
                f"{', '.join(built) or 'none'}; could be built: {', '.join(fitting) or 'none'}; "
                f"tools: {', '.join(tools) or 'none'} (AdamW is PyTorch's: none is needed)")


def _deepspeed() -> Any:
    """DeepSpeed for this device, without its warnings about devices that are not there."""
    import torch

    from more.train.distributed import import_deepspeed

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return import_deepspeed()


def extension_locks() -> Iterator[Check]:
    """Lock files of C++ builds that were killed: older PyTorch versions wait for them for ever."""
    from torch.utils import cpp_extension

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    waits_for_ever = not hasattr(cpp_extension, "FileLock")
    locks = sorted([*root.glob("*/lock"), *root.glob("*/*/lock")])
    bad = 0
    for lock in locks:
        with open(lock) as file:
            held = probes.is_locked(file.fileno())
        bad += waits_for_ever or held
        if waits_for_ever:
            yield Check("extension locks", "problem", f"{lock}: left by a build that was killed, "
                        "or of one under way; every process waits until it is gone",
                        f"if nobody builds now: rm {lock}")
        elif held:
            yield Check("extension locks", "warning", f"{lock}: a process builds this op now; "
                        "others wait for it", f"`fuser {lock}` names it; end it if it hangs")
    if not bad:
        yield Check("extension locks", "ok", f"{root}: {len(locks)} lock files, nobody holds one")


def crf() -> Iterator[Check]:
    """Which CRF engine `more refine` takes."""
    from more.filtering.crf import available_engine

    engine, why = available_engine()
    slow = engine != "fast"
    yield Check("crf", "warning" if slow else "ok", f"{engine}: {why}",
                "pip install numba, or set NUMBA_CACHE_DIR to a folder that can be written; "
                f"{engine} takes several times as long" if slow else "")


def pair() -> Iterator[Check]:
    """A sum over two processes."""
    import torch

    gpus = torch.cuda.device_count() > 1
    error = probes.pair_error(60, gpus)
    backend = "nccl, two GPUs" if gpus else "gloo, CPU"
    yield Check("two processes", "problem" if error else "ok",
                error or f"a sum over two ranks works ({backend})",
                "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to an interface that works, allow "
                "connections to 127.0.0.1; NCCL_DEBUG=INFO says more" if error else "")
