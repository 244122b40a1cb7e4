"""Which recipe suits so many pictures, for `more run` without `--config`."""

from __future__ import annotations

FEW, MANY = 3_000, 40_000
"""Pictures below which the small-budget recipe is taken, and from which on COCO's is."""


def choose_recipe(pictures: int, gpus: int) -> tuple[str, str]:
    """The recipe for a data set, and why.

    The small-budget recipe trains 280 updates of 8 images on a pretrained backbone whose first
    blocks stay frozen; the released ones train the whole network, 20,000 updates of 4 images (VOC,
    10,000 pictures) and 80,000 of 8 (COCO, 80,000 pictures), which takes days without a GPU.

    Args:
        pictures: in the training set.
        gpus: of this machine.

    Returns:
        Name of the recipe, and the reason as part of a sentence.
    """
    if gpus == 0:
        return "voc12_dinov2_s", "the small-budget recipe, since this machine has no GPU"
    if pictures < FEW:
        return "voc12_dinov2_s", f"the small-budget recipe, for fewer than {FEW:,} pictures"
    if pictures < MANY:
        return "voc12_vit_b", f"the released recipe of VOC, for {FEW:,} pictures and more"
    return "coco14_vit_b", f"the recipe of COCO, for {MANY:,} pictures and more"


def choose_map(spread: int) -> str:
    """The seeds that become masks: `fused` where maps are spread over similar patches, else `lam`.

    Args:
        spread: `inference.spread` of the recipe. It serves the mean of CAM and LAM; without it the
            LAM alone is better (configs/README.md).
    """
    return "fused" if spread > 0 else "lam"
