"""For a GPU a thread pins batches, one ahead; a stand-in for pinning shows it without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from more.data import loader
from more.data.batch_order import GlobalBatchSampler
from more.data.loader import Batches, Reading, make_train_loader
from more.data.loader_processes import pinned_ahead
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform
from more.errors import UserError
from tests.data.sets import small_set


def test_batches_are_pinned_by_a_thread_one_ahead_and_hold():
    """Each before the memory that it came in is used again, and while the one before is in use."""
    memory, threads, asked = torch.zeros(2), set(), []

    def batches() -> Iterator[dict]:
        for number in range(4):
            asked.append(number)
            yield {"images": memory.fill_(number), "names": ["not a tensor"]}

    def pin(values: torch.Tensor) -> torch.Tensor:
        threads.add(threading.current_thread())
        return values.clone()

    ours = pinned_ahead(batches(), pin)
    first = next(ours)
    kept = [first, *ours]
    assert [batch["images"].tolist() for batch in kept] == [[n, n] for n in range(4)]
    assert kept[0]["names"] == ["not a tensor"] and asked == [0, 1, 2, 3]
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads), "it ends with the batches"


def test_an_error_comes_in_its_place_and_a_loop_may_be_left():
    def batches() -> Iterator[dict]:
        yield {"images": torch.zeros(1)}
        raise UserError("image 7 is damaged", "")

    ours = pinned_ahead(batches(), torch.clone)
    assert next(ours)
    with pytest.raises(UserError, match="image 7"):
        next(ours)
    left = pinned_ahead(iter([{"images": torch.zeros(1)}] * 9), torch.clone)
    next(left)
    left.close()
    assert not [thread for thread in threading.enumerate() if "pinning" in thread.name]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_a_gpu_all_that_a_training_batch_holds_is_pinned(tmp_path, monkeypatch, workers):
    shards = ShardSet(small_set(tmp_path / "set"), kind="images")
    plan, transform = GlobalBatchSampler(len(shards), 4, 3), TrainTransform(16, "coco")

    def batches() -> Batches:
        return make_train_loader(shards, transform, plan, stop_step=5, micro_batch=2,
                                 reading=Reading(workers, copy=False))

    expected = [{name: value.clone() for name, value in batch.items()} for batch in batches()]
    pinned = []

    def pin(values: torch.Tensor) -> torch.Tensor:
        pinned.append(values.clone())
        return pinned[-1]

    monkeypatch.setattr(loader, "local_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(loader, "pinned_ahead", lambda made: pinned_ahead(made, pin))
    found = list(batches())
    assert len(found) == 10
    assert all(any(value is one for one in pinned) for batch in found for value in batch.values())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
