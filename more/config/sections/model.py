"""Settings of the network, and of the CAMs that are made with it."""

from __future__ import annotations

from dataclasses import dataclass

from more.config.fields import check_offsets, check_scales, setting


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, tokens and heads."""

    backbone: str = setting("vit_base_patch16_224.augreg_in21k_ft_in1k",
                            "any timm ViT by name, or 'custom' with model.vit")
    vit: dict = setting({}, "sizes of a custom ViT: patch_size, embed_dim, depth, num_heads, …")
    weights: str = setting("timm", "'timm' (hub), 'none', or a .safetensors/.pth file",
                           takes_none=True)
    num_classes: int = setting(20, "foreground classes; one class token each", low=1)
    image_size: int = setting(0, "side of the native position grid in pixels; 0 = data.crop", low=0)
    aux_layer: int = setting(-3, "block whose patch tokens feed the auxiliary classifier")
    regularising_tokens: int = setting(4, "register-like tokens before the class tokens", low=0)
    regularising_std: float = setting(1.0, "spread of their first position vectors", low=0)
    register_init: str = setting("random", "'random' (released), 'small', or 'registers': start "
                                 "from the backbone's own register tokens where it has them",
                                 choices=("random", "small", "registers"))
    token_init: str = setting("copied", "'copied' (released) or 'perturbed' class tokens",
                              choices=("copied", "perturbed"))
    token_noise: float = setting(0.1, "standard deviation of the perturbation", low=0)
    token_attention: str = setting("full", "'full' (released), or 'shared': all leading tokens "
                                   "together weigh as much as the pretrained class token did",
                                   choices=("full", "shared"))
    frozen_blocks: int = setting(0, "first blocks that stay as loaded; class and regularising "
                                 "tokens enter above them, and what they make of views of the "
                                 "images is computed once (tokens.*)", low=0)
    pooling: str = setting("max", "how patches become class logits: 'max' (released), 'average', "
                           "'lse' pool features; 'competitive' lets every patch choose between "
                           "the background and the classes",
                           choices=("max", "average", "lse", "competitive"))
    decoder_width: int = setting(512, "hidden channels of the LargeFOV decoder", low=1)
    graph: bool = setting(True, "Graph Category Representation on the class tokens")
    graph_neighbours: str = setting("classes", "'classes': half the class count (released), or "
                                    "'patches': half of the patches (paper)",
                                    choices=("classes", "patches"))
    graph_gate: str = setting("channel_sums", "'channel_sums' (released) or 'inner' (paper)",
                              choices=("channel_sums", "inner"))
    graph_output: str = setting("released", "'released' (LayerNorm, residual) or 'paper'",
                                choices=("released", "paper"))
    graph_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)",
                                    choices=("dot", "cosine"))
    lam_similarity: str = setting("dot", "'dot' (released) or 'cosine' (paper)",
                                  choices=("dot", "cosine"))
    gradient_checkpointing: bool = setting(False, "recompute blocks in backward to save memory")
    recompute_cheap: bool = setting(True, "recompute outputs of the blocks' norms and activations "
                                    "in backward: less memory, the same numbers to the bit")


@dataclass(frozen=True)
class CamConfig:
    """CAM views and the thresholds that turn CAMs into masks."""

    scales: tuple = setting((1.0, 0.5, 0.75, 1.5), "sizes of the multi-scale CAM; 1 comes first",
                            rule=check_scales)
    high: float = setting(0.7, "above: a class")
    low: float = setting(0.25, "below: background; between: uncertain")
    background: float = setting(0.5, "threshold of labels without an uncertain band", low=0, high=1)
    cre_high: float = setting(0.5, "high threshold of the CRE mask, early")
    cre_low: float = setting(0.25, "low threshold of the CRE mask, early")
    late_high: float = setting(0.6, "high threshold of the CRE and URE masks, late")
    late_low: float = setting(0.35, "low threshold of the CRE and URE masks, late")
    late_after: int = setting(10000, "'late' begins after this iteration index")
    precision: str = setting("auto", "of the forwards that only give CAMs: 'auto' (bf16 on a GPU "
                             "that has it, else as training), 'model' (as training), or 'bf16'",
                             choices=("auto", "model", "bf16"))
    packed: str = setting("auto", "views of all sizes in one pass: 'yes' (fewer, larger "
                        "operations, more memory), 'no' (size by size), or 'auto': on a GPU",
                          choices=("auto", "yes", "no"))
    every: int = setting(1, "multi-scale CAMs in each k-th update; in the others the CAM of the "
                         "training forward alone, which costs nothing. 1: always, as released",
                         low=1)
    ema: bool = setting(False, "CAMs from the average of the weights (train.ema), not from the "
                        "weights of the update")
    whole_patches: bool = setting(False, "round the sizes of the scales to whole patches; "
                                  "False: int(scale·crop), as released")
    par_iterations: int = setting(10, "pixel-adaptive refinement rounds", low=0)
    par_dilations: tuple = setting((1, 2, 4, 8, 12, 24), "offsets of its neighbours, all in "
                                   "pixels at half of data.crop, or all as shares of that side "
                                   "(below 1)", rule=check_offsets)

    def dilations(self, crop: int) -> tuple[int, ...]:
        """`par_dilations` in whole pixels for a crop of so many pixels; equal ones once."""
        if self.par_dilations[0] >= 1:
            return tuple(int(step) for step in self.par_dilations)
        steps = (max(1, round(share * (crop // 2))) for share in self.par_dilations)
        return tuple(dict.fromkeys(steps))
