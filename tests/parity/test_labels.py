"""Labels from maps, PAR, refined labels and the image back from its normalisation."""

import pytest
import torch

from more.method.labels import cam_to_label, denormalise, mask_cams, refined_label
from more.method.par import PixelAdaptiveRefinement
from tests.parity.compare import as_array, close, equal

BANDS = {
    "voc_main": (0.7, 0.25),
    "voc_cre": (0.5, 0.25),
    "voc_late": (0.6, 0.35),
    "coco_main": (0.65, 0.25),
}


def tensors(data, prefix, *names):
    return [torch.from_numpy(data[f"{prefix}.{name}"]) for name in names]


@pytest.mark.parametrize("name", BANDS)
def test_cam_to_label_with_uncertain_band(parity, name):
    data = parity("losses")
    cams, tags = tensors(data, "c2l", "cams", "cls_label")
    high, low = BANDS[name]
    equal(cam_to_label(cams, tags, high, low, background=0.65), data[f"c2l.{name}.label"])


@pytest.mark.parametrize("threshold", [0.5, 0.45])
def test_cam_to_label_plain(parity, threshold):
    data = parity("losses")
    cams, tags = tensors(data, "c2l", "cams", "cls_label")
    label = cam_to_label(cams, tags, background=threshold, ignore_middle=False)
    equal(label, data[f"c2l.plain_{threshold}.label"])


def test_cam_to_label_in_a_box(parity):
    data = parity("losses")
    cams, tags, box = tensors(data, "c2l", "cams", "cls_label", "img_box")
    equal(cam_to_label(cams, tags, 0.7, 0.25, box=box), data["c2l.boxed.label"])
    close(mask_cams(cams, tags), data["c2l.valid_cam"], 0)


def test_par(parity):
    data = parity("losses")
    images, masks, flat = tensors(data, "par", "images", "masks", "flat_image")
    for name in ("recipe", "short"):
        dilations = data[f"par.{name}.dilations"].tolist()
        par = PixelAdaptiveRefinement(dilations, int(data[f"par.{name}.num_iter"]))
        close(par(images, masks), data[f"par.{name}.out"], 1e-4, name=name)
    close(par(flat, masks[: len(flat)]), data["par.flat.out"], 1e-4, name="flat")


@pytest.mark.parametrize("name, high, boxed", [("voc", 0.7, False), ("coco", 0.65, False),
                                               ("boxed", 0.7, True)])
def test_refined_label(parity, name, high, boxed):
    data = parity("losses")
    images, cams, tags, box = tensors(
        data, "refine", "images", "valid_cams", "cls_label", "img_box")
    label = refined_label(images, cams, tags, high, 0.25, PixelAdaptiveRefinement(),
                          box if boxed else None)
    equal(label, data[f"refine.{name}.label"])


def test_denormalise(parity):
    data = parity("losses")
    half = denormalise(torch.from_numpy(data["denorm.half_normalised"]))
    close(half, data["denorm.half_out"], 1e-6)
    levels = (denormalise(torch.from_numpy(data["denorm.normalised"])) * 255).round()
    equal(levels, data["denorm.uint8"])
    lowered = (as_array(levels) != data["denorm.raw_uint8"]).sum()
    assert lowered == data["denorm.off_by_one_pixels"]
