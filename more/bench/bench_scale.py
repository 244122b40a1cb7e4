"""The time of an update on many GPUs, predicted from counted work and given throughputs.

Counted from the settings: operations of the step (`more.bench.flops`), bytes that DeepSpeed sends
by ZeRO stage, small reductions of class counts. Given: throughput, bandwidth, latency, and what
labels, losses and the loader cost an image. Per rank, with W ranks and P bytes of weights:

| | ZeRO 0 | 1 | 2 | 3 |
|---|---|---|---|---|
| gradients G | 2 (W-1)/W an update | as 0 | 2 (W-1)/W a pass | (W-1)/W a pass |
| weights P | - | (W-1)/W an update | as 1 | (W-1)/W a forward and a backward |

Stages 1 and 2 of DeepSpeed 0.19 reduce a whole bucket on every rank and keep a part of it
(`use_multi_rank_bucket_allreduce`). Only stage 2 and 3 send in every pass of an accumulated update.
Every size of CAM view is one more forward: ZeRO 3 gathers the weights for each, without decoder and
GCR. Under bf16 autocast gradients and weights are sent in fp32 all the same (`deepspeed_dict`),
with bf16_weights the gradients; there stage 1 sends none while backward goes on. An
update of n passes takes n - 1 forwards more where a term counts (`TagStage.terms`), and one
reduction of counts.

Gradients are sent while backward goes on (`overlap_comm`): what counts is the part that is longer
than backward, and the last bucket. Gathered weights of ZeRO 3 are fetched ahead likewise. The
loader works beside the step: it counts where it is slower than all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from more.bench.flops import step_flops
from more.bench.measure import show_tables
from more.config.load import load_config
from more.config.schema import Config
from more.device import local_device
from more.errors import UserError
from more.method.make_network import make_network
from more.train.cams import view_sizes
from more.train.deepspeed_settings import BatchSplit, split_batch
from more.train.distributed import settled_here

TERMS = ("compute", "CAM", "sending", "data")
COUNT = 4  # bytes of a number that a small reduction carries


@dataclass(frozen=True)
class Machine:
    """What a GPU reaches.

    Attributes:
        bandwidth: bytes a second between GPUs, each way.
        latency: seconds of a small reduction per hop.
        flops: operations a second in training.
        losses: seconds of labels and losses an image.
        image: seconds that one loader process needs for an image.
    """

    bandwidth: float
    latency: float
    flops: float
    losses: float
    image: float


@dataclass(frozen=True)
class Work:
    """What one rank does in a pass over its micro-batch.

    Attributes:
        train: operations of forward and backward.
        backward: operations of backward alone.
        cam: operations of the CAM's views.
        weights: bytes of weights, in fp32 or, under fp16 and bf16_weights, 16 bits.
        sent: bytes of all gradients, or of all weights as stage 3 gathers them.
        view: bytes of the weights that a CAM view needs, as stage 3 gathers them.
        views: forwards that only give CAMs.
        counts: numbers that an update's small reduction carries; 0 = there is none.
    """

    train: float
    backward: float
    cam: float
    weights: int
    sent: int
    view: int
    views: int
    counts: int


def count_work(config: Config, images: int) -> Work:
    """Count a pass over so many images.

    Raises:
        UserError: as `make_network`.
    """
    flops = step_flops(config, images)
    with torch.device("meta"):
        network = make_network(config, load_weights=False)
    total = _bytes(network, config)
    heads = sum(4 * p.numel() for p in network.head_parameters())
    view = _bytes(network.encoder, config) + heads
    sent = total * (2 if config.precision == "bf16_weights" else 1)  # in fp32
    share = 1 / config.cam.every  # of the updates that run the views
    again = flops["forward"] if config.model.gradient_checkpointing else 0
    return Work(sum(flops[part] for part in ("forward", "backward")) + again,
                flops["backward"] + again, share * flops["cam"], total, sent, view,
                len(view_sizes(config, network.encoder.patch_size)), _counts(config))


def _bytes(module: nn.Module, config: Config) -> int:
    """Bytes of a module's weights, as they are kept and sent."""
    unit = 2 if config.precision in ("fp16", "bf16_weights") else 4
    return unit * sum(p.numel() for p in module.parameters())


def _counts(config: Config) -> int:
    """Numbers that an update's reduction of counts carries: of PTC, URE, segmentation, and CRE over
    pairs."""
    weights, found = config.loss.weights, 0
    if weights.ptc:
        found += 2
    if weights.ure:
        found += 1
    if weights.seg:
        found += 2
    if weights.cre and config.loss.cre_reduction == "pairs":
        found += 1
    return found


def predict(config: Config, work: Work, split: BatchSplit, ranks: int, machine: Machine
            ) -> dict[str, Any]:
    """Seconds of an update by term on each of some ranks, and bytes that a rank sends.

    Args:
        config: settings; ZeRO stage, bucket and loader processes count.
        work: of one pass.
        split: passes of an update.
        ranks: GPUs.
        machine: throughputs.

    Returns:
        "compute", "CAM", "sending" and "data" (both as far as they are not hidden), "step",
        "images/s", "most" (the longest of the four), "MB sent".
    """
    passes, stage, part = split.accumulation, config.deepspeed.zero_stage, (ranks - 1) / ranks
    again = (passes - 1) * (work.train - work.backward) / machine.flops if work.counts else 0.0
    compute = again + passes * (work.train / machine.flops + split.micro * machine.losses)
    cam = passes * work.cam / machine.flops
    gradients = part * work.sent * {0: 2, 1: 2, 2: 2 * passes, 3: passes}[stage]
    gathered = part * work.weights * (0, 1, 1, 0)[stage]
    fetched = 0.0
    if stage == 3:
        fetched = passes * part * (2 * work.sent + work.views * work.view / config.cam.every)
    bucket = min(config.deepspeed.bucket_mb * 2**20, work.sent)
    last = part * bucket / machine.bandwidth
    # A reduction passes the ring twice whatever it carries; one more holds an update's means.
    small = 2 * (ranks - 1) * machine.latency * ((work.counts > 0) + 1)
    late = stage == 0 or (stage == 1 and config.precision == "bf16_weights")
    hidden_under = 0.0 if late else passes * work.backward / machine.flops
    exposed = max(gradients / machine.bandwidth - hidden_under, last * (ranks > 1))
    exposed += max(0.0, fetched / machine.bandwidth - (compute + cam))
    sending = exposed + gathered / machine.bandwidth + small
    busy = compute + cam + sending
    loading = passes * split.micro * machine.image / max(config.data.workers, 1)
    data = max(0.0, loading - busy) if config.data.workers else loading
    terms = {"compute": compute, "CAM": cam, "sending": sending, "data": data}
    step = sum(terms.values())
    return {**terms, "step": step, "images/s": ranks * passes * split.micro / step,
            "most": max(terms, key=terms.__getitem__),
            "MB sent": (gradients + gathered + fetched
                        + (ranks > 1) * COUNT * work.counts) / 1e6}


def scale_table(config: Config, gpus: Sequence[int], images: int, machine: Machine
                ) -> list[dict[str, Any]]:
    """One line for each number of GPUs.

    Args:
        config: settings.
        gpus: numbers of ranks.
        images: of a GPU in an update; 0 takes `train.global_batch` for each.
        machine: throughputs.
    """
    lines: list[dict[str, Any]] = []
    known: dict[int, Work] = {}
    for ranks in gpus:
        total = ranks * (images or config.train.global_batch)
        split = split_batch(total, ranks, config.train.micro_batch)
        if split.micro not in known:
            known[split.micro] = count_work(config, split.micro)
        found = predict(config, known[split.micro], split, ranks, machine)
        alone = predict(config, known[split.micro], split, 1, machine)
        lines.append({
            "GPUs": ranks, "batch": total, "ms": 1e3 * found["step"],
            **{name: 1e3 * found[name] for name in TERMS},
            **{key: found[key] for key in ("most", "images/s", "MB sent")},
            "efficiency": alone["step"] / found["step"]})
    return lines


def run(file: Path, overrides: Sequence[str], gpus: str, images: int, machine: Machine,
        as_json: bool) -> None:
    """Predict and print.

    Raises:
        UserError: numbers of GPUs that are none, or settings that do not work.
    """
    try:
        numbers = [int(number) for number in gpus.split(",")]
    except ValueError as error:
        raise UserError(f"--gpus {gpus}: not whole numbers", "write them as 1,8,64") from error
    if min(numbers) < 1:
        raise UserError(f"--gpus {gpus}: less than one", "write them as 1,8,64")
    config = settled_here(load_config(file, overrides), local_device(), 1)
    lines = scale_table(config, numbers, images, machine)
    about = {"settings": config.name, "precision": config.precision,
             "ZeRO": config.deepspeed.zero_stage, **asdict(machine)}
    show_tables("scale", {"an update, ms": lines}, about, [
        "Predicted from counted operations and bytes and the given throughputs, not measured."],
        as_json)
