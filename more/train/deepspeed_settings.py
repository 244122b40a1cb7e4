"""DeepSpeed's settings, made in one place from ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from more.config.schema import Config
from more.device import local_device
from more.errors import UserError


@dataclass(frozen=True)
class BatchSplit:
    """How the global batch is spread: `micro` images a pass, `accumulation` passes an update."""

    global_batch: int
    micro: int
    accumulation: int


def split_batch(global_batch: int, world: int, micro_limit: int = 0) -> BatchSplit:
    """Spread the global batch over ranks; accumulate where a rank's share exceeds the limit.

    Args:
        global_batch: images of an update.
        world: ranks.
        micro_limit: most images of a pass on a rank; 0: no limit.

    Returns:
        The split; of passes as few as the limit allows.

    Raises:
        UserError: the global batch cannot be divided evenly.
    """
    if global_batch % world:
        near = max(world, round(global_batch / world) * world)
        raise UserError(f"train.global_batch = {global_batch} cannot be spread over {world} ranks",
                        f"set train.global_batch={near} or start a number of ranks that divides it")
    share = global_batch // world
    limit = micro_limit or share
    micro = next(size for size in range(min(share, limit), 0, -1) if share % size == 0)
    return BatchSplit(global_batch, micro, share // micro)


def deepspeed_dict(config: Config, split: BatchSplit) -> dict[str, Any]:
    """DeepSpeed's JSON, with the user's own (`deepspeed.json`) merged over it.

    `gradient_clipping` is always written: left out it means 1.0.

    Args:
        config: settings.
        split: how the global batch is spread.

    Returns:
        The settings, for `deepspeed.initialize`.

    Raises:
        UserError: the user's file cannot be read, or sets what follows from other settings.
    """
    engine = config.deepspeed
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": engine.bucket_mb * 2**20 // 4,
        "allgather_bucket_size": engine.bucket_mb * 2**20 // 4,
    }
    if engine.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": local_device().type == "cuda"}
    if engine.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": local_device().type == "cuda"}
    ours = {
        "train_micro_batch_size_per_gpu": split.micro,
        "gradient_accumulation_steps": split.accumulation,
        # Without ZeRO our AdamW clips, so that the norm it knows is that of before.
        "gradient_clipping": config.optim.clip if engine.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        # Layers of these classes send gradients (ZeRO 3: weights too) in bf16. Left out, linear and
        # convolution layers do, and sums over many ranks lose what fp32 weights are kept for.
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16",
                           "lower_precision_safe_modules": []},
        "fp16": {"enabled": config.precision == "fp16"},
        # Unchecked, ZeRO 2 puts a gradient that is not finite into bf16 weights.
        "bf16": {"enabled": config.precision == "bf16_weights", "check_grad_overflow": True},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # On by default, it waits for the GPU at every forward (views too) and update.
        "timers": {"throughput": {"enabled": False}},
    }
    if config.precision == "bf16_weights":  # else gradients are summed in the weights' 8 bits
        ours |= {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    return merged(ours, _read_json(engine.json)) if engine.json else ours


DERIVED = {
    "train_batch_size": "train.global_batch", "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch", "gradient_clipping": "optim.clip",
    "optimizer": "optim.lr, optim.betas, optim.eps and optim.weight_decay",
    "scheduler": "optim.warmup, optim.warmup_ratio and optim.power",
    "fp16": "precision", "fp16.enabled": "precision", "bf16": "precision",
    "bf16.enabled": "precision", "torch_autocast": "precision",
    "torch_autocast.enabled": "precision", "amp": "precision",
    "bf16.bf16_master_weights_and_grads": "precision", "bf16.bf16_optimizer_states": "precision",
    "data_types.param_dtype": "precision",
    "zero_optimization": "deepspeed.zero_stage", "zero_optimization.stage": "deepspeed.zero_stage",
}
"""DeepSpeed's keys that follow from settings of ours, named here; two truths would differ."""
WHOLE = ("optimizer", "scheduler", "amp")
"""Of these the sections that are refused whatever is in them."""


def merged(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`theirs` over `ours`, section by section.

    Args:
        ours: settings that this module makes.
        theirs: of the user's file.
        prefix: names of the sections around, with dots.

    Returns:
        New settings.

    Raises:
        UserError: a key that other settings decide.
    """
    result = dict(ours)
    for key, value in theirs.items():
        name = prefix + key
        if name in DERIVED and (name in WHOLE or not isinstance(value, dict)):
            raise UserError(f"deepspeed.json sets {name}, which follows from {DERIVED[name]}",
                            f"remove it there and set {DERIVED[name]}; "
                            "`more config FILE --explain` says what they mean")
        if isinstance(value, dict):
            result[key] = merged(dict(ours.get(key) or {}), value, f"{prefix}{key}.")
        else:
            result[key] = value
    return result


def _read_json(path: str) -> dict[str, Any]:
    """The settings in a user's file; a UserError where there are none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})",
                        "give a file with DeepSpeed's settings, or none") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object", "give DeepSpeed's settings as an object")
    return content
