"""Settings of what follows training: maps from a checkpoint, and the dense CRF."""

from __future__ import annotations

from dataclasses import dataclass

from more.config.fields import check_scales, setting
from more.filtering.parameters import FINEST


@dataclass(frozen=True)
class InferenceConfig:
    """From checkpoint to maps."""

    size: int = setting(448, "images are resized to this square", low=1)
    scales: tuple = setting((1.0, 0.5, 0.75, 1.25, 1.5), "sizes of CAM and LAM; 1 comes first",
                            rule=check_scales)
    segment_scales: tuple = setting((1.0, 1.25, 1.5), "sizes of the decoder's route",
                                    rule=check_scales)
    threshold: float = setting(0.5, "a seed's background threshold", low=0, high=1)
    spread: int = setting(0, "steps in which a map spreads over patches of similar features; 0 = "
                          "off, as released", low=0)
    spread_temperature: float = setting(0.04, "of the similarity (cosine) in these steps: lower "
                                        "keeps to more similar patches", above=0)
    seed_scale: float = setting(2.0, "stored maps have this many cells per token and side", above=0)
    batch: int = setting(4, "images per forward", low=1)
    tag_threshold: float = setting(0.5, "probability from which a class counts as predicted",
                                   low=0, high=1)


@dataclass(frozen=True)
class CrfConfig:
    """Dense CRF after inference."""

    iterations: int = setting(10, "mean-field steps", low=0)
    gaussian_xy: float = setting(1.0, "pixels, at least 0.1", low=FINEST)
    gaussian_compat: float = setting(3.0, "weight of the spatial term", low=0)
    bilateral_xy: float = setting(67.0, "pixels, at least 0.1", low=FINEST)
    bilateral_rgb: float = setting(3.0, "grey levels, at least 0.1", low=FINEST)
    bilateral_compat: float = setting(4.0, "weight of the bilateral term", low=0)
