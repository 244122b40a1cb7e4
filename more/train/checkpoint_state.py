"""The training state as plain tensors by parameter name, whatever the ZeRO stage or rank count.

DeepSpeed's own checkpoints are cut by stage and rank; its universal format converts some of them
and silently mixes up parameter groups in stage 3. Weights and the two moments of AdamW, gathered by
name, fit every stage, any number of ranks and need no pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from more.train.distributed import import_deepspeed

MOMENTS = ("exp_avg", "exp_avg_sq")


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO 3 has cut the parameter; outside a forward it is then empty.

    Args:
        parameter: of the network.

    Returns:
        True under ZeRO 3.
    """
    return hasattr(parameter, "ds_id")


def trained(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters that the optimiser has; the others are frozen.

    Args:
        engine: DeepSpeed's.

    Returns:
        Pairs, in the network's order.
    """
    return ((name, value) for name, value in engine.module.named_parameters()
            if value.requires_grad)


def half_weights(engine: Any) -> bool:
    """Whether trained weights have 16 bits, with fp32 ones behind them that AdamW updates.

    Args:
        engine: DeepSpeed's.

    Returns:
        True under fp16 and bf16_weights.
    """
    return any(value.dtype != torch.float32 for _, value in trained(engine))


def masters(engine: Any) -> list[Tensor]:
    """What this rank holds of the fp32 weights behind 16-bit ones: stretches of each group.

    Args:
        engine: DeepSpeed's, with 16-bit weights.

    Returns:
        Flat tensors, to be read and written in place.
    """
    optimizer = engine.optimizer
    # The classes of stage 3, of stage 1 with bf16 weights, and of stages 1 and 2.
    names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition",
             "single_partition_of_fp32_groups")
    return [part.data for part in next(getattr(optimizer, name) for name in names
                                       if hasattr(optimizer, name))]


def follow_masters(engine: Any) -> None:
    """Round the fp32 weights to the 16-bit ones, as after an update; all ranks must take part.

    Args:
        engine: DeepSpeed's, with 16-bit weights.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        return
    for group in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    gather_small(optimizer)


def gather_small(optimizer: Any) -> None:
    """Make the weights that ZeRO 3 keeps whole on every rank anew from their parts, which have
    changed.

    Args:
        optimizer: DeepSpeed's; others have no such weights.
    """
    small = getattr(optimizer, "persistent_parameters", None)
    if small:
        small[0].partition(small, has_been_updated=False)
        small[0].all_gather(small)


def full_weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and whole fp32 values of parameters and buffers; all ranks must take part.

    A value holds until the next one is asked for.

    Args:
        engine: DeepSpeed's.

    Yields:
        Name and value.
    """
    gathered = import_deepspeed().zero.GatheredParameters
    half = half_weights(engine)
    for name, value in engine.module.state_dict(keep_vars=True).items():
        if name in getattr(engine, "frozen_weights", {}):
            yield name, engine.frozen_weights[name]
            continue
        if half and isinstance(value, torch.nn.Parameter) and value.requires_grad:
            yield name, _deepspeed().safe_get_full_fp32_param(value).reshape(_shape(value))
            continue
        with gathered([value], enabled=is_partitioned(value)):
            yield name, value.detach()


def full_moments(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """AdamW's two moments of every trained parameter, whole; all ranks take part.

    Their names are `exp_avg/NAME` and `exp_avg_sq/NAME`. There are none before the first update.

    Args:
        engine: DeepSpeed's.

    Yields:
        Name and value.
    """
    if not applied_updates(engine):
        return
    _link(engine)
    for name, parameter in trained(engine):
        for moment in MOMENTS:
            if engine.zero_optimization_stage():
                value = _deepspeed().safe_get_full_optimizer_state(parameter, moment)
            else:
                value = engine.optimizer.state[parameter][moment]
            yield f"{moment}/{name}", value.reshape(_shape(parameter))


def applied_updates(engine: Any) -> int:
    """How many updates AdamW has made (skipped ones are not among them).

    Args:
        engine: DeepSpeed's.

    Returns:
        The number.
    """
    return max((int(state["step"]) for state in _base(engine).state.values() if "step" in state),
               default=0)


def set_moments(engine: Any, moments: Mapping[str, Tensor], updates: int) -> None:
    """Put `full_moments` of an earlier engine into this one.

    Args:
        engine: new, with the earlier weights; any stage and number of ranks.
        moments: by name, on the CPU.
        updates: how many updates AdamW had made; 0 leaves it as new.

    Raises:
        KeyError: a parameter without moments.
    """
    if not updates:
        return
    optimizer, stage = _base(engine), engine.zero_optimization_stage()
    first = optimizer.param_groups[0]
    for flat in _flat_parameters(engine):
        # A count of its own each: shared, it would grow once per parameter in every update.
        count = torch.tensor(float(updates))
        if first.get("fused") or first.get("capturable"):
            count = count.to(flat.device)
        optimizer.state[flat] = {"step": count, **{moment: torch.zeros_like(flat.data)
                                                   for moment in MOMENTS}}
    _link(engine)
    for name, parameter in trained(engine):
        for moment in MOMENTS:
            value = moments[f"{moment}/{name}"].to(torch.float32)
            if stage == 0:
                optimizer.state[parameter][moment].copy_(value)
            elif stage == 3:
                part = own_part(parameter, value)
                _deepspeed().safe_set_local_optimizer_state(parameter, part, moment)
            else:
                _deepspeed().safe_set_full_optimizer_state(parameter, value, moment)


def set_masters(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Put whole weights into the fp32 ones behind 16-bit weights, which a new engine made of 16
    bits.

    Args:
        engine: DeepSpeed's, with 16-bit weights.
        weights: by name.
    """
    for name, parameter in trained(engine):
        value = weights[name].to(torch.float32)
        if engine.zero_optimization_stage() == 3:
            _deepspeed().safe_set_local_fp32_param(parameter, own_part(parameter, value))
        else:
            _deepspeed().safe_set_full_fp32_param(parameter, value)


def _deepspeed() -> Any:
    """DeepSpeed's functions on parameters; imported late, after the device has been chosen."""
    return import_deepspeed().utils


def _base(engine: Any) -> torch.optim.Optimizer:
    """AdamW itself; ZeRO wraps it."""
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


def _flat_parameters(engine: Any) -> list[Tensor]:
    """What AdamW's state is kept for: the parameters, or the stretches that ZeRO made of them."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [flat for group in _base(engine).param_groups for flat in group["params"]]


def _link(engine: Any) -> None:
    """Tell the parameters of ZeRO 1 and 2 where their moments are.

    DeepSpeed does so after its first update of the first group, when the others have none yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _shape(parameter: Tensor) -> torch.Size:
    return parameter.ds_shape if is_partitioned(parameter) else parameter.shape


def own_part(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's stretch of a whole value under ZeRO 3; the last one is filled up with zeros.

    Args:
        parameter: cut by ZeRO 3.
        value: whole, of the parameter's shape.

    Returns:
        A flat tensor, as long on every rank.
    """
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    part = value.flatten()[size * rank:size * (rank + 1)]
    return torch.nn.functional.pad(part, (0, size - part.numel()))
