"""Weights, switches, thresholds and constants of the two released recipes (method §3, §4.8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

TERMS = ("cls", "cls_aux", "mcl", "cre", "ure", "ptc", "seg", "energy")
CHOICES = {
    "mcl_form": ("plain", "mixed"),
    "cre_similarity": ("dot", "cosine"),
    "cre_reduction": ("released", "pairs"),
    "ure_form": ("released", "paper"),
    "pseudo_label": ("cam", "lam"),
}


def _voc_weights() -> dict[str, float]:
    return dict(cls=1.0, cls_aux=1.0, mcl=1.0, cre=0.2, ure=0.1, ptc=0.3, seg=0.12, energy=0.05)


def _voc_starts() -> dict[str, int]:
    return dict(cls=-1, cls_aux=-1, mcl=-1, cre=-1, ure=-1, ptc=-1, seg=2000, energy=2000)


@dataclass(frozen=True)
class Recipe:
    """What the objective needs to know; the defaults are the released VOC script's."""

    weights: Mapping[str, float] = field(default_factory=_voc_weights)
    """Factor of every term in the total."""
    start: Mapping[str, int] = field(default_factory=_voc_starts)
    """A term counts while the iteration index is greater than this; -1: always."""
    high: float = 0.7
    """CAM threshold above which a patch or pixel belongs to a class."""
    low: float = 0.25
    """CAM threshold up to which it is background."""
    cre_high: float = 0.5
    """High threshold of the CRE mask, early in training."""
    cre_low: float = 0.25
    """Low threshold of the CRE mask, early in training."""
    late_high: float = 0.6
    """High threshold of the CRE and URE masks, late in training."""
    late_low: float = 0.35
    """Low threshold of the CRE and URE masks, late in training."""
    late_after: int = 10000
    """"Late" begins after this iteration index."""
    temperature: float = 0.5
    """Of the CRE."""
    mcl_form: str = "plain"
    """"plain" (released scripts) or "mixed" (published COCO log)."""
    cre_similarity: str = "dot"
    """"dot" or "cosine" (paper)."""
    cre_reduction: str = "released"
    """"released" or "pairs" (paper)."""
    ure_form: str = "released"
    """"released" (shifted token, at most 8, |cos|) or "paper"."""
    pseudo_label: str = "cam"
    """The decoder's labels come from the CAM or from the LAM (paper)."""
    label_high: float | None = None
    """Background level that a class must exceed in these labels; None: `high`."""
    label_low: float | None = None
    """Level up to which they are background; None: `low`."""
    exclude_padding: bool = False
    """Leave pixels outside the batch's boxes out of all masks (paper's reading for COCO)."""
    par_dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    """Distances of the refinement's neighbours, pixels at half size."""
    par_iterations: int = 10
    """Rounds of the refinement."""
    energy_weight: float = 1e-7
    """Factor inside the dense energy."""
    energy_sigma_rgb: float = 15.0
    """Its colour deviation, grey levels."""
    energy_sigma_xy: float = 100.0
    """Its spatial deviation, pixels at full size."""
    energy_scale: float = 0.5
    """Its working size as a part of the full one."""

    def __post_init__(self) -> None:
        for name in ("weights", "start"):
            if set(getattr(self, name)) != set(TERMS):
                raise ValueError(f"{name} must name exactly the terms {', '.join(TERMS)}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {allowed}, not {getattr(self, name)!r}")

    def variant(self, name: str) -> Recipe:
        """This recipe with the loss options of the "released" code or of the "paper"."""
        if name not in ("released", "paper"):
            raise ValueError(f"variant is 'released' or 'paper', not {name!r}")
        paper = dict(
            cre_similarity="cosine",
            cre_reduction="pairs",
            ure_form="paper",
            pseudo_label="lam",
            exclude_padding=True,
        )
        plain = {f.name: f.default for f in fields(Recipe) if f.name in paper}
        return replace(self, **(paper if name == "paper" else plain))


VOC = Recipe()
COCO = Recipe(
    weights={**_voc_weights(), "cre": 0.1, "ure": 0.01},
    start={**_voc_starts(), "ptc": 8000, "cre": 12000, "ure": 12000, "seg": 16000, "energy": 16000},
    high=0.65,
    late_after=50000,
    temperature=0.1,
)
