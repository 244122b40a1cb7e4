"""What values settings may have: one table a rule, so that a bad one is named before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from more.config.schema import CHOICES, ZERO_STAGES
from more.errors import UserError

AT_LEAST_ONE = (
    "model.num_classes", "model.decoder_width", "data.crop", "train.iterations",
    "train.global_batch", "train.log_every", "inference.size", "inference.batch",
    "checkpoint.every", "checkpoint.keep", "head_warmup.batch", "head_warmup.images",
    "deepspeed.bucket_mb", "data.window", "data.prefetch_mb", "cam.every", "tokens.views",
    "segment.stride")
NOT_NEGATIVE = (
    "model.image_size", "model.regularising_tokens", "model.regularising_std",
    "model.token_noise", "train.scale_to", "train.micro_batch", "train.seed", "train.threads",
    "eval.every", "eval.images", "optim.warmup", "optim.warmup_ratio", "optim.power",
    "train.skip_nonfinite", "optim.frozen_steps", "optim.clip", "optim.weight_decay",
    "optim.head_lr_scale", "optim.token_lr_scale", "head_warmup.updates", "head_warmup.background",
    "loss.energy_weight", "cam.par_iterations", "crf.iterations", "crf.gaussian_compat",
    "crf.bilateral_compat", "segment.tags", "tokens.gb",
    "model.frozen_blocks", "inference.spread")
POSITIVE = (
    "deepspeed.timeout_minutes", "optim.lr", "optim.eps", "head_warmup.lr", "data.min_area",
    "loss.temperature", "loss.energy_sigma_rgb", "loss.energy_sigma_xy", "inference.seed_scale",
    "inference.spread_temperature")
CRF_DEVIATIONS = ("crf.gaussian_xy", "crf.bilateral_xy", "crf.bilateral_rgb")
SHARES = ("data.min_area", "data.jitter", "data.quarantine", "cam.background",
          "inference.threshold", "inference.tag_threshold", "segment.ignore_below")
BANDS = (("cam.high", "cam.low"), ("cam.cre_high", "cam.cre_low"),
         ("cam.late_high", "cam.late_low"))
FP16 = 65504  # its largest number
_OFF = "'' (off)"
SCALES = ("cam.scales", "inference.scales", "inference.segment_scales")


def check(flat: Mapping[str, Any], source: str) -> None:
    """Refuse values that cannot work.

    Args:
        flat: every setting by its dotted key, of the right types.
        source: the file, for the message.

    Raises:
        UserError: names the first bad setting, its value and the rule.
    """
    def need(good: bool, key: str, rule: str) -> None:
        if not good:
            raise UserError(f"{source}: {key} = {flat[key]!r}: {rule}", f"change {key}")

    for key, allowed in CHOICES.items():
        names = ", ".join(str(one) or _OFF for one in allowed)
        need(flat[key] in allowed, key, f"must be one of {names}")
    for key, value in flat.items():
        numbers = value if isinstance(value, tuple) else (value,)
        need(all(math.isfinite(item) for item in numbers if isinstance(item, float)), key,
             "must be finite")
    for key in AT_LEAST_ONE:
        need(flat[key] >= 1, key, "must be at least 1")
    for key in NOT_NEGATIVE:
        need(flat[key] >= 0, key, "must not be negative")
    for key in POSITIVE:
        need(flat[key] > 0, key, "must be greater than 0")
    from more.filtering.crf import FINEST  # here: `more doctor` also runs where numpy lacks

    for key in CRF_DEVIATIONS:
        need(flat[key] >= FINEST, key, f"must be at least {FINEST}")
    for key in SHARES:
        need(0 <= flat[key] <= 1, key, "must lie between 0 and 1")
    for high, low in BANDS:
        need(0 <= flat[low] <= flat[high] <= 1, high, f"needs 0 <= {low} <= {high} <= 1")
    for key in SCALES:
        need(len(flat[key]) > 0 and flat[key][0] == 1, key, "the first scale must be 1")
        need(min(flat[key]) > 0, key, "scales must be greater than 0")
    for key in ("data.mean", "data.std"):
        need(len(flat[key]) == 3, key, "needs three numbers (R, G, B on the 0..255 scale)")
    need(min(flat["data.std"]) > 0, "data.std", "must be greater than 0")
    need(len(flat["optim.betas"]) == 2 and all(0 <= beta < 1 for beta in flat["optim.betas"]),
         "optim.betas", "needs two numbers of at least 0 and below 1")
    steps = flat["cam.par_dilations"]
    need(len(steps) > 0 and (all(step >= 1 and step == int(step) for step in steps)
                             or all(0 < step < 1 for step in steps)), "cam.par_dilations",
         "needs whole pixels, or shares of the crop between 0 and 1")
    for key in ("loss.label_high", "loss.label_low"):
        need(flat[key] == -1 or 0 <= flat[key] <= 1, key, "must lie between 0 and 1, or be -1")
    high, low = (flat[f"cam.{name}"] if flat[f"loss.label_{name}"] == -1
                 else flat[f"loss.label_{name}"] for name in ("high", "low"))
    need(low <= high, "loss.label_low",
         "must not exceed loss.label_high (-1 stands for cam.low and cam.high)")
    need(flat["segment.stride"] <= flat["data.crop"], "segment.stride",
         "must not exceed data.crop")
    need(flat["segment.blocks"] >= -1, "segment.blocks", "must be at least -1")
    stage, offload = flat["deepspeed.zero_stage"], flat["deepspeed.offload"]
    stages, why = ZERO_STAGES.get(flat["precision"], (stage,)), {
        "bf16_weights": ", where fp32 copies of the weights are trained and gradients are summed "
                        "over ranks in fp32; bf16 goes with every stage"}
    need(stage in stages, "precision", f"needs deepspeed.zero_stage {_one_of(stages)}"
         + why.get(flat["precision"], ""))
    need(offload == "none" or stage > 0, "deepspeed.offload",
         "needs deepspeed.zero_stage 1, 2 or 3")
    need(offload != "parameters" or stage == 3, "deepspeed.offload",
         "'parameters' needs deepspeed.zero_stage 3")
    need(not flat["train.compile"] or stage < 3, "train.compile",
         "does not work with deepspeed.zero_stage 3")
    need(flat["data.workers"] >= -1, "data.workers", "must be at least -1")
    span = flat["train.profile"].split(":")
    need(span == [""] or (len(span) == 2 and all(part.isdecimal() for part in span)
                          and int(span[0]) < int(span[1])), "train.profile",
         "must be FROM:TO, two numbers of updates with FROM below TO")
    need(0 <= flat["train.ema"] < 1, "train.ema", "must be at least 0 and below 1")
    need(not flat["cam.ema"] or flat["train.ema"] > 0, "cam.ema", "needs train.ema above 0")
    # Half the largest squared distance between two pixels' features has to be a number of fp16.
    apart = (1.5 * (255 / flat["loss.energy_sigma_rgb"]) ** 2
             + (flat["data.crop"] / flat["loss.energy_sigma_xy"]) ** 2)
    need(flat["loss.energy_filter"] == "lattice" or apart <= FP16, "loss.energy_filter",
         "'attention' works in 16 bits, which needs a larger loss.energy_sigma_rgb or _xy")
    need(flat["model.backbone"] != "custom" or bool(flat["model.vit"]), "model.vit",
         "a custom backbone needs patch_size, embed_dim, depth and num_heads")


def _one_of(numbers: tuple[int, ...]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
