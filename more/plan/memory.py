"""What weights, gradients and optimiser state take on a rank, by ZeRO stage.

AdamW with W ranks, bytes a parameter; bf16 is autocast over fp32 weights, so the same:

| | ZeRO 0 | 1 | 2 | 3 |
|---|---|---|---|---|
| weights | 4 | 4 | 4 | 4/W |
| fp32 copy | 0 | 4/W | 4/W | 4/W |
| gradients | 4 | 4 or 4/W | 4/W | 4/W |
| moments | 8 | 8/W | 8/W | 8/W |
| average (`train.ema`) | 4 | 4 (16-bit weights: 4/W) | as 1 | 4/W |

Where DeepSpeed 0.19 keeps them: weights in `bit16_groups_flat`, of which the parameters are views,
in stage 3 in `ds_tensor`. The copy is `single_partition_of_fp32_groups`, in stage 3
`fp32_partitioned_groups_flat`: a clone even of fp32 weights. Gradients are `averaged_gradients`, in
stage 3 `grad_partitions_flat_buffer`; stage 1 holds whole ones between the passes of an accumulated
update, else each bucket leaves a part to each rank. Moments are AdamW's `exp_avg`, `exp_avg_sq`.

fp16 halves weights and gradients. bf16_weights halves the weights; gradients of a pass (2) become
fp32 sums: in stage 1 whole ones (4 more, `fp32_groups_gradients_flat`, sent as a flat copy), in
stage 2 each bucket leaves a part (4/W, `flat_partition`). Stage 3 keeps parameters of up to 100 000
numbers whole beside their parts (`param_persistence_threshold`). Buffers: stages 1 and 2 fill one
bucket while another is sent (`overlap_comm`), stage 3 has one, and stage 0 sends a flat copy of the
gradients (`allreduce_bucket`).

Left out: activations (`more.plan.activations` predicts them), layers that stage 3 gathers while
it needs them, a few bytes of alignment.
DeepSpeed's `estimate_zero2_model_states_mem_needs` and `…zero3…` assume 16-bit weights and an fp32
copy of the gradients, 2 + 18/W and 18/W. With fp32 weights the first is right for one rank (20) and
too low for more, the second too low by a tenth; so they are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from more.config.schema import ZERO_STAGES, Config
from more.method.make_network import make_network
from more.method.network import train_only

WHOLE_BELOW = 100_000  # param_persistence_threshold
FLAT_COPY = 500_000_000  # MEMORY_OPT_ALLREDUCE_SIZE, numbers


@dataclass(frozen=True)
class Layout:
    """What decides the memory of a run, beside its parameters.

    Attributes:
        world: ranks.
        precision: "fp32", "bf16", "bf16_weights" or "fp16".
        accumulation: passes an update.
        bucket: bytes of a gradient bucket.
        average: the run keeps an average of its weights.
        offload: "none", "optimizer" or "parameters": what lies on the CPU.
        frozen: numbers in parameters that are not trained: they have weights and nothing else.
    """

    world: int = 1
    precision: str = "fp32"
    accumulation: int = 1
    bucket: int = 0
    average: bool = False
    offload: str = "none"
    frozen: int = 0


@dataclass(frozen=True)
class StageMemory:
    """Bytes on a rank under one ZeRO stage; `host` of them lie on the CPU (offload)."""

    stage: int
    weights: int
    master: int
    gradients: int
    moments: int
    average: int
    buffers: int
    host: int = 0

    @property
    def states(self) -> int:
        """Everything but the buffers."""
        return self.weights + self.master + self.gradients + self.moments + self.average

    @property
    def device(self) -> int:
        """What has to fit on the device, activations aside."""
        return self.states + self.buffers - self.host


def stage_memory(stage: int, sizes: Sequence[int], layout: Layout) -> StageMemory:
    """Memory of one rank.

    Args:
        stage: ZeRO 0 to 3.
        sizes: numbers in each trained parameter.
        layout: ranks, precision and the rest.

    Returns:
        Bytes by kind.
    """
    own_sums = layout.precision == "bf16_weights"  # of gradients, in fp32
    count, unit = sum(sizes), 2 if own_sums or layout.precision == "fp16" else 4
    part = -(-count // layout.world)
    cut = stage > 0
    small = sum(size for size in sizes if size <= WHOLE_BELOW) if stage == 3 else 0
    whole_gradients = stage == 0 or (stage == 1 and layout.accumulation > 1)
    frozen = -(-layout.frozen // layout.world) if stage == 3 else layout.frozen
    weights = unit * ((part + small if stage == 3 else count) + frozen)
    gradients = unit * (count if whole_gradients else part)
    if own_sums:
        gradients = (unit + 4) * count if stage == 1 else 4 * part
    master, moments = 4 * part * cut, 8 * (part if cut else count)
    average = 4 * (part if unit == 2 or stage == 3 else count) * layout.average
    if unit == 4:  # else it is of the copies, which are cut and of trained weights alone
        average += 4 * frozen * layout.average
    if stage == 0 or (stage == 1 and own_sums):
        buffers = max(unit, 4 * own_sums) * min(count, FLAT_COPY) if layout.world > 1 else 0
    else:
        buffers = layout.bucket * (1 if stage == 3 else 2) * unit // 4
    host = 0
    if cut and layout.offload != "none":
        host = master + moments + unit * part * (layout.offload == "parameters" and stage == 3)
    return StageMemory(stage, weights, master, gradients, moments, average, buffers, host)


def stages_of(precision: str) -> tuple[int, ...]:
    """The ZeRO stages that train in a precision.

    Args:
        precision: as in the settings.

    Returns:
        Some of 0 to 3.
    """
    return ZERO_STAGES.get(precision, (0, 1, 2, 3))


def layout_of(config: Config, world: int, accumulation: int, frozen: int = 0) -> Layout:
    """What decides the memory of a run, from its settings.

    Args:
        config: settings.
        world: ranks.
        accumulation: passes of an update.
        frozen: numbers in parameters that are not trained.

    Returns:
        The layout.
    """
    engine = config.deepspeed
    return Layout(world, config.precision, accumulation, engine.bucket_mb * 2**20,
                  config.train.ema > 0, engine.offload, frozen)


def parameter_sizes(config: Config) -> tuple[list[int], int, int]:
    """Count the network's parameters without making its weights.

    Args:
        config: settings; of stage two only the last blocks and the decoder are trained.

    Returns:
        Numbers in each trained parameter, in all frozen ones together, and in all buffers.

    Raises:
        UserError: as `make_network`.
    """
    with torch.device("meta"):
        network = make_network(config, load_weights=False)
    if config.stage == 2:
        train_only(network, config.segment.blocks)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return ([size for size, trained in sizes if trained],
            sum(size for size, trained in sizes if not trained),
            sum(buffer.numel() for buffer in network.buffers()))


def checkpoint_bytes(sizes: Sequence[int], frozen: int, buffers: int, average: bool) -> int:
    """Size of a checkpoint on disk.

    It holds fp32 weights and AdamW's two moments, and the average where there is one; of frozen
    parameters and buffers no moments.

    Args:
        sizes: numbers in each trained parameter.
        frozen: numbers in all frozen parameters.
        buffers: numbers in all buffers.
        average: whether the run keeps an average of its weights.

    Returns:
        Bytes.
    """
    return (16 if average else 12) * sum(sizes) + (8 if average else 4) * (frozen + buffers)

