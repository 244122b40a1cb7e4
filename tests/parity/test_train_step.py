"""Three training steps of the release, and its loss terms around every switch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from more.method.cam import multi_scale, resize
from more.method.labels import Batch, cam_to_label
from more.method.network import parameter_groups
from more.method.released_names import own_name
from more.train.optimizer import make_scheduler
from tests.method.objectives import COCO, VOC
from tests.method.objectives import objective as make
from tests.parity.compare import close, equal
from tests.parity.released import fixture_network, heads_of

# Ours and the release's names of the terms.
TERMS = {"cls": "cls_loss", "cls_aux": "cls_loss_aux", "mcl": "attri_loss", "cre": "cle_loss",
         "ure": "une_loss", "ptc": "ptc_loss", "seg": "seg_loss", "energy": "reg_loss",
         "total": "loss"}
VOC_SCALES = (1.0, 0.5, 0.75, 1.5)
COCO_SCALES = (1.0, 0.5, 0.75, 1.25, 1.5)


def build(parity):
    """The fixtures' network at its start; its native side follows from the position grid."""
    data = parity("train_step")
    patches = data["sd.encoder.pos_embed"].shape[1] - data["sd.encoder.cls_token"].shape[1]
    patch = data["sd.encoder.patch_embed.proj.weight"].shape[-1]
    return fixture_network(data, round(patches**0.5) * patch, heads_of(parity("encoder")))


def forward(network, data, objective, scales, step, positions):
    """Terms of one step at an iteration index, with the release's URE positions."""
    images = torch.from_numpy(data["inputs"])
    output = network(images)
    cams, aux_cams = multi_scale(lambda x: network(x, mode="cam"), images, scales,
                                 relu=(True, True), first=(output.cam, output.aux_cam))
    batch = Batch(images=images, tags=torch.from_numpy(data["cls_label"]), cams=cams,
                  aux_cams=aux_cams)
    terms = objective(output, batch, int(step), positions=torch.from_numpy(positions))
    return terms, batch, output


def check_terms(terms, data, expected, label):
    order = [str(name) for name in data["terms_order"]]
    for ours, theirs in TERMS.items():
        target = float(expected[order.index(theirs)])
        value = float(terms[ours].detach().sum())
        assert abs(value - target) <= 2e-4 * abs(target) + 1e-9, f"{label} {ours}: {value} {target}"


def checks(tensor) -> np.ndarray:
    """Sum, l2 norm and inner product with cos(0.37 k + 0.1), in float64."""
    flat = tensor.detach().double().reshape(-1).numpy()
    return np.array([flat.sum(), np.linalg.norm(flat),
                     (flat * np.cos(0.37 * np.arange(flat.size) + 0.1)).sum()])


@pytest.mark.parametrize("run", ["warm", "full", "late"])
def test_three_steps(parity, run):
    data = parity("train_step")
    network = build(parity)
    lr, decay, beta1, beta2, warmup, total, ratio, power = data["hyper"]
    groups = [{"params": g["params"], "lr": lr * g["lr_scale"], "weight_decay": decay}
              for g in parameter_groups(network)]
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=1e-8)
    scheduler = make_scheduler(optimizer, int(warmup), int(total), ratio, power)
    objective = make(VOC, compute_inactive=True)
    named = dict(network.named_parameters())
    for k, step in enumerate(data[f"{run}.n_iter"]):
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups],
                                   data[f"{run}.lr"][k], rtol=1e-9)
        optimizer.zero_grad()
        terms, *_ = forward(network, data, objective, VOC_SCALES, step,
                            data[f"{run}.ure_selected_hw"][k])
        check_terms(terms, data, data[f"{run}.terms"][k], f"{run} step {k}")
        terms["total"].sum().backward()
        for p, theirs in enumerate(map(str, data["param_names"])):
            if own_name(theirs) is None:
                assert data[f"{run}.grad_is_none"][p], theirs
                continue
            grad = named[own_name(theirs)].grad
            assert grad is not None, theirs
            norm, wanted = float(grad.norm()), data[f"{run}.grad_check"][k, p, 1]
            assert abs(norm - wanted) <= 2e-3 * wanted + 1e-7, f"{theirs}: {norm} {wanted}"
        optimizer.step()
        scheduler.step()
        for p, theirs in enumerate(map(str, data["param_names"])):
            if own_name(theirs) is not None:
                extra = 1e-3 if theirs.endswith("qkv.bias") else 0.0
                close(checks(named[own_name(theirs)]), data[f"{run}.param_check"][k, p], 2e-5,
                      floor=1e-5 + extra, name=f"{run} step {k} {theirs}")


def test_masks_and_labels_of_the_first_step(parity):
    data = parity("train_step")
    network = build(parity)
    objective = make(VOC)
    _, batch, output = forward(network, data, objective, VOC_SCALES, data["warm.n_iter"][0],
                               data["warm.ure_selected_hw"][0])
    grid = output.patch_tokens.shape[-2:]
    main, aux = resize(batch.cams, grid), resize(batch.aux_cams, grid)
    close(main, data["warm.step0.cam_grid"], 1e-4)
    close(aux, data["warm.step0.cam_aux_grid"], 1e-4)
    close(output.logits, data["warm.step0.cls_logits"], 1e-4)
    masks = objective.masks(output, batch, 0)
    equal(masks.confident, data["warm.step0.pseudo_label_cle"], "CRE mask")
    equal(masks.contrast, data["warm.step0.pseudo_label_aux"], "PTC mask")
    equal(masks.uncertain, data["warm.step0.pseudo_label_aux"], "URE mask")
    equal(cam_to_label(main, batch.tags, VOC.cam.late_high, VOC.cam.late_low),
          data["warm.step0.pseudo_label"], "late mask")
    equal(objective.pseudo_label(output, batch), data["warm.step0.refined_label"], "refined")


@pytest.mark.parametrize(("name", "recipe", "scales"), [
    ("switch_voc", VOC, VOC_SCALES), ("switch_coco", COCO, COCO_SCALES)])
def test_terms_around_the_switches(parity, name, recipe, scales):
    data = parity("train_step")
    network = build(parity)
    objective = make(recipe, compute_inactive=True)
    with torch.no_grad():
        for k, step in enumerate(data[f"{name}.n_iter"]):
            terms, *_ = forward(network, data, objective, scales, step,
                                data[f"{name}.ure_selected_hw"][k])
            check_terms(terms, data, data[f"{name}.terms"][k], f"{name} at {step}")
