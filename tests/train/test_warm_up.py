"""The head warm-up: it moves the classifiers and nothing else, and the same way every time."""

from __future__ import annotations

import pytest
import torch

from more.config.load import load_config
from more.data.loader import make_eval_loader
from more.data.shards.reader import ShardSet
from more.method.heads import CompetitiveHead
from more.method.losses.classification import multilabel_soft_margin
from more.method.make_network import make_network
from more.method.network import feature_maps
from more.plan.live_bytes import LiveBytes
from more.train import warm_up
from more.train.distributed import World
from more.train.warm_up import Features, encode, warm_heads
from tests.train.ranks import as_ranks


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
    monkeypatch.setattr(warm_up, "encode", lambda *_: features)

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
    found = warm_up._at_the_border(probabilities, tags)
    assert float(found) == pytest.approx(share, rel=0.01)


SHORT = ["head_warmup.updates=12", "head_warmup.batch=8", "head_warmup.centre=0.1",
         "head_warmup.images=23"]


def plain_warm_up(network, data, config):
    """The warm-up written down without ranks: all features at once, joined at the end."""
    settings, parts = config.head_warmup, ([], [], [])
    rows = torch.linspace(0, len(data) - 1, settings.images).round().long().tolist()
    network.eval()
    with torch.no_grad():
        for batch in make_eval_loader(data, config.data.crop, batch_size=config.inference.batch,
                                      indices=rows, mean=config.data.mean, std=config.data.std):
            for part, value in zip(parts, (*feature_maps(network.encoder(batch["images"])),
                                           batch["tags"]), strict=True):
                part.append(value.half())
        features = [torch.cat(part) for part in parts]
        network.train()
        for head, value in zip([network.contest, network.aux_contest], features, strict=False):
            head.centre.copy_(head._normalised(value).mean((0, 2, 3)))
    optimizer = torch.optim.AdamW(network.head_parameters(), lr=settings.lr,
                                  betas=tuple(config.optim.betas), eps=config.optim.eps,
                                  weight_decay=config.optim.weight_decay)
    generator = torch.Generator().manual_seed(config.train.seed)
    for update in range(settings.updates):
        optimizer.param_groups[0]["lr"] = settings.lr * (1 - update / settings.updates)
        some = torch.randperm(settings.images, generator=generator)[:settings.batch]
        main, aux, tags = (part[some].float() for part in features)
        maps = network.class_maps(main, aux)
        total = (sum(multilabel_soft_margin(logits, tags)
                     for logits in network.class_logits(main, aux))
                 + settings.background * (sum(map(warm_up._background, maps)) / tags.shape[1])
                 + settings.centre * sum(warm_up._at_the_border(one, tags) for one in maps))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def heads(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()
            if "classifier" in name or "contest" in name}


def test_one_rank_gives_the_bits_of_the_plain_warm_up(tiny):
    config = load_config(tiny["config"], [*SHORT, "model.pooling=competitive"])
    data = ShardSet(tiny["train"], kind="images")
    network, plain = make_network(config), make_network(config)
    warm_heads(network, data, config, quiet=True)
    plain_warm_up(plain, data, config)
    found = heads(network)
    assert len(found) == 6
    assert all(torch.equal(found[name], value) for name, value in heads(plain).items())


@pytest.mark.parametrize("ranks, pooling", [(2, "competitive"), (3, "competitive"), (2, "max")])
def test_ranks_that_share_the_images_end_as_one_rank_does(tiny, ranks, pooling):
    config = load_config(tiny["config"], [*SHORT, f"model.pooling={pooling}"])
    networks = [make_network(config) for _ in range(ranks + 1)]
    alone = warm_heads(networks[-1], ShardSet(tiny["train"], kind="images"), config, quiet=True)
    terms = as_ranks(ranks, lambda world: warm_heads(
        networks[world.rank], ShardSet(tiny["train"], kind="images"), config, True, world))
    for network, found in zip(networks, terms, strict=False):
        assert found == terms[0] == pytest.approx(alone, rel=1e-4)
        for name, value in heads(network).items():
            assert torch.equal(value, heads(networks[0])[name])  # the same on all ranks
            torch.testing.assert_close(value, heads(networks[-1])[name], rtol=1e-3, atol=1e-5)


def test_more_ranks_than_images_of_an_update_or_of_the_warm_up(tiny):
    config = load_config(tiny["config"], ["head_warmup.updates=4", "head_warmup.batch=1",
                                          "head_warmup.images=2", "model.pooling=competitive"])
    networks = [make_network(config) for _ in range(4)]
    data = ShardSet(tiny["train"], kind="images")
    alone = warm_heads(networks[-1], data, config, quiet=True)
    terms = as_ranks(3, lambda world: warm_heads(
        networks[world.rank], ShardSet(tiny["train"], kind="images"), config, True, world))
    assert terms[2] == pytest.approx(alone, rel=1e-4)
    for name, value in heads(networks[2]).items():
        torch.testing.assert_close(value, heads(networks[-1])[name], rtol=1e-3, atol=1e-5)


def test_a_rank_holds_its_share_of_the_features_and_no_copy_of_it(tiny):
    config = load_config(tiny["config"], ["inference.batch=1"])
    network, data = make_network(config), ShardSet(tiny["train"], kind="images")
    peaks, held = [], []
    for size in (1, 4):
        world = World(0, size, 0, size, torch.device("cpu"))
        with LiveBytes() as live:
            features = encode(network, data, config, True, world)
        assert len(features.tags) == len(data) == 24 and len(features.main) == 24 // size
        held.append(features.main.nbytes + features.aux.nbytes)
        peaks.append(live.peak)
        del features
    assert held[0] == 4 * held[1]
    # What a rank holds more, it also takes more at most: joining batches would take it twice.
    assert peaks[0] - peaks[1] == pytest.approx(held[0] - held[1], rel=0.02)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_mean_of_many_features_takes_little_memory_and_keeps_its_bits(normalise):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(150, 384, 7, 7, generator=generator).half().to(
        memory_format=torch.channels_last)
    head = CompetitiveHead(384, 7, normalise)
    wanted = head._normalised(features).mean((0, 2, 3))
    with LiveBytes() as live:
        head.set_centre(features)
    assert torch.equal(head.centre, wanted)
    assert live.peak < 1.5 * features.nbytes  # all of it in float32 is twice, normalised more


def test_ranks_with_unequal_shares_check_equally_often(tiny):
    """Ranks meet in a check: one that makes more of them would wait for ever."""
    config = load_config(tiny["config"], ["head_warmup.images=5", "inference.batch=2"])
    networks = [make_network(config) for _ in range(2)]

    def checks(world):
        made = []
        encode(networks[world.rank], ShardSet(tiny["train"], kind="images"), config, True, world,
               lambda: made.append(1))
        return len(made)
    assert as_ranks(2, checks) == [1, 1]
