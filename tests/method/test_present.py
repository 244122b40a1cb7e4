"""Maps of present classes alone give the labels that maps of all classes give, bit by bit."""

import pytest
import torch

from more.method import labels
from more.method.cam import PresentMaps, multi_scale, resize, single_scale
from more.method.labels import Batch, cam_to_label, mask_cams, refined_label
from more.method.objective import make_objective
from more.method.par import PixelAdaptiveRefinement
from tests.method.objectives import coco, voc
from tests.oracles import labels as oracle

TAGS = {"some": [[0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]],
        "none": [[0] * 5] * 4, "all": [[1] * 5] * 4, "one": [[0, 0, 0, 1, 0]] * 4}
BOX = torch.tensor([[0, 32, 0, 48], [3, 30, 0, 40], [0, 17, 9, 48], [0, 1, 0, 1]])


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def case(name, ties=False, lowest=0.0):
    """(maps `[4, 5, 32, 48]` without those of absent classes, tags); ties: seven values only."""
    tags = torch.tensor(TAGS[name]).float()
    maps = drawn(4, 5, 32, 48) if ties else resize(drawn(4, 5, 5, 6), (32, 48))
    maps = (maps * 6).round() / 6 if ties else maps
    return mask_cams(maps * (1 - lowest) + lowest, tags), tags


@pytest.mark.parametrize("name", TAGS)
def test_there_and_back(name):
    maps, tags = case(name)
    present = PresentMaps.of(maps, tags)
    assert present.maps.shape[1] == present.classes.shape[1] == max(1, int(tags.sum(1).max()))
    assert torch.equal(present.dense(5), maps)
    assert PresentMaps.of(present, tags) is present
    assert not present.maps[~present.valid].any()
    assert torch.equal(present.valid.sum(1), tags.sum(1).long())
    for count in (1, 3):
        for part, rows, own in zip(present.split(count), maps.split(count), tags.split(count),
                                   strict=True):
            expected = PresentMaps.of(rows, own)
            assert part.counts == expected.counts
            for name in ("maps", "classes", "valid"):
                assert torch.equal(getattr(part, name), getattr(expected, name))


def test_absent_classes_count_as_zero_where_maps_of_all_are_given():
    tags, maps = case("some")[1], drawn(4, 5, 6, 6) + 1
    assert torch.equal(PresentMaps.of(maps, tags).dense(5), mask_cams(maps, tags))


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", TAGS)
def test_labels_of_both_forms_are_equal(name, ties, boxed, monkeypatch):
    for lowest, (high, low) in ((0.0, (0.5, 1 / 6)), (0.0, (0.5, 0.0)), (-1.0, (0.5, -0.25))):
        maps, tags = case(name, ties, lowest)
        present, box = PresentMaps.of(maps, tags), BOX if boxed else None
        monkeypatch.setattr(labels, "SMALL", 2**60)  # maps of all: the plain maximum
        for options in ({"high": high, "low": low}, {"background": low, "ignore_middle": False}):
            expected = cam_to_label(maps, tags, box=box, **options)
            assert torch.equal(cam_to_label(present, tags, box=box, **options), expected)
            assert expected.any() or name == "none"


@pytest.mark.parametrize("name", TAGS)
def test_refined_labels_of_both_forms_are_equal(name):
    maps, tags = case(name)
    images, par = drawn(4, 3, 32, 48, seed=1), PixelAdaptiveRefinement((1, 2), 3)
    label = refined_label(images, PresentMaps.of(maps, tags), tags, 0.7, 0.3, par)
    assert torch.equal(refined_label(images, maps, tags, 0.7, 0.3, par), label)
    for b in range(4):
        expected = oracle.refined_label(images[b], maps[b], tags[b], 0.7, 0.3, (1, 2), 3)
        assert (label[b] == expected).float().mean() > 0.995  # the oracle sums in another order
    assert (len(label.unique()) > 2) == (name != "none")


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("recipe", [voc, coco])
@pytest.mark.parametrize("name", TAGS)
def test_masks_of_the_objective_are_equal(name, recipe, boxed):
    (cams, tags), grid = case(name), (8, 12)
    aux = mask_cams(resize(drawn(4, 5, 6, 5, seed=3), (32, 48)), tags)
    output = type("Output", (), {"patch_tokens": torch.zeros(4, 2, *grid)})
    objective = make_objective(recipe(f"loss.exclude_padding={boxed}"))
    both = [Batch(images=drawn(4, 3, 32, 48, seed=4), tags=tags, cams=a, aux_cams=b, box=BOX)
            for a, b in ((cams, aux), (PresentMaps.of(cams, tags), PresentMaps.of(aux, tags)))]
    for step in (0, 10**6):
        found = [objective.masks(output, batch, step) for batch in both]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if not boxed:  # and what resized maps of all classes give
        assert torch.equal(found[1].confident, cam_to_label(resize(cams, grid), tags, 0.6, 0.35))
    labels = [objective.pseudo_label(output, batch) for batch in both]
    assert torch.equal(*labels)


@pytest.mark.parametrize("name", TAGS)
def test_sums_over_scales_are_those_of_all_maps(name):
    tags, weight = torch.tensor(TAGS[name]).float(), torch.randn(5, 3, 4, 4)
    images = drawn(4, 3, 32, 48)

    def forward(views):
        maps = torch.nn.functional.conv2d(views, weight, stride=4)
        return maps, maps.tanh()

    for normalise in (True, False):
        every = multi_scale(forward, images, (1, 0.5, 1.5), (True, False), normalise=normalise)
        some = multi_scale(forward, images, (1, 0.5, 1.5), (True, False), tags=tags,
                           normalise=normalise)
        one = single_scale(forward(images), (32, 48), (True, False), normalise=normalise)
        few = single_scale(forward(images), (32, 48), (True, False), normalise=normalise, tags=tags)
        for a, b in zip((*every, *one), (*some, *few), strict=True):
            assert isinstance(b, PresentMaps)
            assert torch.equal(b.dense(5), mask_cams(a, tags))
