"""Settings of the two released recipes, and objectives with them."""

from __future__ import annotations

from pathlib import Path

from more.config.load import load_config
from more.config.schema import Config
from more.method.losses.energy import Filter
from more.method.objective import Objective

BASE = Path(__file__).resolve().parents[2] / "configs" / "_base_"
# The recipe's own values are those of the published log; these are the released script's.
COCO_SCRIPT = ("loss.weights.cre=0.1", "loss.weights.ure=0.01", "loss.mcl_form=plain")
VARIANTS = {"released": (), "paper": ("variant=paper",)}


def voc(*overrides: str) -> Config:
    """The released VOC recipe with settings on top."""
    return load_config(BASE / "voc12.py", overrides)


def coco(*overrides: str) -> Config:
    """The released COCO script's settings with others on top."""
    return load_config(BASE / "coco14.py", [*COCO_SCRIPT, *overrides])


def objective(config: Config, filter: Filter | None = None,
              compute_inactive: bool = False) -> Objective:
    """The objective of a configuration, with a filter of its own or all terms computed."""
    return Objective(config.loss, config.cam, config.data.crop, filter, compute_inactive,
                     config.model.lam_similarity)


VOC, COCO = voc(), coco()
