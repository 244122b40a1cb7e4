"""The network as ONNX and as a program of torch.export: same logits, and what a user must know."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from more import __version__, run_folder
from more.cli import main
from more.config.load import config_from_dict, to_dict
from more.errors import UserError
from more.inference import portable
from more.inference.localizer import Localizer, Request
from more.inference.portable import choose_format, export_network
from more.inference.trained import export_weights, load_run
from more.method.make_network import make_network
from more.train import checkpoint_files
from tests.inference.test_localize import SETTINGS

FORMATS = ("onnx", "pt2")


def make_run(folder: Path, **model: object) -> Path:
    """A run of an untrained network with settings of the model in place of the usual ones."""
    config = config_from_dict({**SETTINGS, "model": {**SETTINGS["model"], **model}})
    target = folder / "checkpoints" / run_folder.step_name(5)
    place = checkpoint_files.start_folder(target)
    save_file(make_network(config).state_dict(), str(place / run_folder.WEIGHTS))
    checkpoint_files.commit_folder(place, target, {"step": 5, "world": 1})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "run.json").write_text(json.dumps({"classes": ["cat", "dog, big", "straße"]}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def logits_of(file: Path, pixels: torch.Tensor) -> np.ndarray:
    """What a user of the file computes, without this package."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(pixels).detach().numpy()
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
    return session.run(None, {"pixels": pixels.numpy()})[0]


def same_logits(run: Path, file: Path) -> None:
    """For batches of 1 and 3; those of a network without weights would be equal as well."""
    network = load_run(run)[1]
    for count in (1, 3):
        pixels = torch.randn(count, 3, 56, 56)
        with torch.inference_mode():
            wanted = network(pixels, mode="segment").numpy()
        found = logits_of(file, pixels)
        assert found.shape == (count, 4, 7, 7) and np.abs(wanted).max() > 1e-3
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("model", [{}, {"token_attention": "shared"}, {"frozen_blocks": 1}],
                         ids=["plain", "shared", "frozen"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_file_computes_the_networks_logits(tmp_path, format, model):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    source = make_run(tmp_path / "run", **model)
    made = export_network(source, tmp_path / "new" / f"net.{format}", format)
    assert made.difference <= 1e-4 and 1e-3 < made.largest < 100
    same_logits(source, made.path)


def test_stage_two_and_its_exported_file_give_one_program(tmp_path):
    """The decoder of stage two is trained whatever the weight of its loss in stage one."""
    two = make_run(tmp_path / "run")
    settings = json.loads((two / "config.json").read_text())
    settings["loss"]["weights"]["seg"] = 0
    (two / "config.json").write_text(json.dumps({**settings, "stage": 2}))
    file = export_weights(two, tmp_path / "two.safetensors")
    for source in (two, file):
        made = export_network(source, tmp_path / "net.pt2", "pt2")
        same_logits(two, made.path)
        assert "dog, big" in json.loads(made.facts.read_text())["labels"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_facts_lie_inside_and_beside(run, tmp_path, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    made = export_network(run, tmp_path / f"net.{format}", format)
    facts = json.loads(made.facts.read_text(encoding="utf-8"))
    assert made.facts.name == f"net.{format}.json"
    assert facts["labels"] == ["background", "cat", "dog, big", "straße"]
    assert facts["version"] == __version__ and facts["checkpoint"] == "step-000005"
    assert (facts["background"], facts["channels"], facts["size"]) == (0, "RGB", 56)
    assert facts["output"] == "logits: float32 [batch, 4, 7, 7]"
    if format == "pt2":
        inside = {"more.json": ""}
        torch.export.load(made.path, extra_files=inside)
        assert json.loads(inside["more.json"]) == facts
        return
    import onnx

    model = onnx.load(made.path)
    onnx.checker.check_model(model)
    inside = {item.key: item.value for item in model.metadata_props if item.key in facts}
    assert inside["before"] == facts["before"] and inside["version"] == __version__
    for key in ("labels", "mean", "std", "size", "background"):
        assert json.loads(inside[key]) == facts[key]


def test_the_facts_are_enough_to_prepare_a_picture(run, tmp_path):
    """Pixels made by the words of the file alone are those that `predict` makes."""
    facts = json.loads(export_network(run, tmp_path / "net.pt2", "pt2").facts.read_text())
    picture = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
    resized = cv2.resize(picture.astype(np.float32), (facts["size"],) * 2)
    pixels = ((resized - facts["mean"]) / facts["std"]).transpose(2, 0, 1)
    config, network, _ = load_run(run)
    wanted = Localizer(config, network, Request(("decoder",)), torch.device("cpu")).prepare(picture)
    np.testing.assert_allclose(pixels, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("missing", portable.PACKAGES)
def test_a_missing_package_tells_the_cure(run, tmp_path, monkeypatch, missing):
    def without(name: str, *rest: object) -> object:
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return object()

    monkeypatch.setattr(portable, "import_module", without)
    with pytest.raises(UserError, match=f"needs the package {missing}") as refusal:
        export_network(run, tmp_path / "net.onnx", "onnx")
    assert 'pip install ".[onnx]"' in refusal.value.fix and not list(tmp_path.iterdir())


def test_a_torch_program_needs_no_package_of_the_extra(run, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        assert name.split(".")[0] not in portable.PACKAGES, name
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert export_network(run, tmp_path / "net.pt2", "pt2").path.is_file()


@pytest.mark.parametrize("wrong", [0.001, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(run, tmp_path, monkeypatch, wrong):
    runner = portable._pt2_runner

    def other(data: bytes) -> object:
        right = runner(data)
        return lambda pixels: right(pixels) + (wrong if len(pixels) == 1 else 0)

    monkeypatch.setattr(portable, "_pt2_runner", other)
    with pytest.raises(UserError, match="not written, its logits differ"):
        export_network(run, tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_refusals(run, tmp_path, monkeypatch):
    untrained = make_run(tmp_path / "run")
    settings = json.loads((untrained / "config.json").read_text())
    settings["loss"]["weights"]["seg"] = 0
    (untrained / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="its decoder was not trained"):
        export_network(untrained, tmp_path / "net.pt2", "pt2")
    monkeypatch.setattr(portable, "LARGEST", 1000)
    monkeypatch.setattr(portable, "need_packages", lambda: None)
    with pytest.raises(UserError, match="an ONNX file holds 2") as refusal:
        export_network(run, tmp_path / "net.onnx", "onnx")
    assert "--format pt2" in refusal.value.fix


@pytest.mark.parametrize(("name", "format", "found"), [
    ("a.safetensors", None, "safetensors"), ("a.onnx", None, "onnx"), ("a.pt2", None, "pt2"),
    ("a.b.onnx", "onnx", "onnx"), ("a.onnx", "pt2", "not a .pt2 file"),
    ("a.pth", None, "not a .safetensors or .onnx or .pt2 file"),
    ("a.onnx", "tflite", "--format tflite: unknown")])
def test_the_ending_says_the_format(name, format, found):
    if found in portable.ENDINGS:
        assert choose_format(Path(name), format) == found
        return
    with pytest.raises(UserError, match=found):
        choose_format(Path(name), format)


@pytest.mark.parametrize("name", ["my net.safetensors", "net.pt2", "net.onnx"])
def test_the_command_prints_the_file_and_the_next_step(run, tmp_path, monkeypatch, capfd, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    file = tmp_path / name
    monkeypatch.setattr(sys, "argv", ["more", "export-weights", "--run", str(run),
                                      "--out", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert not ended.value.code and said.out == f"{file}\n" and file.is_file()
    last = said.err.splitlines()[-1]
    if file.suffix == ".safetensors":
        assert last == f"next: python -m more predict PICTURES --run '{file}' --out masks"
        return
    assert "largest difference" in said.err and last.startswith("next: ")
    assert f"{name}.json" in last
    same_logits(run, file)
