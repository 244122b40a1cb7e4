"""The package works outside the project folder: what a wheel holds, and use from another folder."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from more import __version__
from tests.conftest import ROOT

HERE_ONLY = {"test.sh", "Dockerfile", "Dockerfile.dockerignore"}  # of launch/
HAS_BACKEND = importlib.util.find_spec("hatchling") is not None
needs_backend = pytest.mark.skipif(not HAS_BACKEND, reason="hatchling is not installed (extra dev)")


def pip(*arguments: str | Path) -> None:
    """Run pip; AssertionError with its output when it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
                          capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


def build(source: Path, out: Path) -> Path:
    """The wheel that pip makes; without hatchling here, pip fetches it for the build."""
    isolation = ["--no-build-isolation"] if HAS_BACKEND else []
    pip("wheel", source, "--no-deps", *isolation, "--wheel-dir", out, "--quiet")
    (wheel,) = out.glob("*.whl")
    return wheel


def content(wheel: Path) -> dict[str, bytes]:
    """Files of a wheel by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def tree(folder: str) -> set[str]:
    """Files of a project folder, as the wheel may hold them."""
    return {str(file.relative_to(ROOT / folder)) for file in (ROOT / folder).rglob("*")
            if file.is_file() and file.suffix in (".py", ".sh", ".sbatch", ".j2", ".css", ".js",
                                                 ".md")
            and "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the installed package and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", wheel, "--no-deps", "--target", target, "--quiet")
    return target


@pytest.fixture
def outside(installed, tmp_path):
    """Runs Python in another folder: `outside("-m", "more", …)`.

    -S leaves out .pth files, which may put the project folder on the path; this environment's
    dependencies are named instead.
    """
    path = [installed, *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-S", *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env=environment, timeout=120)
    return run


def test_a_wheel_holds_packages_templates_recipes_and_scripts(wheel):
    files = set(content(wheel))
    expected = {f"{name}/{file}" for name in ("more", "data_tools") for file in tree(name)}
    expected |= {f"more/recipes/{file}" for file in tree("configs")}
    expected |= {f"more/launch/{file}" for file in tree("launch") if file not in HERE_ONLY}
    about = f"more_wsss-{__version__}.dist-info"
    assert {name for name in files if not name.startswith(about)} == expected
    assert {"more/recipes/_base_/voc12.py", "more/launch/train.sh",
            "more/evaluation/templates/report.html.j2",
            "more/export/templates/train_example.py", f"{about}/licenses/LICENSE"} <= files
    scripts = content(wheel)[f"{about}/entry_points.txt"].decode()
    assert all(f"{name} = more.__main__:main" in scripts for name in ("more", "more-wsss"))


def test_the_installed_package_works_from_any_folder(outside, installed):
    where = outside("-c", "import sys, more, data_tools; print(*sys.path, more.__file__, "
                          "data_tools.__file__, sep='\\n')").stdout.splitlines()
    assert str(ROOT) not in where and all(str(installed) in line for line in where[-2:])
    shown = outside("-m", "more", "--help")
    assert shown.returncode == 0 and "train" in shown.stdout, shown.stderr
    tool = outside("-m", "data_tools.shapes", "--help")
    assert tool.returncode == 0 and "Example" in tool.stdout, tool.stderr


@pytest.mark.parametrize("spelling", ["voc12_vit_b", "configs/voc12_vit_b.py"])
def test_the_installed_recipes_are_found_by_name(outside, spelling):
    found = outside("-m", "more", "config", spelling)
    assert found.returncode == 0, found.stderr
    assert "name = 'voc12_vit_b'" in found.stdout
    assert "train.iterations = 20000" in found.stdout, "the recipe's _base_ was not read"


def test_the_installed_scripts_start_training_where_the_user_is(installed, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text('#!/bin/sh\ncase "$1" in -c) ;; *) echo "$PWD" "$@";; esac\n')
    (programs / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", installed / "more/launch/train.sh", "voc12_vit_b", "--train", "set", "--run", "r"],
        capture_output=True, text=True, cwd=tmp_path, timeout=60,
        env={"PATH": f"{programs}:/usr/bin:/bin", "RANKS": "1"})
    assert done.stdout.strip() == f"{tmp_path} -m more train voc12_vit_b --train set --run r", done


@pytest.mark.slow
@needs_backend
def test_a_wheel_from_the_source_distribution_is_the_same(wheel, tmp_path):
    done = subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d",
                           tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "requirements.txt", "tests/package/test_wheel.py",
            "CHANGELOG.md", "CITATION.cff", ".ci/run"} <= names
    assert content(build(source, tmp_path / "again")) == content(wheel)


@needs_backend
def test_an_editable_install_reads_the_project_folder_itself(tmp_path):
    code = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          timeout=200)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {name: data for name, data in content(wheel).items() if ".dist-info/" not in name}
    assert [data.decode().split() for data in files.values()] == [[str(ROOT)]]
    assert all(re.fullmatch(r"_\w+\.pth", name) for name in files)
