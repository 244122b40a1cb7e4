"""Settings of training: optimiser, length, batch, stage two, checkpoints, telemetry, DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass

from more.config.fields import check_decay_rates, check_span, setting

ZERO_STAGES = {"bf16_weights": (1, 2), "fp16": (1, 2, 3)}
"""Stages that a precision goes with; the other precisions go with all, 0 to 3."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with poly decay."""

    lr: float = setting(6e-5, "learning rate of the encoder", above=0)
    head_lr_scale: float = setting(10.0, "factor for classifiers, graph and decoder", low=0)
    token_lr_scale: float = setting(1.0, "factor for class and regularising tokens", low=0)
    betas: tuple = setting((0.9, 0.999), "AdamW's decay rates", rule=check_decay_rates)
    eps: float = setting(1e-8, "AdamW's epsilon", above=0)
    weight_decay: float = setting(0.01, "on everything, as released", low=0)
    warmup: int = setting(1500, "updates of linear warm-up", low=0)
    warmup_ratio: float = setting(1e-6, "first factor of the warm-up", low=0)
    power: float = setting(0.9, "exponent of the poly decay", low=0)
    frozen_steps: int = setting(0, "updates in which the transformer's blocks stay as loaded",
                                low=0)
    clip: float = setting(0.0, "largest gradient norm; 0 = off, as released", low=0)


@dataclass(frozen=True)
class HeadWarmupConfig:
    """The classifiers alone on frozen features, before the first iteration (own option)."""

    updates: int = setting(0, "updates; 0 = off, as released", low=0)
    batch: int = setting(64, "images per update", low=1)
    lr: float = setting(3e-3, "learning rate, falling linearly to 0", above=0)
    images: int = setting(2000, "most images to encode; their features stay in "
                          "memory, spread over the ranks", low=1)
    background: float = setting(1.0, "weight of the term that half of an image is background; "
                                "for competitive pooling", low=0)
    centre: float = setting(0.0, "weight of the term that classes lie rather inside an image than "
                            "at its border, so that none takes the background of its images; for "
                            "competitive pooling")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and seed."""

    iterations: int = setting(20000, "updates", low=1)
    global_batch: int = setting(4, "images per update over all ranks", low=1)
    micro_batch: int = setting(0, "most images per rank and pass; 0 = no limit", low=0)
    seed: int = setting(1, "of weights, sample order, augmentation and URE's choices", low=0)
    log_every: int = setting(20, "updates between records", low=1)
    threads: int = setting(0, "CPU threads per rank; 0 = cores divided by local ranks", low=0)
    skip_nonfinite: int = setting(0, "updates that may be left out because loss or gradient is not "
                                  "finite", low=0)
    ema: float = setting(0.0, "decay of an average of the weights for evaluation and inference; "
                         "0 = off, as released", low=0, below=1)
    compile: str = setting("", "backend of torch.compile for the transformer's blocks, such as "
                           "'inductor'; '' = off", empty_is_off=True)
    tf32: bool = setting(False, "let matrix products of fp32 numbers round to TF32 on GPUs, also "
                         "those of losses and similarities; faster, three digits")
    scale_to: int = setting(0, "images per update to train with instead of train.global_batch: the "
                            "rate grows in proportion, and whatever counts updates (length, "
                            "warm-up, starts, evaluations, checkpoints) shrinks; 0 = off", low=0)
    scaled_from: int = setting(0, "train.global_batch before train.scale_to, which sets this")
    profile: str = setting("", "'FROM:TO': record updates FROM to TO - 1 of rank 0 in "
                           "RUN/profile, for ui.perfetto.dev; '' = off", rule=check_span)


@dataclass(frozen=True)
class SegmentConfig:
    """Stage two (`more train --masks`): the decoder learns from masks, not from tags."""

    blocks: int = setting(0, "transformer blocks trained beside the decoder, the last ones; 0: the "
                          "decoder alone, -1: all and the embedding", low=-1)
    decoder: str = setting("fresh", "'fresh' starts the decoder anew, 'kept' goes on with that of "
                           "--init", choices=("fresh", "kept"))
    loss: str = setting("balanced", "'balanced': background and objects half each (released), or "
                        "'plain': every pixel alike", choices=("balanced", "plain"))
    confidence: str = setting("off", "'weight' lets pixels count as much as the masks' stored "
                              "confidence says; 'off': all alike", choices=("off", "weight"))
    ignore_below: float = setting(0.0, "pixels of lower confidence are left out; 0 = none",
                                  low=0, high=1)
    tags: float = setting(0.0, "weight of a term that the image's tags, and no other class, must "
                          "show somewhere in the prediction; 0 = off", low=0)
    stride: int = setting(1, "the loss looks at every so many pixels in each direction", low=1)
    supervision: str = setting("tags", "what the masks come from: 'tags', or 'true masks' for the "
                               "fully supervised reference; `more train --masks` sets it",
                               choices=("tags", "true masks"))


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = setting(2000, "updates between evaluations; 0 = only at the end", low=0)
    images: int = setting(0, "images of the validation set to use; 0 = all", low=0)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = setting(1000, "updates between checkpoints; one more is written at the end", low=1)
    keep: int = setting(2, "newest checkpoints kept", low=1)
    best: str = setting("", "also keep the best by this evaluation score: 'cam', 'lam' or "
                        "'decoder'; '' = off",
                        choices=("", "cam", "lam", "decoder"), empty_is_off=True)
    background: bool = setting(False, "write while training goes on")


@dataclass(frozen=True)
class TelemetryConfig:
    """What a run shows beside its log; no number of the training depends on it."""

    pictures: int = setting(4, "validation images that TensorBoard shows at every evaluation, "
                            "always the same: image, maps, masks, truth; 0 = none", low=0, high=64)
    wandb: str = setting("", "project of Weights & Biases that gets figures and pictures as well "
                         "(extra 'wandb'); '' = off", empty_is_off=True)


@dataclass(frozen=True)
class DeepSpeedConfig:
    """The engine."""

    zero_stage: int = setting(1, "spread over the ranks: 0 nothing, 1 optimiser state, 2 gradients "
                              "as well, 3 weights as well", choices=(0, 1, 2, 3))
    offload: str = setting("none", "keep on the CPU: 'none', 'optimizer' state, or 'parameters' as "
                           "well (ZeRO 3)", choices=("none", "optimizer", "parameters"))
    json: str = setting("", "file of DeepSpeed settings merged over ours (under bf16 and "
                        "bf16_weights gradients are summed over ranks in fp32; under bf16 not "
                        "those of classes of layers that its torch_autocast."
                        "lower_precision_safe_modules names)", empty_is_off=True)
    timeout_minutes: float = setting(10.0, "longest time of a step, and longest wait for a rank",
                                     above=0)
    bucket_mb: int = setting(50, "megabytes per gradient reduction", low=1)
