"""What a run shows beside its log: TensorBoard's pictures and settings, Weights & Biases."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from typer.testing import CliRunner

from more.cli import app
from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.method.make_network import make_network
from more.train.board import Board
from more.train.distributed import ALONE, World
from more.train.val_pictures import SIDE, ValPictures, spread_rows
from more.train.wandb_log import WandbLog, check_wandb, kept_id
from tests.train.conftest import REAL, command, records

ROUTES = ("cam", "lam", "decoder")


def train(tiny, run: Path, *settings: str, launcher: tuple[str, ...] = ()):
    options = [part for setting in ("eval.every=3", *settings) for part in ("--set", setting)]
    done = command("train", tiny["config"], "--train", tiny["train"], "--val", tiny["val"],
                   "--run", run, *options, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def shown(tiny, tmp_path_factory) -> Path:
    """A run with everything switched on, interrupted after its first checkpoint and resumed."""
    pytest.importorskip("wandb")
    run = tmp_path_factory.mktemp("shown") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_DIR", str(run))
        # In interpreters of their own: W&B makes a folder for pictures when it is imported, and the
        # first of several forked processes that ends removes it.
        train(tiny, run, "telemetry.wandb=tests", launcher=REAL)
        shutil.rmtree(run / "checkpoints" / "step-000006")
        again = train(tiny, run, "telemetry.wandb=tests", launcher=REAL)
    assert "resumed after 3 updates" in again.stdout + again.stderr
    return run


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> Path:
    """The same without a picture and without Weights & Biases."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train(tiny, run, "telemetry.pictures=0")
    return run


@pytest.fixture(scope="module")
def events(shown) -> EventAccumulator:
    found = EventAccumulator(str(shown / "tensorboard"), {"images": 0, "scalars": 0})
    return found.Reload()


def test_every_evaluation_shows_the_same_four_images(tiny, events):
    # The four that eval.images = 4 scores.
    names = [f"pictures/{name}" for name in ShardSet(tiny["val"]).ids[:4]]
    assert events.Tags()["images"] == names
    for name in names:
        found = events.Images(name)
        assert [one.step for one in found] == [3, 6]
        pixels = np.asarray(Image.open(BytesIO(found[-1].encoded_image_string)))
        assert pixels.shape == (64 + 20, 5 * 64 + 4 * 4, 3)  # image, CAM, LAM, decoder, truth
        first, last = pixels[20:, :64], pixels[20:, -64:]
        assert first.std() > 5 and not np.array_equal(first, last)


def test_the_tab_hparams_has_settings_and_final_scores(shown, events):
    found = events.PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(
        found[metadata.SESSION_START_INFO_TAG]).hparams
    assert started["optim.lr"].number_value == 1e-3 and started["ranks"].number_value == 1
    assert started["cam.scales"].string_value == "(1.0, 0.5)"
    assert started["model.graph"].string_value == "True"
    metrics = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG]).metric_infos
    assert {one.name.tag for one in metrics} == {"terms/total", *(f"eval/{x}" for x in ROUTES)}
    assert metadata.SESSION_END_INFO_TAG in found
    scores = [json.loads(line) for line in (shown / "log.jsonl").read_text().splitlines()][-1]
    for name in ROUTES:  # what the tab shows is the newest point of the curve
        assert events.Scalars(f"eval/{name}")[-1].value == pytest.approx(scores["eval"][name])


def test_a_resumed_run_begins_once_in_the_tab(tmp_path):
    for _ in range(2):
        board = Board(tmp_path, 0)
        board.begin(load_config(None), ALONE, ROUTES)
        board.close("finished")
    first, again = (EventAccumulator(str(path)).Reload().PluginTagToContent("hparams")
                    for path in sorted((tmp_path / "tensorboard").iterdir()))
    assert {metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG} <= set(first)
    assert set(again) == {metadata.SESSION_END_INFO_TAG}


def test_weights_losses_and_random_states_do_not_depend_on_it(shown, plain):
    for name in ("model", "training", "ranks"):
        one, other = (load_file(run / "checkpoints/step-000006" / f"{name}.safetensors")
                      for run in (shown, plain))
        assert one.keys() == other.keys() and one
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    terms = [line["terms"] for line in records(plain)]
    assert [line["terms"] for line in records(shown)] == terms + terms[3:]  # made once more
    board = EventAccumulator(str(plain / "tensorboard")).Reload()
    assert not board.Tags()["images"] and not (plain / "wandb.json").exists()


def stored(run: Path) -> list[dict[str, object]]:
    """Curves' points and pictures of the offline runs of a folder, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _log_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                points.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                               for item in record.history.item})
    return points


def _log_records(content: bytes) -> Iterator[bytes]:
    """Records of a file of W&B: after 7 bytes LevelDB's log format, in blocks of 32 KB."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place:place + 7])
        if kind == 0:
            return
        parts += content[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_gets_the_same_curves_and_pictures_in_one_run(shown, events):
    record = json.loads((shown / "wandb.json").read_text())
    folders = sorted((shown / "wandb").glob("offline-run-*"))
    assert record["project"] == "tests" and len(folders) == 2  # one for each start
    assert all(folder.name.endswith(record["id"]) for folder in folders)
    points = stored(shown)
    totals = [(one["update"], one["terms/total"]) for one in points if "terms/total" in one]
    assert [step for step, _ in totals] == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert [value for _, value in totals] == [line["terms"]["total"] for line in records(shown)]
    curves = {name for one in points for name in one if "/" in name and "pictures" not in name}
    assert curves <= set(events.Tags()["scalars"]) and {"eval/cam", "lr/encoder"} <= curves
    pictures = {name.removesuffix("/path") for one in points for name in one
                if name.startswith("pictures/") and name.endswith("/path")}
    assert pictures == set(events.Tags()["images"])
    assert len(list((shown / "wandb").glob("offline-run-*/files/media/images/**/*.png"))) >= 8


def test_a_failing_service_is_told_once_and_stops_nothing(tmp_path, monkeypatch, tiny):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def no_service(**_):
        raise ConnectionError("no route to host\nmore of it")

    monkeypatch.setattr(wandb, "init", no_service)
    said = []
    log = WandbLog(tmp_path, load_config(tiny["config"], ["telemetry.wandb=tests"]), {},
                   said.append)
    log.scalars(1, {"terms/total": 1.0})
    log.close("finished")
    assert len(said) == 1 and "no route to host" in said[0] and "more of it" not in said[0]


def test_without_a_login_nobody_is_asked_for_one(tmp_path, monkeypatch, tiny):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "setup", lambda: type("S", (), {
        "settings": type("M", (), {"mode": "online"})}))
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **how: asked.append(how) or False)
    said = []
    WandbLog(tmp_path, load_config(tiny["config"], ["telemetry.wandb=tests"]), {}, said.append)
    assert asked[0]["prompt"] is False and "`wandb login`" in said[0]


def test_without_the_package_nothing_is_begun(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_wandb("")
    with pytest.raises(UserError) as caught:
        check_wandb("tests")
    assert 'pip install ".[wandb]"' in caught.value.fix
    done = CliRunner().invoke(app, [
        "train", str(tiny["config"]), "--train", str(tiny["train"]), "--run",
        str(tmp_path / "run"), "--set", "telemetry.wandb=tests"])
    assert isinstance(done.exception, UserError) and "wandb" in done.exception.message
    assert not (tmp_path / "run").exists()


def test_the_id_is_that_of_the_folder_and_the_project(tmp_path):
    first = kept_id(tmp_path, "a")
    assert kept_id(tmp_path, "a") == first != kept_id(tmp_path, "b")
    (tmp_path / "wandb.json").write_text("{")
    assert kept_id(tmp_path, "b") and json.loads((tmp_path / "wandb.json").read_text())


@pytest.mark.parametrize(("routes", "tiles"), [(("decoder",), 3), (("cam", "lam"), 4)])
def test_a_stage_shows_what_it_scores(tiny, routes, tiles):
    config = load_config(tiny["config"], ["telemetry.pictures=2", "inference.batch=1"])
    drawn = ValPictures(ShardSet(tiny["val"]), config, ALONE, routes).draw(make_network(config))
    assert len(drawn) == 2
    assert all(one.shape == (84, tiles * 68 - 4, 3) for one in drawn.values())


def test_other_ranks_run_the_network_only_where_weights_are_cut(tiny):
    for stage, forwards in ((2, 0), (3, 4)):
        config = load_config(tiny["config"], [f"deepspeed.zero_stage={stage}",
                                              "inference.batch=1"])
        network, calls = make_network(config), []
        network.encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        world = World(1, 2, 1, 2, torch.device("cpu"))
        assert not ValPictures(ShardSet(tiny["val"]), config, world, ROUTES).draw(network)
        assert len(calls) == forwards


def test_rows_are_spread_over_the_set():
    assert spread_rows(8, 4) == [1, 3, 5, 7] and spread_rows(3, 4) == [0, 1, 2]
    assert spread_rows(1449, 4)[-1] < 1449 and spread_rows(5, 0) == [] and SIDE <= 256
