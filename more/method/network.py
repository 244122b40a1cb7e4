"""The MoRe network: encoder, GCR, two classifiers and the decoder.

Everything runs through `forward` (its `mode` says what is wanted), so that DeepSpeed's hooks see
every use of a parameter. B batch, C classes, D channels, h×w token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from more.errors import UserError
from more.method.encoder import ClassTokenEncoder, EncoderOutput
from more.method.gcr import GraphCategoryRepresentation
from more.method.heads import (
    POOLINGS,
    CompetitiveHead,
    LargeFOV,
    convolve,
    localization_maps,
    pool_features,
)


class NetworkOutput(NamedTuple):
    """What one training forward gives; `cam` and `aux_cam` are detached and signed."""

    class_tokens: Tensor  # [B,C,D]
    graph_tokens: Tensor  # [B,C,D]; the class tokens themselves when GCR is off
    patch_tokens: Tensor  # [B,D,h,w]
    aux_patch_tokens: Tensor  # [B,D,h,w]
    logits: Tensor  # [B,C]
    aux_logits: Tensor  # [B,C]
    seg_logits: Tensor  # [B,C+1,h,w]
    cam: Tensor  # [B,C,h,w]
    aux_cam: Tensor  # [B,C,h,w]


class MoReNetwork(nn.Module):
    """Encoder, Graph Category Representation, classifiers and decoder.

    Args:
        encoder: ViT with class tokens.
        num_classes: foreground classes C.
        decoder_width: hidden channels of the decoder.
        pooling: "max" (released), "average" or "lse" (soft maximum) over the patches before the
            classifiers, or "competitive": see `CompetitiveHead`; CAMs are then probabilities.
        graph: the GCR layer, or None to go without (the baseline of the ablation).
        similarity: of LAM, "dot" (released) or "cosine" (paper).

    Raises:
        UserError: unknown pooling or similarity.
    """

    def __init__(self, encoder: ClassTokenEncoder, num_classes: int, decoder_width: int = 512,
                 pooling: str = "max", graph: GraphCategoryRepresentation | None = None,
                 similarity: str = "dot"):
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"model.pooling is {pooling!r}",
                            f"choose one of {', '.join(POOLINGS)}")
        if similarity not in ("dot", "cosine"):
            raise UserError(f"similarity of LAM is {similarity!r}", "choose dot or cosine")
        dim = encoder.embed_dim
        self.encoder, self.graph = encoder, graph
        self.num_classes, self.pooling, self.similarity = num_classes, pooling, similarity
        self.classifier = nn.Conv2d(dim, num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(dim, num_classes, 1, bias=False)
        if pooling == "competitive":
            self.contest = CompetitiveHead(dim, num_classes, normalise=False)
            self.aux_contest = CompetitiveHead(dim, num_classes, normalise=True)
            # No class is preferred anywhere at the start: which patches a class first wins decides
            # where it ends, and with random weights that is chance.
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.aux_classifier.weight)
        self.decoder = LargeFOV(dim, decoder_width, num_classes + 1)

    def forward(self, images: Tensor | Sequence[Tensor], mode: str = "train", half: bool = False,
                frozen: int = 0) -> NetworkOutput | tuple[Tensor, ...] | dict[str, Tensor] | Tensor:
        """Run the parts that `mode` needs on normalised images [B,3,H,W].

        Args:
            images: the batch; or, in a mode without gradient, views of several sizes, which run in
                one pass: the result is then a list.
            mode: "train" → NetworkOutput; "cam" → (cam, aux_cam); "aux_cam" → (aux_cam,), with
                fewer blocks; "lam" → LAM [B,C,h,w]; "maps" → dict with cam, aux_cam, lam, logits
                and patches (the tokens [B,D,h,w]); "scores" → the same with "segment" beside them;
                "segment" → seg_logits [B,C+1,h,w]; "attention" → score maps [B,C,h,w]. The maps
                are signed, in float32 and detached. What a mode does not return is not computed.
            half: run the encoder under bf16 autocast, whatever is set around it. (Set here, since
                DeepSpeed's engine undoes an autocast around itself.)
            frozen: for "segment": the encoder's first blocks that no gradient reaches; instead of
                images it then also takes what they made (`ClassTokenEncoder.lower`).

        Raises:
            ValueError: unknown mode.
        """
        runs = {"train": self._train_output, "cam": self._cams, "aux_cam": self._aux_cam,
                "lam": self._lam, "maps": self._maps, "segment": self._segment,
                "scores": lambda encoded: {**self._maps(encoded),
                                           "segment": self._segment(encoded)},
                "attention": self._score_maps}
        if mode not in runs:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(runs)}")
        several = not isinstance(images, Tensor)
        device = (images[0] if several else images).device.type
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            encoded = self.encoder(images, with_attention=mode == "attention",
                                   only_aux=mode == "aux_cam", frozen=frozen)
            return [runs[mode](one) for one in encoded] if several else runs[mode](encoded)

    def class_maps(self, features: Tensor, aux_features: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs [B,C,h,w] of feature maps [B,D,h,w], main and auxiliary, float32.

        Signed scores; probabilities with "competitive" pooling.
        """
        if self.pooling != "competitive":
            return convolve(self.classifier, features), self.aux_class_maps(aux_features)
        scores = convolve(self.classifier, self.contest.prepare(features))
        return self.contest.probabilities(scores), self.aux_class_maps(aux_features)

    def aux_class_maps(self, aux_features: Tensor) -> Tensor:
        """The auxiliary one of `class_maps` alone."""
        if self.pooling != "competitive":
            return convolve(self.aux_classifier, aux_features)
        scores = convolve(self.aux_classifier, self.aux_contest.prepare(aux_features))
        return self.aux_contest.probabilities(scores)

    def class_logits(self, features: Tensor, aux_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B,C] of feature maps [B,D,h,w], main and auxiliary, float32."""
        if self.pooling == "competitive":
            probabilities, aux_probabilities = self.class_maps(features, aux_features)
            return (self.contest.logits(probabilities),
                    self.aux_contest.logits(aux_probabilities))
        pooled, aux_pooled = (pool_features(x, self.pooling) for x in (features, aux_features))
        return (convolve(self.classifier, pooled).flatten(1),
                convolve(self.aux_classifier, aux_pooled).flatten(1))

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that turn features into CAMs and logits."""
        heads = [self.classifier, self.aux_classifier]
        if self.pooling == "competitive":
            heads += [self.contest, self.aux_contest]
        return [p for head in heads for p in head.parameters()]

    def _train_output(self, encoded: EncoderOutput) -> NetworkOutput:
        features, aux_features = feature_maps(encoded)
        cam, aux_cam = self._cams(encoded)
        logits, aux_logits = self.class_logits(features, aux_features)
        return NetworkOutput(
            class_tokens=encoded.class_tokens, graph_tokens=self._graph_tokens(encoded),
            patch_tokens=features, aux_patch_tokens=aux_features,
            logits=logits, aux_logits=aux_logits,
            seg_logits=self.decoder(features), cam=cam, aux_cam=aux_cam)

    @torch.no_grad()
    def _cams(self, encoded: EncoderOutput) -> tuple[Tensor, Tensor]:
        return self.class_maps(*feature_maps(encoded))

    @torch.no_grad()
    def _aux_cam(self, encoded: EncoderOutput) -> tuple[Tensor]:
        return (self.aux_class_maps(as_map(encoded.aux_patch_tokens, encoded.grid)),)

    @torch.no_grad()
    def _lam(self, encoded: EncoderOutput) -> Tensor:
        features, _ = feature_maps(encoded)
        return localization_maps(features, self._graph_tokens(encoded), self.similarity)

    @torch.no_grad()
    def _maps(self, encoded: EncoderOutput) -> dict[str, Tensor]:
        cam, aux_cam = self._cams(encoded)
        return {"cam": cam, "aux_cam": aux_cam, "lam": self._lam(encoded),
                "logits": self.class_logits(*feature_maps(encoded))[0],
                "patches": as_map(encoded.patch_tokens, encoded.grid)}

    def _segment(self, encoded: EncoderOutput) -> Tensor:
        return self.decoder(as_map(encoded.patch_tokens, encoded.grid))

    def _score_maps(self, encoded: EncoderOutput) -> Tensor:
        classes = encoded.class_tokens.shape[1]
        raw = encoded.attention.detach()[:, :, :classes, classes:].sum(1)  # [B,C,N]
        return raw.reshape(*raw.shape[:2], *encoded.grid)

    def _graph_tokens(self, encoded: EncoderOutput) -> Tensor:
        if self.graph is None:
            return encoded.class_tokens
        return self.graph(encoded.class_tokens, encoded.patch_tokens)


def parameter_groups(network: MoReNetwork, head_lr_scale: float = 10.0) -> list[dict[str, Any]]:
    """Every parameter that is trained once, as groups with `name`, `params` and `lr_scale`.

    In order: encoder without and with "norm" in the parameter's name (×1 of the base rate),
    classifiers, graph and decoder (× `head_lr_scale`). Groups without parameters, such as the
    graph's without GCR, are left out, and so are frozen parameters.
    """
    encoder = list(network.encoder.named_parameters())
    groups = [
        ("encoder", [p for name, p in encoder if "norm" not in name], 1.0),
        ("encoder_norm", [p for name, p in encoder if "norm" in name], 1.0),
        ("classifiers", network.head_parameters(), head_lr_scale),
        ("graph", list(network.graph.parameters()) if network.graph else [], head_lr_scale),
        ("decoder", list(network.decoder.parameters()), head_lr_scale),
    ]
    kept = [(name, [p for p in params if p.requires_grad], scale)
            for name, params, scale in groups]
    return [{"name": name, "params": params, "lr_scale": scale}
            for name, params, scale in kept if params]


def train_only(network: MoReNetwork, blocks: int) -> int:
    """Freeze all but the decoder and the encoder's last blocks (stage two).

    Args:
        network: changed in place.
        blocks: how many; 0: the decoder alone, -1: all of them and the embedding.

    Returns:
        Blocks that are frozen, from the first.

    Raises:
        UserError: the encoder has fewer blocks.
    """
    depth = len(network.encoder.blocks)
    if blocks > depth:
        raise UserError(f"segment.blocks = {blocks}, but the backbone has {depth} blocks",
                        f"choose 0 to {depth}, or -1 for all of it")
    frozen, below = 0 if blocks < 0 else depth - blocks, network.encoder.frozen_blocks
    if blocks >= 0 and frozen < below:
        raise UserError(f"segment.blocks = {blocks}, but below the class tokens lie {below} blocks "
                        f"of {depth} (model.frozen_blocks)",
                        f"choose 0 to {depth - below}, or -1 for all of it")
    network.requires_grad_(False)
    network.decoder.requires_grad_(True)
    for block in network.encoder.blocks[frozen:]:
        block.requires_grad_(True)
    if frozen < depth:
        network.encoder.norm.requires_grad_(True)
    if blocks < 0:
        network.encoder.requires_grad_(True)
    return frozen


def feature_maps(encoded: EncoderOutput) -> tuple[Tensor, Tensor]:
    """Main and auxiliary patch tokens of the encoder as maps [B,D,h,w]."""
    return (as_map(encoded.patch_tokens, encoded.grid),
            as_map(encoded.aux_patch_tokens, encoded.grid))


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B,h·w,D] as a map [B,D,h,w]."""
    return tokens.transpose(1, 2).unflatten(2, grid)
