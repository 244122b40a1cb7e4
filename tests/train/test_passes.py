"""An update in several passes (`train.micro_batch`) is the update of one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from more.config.load import config_from_dict
from more.data.shards.reader import ShardSet
from more.method.make_network import make_network
from more.train.deepspeed_settings import split_batch
from more.train.stage_one import TagStage
from tests.data.sets import mask_set, small_set
from tests.train.conftest import records
from tests.train.jobs import run_jobs
from tests.train.test_mask_stage import ALONE, SETTINGS, Engine, started, sure

ONE = {**{name: value for name, value in SETTINGS.items() if name != "tokens"}, "stage": 1,
       "data": {"crop": 64, "workers": 0, "augment": "coco"},
       "cam": {"scales": (1.0, 0.5)}, "loss": {"start": {"seg": 1, "energy": 1}}}


class Counted(Engine):
    """Counts images by what is asked of the network; buffers of an update as DeepSpeed has them."""

    def __init__(self, network):
        super().__init__(network)
        self.images: dict[str, int] = {}

    def __call__(self, *inputs, **options):
        kind = options.get("mode", "train") + ("" if torch.is_grad_enabled() else ", no gradient")
        self.images[kind] = self.images.get(kind, 0) + len(inputs[0])
        return super().__call__(*inputs, **options)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


def tag_stage(images: Path, run: Path, **options) -> TagStage:
    """A stage whose heads tell images apart, so that all its terms have something to count."""
    sections = {name: {**ONE.get(name, {}), **options.get(name, {})} for name in {**ONE, **options}
                if isinstance(ONE.get(name, options.get(name)), dict)}
    config = config_from_dict({**ONE, **options, **sections})
    stage = TagStage(config, ShardSet(images), run, ALONE)
    network = make_network(config)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for value in network.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    stage.connect(Counted(network), None)
    return stage


def update(stage, micro: int, step: int):
    """Mean terms and gradients of update 0's images, as the trainer and DeepSpeed make them."""
    split, network = split_batch(4, 1, micro), stage.engine.module
    batches = iter(stage.batches(split, 0))
    passes = [stage.taken(next(batches)) for _ in range(split.accumulation)]
    network.zero_grad()
    stage.engine.images, terms = {}, []
    for found, _ in stage.terms(passes, step):
        (found["total"] / split.accumulation).backward()
        terms.append({name: float(value.detach()) for name, value in found.items()})
    means = {name: sum(part[name] for part in terms) / len(terms) for name in terms[0]}
    return means, {name: value.grad.clone() for name, value in network.named_parameters()
                   if value.grad is not None}, terms


def assert_same_update(stage, step: int) -> list[dict[str, float]]:
    """One pass, two and four give the same terms and gradients, to 1e-5."""
    means, gradients, _ = update(stage, 0, step)
    size = max(float(value.abs().max()) for value in gradients.values())
    for micro in (2, 1):
        again, found, terms = update(stage, micro, step)
        for name, value in means.items():
            assert again[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (micro, name)
        assert found.keys() == gradients.keys()
        for name, value in gradients.items():
            most = max(float(value.abs().max()), 1e-3 * size)
            assert (found[name] - value).abs().max() <= 1e-5 * most, (micro, name)
    return terms


@pytest.mark.parametrize("step", [0, 3, 20000])
@pytest.mark.parametrize("variant", ["released", "paper"])
def test_several_passes_are_one_update_on_tags(images, tmp_path, variant, step):
    stage = tag_stage(images, tmp_path, variant=variant)
    terms = assert_same_update(stage, step)
    # The paper's forms may find no patch for URE and CRE in these few images.
    counted = ("cre", "ure", "ptc") if variant == "released" else ("ptc",)
    assert [name for name in counted if not any(part[name] for part in terms)] == []
    if step:
        assert all(any(part[name] for part in terms) for name in ("seg", "energy"))
    assert len({round(part["seg"], 5) for part in terms}) > 1 or not step, "passes are uneven"


def test_passes_that_choose_at_random_choose_the_same_patches(images, tmp_path):
    """URE ranks patches by numbers that depend on seed, update and place in the batch alone."""
    stage = tag_stage(images, tmp_path)
    whole = stage._keys(torch.arange(4), torch.Size((4, 16, 8, 8)), 5)
    parts = [stage._keys(torch.tensor([slot]), torch.Size((1, 16, 8, 8)), 5) for slot in range(4)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (4, 2, 64) and whole.unique().numel() > 500
    assert whole.dtype == torch.float32 and 0 <= whole.min() < 0.05 and 0.95 < whole.max() < 1
    assert not torch.equal(stage._keys(torch.arange(4), torch.Size((4, 16, 8, 8)), 6), whole)
    # Those of this rank's images alone are drawn: all of so large a batch would not fit in memory.
    large = tag_stage(images, tmp_path, train={"global_batch": 10**9})
    assert torch.equal(large._keys(torch.tensor([1, 3]), torch.Size((2, 16, 8, 8)), 5), whole[1::2])
    off = tag_stage(images, tmp_path, loss={"weights": {"ure": 0.0}})
    assert off._keys(torch.arange(4), torch.Size((4, 16, 8, 8)), 5) is None


def test_counts_cost_a_forward_of_all_passes_but_one(images, tmp_path):
    """No view is run twice, and nothing is run more where no term counts."""
    stage = tag_stage(images, tmp_path)
    update(stage, 0, 3)
    one = stage.engine.images
    update(stage, 1, 3)
    assert stage.engine.images == {**one, "train, no gradient": 3}
    plain = tag_stage(images, tmp_path, loss={"weights": {"ure": 0.0, "ptc": 0.0},
                                              "start": {"seg": 5, "energy": 5}})
    update(plain, 1, 3)
    assert plain.engine.images.get("train") == 4 and "train, no gradient" not in plain.engine.images


@pytest.mark.parametrize("segment", [
    {"blocks": -1, "confidence": "weight", "tags": 0.3}, {"blocks": -1, "ignore_below": 0.4},
    {"blocks": 0, "loss": "plain", "confidence": "weight"}])
def test_several_passes_are_one_update_on_masks(images, tmp_path, segment):
    masks = mask_set(tmp_path / "masks", images, confidence=sure)
    stage, _ = started(tmp_path / "run", images, masks, segment=segment)
    stage.engine = Counted(stage.engine.module)
    terms = assert_same_update(stage, 0)
    assert len({round(part["seg"], 5) for part in terms}) > 1, "passes are uneven"


def test_two_ranks_with_several_passes_train_as_one_rank_with_one(tiny, tmp_path):
    plain = ["train.iterations=4", "checkpoint.every=4", "eval.every=0", "optim.lr=1e-4",
             "train.global_batch=8"]
    run_jobs(tiny, tmp_path / "runs", 1, {"one": plain, "paper": [*plain, "variant=paper"]})
    jobs = {f"two-{stage}": [*plain, "train.micro_batch=1", f"deepspeed.zero_stage={stage}"]
            for stage in (0, 1, 2, 3)}
    jobs["two-paper"] = [*jobs["two-1"], "variant=paper"]
    run_jobs(tiny, tmp_path / "runs", 2, jobs)
    for name in jobs:
        first = "paper" if name.endswith("paper") else "one"
        for one, two in zip(*(records(tmp_path / "runs" / run) for run in (first, name)),
                            strict=True):
            for term, value in one["terms"].items():
                assert two["terms"][term] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, term)
