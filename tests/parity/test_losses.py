"""Every loss value and gradient against the release's (losses.npz)."""

from functools import partial

import pytest
import torch

from more.filtering.bilateral import bilateral_filter
from more.filtering.exact import ExactGaussian
from more.method.labels import undo_normalisation
from more.method.losses.classification import balanced_cross_entropy
from more.method.losses.contrast import (
    class_token_decorrelation,
    confident_region_loss,
    mixed_class_token_loss,
    patch_affinity,
    patch_contrast_loss,
)
from more.method.losses.energy import dense_energy
from more.method.losses.ure import select_uncertain, uncertain_candidates, uncertain_region_loss
from tests.parity.compare import close, equal

TOLERANCE = 1e-4


def tensor(data, key):
    return torch.from_numpy(data[key])


def check(data, name, loss, tol=TOLERANCE, floor=0.0, **inputs):
    """Loss and gradients of the named inputs; a missing gradient counts as missing."""
    close(loss.reshape(data[f"{name}.loss"].shape), data[f"{name}.loss"], tol, name=name)
    if loss.requires_grad:
        loss.backward()
    for key, value in inputs.items():
        if data.get(f"gradnone.{name}.{key}", 0):
            assert value.grad is None, f"{name}: {key} must not get a gradient"
        elif f"grad.{name}.{key}" in data:
            close(value.grad, data[f"grad.{name}.{key}"], tol, floor, f"grad {name}.{key}")


def parts(data, name, images):
    """Slices of the region fixtures: the whole batch, its start or one image."""
    if name == "batch":
        return slice(0, images)
    if name == "batch0to3":
        return slice(0, 4)
    return slice(int(name[5:]), int(name[5:]) + 1)


@pytest.mark.parametrize("name", ["mcl", "mcl_same", "mcl_zero", "mcl_full"])
def test_class_token_terms(parity, name):
    data = parity("losses")
    tokens = tensor(data, f"{'mcl' if name == 'mcl_full' else name}.tokens").requires_grad_()
    if name == "mcl_full":
        loss = mixed_class_token_loss(tokens, tensor(data, "mcl.cls_label"))
    else:
        loss = class_token_decorrelation(tokens)
    # With equal tokens the true gradient is 0 and only an absolute limit makes sense.
    check(data, name, loss, floor=1e-6 if name == "mcl_same" else 0.0, tokens=tokens)


def region_inputs(data, part):
    return [tensor(data, f"lir.{n}")[part] for n in ("tokens", "fmap", "masks", "cls_label")]


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_confident_region(parity, temperature):
    data = parity("losses")
    names = ["batch", "batch0to3", *(f"image{i}" for i in range(len(data["lir.masks"])))]
    for name in names:
        part = parts(data, name, len(data["lir.masks"]))
        tokens, patches, mask, tags = region_inputs(data, part)
        tokens.requires_grad_(), patches.requires_grad_()
        loss = confident_region_loss(tokens, patches, mask, tags, temperature)
        check(data, f"cre{temperature}.{name}", loss, tokens=tokens, fmap=patches)


def test_confident_region_stays_finite_where_the_release_overflows(parity):
    data = parity("losses")
    tokens, patches, mask, tags = region_inputs(data, slice(0, 2))
    tokens.requires_grad_()
    patches = patches * float(data["cre_overflow0.1.scale"])
    loss = confident_region_loss(tokens, patches, mask, tags, 0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(tokens.grad).all() and loss > 0


def positions_of(data, name):
    positions = tensor(data, f"{name}.selected_hw").long()
    return positions, positions[..., 0] >= 0


def test_uncertain_region(parity):
    data = parity("losses")
    images = len(data["lir.masks"])
    for name in ["seed0", "seed1", "seed2", *(f"image{i}" for i in range(images))]:
        part = parts(data, "batch" if name.startswith("seed") else name, images)
        tokens, patches, _, tags = region_inputs(data, part)
        tokens.requires_grad_(), patches.requires_grad_()
        positions, valid = positions_of(data, f"ure.{name}")
        loss = uncertain_region_loss(tokens, patches, tags, positions, valid)
        check(data, f"ure.{name}", loss, tokens=tokens, fmap=patches)


def test_uncertain_candidates_and_numbers_of_choices(parity):
    data = parity("losses")
    masks = tensor(data, "lir.masks")
    found = uncertain_candidates(masks)
    generator = torch.Generator().manual_seed(0)
    positions, valid = select_uncertain(masks, generator=generator)
    for image in range(len(masks)):
        equal(found[image].nonzero(), data[f"ure.image{image}.candidates_hw"], f"image {image}")
    for seed in range(3):
        equal(valid.sum(1), data[f"ure.seed{seed}.selected_count"])
    for image in range(len(masks)):
        candidates = {tuple(p) for p in data[f"ure.image{image}.candidates_hw"].tolist()}
        chosen = {tuple(p) for p in positions[image][valid[image]].tolist()}
        if len(candidates) <= valid.shape[1]:
            assert candidates <= chosen
        else:
            assert chosen <= candidates


def test_uncertain_region_refuses_a_small_grid(parity):
    assert "ure.too_small.error" in parity("losses")
    with pytest.raises(ValueError, match="at least 7 x 7"):
        select_uncertain(torch.full((1, 6, 9), 255))


def test_patch_contrast(parity):
    data = parity("losses")
    labels = tensor(data, "ptc.labels")
    equal(patch_affinity(labels), data["ptc.aff_mask"])
    images = {"image0": 0, "no_uncertain": 2, "one_class": 3, "no_confident": 4}
    selections = {name: slice(i, i + 1) for name, i in images.items()}
    for name, part in {"batch": slice(None), **selections}.items():
        patches = tensor(data, "ptc.fmap")[part].clone().requires_grad_()
        loss = patch_contrast_loss(patches, labels[part])
        check(data, f"ptc.{name}", loss, fmap=patches)


def test_segmentation(parity):
    data = parity("losses")
    for name in ("batch", "image0", "no_background", "no_foreground", "all_ignored"):
        logits, labels = segmentation_inputs(data, name)
        logits = logits.clone().requires_grad_()
        loss = balanced_cross_entropy(logits, labels)
        check(data, f"seg.{name}", loss, logits=logits)


def segmentation_inputs(data, name):
    logits, labels = tensor(data, "seg.logits"), tensor(data, "seg.labels")
    order = ["image0", "no_background", "no_foreground", "all_ignored"]
    part = slice(None) if name == "batch" else slice(order.index(name), order.index(name) + 1)
    return logits[part], labels[part]


@pytest.mark.parametrize("engine", ["lattice", "exact"])
@pytest.mark.parametrize("name", ["recipe", "unit", "boxed"])
def test_dense_energy(parity, engine, name):
    data = parity("losses")
    logits = tensor(data, "energy.logits").requires_grad_()
    images = undo_normalisation(tensor(data, "energy.image_normalised"))
    box = tensor(data, "energy.img_box") if name == "boxed" else None
    exact = partial(bilateral_filter, engine=ExactGaussian)
    loss = dense_energy(
        logits, images, tensor(data, "energy.label"), box,
        weight=1e-7 if name == "recipe" else 1.0, filter=exact if engine == "exact" else None)
    check(data, f"energy.{engine}.{name}", loss, tol=5e-4, logits=logits)
