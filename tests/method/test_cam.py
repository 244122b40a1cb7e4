"""Multi-scale maps: what is run, what is summed, and which shortcuts change nothing."""

import torch
import torch.nn.functional as F

from more.method.cam import (
    minmax,
    multi_scale,
    present_classes,
    resize,
    scaled_size,
    single_scale,
    spread,
)

SCALES = (1, 0.5, 1.5)


def network(classes=5, patch=4):
    """A stand-in: two kinds of maps on a grid, not symmetric under mirroring."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, 3, patch, patch, generator=generator)
    sizes = []

    def forward(images):
        sizes.append(tuple(images.shape))
        maps = F.conv2d(images, weight, stride=patch)
        return maps, maps.flip(1) - 0.5

    return forward, sizes


def images(batch=3, size=(24, 32)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def by_hand(forward, x, which, cut):
    """One image and one scale at a time, as the formula reads."""
    result = []
    for image in x:
        total = 0
        for scale in SCALES:
            small = resize(image[None], (int(scale * x.shape[2]), int(scale * x.shape[3])))
            plain = resize(forward(small)[which], x.shape[-2:])
            mirror = resize(forward(small.flip(-1))[which], x.shape[-2:]).flip(-1)
            larger = torch.maximum(plain, mirror)
            total = total + (larger.relu() if cut else larger)
        low = total.amin((-2, -1), keepdim=True)
        total = total - low
        result.append(total / (total.amax((-2, -1), keepdim=True) + 1e-5))
    return torch.cat(result)


def test_batched_maps_equal_the_formula_image_by_image():
    forward, sizes = network()
    x = images()
    first, second = multi_scale(forward, x, SCALES, relu=(True, False))
    assert sizes == [(6, 3, 24, 32), (6, 3, 12, 16), (6, 3, 36, 48)]
    torch.testing.assert_close(first, by_hand(forward, x, 0, True), atol=1e-5, rtol=0)
    torch.testing.assert_close(second, by_hand(forward, x, 1, False), atol=1e-5, rtol=0)


def test_known_first_maps_save_one_run_and_stay_untouched():
    forward, sizes = network()
    x = images()
    expected = multi_scale(forward, x, SCALES, relu=(True, False))
    first = forward(x)
    kept = [m.clone() for m in first]
    sizes.clear()
    actual = multi_scale(forward, x, SCALES, relu=(True, False), first=first)
    assert sizes[0] == (3, 3, 24, 32) and sizes[1:] == [(6, 3, 12, 16), (6, 3, 36, 48)]
    for a, e, f, k in zip(actual, expected, first, kept, strict=True):
        torch.testing.assert_close(a, e)
        assert torch.equal(f, k)


def test_tags_leave_the_maps_of_present_classes_as_they_are():
    forward, _ = network()
    tags = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]).float()
    every = multi_scale(forward, images(), SCALES, relu=(True, False))
    some = multi_scale(forward, images(), SCALES, relu=(True, False), tags=tags)
    for a, b in zip(every, some, strict=True):
        torch.testing.assert_close(b.dense(5), a * tags[:, :, None, None])
    none = multi_scale(forward, images(), (1,), relu=(True, False), tags=torch.zeros(3, 5))
    assert none[0].maps.shape == (3, 1, 24, 32) and not none[0].maps.any()


def test_scale_one_comes_first_and_is_never_missing():
    forward, sizes = network()
    multi_scale(forward, images(), (0.5,), relu=(True, True), normalise=False)
    assert [s[2] for s in sizes] == [24, 12]


def test_minmax_of_a_constant_map_is_zero():
    maps = torch.stack([torch.full((2, 4, 4), 3.0), torch.arange(32.0).view(2, 4, 4)])
    stretched = minmax(maps)
    assert not stretched[0].any()
    assert stretched[1].amin() == 0 and 0.999 < stretched[1].amax() < 1


def test_present_classes_are_ascending_and_padded():
    classes, valid = present_classes(torch.tensor([[0, 1, 0, 1.0], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert classes.shape == (3, 2)
    assert classes[0].tolist() == [1, 3] and classes[2, 0] == 0
    assert valid.tolist() == [[True, True], [False, False], [True, False]]


def test_the_first_maps_alone_are_one_view_of_the_formula():
    forward, sizes = network()
    x = images()
    first = forward(x)
    sizes.clear()
    found = single_scale(first, x.shape[-2:], (True, False))
    assert not sizes
    for maps, kind, cut in zip(found, first, (True, False), strict=True):
        large = resize(kind, (24, 32))
        torch.testing.assert_close(maps, minmax(large.relu() if cut else large))
    tags = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]).float()
    some = single_scale(first, x.shape[-2:], (True, False), tags=tags)
    torch.testing.assert_close(some[1].dense(5), found[1] * tags[:, :, None, None])
    size = first[1].shape[-2:]
    kept = first[1].clone()
    single_scale(first, size, (True, False), normalise=False)[1].add_(1)
    assert torch.equal(first[1], kept)


def test_sizes_of_scales():
    assert [scaled_size((448, 448), s) for s in (0.5, 0.75, 1.25, 1.5)] == [
        (224, 224), (336, 336), (560, 560), (672, 672)]
    assert scaled_size((224, 100), 0.75) == (168, 75)  # 10.5 patches of 16: the half is lost
    assert scaled_size((224, 100), 0.75, 16) == (160, 80)
    assert scaled_size((224, 100), 1, 16) == (224, 100) and scaled_size((20, 20), 0.1, 8) == (8, 8)
    forward, sizes = network()
    multi_scale(forward, images(), (1, 0.6), relu=(True, True), multiple=4)
    assert sizes[1] == (6, 3, 16, 20)


def test_spreading_is_a_walk_over_similar_patches_of_the_same_image():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 6, 3, 4, generator=generator)
    maps = torch.rand(2, 5, 3, 4, generator=generator)
    expected = torch.empty_like(maps)
    for b in range(2):
        tokens = F.normalize(features[b].reshape(6, 12).T, dim=1)
        walk = torch.stack([(tokens[i] @ tokens.T / 0.3).softmax(0) for i in range(12)])
        for c in range(5):
            value = maps[b, c].reshape(12)
            for _ in range(3):
                value = walk @ value
            expected[b, c] = value.reshape(3, 4)
    torch.testing.assert_close(spread(maps, features, 3, 0.3), expected)
    assert torch.equal(spread(maps, features, 0, 0.3), maps)


def test_spreading_fills_an_object_of_which_one_patch_was_seen():
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0] = 1
    features[:, 0, 1:3, 1:3], features[:, 1, 1:3, 1:3] = 0, 1  # an object unlike its surroundings
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 1, 1] = 1
    filled = spread(maps, features, 4, 0.04)[0, 0]
    torch.testing.assert_close(filled[1:3, 1:3], torch.full((2, 2), 0.25))
    assert filled[0].max() < 1e-6
