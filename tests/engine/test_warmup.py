"""The head warm-up: it moves the classifiers and nothing else, and the same way every time."""

from __future__ import annotations

import pytest
import torch

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.engine.build import make_network
from more.engine.warmup import encode, warm_heads


def warmed(tiny, *overrides: str):
    config = load_config(tiny["config"], ["head_warmup.updates=30", "head_warmup.batch=8",
                                          *overrides])
    data = ShardSet(tiny["train"], kind="images")
    network = make_network(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    return network, before, warm_heads(network, data, config, quiet=True)


@pytest.mark.parametrize("pooling", ["max", "competitive"])
def test_only_the_classifiers_move(tiny, pooling):
    network, before, terms = warmed(tiny, f"model.pooling={pooling}")
    moved = {name.split(".")[0] for name, value in network.state_dict().items()
             if not torch.equal(value, before[name])}
    heads = {"classifier", "aux_classifier"}
    assert moved == (heads if pooling == "max" else heads | {"contest", "aux_contest"})
    assert network.training and all(p.grad is None for p in network.parameters())
    assert terms["cls"] > 0 and (terms["background"] > 0) == (pooling == "competitive")


def test_it_learns_and_repeats_exactly(tiny):
    _, _, first = warmed(tiny, "model.pooling=competitive", "head_warmup.updates=2")
    network, _, terms = warmed(tiny, "model.pooling=competitive", "head_warmup.updates=80")
    again, _, same = warmed(tiny, "model.pooling=competitive", "head_warmup.updates=80")
    assert terms["cls"] < first["cls"] and terms == same
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(),
                                                 strict=True))


def test_the_number_of_images_is_limited(tiny):
    config = load_config(tiny["config"], ["head_warmup.images=5"])
    data = ShardSet(tiny["train"], kind="images")
    features = encode(make_network(config), data, config, quiet=True)
    assert features.main.shape == features.aux.shape == (5, 32, 8, 8)
    assert features.tags.shape == (5, 7)
