"""`train.scale_to`: another global batch, the rate and all that counts updates in proportion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from more.config.schema import Config, StartConfig
from more.errors import UserError

STARTS = tuple(vars(StartConfig()))
COUNTS = ("train.iterations", "optim.warmup", "optim.frozen_steps", "cam.late_after", "eval.every",
          "checkpoint.every", *(f"loss.start.{name}" for name in STARTS))
"""Numbers of updates: divided by the factor. Values of 0 and -1 have a meaning and stay."""

RATES = ("optim.lr",)
"""Multiplied by the factor."""

KEPT = ("train.ema", "train.log_every", "cam.every", "optim.weight_decay", "head_warmup")
"""What might be scaled as well, and is not: the dry run says so."""


def scaled(config: Config) -> Config:
    """The settings for `train.scale_to` images an update; as they are where that is 0 or done."""
    train = config.train
    if not train.scale_to or train.scaled_from:
        return config
    factor = train.scale_to / train.global_batch
    start = {name: _fewer(getattr(config.loss.start, name), factor) for name in STARTS}
    return replace(
        config, optim=replace(config.optim, lr=config.optim.lr * factor,
                              warmup=_fewer(config.optim.warmup, factor),
                              frozen_steps=_fewer(config.optim.frozen_steps, factor)),
        cam=replace(config.cam, late_after=_fewer(config.cam.late_after, factor)),
        loss=replace(config.loss, start=replace(config.loss.start, **start)),
        eval=replace(config.eval, every=_fewer(config.eval.every, factor)),
        checkpoint=replace(config.checkpoint, every=_fewer(config.checkpoint.every, factor)),
        train=replace(train, iterations=_fewer(train.iterations, factor),
                      global_batch=train.scale_to, scaled_from=train.global_batch))


def check_unambiguous(settings: Sequence[tuple[str, Any]]) -> None:
    """Refuse `--set` of `train.scale_to` together with what it changes.

    Args:
        settings: keys and values of the command line.

    Raises:
        UserError: it cannot be known whether the value is meant before or after scaling.
    """
    given = [key.removeprefix("stage_two.") for key, _ in settings]
    if not any(key.removeprefix("stage_two.") == "train.scale_to" and value
               for key, value in settings):
        return
    for key in ("train.global_batch", *RATES, *COUNTS):
        if key in given:
            raise UserError(f"--set {key} and train.scale_to: before or after scaling?",
                            f"write {key} into the settings file, as it is for that file's "
                            "train.global_batch; or leave train.scale_to out and set every number "
                            "yourself")


def scaled_settings(config: Config) -> dict[str, Any]:
    """What `train.scale_to` has made of the settings, as JSON values; empty where it is off."""
    before, now = config.train.scaled_from, config.train.global_batch
    if not before:
        return {}
    settings = {}
    for key in (*RATES, *COUNTS):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value > 0:
            settings[key] = value
    return {"from": before, "to": now, "factor": now / before, "settings": settings,
            "kept": list(KEPT)}


def _fewer(updates: int, factor: float) -> int:
    return updates if updates <= 0 else max(1, round(updates / factor))
