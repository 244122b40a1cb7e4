"""What an update on masks is made of, and how a store is filled; without a process group."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from more.config.load import config_from_dict, to_dict
from more.data.batch_order import SampleKey
from more.data.colours import network_input
from more.data.dataset import TrainDataset
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.data.token_store import TokenStore
from more.data.transforms import labels_of_view, thinned
from more.errors import UserError
from more.method.encoder import ClassTokenEncoder
from more.method.losses.classification import image_tags_loss, mask_loss
from more.method.make_network import make_network
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World
from more.train.engine import make_transform
from more.train.frozen_tokens import kept_tokens
from more.train.stage_two import MaskStage, settled
from tests.data.sets import mask_set, small_set

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
SETTINGS = {
    "stage": 2,
    "model": {"backbone": "custom", "weights": "none", "num_classes": 3, "decoder_width": 8,
              "vit": {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
              "token_init": "perturbed"},
    "data": {"crop": 56, "workers": 0, "augment": "coco"},
    "train": {"iterations": 12, "global_batch": 4}, "inference": {"batch": 4, "size": 56},
    "tokens": {"views": 2}}


def sure(row: int) -> int:
    """Confidence of the mask of a row, of 255."""
    return 5 + 17 * row


class Engine:
    """The part of DeepSpeed's engine that a stage calls."""

    def __init__(self, network):
        self.module = network

    def __call__(self, *inputs, **options):
        return self.module(*inputs, **options)

    def fp16_enabled(self) -> bool:
        return False


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def masks(images, tmp_path_factory) -> Path:
    return mask_set(tmp_path_factory.mktemp("masks") / "set", images, confidence=sure)


def make_config(**sections):
    return config_from_dict({**SETTINGS, **{
        name: {**SETTINGS.get(name, {}), **values} for name, values in sections.items()}})


def started(run: Path, images: Path, masks: Path, **sections) -> tuple[MaskStage, list[str]]:
    """A stage that could train, and what it said."""
    config, said = make_config(**sections), []
    stage = MaskStage(config, ShardSet(images), ShardSet(masks), run, ALONE)
    network = make_network(config)
    with torch.no_grad():  # else it finds all classes alike in all images
        for value in network.decoder.parameters():
            value.add_(0.5 * torch.randn_like(value))
    stage.prepare(network, said.append)
    stage.connect(Engine(network), None)
    return stage, said


@pytest.mark.parametrize("segment", [
    {}, {"confidence": "weight"}, {"loss": "plain"}, {"loss": "plain", "confidence": "weight"},
    {"ignore_below": 124 / 255}, {"tags": 0.3}, {"stride": 4}, {"blocks": 2},
    {"blocks": -1, "tags": 2.0}, {"blocks": -1, "stride": 3},
    {"blocks": 1, "ignore_below": 0.5, "confidence": "weight", "stride": 3}])
def test_terms_are_those_of_the_labels_of_the_views(images, masks, tmp_path, segment):
    stage, _ = started(tmp_path, images, masks, segment=segment)
    config, source = stage.config, ShardSet(images)
    network, split = stage.engine.module, split_batch(4, 1)
    batch = next(iter(stage.batches(split, 0)))
    views = TrainDataset(source, make_transform(config.data), config.train.seed)
    inputs, labels = [], []
    for row in batch["indices"].tolist():
        view = views[SampleKey(row, 0, 0)]
        whole = np.zeros((*source.sizes[row], 2), np.uint8)
        whole[..., 0], whole[..., 1] = row % 3 + 1, sure(row)
        whole[0, :, 0] = 255
        found = labels_of_view(whole, view["window"], view["box"], 56, (255, 0))
        labels.append(torch.from_numpy(thinned(found, config.segment.stride)))
        inputs.append(network_input({"images": view["images"][None],
                               "jitter": torch.from_numpy(view["jitter"])[None],
                               "box": torch.from_numpy(view["box"])[None]},
                              ALONE.device, config.data.mean, config.data.std))
    assert 7 in batch["indices"] and sure(7) == 124, "one lies just at the limit"
    assert torch.equal(batch["labels"], torch.stack(labels))
    label, confidence = torch.stack(labels).unbind(-1)
    confidence = confidence.float() / 255
    kept = label.masked_fill(confidence < config.segment.ignore_below, 255)
    if config.segment.ignore_below:
        assert 0 < (kept == 255).float().mean() - (label == 255).float().mean() < 0.9
    logits = network(torch.cat(inputs), mode="segment")
    expected = {"seg": mask_loss(
        logits, kept, confidence if config.segment.confidence == "weight" else None,
        config.segment.loss == "balanced")}
    total = expected["seg"]
    if config.segment.tags:
        expected["tags"] = image_tags_loss(
            logits, torch.from_numpy(source.tags[batch["indices"].numpy()]).float())
        total = total + config.segment.tags * expected["tags"]
    terms, anchor = next(stage.terms([stage.taken(batch)], 0))
    assert terms.keys() == {*expected, "total"} and anchor.requires_grad
    for name, value in {**expected, "total": total}.items():  # tokens are rounded to 16 bits
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-3), name
    terms["total"].backward()
    assert all(value.grad is not None for value in network.parameters() if value.requires_grad)


def test_the_average_over_ranks_normalises_the_loss(images, masks, tmp_path, monkeypatch):
    """Both ranks divide by the mean of their numbers of pixels."""
    stage, _ = started(tmp_path, images, masks, segment={"blocks": -1})
    batch, shares = next(iter(stage.batches(split_batch(4, 1), 0))), []
    monkeypatch.setattr("more.train.stage_two.mask_loss", lambda *given: (
        shares.append(given[-1]), mask_loss(*given))[1])
    alone = next(stage.terms([stage.taken(batch)], 0))[0]["seg"]
    monkeypatch.setattr(World, "mean", lambda self, numbers: numbers * 2)
    stage.world = World(0, 2, 0, 2, torch.device("cpu"))
    halved = next(stage.terms([stage.taken(batch)], 0))[0]["seg"]
    assert halved.item() == pytest.approx(alone.item() / 2, rel=1e-5)
    assert shares == [1, 0.5]


def test_frozen_blocks_see_a_limited_number_of_views_with_and_without_room(images, masks, tmp_path):
    kept, _ = started(tmp_path / "a", images, masks)
    plain, said = started(tmp_path / "b", images, masks, tokens={"gb": 0.0})
    whole, _ = started(tmp_path / "c", images, masks, segment={"blocks": -1})
    assert (kept.views, plain.views, whole.views) == (2, 2, 0)
    assert kept.tokens is not None and plain.tokens is None and whole.tokens is None
    assert any("run in every update" in text for text in said)
    views = TrainDataset(ShardSet(images), make_transform(plain.config.data), 1)
    for stage, shown in ((plain, 1), (whole, 3)):  # three updates an epoch: this is the fourth
        batch = next(iter(stage.batches(split_batch(4, 1), 9)))
        for place, row in enumerate(batch["indices"].tolist()):
            view = views[SampleKey(row, 0, shown)]
            assert torch.equal(batch["images"][place], view["images"])
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_what_follows_from_masks_and_start(images, masks):
    config = make_config()
    assert settled(config, ShardSet(masks), None).segment.supervision == "tags"
    assert settled(config, ShardSet(images), None).segment.supervision == "true masks"
    assert settled(config, ShardSet(masks), None).model == config.model


def write_run(folder: Path, **sections) -> Path:
    """The settings of a run of stage one."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(make_config(**sections))))
    return folder


@pytest.mark.parametrize("decoder", ["fresh", "kept"])
def test_the_model_is_that_of_the_run_it_starts_from(masks, tmp_path, decoder):
    init = write_run(tmp_path / "one", model={"aux_layer": -2, "decoder_width": 24, "graph": False},
                     data={"mean": [1, 2, 3], "crop": 64})
    now = make_config(segment={"decoder": decoder}, model={
        "recompute_cheap": False, "gradient_checkpointing": True, "decoder_width": 12})
    found = settled(now, ShardSet(masks), init)
    assert (found.model.aux_layer, found.model.graph) == (-2, False)
    assert found.model.image_size == 64, "the native grid is that of its crop"
    assert found.model.decoder_width == (12 if decoder == "fresh" else 24)
    assert found.model.gradient_checkpointing and not found.model.recompute_cheap
    assert (found.data.mean, found.data.std) == ((1, 2, 3), now.data.std)
    assert found.data.crop == 56 and found.train == now.train


def filling(images: Path, run: Path, said: list[str] | None = None, **sections):
    """`kept_tokens` of two blocks of the tiny network: store, views, network, settings."""
    config = make_config(**sections)
    network = make_network(config)
    store, views = kept_tokens(network, ShardSet(images), config, 2, run, ALONE,
                               (said if said is not None else []).append)
    return store, views, network, config


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_store_holds_what_frozen_blocks_make_of_the_views(images, tmp_path, mirrored):
    config = make_config(model={"vit": {**SETTINGS["model"]["vit"], "drop_path_rate": 0.5}})
    network, source = make_network(config).train(), ShardSet(images)
    store, views = kept_tokens(network, source, config, 2, tmp_path, ALONE, print, mirrored)
    assert views == 2 and store.complete and store.rows == 30 and network.training
    network.eval()  # in training a block may be left out
    dataset = TrainDataset(source, make_transform(config.data), config.train.seed)
    for row in (0, 7, 14, 15, 29):
        view = dataset[SampleKey(row % 15, 0, row // 15)]
        batch = {"images": view["images"][None], **{
            key: torch.from_numpy(view[key])[None] for key in ("jitter", "box")}}
        image = network_input(batch, ALONE.device, config.data.mean, config.data.std)
        found, place = store.read(row)
        assert np.array_equal(place, [*view["window"], *view["box"]])
        wanted = network.encoder.lower(image, 2)
        if mirrored:
            assert found.shape[0] == 2
            wanted = torch.stack([wanted, network.encoder.lower(image.flip(-1), 2)], dim=1)
        np.testing.assert_allclose(found, wanted[0].numpy(), rtol=1e-3, atol=1e-3)


def test_an_interrupted_filling_computes_what_it_lacks(images, tmp_path, monkeypatch):
    whole, *_ = filling(images, tmp_path / "whole")
    write, seen, lower = TokenStore.write, [], ClassTokenEncoder.lower

    def interrupted(self, row, *content):
        if row == 9:
            raise KeyboardInterrupt
        write(self, row, *content)

    def counted(self, views, frozen):
        seen.append(len(views))
        return lower(self, views, frozen)

    monkeypatch.setattr(ClassTokenEncoder, "lower", counted)
    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            filling(images, tmp_path / "cut")
    cut, = (tmp_path / "cut" / "tokens").iterdir()
    assert not (cut / "store.json").exists() and not (cut / ".lock").exists()
    said, seen[:] = [], []
    store, *_ = filling(images, tmp_path / "cut", said)
    assert sum(seen) == 30 - 9 and max(seen) == 4, "inference.batch at a time"
    for row in range(30):
        for first, second in zip(whole.read(row), store.read(row), strict=True):
            np.testing.assert_allclose(first, second, rtol=2e-3, atol=2e-3)
    seen.clear()
    filling(images, tmp_path / "cut", said)
    assert seen == [] and said == [f"tokens of 30 views are there: {store.path}"]


def test_two_runs_do_not_fill_a_store_at_a_time(images, tmp_path):
    store, *_ = filling(images, tmp_path)
    (store.path / "store.json").unlink()
    with folder_lock(store.path), pytest.raises(UserError, match="writes here"):
        filling(images, tmp_path)
    assert filling(images, tmp_path)[0].complete


def test_a_full_disk_ends_with_a_cure_and_without_a_lock(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match="30 views need .* bytes") as caught:
            filling(images, tmp_path)
    assert "tokens.gb" in caught.value.fix
    folder, = (tmp_path / "tokens").iterdir()
    assert list(folder.iterdir()) == []
    filling(images, tmp_path)


@pytest.mark.parametrize(("sections", "other"), [
    ({}, False), ({"optim": {"lr": 1e-3}}, False), ({"segment": {"loss": "plain"}}, False),
    ({"inference": {"batch": 3, "size": 56}}, False), ({"train": {"iterations": 9}}, False),
    ({"train": {"seed": 5}}, True), ({"data": {"crop": 60}}, True),
    ({"data": {"augment": "voc"}}, True), ({"data": {"min_area": 0.5}}, True),
    ({"data": {"jitter": 0.1}}, True), ({"data": {"pipeline": "pil"}}, True),
    ({"data": {"mean": [1, 2, 3]}}, True), ({"data": {"std": [1, 2, 3]}}, True),
    ({"precision": "bf16"}, True), ({"tokens": {"views": 3}}, True),
    ({"model": {"token_attention": "shared"}}, True)])
def test_all_that_decides_its_content_names_a_store(images, tmp_path, monkeypatch, sections, other):
    monkeypatch.setattr("more.train.frozen_tokens.fill", lambda *_: None)
    merged = {name: {**SETTINGS.get(name, {}), **value} if isinstance(value, dict) else value
              for name, value in sections.items()}
    base, changed = (config_from_dict({**SETTINGS, **given}) for given in ({}, merged))
    network = make_network(base)
    paths = [kept_tokens(network, ShardSet(images), config, 2, tmp_path, ALONE, print)[0].path
             for config in (base, changed)]
    assert (paths[0] != paths[1]) == other


def test_other_images_and_other_blocks_name_another_store(images, tmp_path, monkeypatch):
    monkeypatch.setattr("more.train.frozen_tokens.fill", lambda *_: None)
    config, source = make_config(), ShardSet(images)
    network = make_network(config)
    more = ShardSet(small_set(tmp_path / "more", first=50))
    swapped = source.without([3])
    paths = {kept_tokens(network, one, config, frozen, tmp_path, ALONE, print, mirrored)[0].path
             for one, frozen, mirrored in ((source, 2, False), (source, 3, False),
                                           (source, 2, True), (more, 2, False),
                                           (swapped, 2, False), (source.without([4]), 2, False))}
    assert len(paths) == 6
