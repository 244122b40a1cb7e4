"""Labels of views: where pixels go, labels go too; and which masks belong to which images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more.data.batch_order import GlobalBatchSampler, SampleKey
from more.data.dataset import Masks
from more.data.loader import Reading, make_train_loader, make_view_loader
from more.data.mask_labels import OUTSIDE, match_masks
from more.data.shards.reader import ShardSet
from more.data.transforms import TrainTransform, labels_of_view, thinned
from more.errors import UserError
from tests.data.sets import NAMES, label_pictures, mask_set, small_set
from tests.data.test_quarantine import damage

STEP = 40  # grey levels between two labels of an image that is drawn of its labels


def drawn(labels: np.ndarray) -> np.ndarray:
    """An image whose pixels are its labels, with other values than those of the padding."""
    return np.repeat((labels * STEP + 20)[..., None], 3, axis=2).astype(np.uint8)


def read(pixels: np.ndarray) -> np.ndarray:
    """The labels of a drawn image; 255 where a pixel lies between two."""
    values = pixels[..., 0].astype(int) - 20
    off = values - np.rint(values / STEP) * STEP
    return np.where(np.abs(off) <= 4, np.rint(values / STEP), 255).astype(np.uint8)


def regions(height: int, width: int, seed: int, values: int = 6) -> np.ndarray:
    """Large flat regions, uint8 `[H, W]`."""
    coarse = np.random.default_rng(seed).integers(0, values, (3, 4), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


def shown(view, labels: np.ndarray, size: int) -> np.ndarray:
    """Label and confidence `[S, S, 2]` of a view, with confidences of 100 + label."""
    return labels_of_view(np.stack([labels, labels + 100], -1), view.window, view.box, size,
                          OUTSIDE)


def inner(labels: np.ndarray, reach: int = 2) -> np.ndarray:
    """Whether all labels around are the same; beyond the view they count as others."""
    around, wide = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8), np.pad(
        labels, reach, constant_values=254)
    same = cv2.erode(wide, around) == cv2.dilate(wide, around)
    return same[reach:-reach, reach:-reach]


@pytest.mark.parametrize("pipeline", ["device", "pil"])
@pytest.mark.parametrize(("augment", "area"), [
    ("voc", (0.32, 1.0)), ("coco", (0.5, 1.0)), ("coco", (0.6, 1.6)), ("none", (0.32, 1.0))])
def test_a_view_of_an_image_of_labels_shows_its_labels(augment, area, pipeline):
    """All sizes, mirrored or not, padded or cut: the same to the pixel but for blurred edges."""
    transform = TrainTransform(48, augment, pipeline, area=area, jitter_probability=0)
    mirrored, padded = 0, 0
    for seed in range(30):
        height, width = np.random.default_rng(seed).integers(50, 110, 2)
        labels = regions(height, width, seed)
        view = transform(drawn(labels), np.random.default_rng(seed))
        found = shown(view, labels, 48)
        (y0, y1, x0, x1), inside = view.box, np.zeros((48, 48), bool)
        inside[y0:y1, x0:x1] = True
        assert (found[~inside] == OUTSIDE).all()
        assert np.array_equal(found[inside, 1], found[inside, 0] + 100)
        sure = inside & inner(found[..., 0])
        assert sure.mean() > 0.25 * inside.mean()
        assert np.array_equal(found[sure, 0], read(view.pixels)[sure])
        mirrored += int(view.window[4])
        padded += not inside.all()
    assert mirrored == 0 if augment == "none" else 5 < mirrored < 25
    assert 3 < padded < 30 if augment == "coco" else padded == 0


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("augment", "height", "width"), [
    ("coco", 40, 70), ("coco", 64, 30), ("coco", 48, 48), ("voc", 48, 48), ("none", 48, 48)])
def test_without_scaling_every_label_is_exact(augment, height, width, flip):
    """Noise: a window that is off by one pixel would show."""
    transform = TrainTransform(48, augment, area=(1, 1), aspect=(1, 1), flip=flip,
                               jitter_probability=0)
    for seed in range(8):
        labels = np.random.default_rng(seed).integers(0, 6, (height, width), dtype=np.uint8)
        view = transform(drawn(labels), np.random.default_rng(seed))
        y0, y1, x0, x1 = view.box
        found = shown(view, labels, 48)[y0:y1, x0:x1, 0]
        assert np.array_equal(found, read(view.pixels)[y0:y1, x0:x1])
        assert view.window[4] == (flip if augment != "none" else 0)


def test_at_twice_the_size_every_pixel_takes_the_nearest_label():
    """The window then begins at half pixels; of two values bilinear pixels show the nearest."""
    transform = TrainTransform(48, "coco", area=(2, 2), jitter_probability=0)
    starts = set()
    for seed in range(12):
        labels = np.random.default_rng(seed).integers(0, 2, (37, 41), dtype=np.uint8)
        view = transform(drawn(labels * 5), np.random.default_rng(seed))
        nearest = view.pixels[..., 0] > 20 + STEP * 5 / 2
        assert np.array_equal(shown(view, labels, 48)[..., 0], nearest)
        starts.add(view.window[0] % 1)
    assert starts == {0, 0.5}


@pytest.mark.parametrize("across", [True, False])
def test_at_a_third_of_the_size_every_pixel_takes_the_label_of_its_middle(across):
    """Of the three pixels that it stands for, two show the same as that in the middle."""
    transform, cut = TrainTransform(48, "coco", area=(1 / 3, 1 / 3), jitter_probability=0), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        stripe = np.repeat(np.arange(30) % 2, rng.integers(3, 9, 30))[:87].astype(np.uint8)
        labels = np.repeat(np.pad(stripe, (0, 180 - len(stripe)), mode="symmetric")[None], 120, 0)
        labels = labels if across else labels.T
        view = transform(drawn(labels * 5), np.random.default_rng(seed))
        y0, y1, x0, x1 = view.box
        most = view.pixels[y0:y1, x0:x1, 0] > 20 + STEP * 5 / 2
        assert np.array_equal(shown(view, labels, 48)[y0:y1, x0:x1, 0], most)
        cut += view.window[int(across)] > 0
    assert cut > 5


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["voc", "coco", "none"]),
       st.integers(0, 1000), st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_views_of_any_image_hold_labels_of_that_image_and_nothing_else(height, width, augment,
                                                                      seed, stride):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 255, (height, width, 2), dtype=np.uint8)
    view = TrainTransform(32, augment)(np.ones((height, width, 3), np.uint8), rng)
    found = labels_of_view(labels, view.window, view.box, 32, OUTSIDE)
    assert found.shape == (32, 32, 2) and found.dtype == np.uint8
    y0, y1, x0, x1 = view.box
    pairs = {tuple(pair) for pair in labels.reshape(-1, 2).tolist()}
    assert {tuple(pair) for pair in found[y0:y1, x0:x1].reshape(-1, 2).tolist()} <= pairs
    outside = np.ones((32, 32), bool)
    outside[y0:y1, x0:x1] = False
    assert (found[outside] == OUTSIDE).all()
    few = thinned(found, stride)
    assert few.flags.c_contiguous and np.array_equal(few, found[stride // 2::stride,
                                                               stride // 2::stride])


@pytest.mark.parametrize(("size", "stride", "rows"), [
    (12, 1, range(12)), (12, 4, (2, 6, 10)), (12, 3, (1, 4, 7, 10)), (10, 4, (2, 6))])
def test_thinning_takes_the_middle_of_every_place(size, stride, rows):
    places = np.stack(np.mgrid[:size, :size], -1).astype(np.uint8)
    expected = np.stack(np.meshgrid(list(rows), list(rows), indexing="ij"), -1)
    assert np.array_equal(thinned(places, stride), expected)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return small_set(tmp_path_factory.mktemp("images") / "set")


def test_masks_of_a_set_are_joined_by_id(images, tmp_path):
    source = ShardSet(images)
    masks = ShardSet(mask_set(tmp_path / "masks", images, rows=reversed(range(15))))
    labels, rest, lacking = match_masks(masks, source)
    assert rest is source and lacking == [] and masks.ids == source.ids[::-1]
    for row in range(15):
        found = labels[row]
        assert found.shape == (*source.sizes[row], 2) and found.dtype == np.uint8
        assert (found[0, :, 0] == 255).all() and (found[1:, :, 0] == row % 3 + 1).all()
        assert (found[..., 1] == 100 + row).all(), "confidence"


def test_without_confidence_masks_are_certain(images, tmp_path):
    plain = mask_set(tmp_path / "masks", images, confidence=None)
    labels = match_masks(ShardSet(plain), ShardSet(images))[0]
    assert (labels[4][..., 1] == 255).all()


def test_images_without_a_mask_are_listed_and_left_out(images, tmp_path):
    kept = [0, 3, 4, 9, 14]
    source = ShardSet(images)
    labels, rest, lacking = match_masks(ShardSet(mask_set(tmp_path / "masks", images, rows=kept)),
                                   source)
    assert rest.ids == [source.ids[row] for row in kept] and len(source) == 15
    assert lacking == [name for name in source.ids if name not in rest.ids]
    for place, row in enumerate(kept):
        assert labels[place].shape[:2] == tuple(source.sizes[row]) == tuple(rest.sizes[place])
        assert (labels[place][1:, :, 0] == row % 3 + 1).all()
        assert np.array_equal(rest.image(place), source.image(row))


def test_damaged_images_that_are_left_out_are_no_strangers(images, tmp_path):
    masks = ShardSet(mask_set(tmp_path / "masks", images))
    few = ShardSet(images).without([2, 7])
    labels, rest, lacking = match_masks(masks, few)
    assert rest is few and lacking == []
    assert labels[2].shape[:2] == tuple(few.sizes[2]) == (33, 40), "what was row 3"


def test_true_masks_are_those_of_the_images_that_have_one(tmp_path):
    folder = small_set(tmp_path / "set", bare=(1, 8))
    source = ShardSet(folder)
    labels, rest, lacking = match_masks(ShardSet(folder), source)
    assert lacking == ["image_1", "image_8"] and len(rest) == 13
    assert (labels[1][1:, :, 0] == 3).all() and (labels[1][..., 1] == 255).all(), "image_2"
    few = source.without([0])
    assert match_masks(ShardSet(folder), few)[1].ids == rest.ids[1:]


def refusal(masks: Path, images: Path) -> str:
    with pytest.raises(UserError) as caught:
        match_masks(ShardSet(masks), ShardSet(images))
    assert caught.value.fix
    return caught.value.message


def test_masks_of_other_classes_are_refused(images, tmp_path):
    for names in (["cat", "dog"], ["dog", "cat", "cow"]):
        folder = mask_set(tmp_path / "_".join(names), images, names=names)
        assert "classes differ" in refusal(folder, images)


def test_masks_of_images_that_the_set_lacks_are_named(images, tmp_path):
    more = small_set(tmp_path / "more", shards=4)
    text = refusal(mask_set(tmp_path / "masks", more), images)
    assert "5 of its 20 masks belong to no image" in text
    assert "image_15, image_16, image_17, image_18, image_19" in text and "…" not in text
    text = refusal(mask_set(tmp_path / "many", small_set(tmp_path / "x", shards=5)), images)
    assert "image_19, …" in text and "image_20" not in text


def test_true_masks_of_another_set_are_refused(images, tmp_path):
    assert "belong to no image" in refusal(small_set(tmp_path / "set", shards=4), images)


def test_masks_of_another_content_under_the_same_ids_are_refused(images, tmp_path):
    """Same names, same sizes; the digest in the masks' record tells them apart."""
    other = small_set(tmp_path / "set", first=100)
    assert ShardSet(other).ids == ShardSet(images).ids
    folder = mask_set(tmp_path / "masks", other)
    assert "another content of the same ids" in refusal(folder, images)
    match_masks(ShardSet(folder), ShardSet(other))


def test_masks_without_a_record_are_joined_by_their_ids(images, tmp_path):
    folder = mask_set(tmp_path / "masks", images, provenance={})
    assert match_masks(ShardSet(folder), ShardSet(images))[2] == []
    cut = mask_set(tmp_path / "cut", images, rows=range(3, 6), provenance={},
                   size=lambda height, width: (height, width - 1))
    text = refusal(cut, images)
    assert "3 masks are not as large as their images: image_3, image_4, image_5" in text


def test_seeds_and_sets_without_any_mask_are_refused(images, tmp_path):
    from tests.refinement.sets import make_sets

    seeds, data = make_sets(tmp_path, count=3)
    assert "holds seeds, not masks" in refusal(seeds, data)
    assert "no mask for any image" in refusal(data, data)


def test_labels_above_the_classes_are_refused_where_they_are_read(images, tmp_path):
    masks = ShardSet(mask_set(tmp_path / "masks", images, label=lambda row: row % 3 + 1 + row // 9))
    labels = match_masks(masks, ShardSet(images))[0]
    assert (labels[9][1:, :, 0] == 2).all(), "255 is no class, and the largest class is one"
    with pytest.raises(UserError, match=f"'image_11' holds a label above {len(NAMES)}"):
        labels[11]


@pytest.mark.parametrize("payload", ["mask", "confidence"])
def test_damaged_masks_are_named(images, tmp_path, payload):
    folder = mask_set(tmp_path / "masks", images)
    damage(folder, [6], payload)
    labels = match_masks(ShardSet(folder), ShardSet(images))[0]
    assert labels[5].any()
    with pytest.raises(UserError, match=f"{payload} of 'image_6' is damaged"):
        labels[6]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> ShardSet:
    """Images that are drawn of their masks."""
    folder = tmp_path_factory.mktemp("pictures") / "set"
    labels = [np.random.default_rng(row).integers(0, 4, (40 + row, 52), dtype=np.uint8)
              for row in range(6)]
    return ShardSet(label_pictures(folder, labels, [drawn(one) for one in labels]))


def batches(pictures, stride=1, **options):
    options = {"stop_step": 7, **options}
    plan = GlobalBatchSampler(len(pictures), 4, 3)
    masks = Masks(match_masks(pictures, pictures)[0], stride)
    transform = TrainTransform(48, "coco", area=(1, 1), jitter_probability=0)
    return list(make_train_loader(pictures, transform, plan, masks=masks, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_brings_the_labels_of_its_images(pictures, workers):
    found = batches(pictures, reading=Reading(workers))
    assert len(found) == 7
    for batch in found:
        images, labels = batch["images"].numpy(), batch["labels"].numpy()
        assert labels.shape == (4, 48, 48, 2) and labels.dtype == np.uint8
        known = labels[..., 0] != 255
        assert known.mean() > 0.5
        assert all(np.array_equal(read(image)[at], label[at, 0])
                   for image, label, at in zip(images, labels, known, strict=True))
        assert np.array_equal(known, labels[..., 1] == 255), "padding has no confidence"
        assert batch["window"].shape == (4, 5) and batch["window"].dtype == torch.float64


def test_ranks_passes_and_strides_give_the_same_labels(pictures):
    whole = batches(pictures)
    parts = [batches(pictures, rank=rank, world=2, micro_batch=1, stride=4) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        joint = [part["labels"] for rank in parts for part in rank[2 * step:2 * step + 2]]
        assert torch.equal(torch.cat(joint), batch["labels"][:, 2::4, 2::4])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_limited_number_of_views_comes_again(pictures, workers):
    """Epoch e shows view e % views, the one that an endless run shows in epoch e % views."""
    keys = ("images", "labels", "window", "box", "jitter")

    def by_image(views):
        found: dict[int, list[list[torch.Tensor]]] = {}
        plan = GlobalBatchSampler(6, 6, 3)  # an epoch a step
        masks = Masks(match_masks(pictures, pictures)[0])
        for batch in make_train_loader(pictures, TrainTransform(48, "coco"), plan, masks=masks,
                                       stop_step=5, views=views, reading=Reading(workers)):
            for place, index in enumerate(batch["indices"].tolist()):
                found.setdefault(index, []).append([batch[key][place] for key in keys])
        return found

    endless, two = by_image(0), by_image(2)
    for index in range(6):
        for epoch in range(5):
            assert all(map(torch.equal, two[index][epoch], endless[index][epoch % 2]))
        assert not torch.equal(endless[index][0][0], endless[index][2][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_views_by_key_are_those_of_training(pictures, workers):
    from more.data.dataset import TrainDataset

    transform = TrainTransform(48, "coco", area=(1, 1), jitter_probability=0)
    keys = [SampleKey(index, 0, epoch) for epoch in (0, 1) for index in (5, 0, 3, 1)][:7]
    loader = make_view_loader(TrainDataset(pictures, transform, 3), keys, 3, workers)
    found = list(loader)
    assert len(loader) == 3 and [len(batch["images"]) for batch in found] == [3, 3, 1]
    assert torch.cat([batch["indices"] for batch in found]).tolist() == [5, 0, 3, 1, 5, 0, 3]
    trained = [(int(index), step, image, window)
               for step, batch in enumerate(make_train_loader(
                   pictures, transform, GlobalBatchSampler(6, 6, 3), stop_step=2))
               for index, image, window in zip(batch["indices"], batch["images"],
                                               batch["window"], strict=True)]
    same = {(index, epoch): (image, window) for index, epoch, image, window in trained}
    images, windows = (torch.cat([batch[name] for batch in found]) for name in ("images", "window"))
    for place, key in enumerate(keys):
        image, window = same[key.index, key.epoch]
        assert torch.equal(images[place], image) and torch.equal(windows[place], window)
