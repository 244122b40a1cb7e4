"""The head warm-up: it moves the classifiers and nothing else, and the same way every time."""

from __future__ import annotations

import pytest
import torch

from more.config.load import load_config
from more.data.shards.reader import ShardSet
from more.engine import warmup
from more.engine.build import make_network
from more.engine.warmup import Features, encode, warm_heads


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


def test_a_class_that_object_and_surroundings_tell_apart_takes_the_object(tiny, monkeypatch):
    """Each tag puts a channel into the middle and another one, just as sure, around it."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.nn.functional.one_hot(torch.arange(42) % 7, 7)
    main = 0.3 * torch.randn(42, 32, 8, 8, generator=generator)
    for image, label in enumerate(tags.argmax(1)):
        main[image, label, 2:6, 2:6] += 3
        main[image, 7 + label] += 6
        main[image, 7 + label, 2:6, 2:6] -= 6
    main *= 5  # as long as those of a pretrained ViT
    features = Features(main.half(), main.half(), tags)
    monkeypatch.setattr(warmup, "encode", lambda *_: features)

    def inside(centre):
        network, _, terms = warmed(tiny, "model.pooling=competitive", "head_warmup.updates=150",
                                   f"head_warmup.centre={centre}", "head_warmup.lr=1e-2")
        with torch.no_grad():
            maps = network.class_maps(main, main)[0][torch.arange(42), tags.argmax(1)]
        return float(maps[:, 2:6, 2:6].mean() / maps.mean()), terms
    (without, plain), (with_it, terms) = inside(0.0), inside(0.1)
    assert with_it > 2.7 and without < 2.2  # times as likely inside as anywhere; at most 4
    assert terms["centre"] < 0.5 * plain["centre"] and terms["cls"] < 0.1


@pytest.mark.parametrize("where, share", [("centre", 0), ("everywhere", 1), ("border", 256 / 112)])
def test_the_border_of_a_map(where, share):
    probabilities = torch.zeros(2, 3, 16, 16)
    probabilities[:, 1] = {"centre": 0.0, "everywhere": 0.5, "border": 0.5}[where]
    if where != "everywhere":
        probabilities[:, 1, 2:14, 2:14] = 0.5 if where == "centre" else 0.0
    tags = torch.tensor([[0, 1, 0], [0, 1, 0]])
    found = warmup._at_the_border(probabilities, tags)
    assert float(found) == pytest.approx(share, rel=0.01)
