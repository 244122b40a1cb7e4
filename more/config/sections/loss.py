"""Settings of the objective: its terms, their weights, starts and constants."""

from __future__ import annotations

from dataclasses import dataclass

from more.config.fields import setting


@dataclass(frozen=True)
class TermConfig:
    """One number for every term of the objective."""

    cls: float = setting(1.0, "classification")
    cls_aux: float = setting(1.0, "auxiliary classification")
    mcl: float = setting(1.0, "class-token decorrelation")
    ptc: float = setting(0.3, "patch contrast")
    cre: float = setting(0.2, "confident-region term")
    ure: float = setting(0.1, "uncertain-region term")
    seg: float = setting(0.12, "segmentation of the refined labels")
    energy: float = setting(0.05, "dense energy")


@dataclass(frozen=True)
class StartConfig:
    """A term counts while the iteration index is greater than its number (-1: always)."""

    cls: int = setting(-1, "classification")
    cls_aux: int = setting(-1, "auxiliary classification")
    mcl: int = setting(-1, "class-token decorrelation")
    ptc: int = setting(-1, "patch contrast")
    cre: int = setting(-1, "confident-region term")
    ure: int = setting(-1, "uncertain-region term")
    seg: int = setting(2000, "segmentation")
    energy: int = setting(2000, "dense energy")


@dataclass(frozen=True)
class LossConfig:
    """Terms of the objective, their weights, starts and constants."""

    weights: TermConfig = setting(TermConfig, "weights in the total")
    start: StartConfig = setting(StartConfig, "iteration index after which a term counts")
    temperature: float = setting(0.5, "CRE temperature", above=0)
    mcl_form: str = setting("plain", "'plain' (released scripts) or 'mixed' (published COCO log)",
                            choices=("plain", "mixed"))
    cre_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)",
                                  choices=("dot", "cosine"))
    cre_reduction: str = setting("released", "'released' or 'pairs' (paper)",
                                 choices=("released", "pairs"))
    ure_form: str = setting("released", "'released' (shifted token, at most 8) or 'paper'",
                            choices=("released", "paper"))
    pseudo_label: str = setting("cam", "decoder's labels come from 'cam' (released) or 'lam' "
                                "(paper)", choices=("cam", "lam"))
    label_high: float = setting(-1.0, "background level that a class must exceed in the decoder's "
                                "labels; -1: cam.high, as released", low=0, high=1, also=-1)
    label_low: float = setting(-1.0, "level up to which they are background; -1: cam.low, as "
                               "released", low=0, high=1, also=-1)
    exclude_padding: bool = setting(False, "leave padded borders out of the loss masks (paper)")
    energy_weight: float = setting(1e-7, "weight inside the dense energy", low=0)
    energy_sigma_rgb: float = setting(15.0, "colour deviation of its bilateral filter", above=0)
    energy_sigma_xy: float = setting(100.0, "spatial deviation at full size, pixels", above=0)
    energy_filter: str = setting("lattice", "'lattice' (released), or 'attention': the exact "
                                 "Gaussian from a quarter of the pixels; meant for a GPU, slow on "
                                 "a CPU", choices=("lattice", "attention"))
