"""Every setting of MoRe: `Config`, put together from the sections in `more.config.sections`.

A field is declared `name: type = setting(default, "meaning", ...)`, with its choices and bounds;
the meaning is printed by `more config FILE --explain`. Defaults: the released VOC recipe.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from more.config.fields import setting
from more.config.sections.data import DataConfig, TokensConfig
from more.config.sections.inference import CrfConfig, InferenceConfig
from more.config.sections.loss import LossConfig, StartConfig, TermConfig
from more.config.sections.model import CamConfig, ModelConfig
from more.config.sections.training import (
    ZERO_STAGES,
    CheckpointConfig,
    DeepSpeedConfig,
    EvalConfig,
    HeadWarmupConfig,
    OptimConfig,
    SegmentConfig,
    TelemetryConfig,
    TrainConfig,
)

__all__ = ["PAPER", "ZERO_STAGES", "CamConfig", "CheckpointConfig", "Config", "CrfConfig",
           "DataConfig", "DeepSpeedConfig", "EvalConfig", "HeadWarmupConfig", "InferenceConfig",
           "LossConfig", "ModelConfig", "OptimConfig", "SegmentConfig", "StartConfig",
           "TelemetryConfig", "TermConfig", "TokensConfig", "TrainConfig", "fields"]


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = setting("run", "name of the run; the file's name unless given")
    variant: str = setting("released", "'released' or 'paper': defaults where the two differ",
                           choices=("released", "paper"))
    precision: str = setting("auto", "'fp32', 'bf16' (autocast, fp32 weights), 'bf16_weights' "
                             "(bf16 weights without autocast; fp32 copies of them are trained; "
                             "ZeRO 1 or 2), 'fp16' (loss scaling; GPU and ZeRO 1 to 3) or 'auto': "
                             "bf16 where every rank has a GPU with it, else fp32",
                             choices=("auto", "fp32", "bf16", "bf16_weights", "fp16"))
    model: ModelConfig = setting(ModelConfig, "the network")
    data: DataConfig = setting(DataConfig, "images and augmentation")
    cam: CamConfig = setting(CamConfig, "CAMs and thresholds")
    loss: LossConfig = setting(LossConfig, "the objective")
    optim: OptimConfig = setting(OptimConfig, "the optimiser")
    head_warmup: HeadWarmupConfig = setting(HeadWarmupConfig, "classifiers on frozen features")
    train: TrainConfig = setting(TrainConfig, "length, batch, seed")
    eval: EvalConfig = setting(EvalConfig, "evaluation while training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "checkpoints")
    telemetry: TelemetryConfig = setting(TelemetryConfig, "what a run shows beside its log")
    deepspeed: DeepSpeedConfig = setting(DeepSpeedConfig, "the engine")
    inference: InferenceConfig = setting(InferenceConfig, "from checkpoint to maps")
    crf: CrfConfig = setting(CrfConfig, "dense CRF")
    tokens: TokensConfig = setting(TokensConfig, "tokens of frozen blocks")
    segment: SegmentConfig = setting(SegmentConfig, "training on masks")
    stage: int = setting(1, "1: training on tags; 2: on masks; `more train --masks` sets it",
                         choices=(1, 2))
    stage_two: dict = setting({}, "settings that --masks changes, such as "
                              "dict(train=dict(iterations=300))")

    @property
    def decoder_trained(self) -> bool:
        """Whether the decoder learns in this stage."""
        return self.stage == 2 or self.loss.weights.seg > 0

    @property
    def in_bf16(self) -> bool:
        """Whether a network with fp32 weights, as it is before and after training, is run in bf16
        by autocast."""
        return self.precision in ("bf16", "bf16_weights")


def fields(kind: type = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Every setting of the whole tree, in the order of the schema.

    Args:
        kind: dataclass of the section to begin with.
        prefix: its dotted key with a dot at the end; "" for the root.

    Yields:
        Dotted key and dataclass field.
    """
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from fields(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


PAPER = {
    "model.graph_neighbours": "patches",
    "model.graph_gate": "inner",
    "model.graph_output": "paper",
    "model.graph_similarity": "cosine",
    "model.lam_similarity": "cosine",
    "loss.cre_similarity": "cosine",
    "loss.cre_reduction": "pairs",
    "loss.ure_form": "paper",
    "loss.pseudo_label": "lam",
    "loss.exclude_padding": True,
}
"""What `variant = "paper"` changes; every key is also an option of its own."""
