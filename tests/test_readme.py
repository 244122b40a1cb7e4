"""What README and the pages name exists: commands, options, settings, files, links; code runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from more.cli import app
from more.config.fields import limits_of
from more.config.load import flatten
from more.config.schema import PAPER, Config, fields
from more.inference.trained import export_weights
from tests.conftest import ROOT
from tests.data.sets import picture, small_set
from tests.inference.test_localize import make_run
from tests.research.__main__ import app as research_app


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)


FOLDERS = ("more", "configs", "data_tools", "launch", "tests")
NAMES = ["README.md", "checkpoints/README.md",
         *sorted(str(page.relative_to(ROOT)) for folder in FOLDERS
                 for page in (ROOT / folder).rglob("README.md"))]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
LINKED = {**PAGES, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}
LONGEST = 200  # lines of a page
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", TEXT, re.S | re.M)
INLINE = [" ".join(text.split()) for part in prose(TEXT).split("\n\n")
          for text in re.findall(r"`([^`]+)`", part)]
# Files that more/README.md tells its reader to write.
EXAMPLES = {"data_tools/pairs.py", "more/export/npz.py"}
# Options that pages name alone and that are other programs': torchrun, deepspeed, dask, sbatch.
FOREIGN = {"--help", "--run-path", "--cpus-per-task", "--memory-limit", "--no_ssh"}
SETTINGS = {key for key, _, _ in flatten(Config())}
PROGRAMS = {"more": app, "tests.research": research_app}
STARTS = {f"launch/{script}": ("more", "train") for script in (
    "train.sh", "quickstart.sh", "nodes.sh", "slurm/train.sbatch")}


def commands() -> list[tuple[str, str, str]]:
    """(module, sub-command or "", the rest of the line) of every command in the pages."""
    found = []
    for line in [*"\n".join(BLOCKS).replace("\\\n", " ").splitlines(), *INLINE]:
        line = line.partition(" #")[0]
        for script, (module, name) in STARTS.items():
            if script in line:
                found.append((module, name, line.partition(script)[2]))
        if start := re.search(r"launch/slurm/pseudo_labels\.sbatch +(\w+) (.*)", line):
            found.append(("more", *start.groups()))
        if start := re.search(
                r"(?:-m|--module) (more|data_tools\.\w+|tests\.research) +(.*)", line):
            module, rest = start.groups()
            name, _, after = rest.partition(" ")
            if name == "bench":
                name, _, after = after.partition(" ")
                name = f"bench {name}"
            found.append((module, "", rest) if module.startswith("data_tools") else
                         (module, name, after))
    return [command for command in found if command[1].split()[-1:] not in (["COMMAND"], ["NAME"])]


def headings(page: str) -> list[str]:
    """Names of the sections, as they stand."""
    return re.findall(r"^## (.+)$", prose(page), re.M)


def anchor(heading: str) -> str:
    """The name that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(page: str) -> list[tuple[str, str]]:
    """(file or "", anchor or "") of every link and picture that stays in the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link.partition("#")[::2] for link in found if not re.match(r"[a-z]+:", link)]


def parameters(module: str, name: str):
    """Options and arguments of a command, from the program itself."""
    if module in PROGRAMS:
        program = get_command(PROGRAMS[module])
        for word in name.split():
            program = program.commands[word]
        return program.params
    tool = typer.Typer(add_completion=False)
    tool.command()(importlib.import_module(module).main)
    return get_command(tool).params


@pytest.mark.parametrize("name", NAMES)
def test_a_page_begins_with_what_it_is_for_and_its_contents(name):
    title, start, contents, *rest = (" ".join(part.split()) for part in PAGES[name].split("\n\n"))
    assert title.startswith("# ") and re.match(r"[\w`]", start) and start.endswith("."), start
    if name == "README.md":  # the picture and its caption come first
        contents = rest[1]
    assert contents.startswith("Contents: ")
    listed = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", contents)
    found = headings(PAGES[name])
    assert [place for _, place in listed] == [anchor(heading) for heading in found]
    assert all(heading.startswith(text) for (text, _), heading in zip(listed, found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_in_one_go(name):
    assert 50 < len(PAGES[name].splitlines()) <= LONGEST


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_to_files_and_sections(name):
    for file, place in links(LINKED[name]):
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), f"{name}: {file}"
        if place:
            page = target.read_text(encoding="utf-8")
            assert place in map(anchor, re.findall(r"^#+ (.+)$", prose(page), re.M)), (file, place)


def test_every_page_is_linked_from_the_first_one():
    linked = {file for file, _ in links(PAGES["README.md"])}
    assert set(NAMES) - {"README.md"} <= linked


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_captions(name):
    for shown, after in re.findall(r"^!(\[.*)\n\n?(.*)$", PAGES[name], re.M):
        assert after.startswith("*"), shown


def test_the_commands_were_found():
    names = {f"{module} {name}".strip() for module, name, _ in commands()}
    assert {"more train", "more localize", "more refine", "more export", "more evaluate",
            "more report", "more scores", "more config", "tests.research losses",
            "data_tools.voc", "data_tools.verify",
            "data_tools.inspect"} <= names


@pytest.mark.parametrize(("module", "name", "rest"), commands(), ids="{}".format)
def test_a_command_and_its_options_exist(module, name, rest):
    params = parameters(module, name)
    options = {option for param in params for option in (*param.opts, *param.secondary_opts)
               if option.startswith("-")}
    assert set(re.findall(r"(?<!\S)--[\w-]+", rest)) <= options


def test_options_named_alone_exist():
    known = {option for module, name, _ in commands() for param in parameters(module, name)
             for option in (*param.opts, *param.secondary_opts)}
    known |= FOREIGN
    alone = {text.split()[0] for text in INLINE if text.startswith("--")}
    assert len(alone) > 5 and alone <= known


def test_the_five_lines_give_every_required_option():
    block = next(block for block in BLOCKS if "MY_DATA/tags.csv" in block)
    assert len(block.splitlines()) == 5
    for line in block.splitlines():
        module, name, rest = next(c for c in commands() if line.endswith(c[2]))
        for param in parameters(module, name):
            if param.required and param.param_type_name == "option":
                assert set(param.opts) & set(rest.split()), (line, param.name)


def test_settings_exist():
    overrides = re.findall(r"--set ([\w.]+)=", "\n".join(PAGES.values()))
    named = [text.split("=")[0] for text in INLINE if re.match(r"[a-z_]+\.[a-z_.]+(=|$)", text)]
    sections = {key.split(".")[0] for key in SETTINGS if "." in key}
    named = [key for key in named if key.split(".")[0] in sections and "safetensors" not in key]
    assert len(named) > 15
    groups = {key.rpartition(".")[0] for key in SETTINGS}
    named = [key for key in named if not key.endswith((".sh", ".sbatch"))]
    unknown = {*overrides, *named} - SETTINGS - groups - {"section.key", "loss.weights.sure"}
    assert not unknown


def test_the_table_of_options_is_the_schema():
    page = PAGES["more/method/README.md"]
    table = page.split("| option | `released` | `paper` |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)`.*? \| `(\w+)`.*\|$", table, re.M)
    released = {key: value for key, value, _ in flatten(Config())}
    expected = {key: (str(released[key]), str(value)) for key, value in PAPER.items()}
    assert {key: (plain, paper) for key, plain, paper in rows} == expected
    choices = {key: limits_of(item).choices for key, item in fields()}
    assert all(value in (choices[key] or (value,)) for key, *values in rows for value in values
               if value not in ("True", "False"))


def test_the_map_of_folders_is_the_tree():
    block = next(block for block in BLOCKS if "the package" in block)
    parent = ""
    for line in block.splitlines():
        path = line.split()[0]
        parent = parent if line.startswith(" ") else path
        assert (ROOT / (path if parent == path else parent + path)).exists(), line


def test_named_files_exist():
    paths = {text for text in [*INLINE, *re.findall(r"[\w/]+\.(?:sh|py)", "\n".join(BLOCKS))]
             if re.fullmatch(r"(more|configs|launch|data_tools|tests)/[\w/.]+", text)}
    missing = {path for path in paths if not (ROOT / path).exists()} - EXAMPLES
    assert len(paths) > 15 and not missing


def test_the_six_lines_read_a_shard(tmp_path, capsys):
    code = next(block for block in BLOCKS if "import h5py" in block)
    assert len(code.splitlines()) == 6
    shard = small_set(tmp_path / "set", shards=1, rows=2) / "shard-00000.h5"
    exec(re.sub(r'"[^"]*\.h5"', repr(str(shard)), code), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "image_0", "image_1"]


# What the block must be able to do, whether or not a page has it.
THE_API = """
import more
net = more.load("mine.safetensors")
found = net.predict("photo.jpg")
print(found.labels)
found.save("masks/photo.png")
more.refine("photo.jpg", found.probabilities)
more.open("data/mine")[0]
"""


def run_python(code: str, folder: Path) -> None:
    """Run lines that name `mine.safetensors`, `photo.jpg` and `data/mine`, which are made here."""
    export_weights(make_run(folder / "run"), folder / "mine.safetensors")
    small_set(folder / "data" / "mine", shards=1, rows=2)
    (folder / "photo.jpg").write_bytes(picture(1))
    exec(code, {})


def test_the_lines_of_python_run(tmp_path, monkeypatch, capsys):
    """The block with `import more`, as soon as a page has one, on an untrained network."""
    blocks = [block for block in BLOCKS if re.search(r"^import more$", block, re.M)]
    assert len(blocks) <= 1
    monkeypatch.chdir(tmp_path)
    run_python(blocks[0] if blocks else THE_API, tmp_path)
    assert "'background'" in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "masks").iterdir()}
    assert made == {"photo.png", "photo_overlay.jpg", "photo.json"}
