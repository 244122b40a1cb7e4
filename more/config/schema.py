"""Every setting of MoRe with its meaning, default and check. Defaults: the released VOC recipe.

A field is declared `name: type = setting(default, "meaning")`; the meaning is printed by
`more config FILE --explain`. Section numbers refer to the paper's released recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, meaning: str) -> Any:
    """A dataclass field with its meaning in the metadata (mutable defaults are copied)."""
    metadata = {"meaning": meaning}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, tokens and heads."""

    backbone: str = setting("vit_base_patch16_224.augreg_in21k_ft_in1k",
                            "any timm ViT by name, or 'custom' with model.vit")
    vit: dict = setting({}, "sizes of a custom ViT: patch_size, embed_dim, depth, num_heads, …")
    weights: str = setting("timm", "'timm' (hub), 'none', or a .safetensors/.pth file")
    num_classes: int = setting(20, "foreground classes; one class token each")
    image_size: int = setting(0, "side of the native position grid in pixels; 0 = data.crop")
    aux_layer: int = setting(-3, "block whose patch tokens feed the auxiliary classifier")
    regularising_tokens: int = setting(4, "register-like tokens before the class tokens")
    regularising_std: float = setting(1.0, "spread of their first position vectors")
    register_init: str = setting("random", "'random' (released), 'small', or 'registers': start "
                                 "from the backbone's own register tokens where it has them")
    token_init: str = setting("copied", "'copied' (released) or 'perturbed' class tokens")
    token_noise: float = setting(0.1, "standard deviation of the perturbation")
    token_attention: str = setting("full", "'full' (released), or 'shared': all leading tokens "
                                   "together weigh as much as the pretrained class token did")
    frozen_blocks: int = setting(0, "first blocks that stay as loaded; class and regularising "
                                 "tokens enter above them, and what they make of views of the "
                                 "images is computed once (tokens.*)")
    pooling: str = setting("max", "how patches become class logits: 'max' (released), 'average', "
                           "'lse' pool features; 'competitive' lets every patch choose between "
                           "the background and the classes")
    decoder_width: int = setting(512, "hidden channels of the LargeFOV decoder")
    graph: bool = setting(True, "Graph Category Representation on the class tokens")
    graph_neighbours: str = setting("classes", "'classes': half the class count (released), or "
                                    "'patches': half of the patches (paper)")
    graph_gate: str = setting("channel_sums", "'channel_sums' (released) or 'inner' (paper)")
    graph_output: str = setting("released", "'released' (LayerNorm, residual) or 'paper'")
    graph_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)")
    lam_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)")
    gradient_checkpointing: bool = setting(False, "recompute blocks in backward to save memory")
    recompute_cheap: bool = setting(True, "recompute outputs of the blocks' norms and activations "
                                    "in backward: less memory, the same numbers to the bit")


@dataclass(frozen=True)
class DataConfig:
    """How images become tensors."""

    crop: int = setting(448, "side of a training crop in pixels")
    augment: str = setting("voc", "'voc' (random resized crop), 'coco' (scale, crop, pad) or "
                           "'none'")
    min_area: float = setting(0.32, "smallest share of the image in a crop")
    jitter: float = setting(0.8, "probability of colour jitter")
    mean: tuple = setting((123.675, 116.28, 103.53), "channel means, 0..255")
    std: tuple = setting((58.395, 57.12, 57.375), "channel deviations, 0..255")
    pipeline: str = setting("device", "'device': colours are jittered batch-wise where the network "
                            "runs; 'pil': image by image with Pillow, in the released order")
    order: str = setting("auto", "'global': one shuffle over the whole set, as released; 'shards': "
                         "each rank reads whole shards, shuffled in windows; 'auto': 'shards' for "
                         "sets of more than 64 shards")
    window: int = setting(8, "shards that are shuffled with one another, for order='shards'")
    last_batch: str = setting("drop", "the incomplete batch at an epoch's end: 'drop', or 'carry' "
                              "it into the next epoch")
    workers: int = setting(-1, "loader processes per rank; 0 loads in the trainer, -1: one less "
                           "than the rank has cores, 1 to 8")
    prefetch_mb: int = setting(256, "megabytes of finished batches that may wait, per rank")
    cache: str = setting("", "copy shards to this local folder when first read; '' = read in place")
    quarantine: float = setting(0.0, "share of damaged images to leave out; 0 stops at the first")


@dataclass(frozen=True)
class CamConfig:
    """CAM views and the thresholds that turn CAMs into masks."""

    scales: tuple = setting((1.0, 0.5, 0.75, 1.5), "sizes of the multi-scale CAM; 1 comes first")
    high: float = setting(0.7, "above: a class")
    low: float = setting(0.25, "below: background; between: uncertain")
    background: float = setting(0.5, "threshold of labels without an uncertain band")
    cre_high: float = setting(0.5, "high threshold of the CRE mask, early")
    cre_low: float = setting(0.25, "low threshold of the CRE mask, early")
    late_high: float = setting(0.6, "high threshold of the CRE and URE masks, late")
    late_low: float = setting(0.35, "low threshold of the CRE and URE masks, late")
    late_after: int = setting(10000, "'late' begins after this iteration index")
    precision: str = setting("auto", "of the forwards that only give CAMs: 'auto' (bf16 on a GPU "
                             "that has it, else as training), 'model' (as training), or 'bf16'")
    packed: str = setting("auto", "views of all sizes in one pass: 'yes' (fewer, larger "
                        "operations, more memory), 'no' (size by size), or 'auto': on a GPU")
    every: int = setting(1, "multi-scale CAMs in each k-th update; in the others the CAM of the "
                         "training forward alone, which costs nothing. 1: always, as released")
    ema: bool = setting(False, "CAMs from the average of the weights (train.ema), not from the "
                        "weights of the update")
    whole_patches: bool = setting(False, "round the sizes of the scales to whole patches; "
                                  "False: int(scale·crop), as released")
    par_iterations: int = setting(10, "pixel-adaptive refinement rounds")
    par_dilations: tuple = setting((1, 2, 4, 8, 12, 24), "offsets of its neighbours, all in "
                                   "pixels at half of data.crop, or all as shares of that side "
                                   "(below 1)")

    def dilations(self, crop: int) -> tuple[int, ...]:
        """`par_dilations` in whole pixels for a crop of so many pixels; equal ones once."""
        if self.par_dilations[0] >= 1:
            return tuple(int(step) for step in self.par_dilations)
        steps = (max(1, round(share * (crop // 2))) for share in self.par_dilations)
        return tuple(dict.fromkeys(steps))


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
    temperature: float = setting(0.5, "CRE temperature")
    mcl_form: str = setting("plain", "'plain' (released scripts) or 'mixed' (published COCO log)")
    cre_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)")
    cre_reduction: str = setting("released", "'released' or 'pairs' (paper)")
    ure_form: str = setting("released", "'released' (shifted token, at most 8) or 'paper'")
    pseudo_label: str = setting("cam", "decoder's labels come from 'cam' (released) or 'lam' "
                                "(paper)")
    label_high: float = setting(-1.0, "background level that a class must exceed in the decoder's "
                                "labels; -1: cam.high, as released")
    label_low: float = setting(-1.0, "level up to which they are background; -1: cam.low, as "
                               "released")
    exclude_padding: bool = setting(False, "leave padded borders out of the loss masks (paper)")
    energy_weight: float = setting(1e-7, "weight inside the dense energy")
    energy_sigma_rgb: float = setting(15.0, "colour deviation of its bilateral filter")
    energy_sigma_xy: float = setting(100.0, "spatial deviation at full size, pixels")
    energy_filter: str = setting("lattice", "'lattice' (released), or 'attention': the exact "
                                 "Gaussian from a quarter of the pixels; meant for a GPU, slow on "
                                 "a CPU")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with poly decay."""

    lr: float = setting(6e-5, "learning rate of the encoder")
    head_lr_scale: float = setting(10.0, "factor for classifiers, graph and decoder")
    token_lr_scale: float = setting(1.0, "factor for class and regularising tokens")
    betas: tuple = setting((0.9, 0.999), "AdamW's decay rates")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(0.01, "on everything, as released")
    warmup: int = setting(1500, "updates of linear warm-up")
    warmup_ratio: float = setting(1e-6, "first factor of the warm-up")
    power: float = setting(0.9, "exponent of the poly decay")
    frozen_steps: int = setting(0, "updates in which the transformer's blocks stay as loaded")
    clip: float = setting(0.0, "largest gradient norm; 0 = off, as released")


@dataclass(frozen=True)
class HeadWarmupConfig:
    """The classifiers alone on frozen features, before the first iteration (own option)."""

    updates: int = setting(0, "updates; 0 = off, as released")
    batch: int = setting(64, "images per update")
    lr: float = setting(3e-3, "learning rate, falling linearly to 0")
    images: int = setting(2000, "most images to encode; their features stay in "
                          "memory, spread over the ranks")
    background: float = setting(1.0, "weight of the term that half of an image is background; "
                                "for competitive pooling")
    centre: float = setting(0.0, "weight of the term that classes lie rather inside an image than "
                            "at its border, so that none takes the background of its images; for "
                            "competitive pooling")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and seed."""

    iterations: int = setting(20000, "updates")
    global_batch: int = setting(4, "images per update over all ranks")
    micro_batch: int = setting(0, "most images per rank and pass; 0 = no limit")
    seed: int = setting(1, "of weights, sample order, augmentation and URE's choices")
    log_every: int = setting(20, "updates between records")
    threads: int = setting(0, "CPU threads per rank; 0 = cores divided by local ranks")
    skip_nonfinite: int = setting(0, "updates that may be left out because loss or gradient is not "
                                  "finite")
    ema: float = setting(0.0, "decay of an average of the weights for evaluation and inference; "
                         "0 = off, as released")
    compile: str = setting("", "backend of torch.compile for the transformer's blocks, such as "
                           "'inductor'; '' = off")
    tf32: bool = setting(False, "let matrix products of fp32 numbers round to TF32 on GPUs, also "
                         "those of losses and similarities; faster, three digits")
    scale_to: int = setting(0, "images per update to train with instead of train.global_batch: the "
                            "rate grows in proportion, and whatever counts updates (length, "
                            "warm-up, starts, evaluations, checkpoints) shrinks; 0 = off")
    scaled_from: int = setting(0, "train.global_batch before train.scale_to, which sets this")
    profile: str = setting("", "'FROM:TO': record updates FROM to TO - 1 of rank 0 in "
                           "RUN/profile, for ui.perfetto.dev; '' = off")


@dataclass(frozen=True)
class TokensConfig:
    """What frozen blocks make of random views of the images: computed once and kept."""

    views: int = setting(4, "random views of each image that training sees, in turn")
    gb: float = setting(8.0, "most disk for their tokens; fewer views where it does not suffice, "
                        "and without room for one the blocks are run in every update")
    folder: str = setting("", "where they are kept, which runs may share; '' = RUN/tokens")


@dataclass(frozen=True)
class SegmentConfig:
    """Stage two (`more train --masks`): the decoder learns from masks, not from tags."""

    blocks: int = setting(0, "transformer blocks trained beside the decoder, the last ones; 0: the "
                          "decoder alone, -1: all and the embedding")
    decoder: str = setting("fresh", "'fresh' starts the decoder anew, 'kept' goes on with that of "
                           "--init")
    loss: str = setting("balanced", "'balanced': background and objects half each (released), or "
                        "'plain': every pixel alike")
    confidence: str = setting("off", "'weight' lets pixels count as much as the masks' stored "
                              "confidence says; 'off': all alike")
    ignore_below: float = setting(0.0, "pixels of lower confidence are left out; 0 = none")
    tags: float = setting(0.0, "weight of a term that the image's tags, and no other class, must "
                          "show somewhere in the prediction; 0 = off")
    stride: int = setting(1, "the loss looks at every so many pixels in each direction")
    supervision: str = setting("tags", "what the masks come from: 'tags', or 'true masks' for the "
                               "fully supervised reference; `more train --masks` sets it")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = setting(2000, "updates between evaluations; 0 = only at the end")
    images: int = setting(0, "images of the validation set to use; 0 = all")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: int = setting(1000, "updates between checkpoints; one more is written at the end")
    keep: int = setting(2, "newest checkpoints kept")
    best: str = setting("", "also keep the best by this evaluation score: 'cam', 'lam' or "
                        "'decoder'; '' = off")
    background: bool = setting(False, "write while training goes on")


@dataclass(frozen=True)
class DeepSpeedConfig:
    """The engine."""

    zero_stage: int = setting(1, "spread over the ranks: 0 nothing, 1 optimiser state, 2 gradients "
                              "as well, 3 weights as well")
    offload: str = setting("none", "keep on the CPU: 'none', 'optimizer' state, or 'parameters' as "
                           "well (ZeRO 3)")
    json: str = setting("", "file of DeepSpeed settings merged over ours (under bf16 and "
                        "bf16_weights gradients are summed over ranks in fp32; under bf16 not "
                        "those of classes of layers that its torch_autocast."
                        "lower_precision_safe_modules names)")
    timeout_minutes: float = setting(10.0, "longest time of a step, and longest wait for a rank")
    bucket_mb: int = setting(50, "megabytes per gradient reduction")


@dataclass(frozen=True)
class InferenceConfig:
    """From checkpoint to maps."""

    size: int = setting(448, "images are resized to this square")
    scales: tuple = setting((1.0, 0.5, 0.75, 1.25, 1.5), "sizes of CAM and LAM; 1 comes first")
    segment_scales: tuple = setting((1.0, 1.25, 1.5), "sizes of the decoder's route")
    threshold: float = setting(0.5, "a seed's background threshold")
    spread: int = setting(0, "steps in which a map spreads over patches of similar features; 0 = "
                          "off, as released")
    spread_temperature: float = setting(0.04, "of the similarity (cosine) in these steps: lower "
                                        "keeps to more similar patches")
    seed_scale: float = setting(2.0, "stored maps have this many cells per token and side")
    batch: int = setting(4, "images per forward")
    tag_threshold: float = setting(0.5, "probability from which a class counts as predicted")


@dataclass(frozen=True)
class CrfConfig:
    """Dense CRF after inference."""

    iterations: int = setting(10, "mean-field steps")
    gaussian_xy: float = setting(1.0, "pixels, at least 0.1")
    gaussian_compat: float = setting(3.0, "weight of the spatial term")
    bilateral_xy: float = setting(67.0, "pixels, at least 0.1")
    bilateral_rgb: float = setting(3.0, "grey levels, at least 0.1")
    bilateral_compat: float = setting(4.0, "weight of the bilateral term")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = setting("run", "name of the run; the file's name unless given")
    variant: str = setting("released", "'released' or 'paper': defaults where the two differ")
    precision: str = setting("auto", "'fp32', 'bf16' (autocast, fp32 weights), 'bf16_weights' "
                             "(bf16 weights without autocast; fp32 copies of them are trained; "
                             "ZeRO 1 or 2), 'fp16' (loss scaling; GPU and ZeRO 1 to 3) or 'auto': "
                             "bf16 where every rank has a GPU with it, else fp32")
    model: ModelConfig = setting(ModelConfig, "the network")
    data: DataConfig = setting(DataConfig, "images and augmentation")
    cam: CamConfig = setting(CamConfig, "CAMs and thresholds")
    loss: LossConfig = setting(LossConfig, "the objective")
    optim: OptimConfig = setting(OptimConfig, "the optimiser")
    head_warmup: HeadWarmupConfig = setting(HeadWarmupConfig, "classifiers on frozen features")
    train: TrainConfig = setting(TrainConfig, "length, batch, seed")
    eval: EvalConfig = setting(EvalConfig, "evaluation while training")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "checkpoints")
    deepspeed: DeepSpeedConfig = setting(DeepSpeedConfig, "the engine")
    inference: InferenceConfig = setting(InferenceConfig, "from checkpoint to maps")
    crf: CrfConfig = setting(CrfConfig, "dense CRF")
    tokens: TokensConfig = setting(TokensConfig, "tokens of frozen blocks")
    segment: SegmentConfig = setting(SegmentConfig, "training on masks")
    stage: int = setting(1, "1: training on tags; 2: on masks; `more train --masks` sets it")
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

ZERO_STAGES = {"bf16_weights": (1, 2), "fp16": (1, 2, 3)}
"""Stages that a precision goes with; the other precisions go with all, 0 to 3."""

CHOICES = {
    "variant": ("released", "paper"),
    "precision": ("auto", "fp32", "bf16", "bf16_weights", "fp16"),
    "model.token_init": ("copied", "perturbed"),
    "model.register_init": ("random", "small", "registers"),
    "model.token_attention": ("full", "shared"),
    "model.pooling": ("max", "average", "lse", "competitive"),
    "model.graph_neighbours": ("classes", "patches"),
    "model.graph_gate": ("channel_sums", "inner"),
    "model.graph_output": ("released", "paper"),
    "model.graph_similarity": ("dot", "cosine"),
    "model.lam_similarity": ("dot", "cosine"),
    "data.augment": ("voc", "coco", "none"),
    "data.pipeline": ("device", "pil"),
    "data.order": ("auto", "global", "shards"),
    "data.last_batch": ("drop", "carry"),
    "cam.precision": ("auto", "model", "bf16"),
    "cam.packed": ("auto", "yes", "no"),
    "loss.mcl_form": ("plain", "mixed"),
    "loss.cre_similarity": ("dot", "cosine"),
    "loss.cre_reduction": ("released", "pairs"),
    "loss.ure_form": ("released", "paper"),
    "loss.pseudo_label": ("cam", "lam"),
    "loss.energy_filter": ("lattice", "attention"),
    "segment.decoder": ("fresh", "kept"),
    "segment.loss": ("balanced", "plain"),
    "segment.confidence": ("off", "weight"),
    "segment.supervision": ("tags", "true masks"),
    "stage": (1, 2),
    "deepspeed.zero_stage": (0, 1, 2, 3),
    "deepspeed.offload": ("none", "optimizer", "parameters"),
    "checkpoint.best": ("", "cam", "lam", "decoder"),
}
"""Fields that take one of a few values."""

TAKES_NONE = {"model.weights", *(key for key, allowed in CHOICES.items() if "none" in allowed)}
"""Settings that have a value "none", which Python's None also stands for."""

OFF_IS_EMPTY = ("data.cache", "train.compile", "tokens.folder", "checkpoint.best", "deepspeed.json")
"""Settings that an empty text turns off; the word "none" would be a file, or a name."""
