"""Refuses settings that cannot work, before any work: each one by itself, then some together.

What a setting may be by itself stands where it is declared, in `more.config.sections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from more.config.fields import not_a_choice, not_finite, out_of_bounds
from more.config.schema import ZERO_STAGES, fields
from more.errors import UserError

BANDS = (("cam.high", "cam.low"), ("cam.cre_high", "cam.cre_low"),
         ("cam.late_high", "cam.late_low"))
FP16 = 65504  # its largest number


class _Checker:
    """The values of one file.

    Args:
        flat: every setting by its dotted key, of the right types.
        source: the file, for the message.
    """

    def __init__(self, flat: Mapping[str, Any], source: str):
        self.flat, self.source = flat, source

    def need(self, good: bool, key: str, rule: str) -> None:
        """Refuse the value of a setting unless it is good.

        Args:
            good: whether it is.
            key: dotted key of the setting.
            rule: what its value must be.

        Raises:
            UserError: it is not good.
        """
        if not good:
            raise UserError(f"{self.source}: {key} = {self.flat[key]!r}: {rule}", f"change {key}")


def check(flat: Mapping[str, Any], source: str) -> None:
    """Refuse values that cannot work.

    Args:
        flat: every setting by its dotted key, of the right types.
        source: the file, for the message.

    Raises:
        UserError: names the first bad setting, its value and the rule.
    """
    checker = _Checker(flat, source)
    for complaint in (not_a_choice, not_finite, out_of_bounds):
        for key, item in fields():
            rule = complaint(item, flat[key])
            checker.need(not rule, key, rule)
    for one in (_check_thresholds, _check_engine, _check_energy, _check_network):
        one(checker, flat)


def _check_thresholds(checker: _Checker, flat: Mapping[str, Any]) -> None:
    """High ones are not below low ones."""
    for high, low in BANDS:
        checker.need(0 <= flat[low] <= flat[high] <= 1, high, f"needs 0 <= {low} <= {high} <= 1")
    high, low = (flat[f"cam.{name}"] if flat[f"loss.label_{name}"] == -1
                 else flat[f"loss.label_{name}"] for name in ("high", "low"))
    checker.need(low <= high, "loss.label_low",
                 "must not exceed loss.label_high (-1 stands for cam.low and cam.high)")
    checker.need(flat["segment.stride"] <= flat["data.crop"], "segment.stride",
                 "must not exceed data.crop")


def _check_engine(checker: _Checker, flat: Mapping[str, Any]) -> None:
    """Precision, offload and compilation go with the ZeRO stage."""
    stage, offload = flat["deepspeed.zero_stage"], flat["deepspeed.offload"]
    stages, why = ZERO_STAGES.get(flat["precision"], (stage,)), {
        "bf16_weights": ", where fp32 copies of the weights are trained and gradients are summed "
                        "over ranks in fp32; bf16 goes with every stage"}
    checker.need(stage in stages, "precision", f"needs deepspeed.zero_stage {_one_of(stages)}"
                 + why.get(flat["precision"], ""))
    checker.need(offload == "none" or stage > 0, "deepspeed.offload",
                 "needs deepspeed.zero_stage 1, 2 or 3")
    checker.need(offload != "parameters" or stage == 3, "deepspeed.offload",
                 "'parameters' needs deepspeed.zero_stage 3")
    checker.need(not flat["train.compile"] or stage < 3, "train.compile",
                 "does not work with deepspeed.zero_stage 3")


def _check_energy(checker: _Checker, flat: Mapping[str, Any]) -> None:
    """Half the largest squared distance between two pixels' features is a number of fp16."""
    apart = (1.5 * (255 / flat["loss.energy_sigma_rgb"]) ** 2
             + (flat["data.crop"] / flat["loss.energy_sigma_xy"]) ** 2)
    checker.need(flat["loss.energy_filter"] == "lattice" or apart <= FP16, "loss.energy_filter",
                 "'attention' works in 16 bits, which needs a larger loss.energy_sigma_rgb or _xy")


def _check_network(checker: _Checker, flat: Mapping[str, Any]) -> None:
    """What one option needs of another."""
    checker.need(not flat["cam.ema"] or flat["train.ema"] > 0, "cam.ema",
                 "needs train.ema above 0")
    checker.need(flat["model.backbone"] != "custom" or bool(flat["model.vit"]), "model.vit",
                 "a custom backbone needs patch_size, embed_dim, depth and num_heads")


def _one_of(numbers: tuple[int, ...]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
