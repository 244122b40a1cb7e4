"""The encoder: a timm ViT that carries one class token per category.

Blocks, patch embedding and norms are timm's; the leading tokens (R regularising ones, then one
per class) and the position embedding are ours. B batch, C classes, R regularising tokens,
N = h·w patches, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, log
from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from more.errors import UserError
from more.method.backbones import auxiliary_index, check_backbone, check_frozen, patch_side
from more.method.gradients import keep_less
from more.method.packing import pack, packs, run_packed, unpack
from more.method.tokens import NEIGHBOUR_STD, positions_of


class EncoderOutput(NamedTuple):
    """Normalised tokens of the last block, raw ones of the auxiliary block, and the grid.

    `attention` [B,heads,C+N,C+N] is the last block's raw q·k, only where it was asked for. Class
    and patch tokens are None where only the auxiliary ones were asked for.
    """

    class_tokens: Tensor | None  # [B,C,D]
    patch_tokens: Tensor | None  # [B,N,D]
    aux_patch_tokens: Tensor | None  # [B,N,D]; None where the input was tokens from above it
    grid: tuple[int, int]
    attention: Tensor | None = None


class ClassTokenEncoder(nn.Module):
    """A ViT with C class tokens and R regularising tokens in front of the patches.

    Args:
        vit: a timm VisionTransformer built with `dynamic_img_size=True`; its blocks are used,
            not copied.
        num_classes: foreground classes C.
        image_size: side in pixels of the native image; its grid is the one of `pos_embed`.
        regularising_tokens: R.
        aux_layer: element of the list of block outputs that gives the auxiliary tokens, -3 for
            the third from the end. The last element is the normalised one.
        token_attention: "full" (released), or "shared": in every softmax the R+C leading tokens
            together weigh as much as the one class token that the backbone was trained with.
            Patch features then start close to the backbone's own (own option). One without a
            class token (SigLIP) never had even that one: its patches start a little off, since they
            attend to tokens that it does not know.
        frozen_blocks: the first blocks that run as in the backbone, with its own leading tokens,
            and stay as they are; above them the R+C tokens take the place of these: each is the
            backbone's class token as it is there plus a learned vector (own option).

    Raises:
        UserError: the backbone is no plain ViT, `aux_layer` is outside it or frozen, or the image
            is smaller than a patch.
    """

    def __init__(self, vit: VisionTransformer, num_classes: int, image_size: int,
                 regularising_tokens: int = 4, aux_layer: int = -3,
                 token_attention: str = "full", frozen_blocks: int = 0):
        super().__init__()
        check_backbone(vit)
        self.patch_embed, self.norm_pre, self.blocks = vit.patch_embed, vit.norm_pre, vit.blocks
        # Models with average pooling keep their final norm behind the pooling.
        self.norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
        self.num_classes, self.image_size = num_classes, image_size
        self.regularising_tokens = regularising_tokens
        self.embed_dim = vit.embed_dim
        self.patch_size = patch_side(vit)
        self.aux_index = auxiliary_index(aux_layer, len(self.blocks))
        self.native_side = image_size // self.patch_size
        if self.native_side < 1:
            raise UserError(f"image size {image_size} is smaller than a patch of "
                            f"{self.patch_size} pixels", "raise model.image_size")
        self.grad_checkpointing = self.recompute_cheap = False
        self.shared_attention = token_attention == "shared"
        leading = regularising_tokens + num_classes
        self.cls_token = nn.Parameter(torch.empty(1, leading, self.embed_dim))
        self.pos_embed = nn.Parameter(
            torch.empty(1, leading + self.native_side ** 2, self.embed_dim))
        nn.init.trunc_normal_(self.cls_token, std=NEIGHBOUR_STD)
        nn.init.trunc_normal_(self.pos_embed, std=NEIGHBOUR_STD)
        self.frozen_blocks = frozen_blocks
        if frozen_blocks:
            check_frozen(frozen_blocks, self.aux_index, vit)
            # The backbone's leading tokens with their positions.
            self.register_buffer("prefix", torch.zeros(1, vit.num_prefix_tokens, self.embed_dim))
            for part in (self.patch_embed, self.norm_pre, *self.blocks[:frozen_blocks]):
                part.requires_grad_(False)
            self.pos_embed.requires_grad_(False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute block activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def set_recompute_cheap(self, enable: bool = True) -> None:
        """Make outputs of norms and activations again in the backward pass (`keep_less`).

        Blocks that are compiled or recomputed as a whole do without.
        """
        self.recompute_cheap = enable

    def compile_blocks(self, backend: str) -> None:
        """Compile the blocks with a backend of torch.compile, each on its own.

        They run the same code, so one compilation serves all of them: the start takes as long as
        one block, not as the depth. A block is compiled again for other token counts (views of
        other sizes) and without gradients; weights keep their names.
        """
        for block in self.blocks:
            block.compile(backend=backend)

    def token_parameters(self) -> list[nn.Parameter]:
        """The parameters that are ours, not the backbone's: leading tokens and positions."""
        return [self.cls_token, self.pos_embed]

    def forward(self, images: Tensor | Sequence[Tensor], with_attention: bool = False,
                only_aux: bool = False, frozen: int = 0) -> EncoderOutput | list[EncoderOutput]:
        """Encode normalised images [B,3,H,W]; pixels beyond the last whole patch are lost.

        Args:
            images: at least one patch high and wide; or what `lower` made of square ones, with
                the same `frozen`. All blocks frozen then gives patch tokens alone. Or a list of
                views of several sizes: all run in one pass, without gradient.
            with_attention: also return the last block's raw q·k.
            only_aux: stop at the block of the auxiliary tokens.
            frozen: the first blocks (and the embedding) that no gradient reaches; where there are
                `frozen_blocks`, not fewer.
        """
        if not isinstance(images, Tensor):
            return self._views(images, only_aux)
        tokens, grid = self._begin(images, frozen)
        if frozen == len(self.blocks):
            return EncoderOutput(None, tokens, None, grid)
        return self._upper(tokens, grid, max(frozen, self.frozen_blocks), with_attention, only_aux)

    @torch.no_grad()
    def _views(self, views: Sequence[Tensor], only_aux: bool) -> list[EncoderOutput]:
        """What `forward` makes of each, in one pass (see `more.method.packing`).

        Blocks of other forms, and compiled ones, take the views in turn.

        Args:
            views: images [B',3,H',W'], or what `lower` made of square ones with `frozen_blocks`.
            only_aux: as in `forward`.
        """
        first = self.frozen_blocks
        if not all(packs(block) for block in self.blocks[first:]):
            return [self(view, only_aux=only_aux, frozen=first if view.dim() == 3 else 0)
                    for view in views]
        begun = [self._begin(view, first if view.dim() == 3 else 0) for view in views]
        bias = [self._attention_bias(tokens) for tokens, _ in begun]
        packed, sizes = pack([tokens for tokens, _ in begun])
        for index, block in enumerate(self.blocks[first:], first):
            packed = run_packed(block, packed, sizes, bias)
            if index == len(self.blocks) - 1:
                packed = self.norm(packed)
            if index == self.aux_index:
                aux = packed
                if only_aux:
                    break
        leading = self.cls_token.shape[1]
        results = []
        for main, low, (_, grid) in zip(unpack(packed, sizes), unpack(aux, sizes), begun,
                                        strict=True):
            results.append(EncoderOutput(
                None if only_aux else main[:, self.regularising_tokens:leading],
                None if only_aux else main[:, leading:], low[:, leading:], grid))
        return results

    def _begin(self, images: Tensor, frozen: int) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [B,T,D] for the first block that `_upper` runs, and their grid.

        They come from images, or from what `lower` made of them.
        """
        if images.dim() == 3:
            tokens, side = images, isqrt(images.shape[1] - self._leading(frozen))
            grid = (side, side)
        elif frozen:
            with torch.no_grad():
                tokens, grid = self._lower(images, frozen)
        else:
            tokens, grid = self._embed(images)
            for block in self.blocks[:self.frozen_blocks]:
                tokens = self._run(block, tokens, None)
        enters = self.frozen_blocks and max(frozen, self.frozen_blocks) == self.frozen_blocks
        if enters and frozen < len(self.blocks):
            tokens = self._enter(tokens)
        return tokens, grid

    @torch.no_grad()
    def lower(self, images: Tensor, frozen: int) -> Tensor:
        """What the first `frozen` blocks make of images: tokens [B,T,D] for `forward`.

        T is R+C+N; with `frozen_blocks` of them the backbone's own leading tokens and N; all blocks
        also make the final norm, and give the patches alone, N.
        """
        return self._lower(images, frozen)[0]

    def token_count(self, patches: int, frozen: int) -> int:
        """The T of `lower` for so many patches."""
        return patches + self._leading(frozen)

    def _leading(self, frozen: int) -> int:
        """Leading tokens of what `lower` gives."""
        if frozen == len(self.blocks):
            return 0
        own = self.frozen_blocks and frozen == self.frozen_blocks
        return (self.prefix if own else self.cls_token).shape[1]

    def _lower(self, images: Tensor, frozen: int) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = self._embed(images)
        for block in self.blocks[:self.frozen_blocks]:
            tokens = self._run(block, tokens, None)
        if frozen == self.frozen_blocks:
            return tokens, grid
        tokens = self._enter(tokens) if self.frozen_blocks else tokens
        if frozen == len(self.blocks):
            return self._upper(tokens, grid, self.frozen_blocks).patch_tokens, grid
        bias = self._attention_bias(tokens)
        for block in self.blocks[self.frozen_blocks:frozen]:
            tokens = self._run(block, tokens, bias)
        return tokens, grid

    def _enter(self, tokens: Tensor) -> Tensor:
        """Our leading tokens in place of the backbone's.

        Each is the backbone's class token as it is at this depth plus a learned vector.
        """
        own = tokens[:, :1] + self.cls_token.to(tokens.dtype)
        return torch.cat([own, tokens[:, self.prefix.shape[1]:]], dim=1)

    def _upper(self, tokens: Tensor, grid: tuple[int, int], first: int,
               with_attention: bool = False, only_aux: bool = False) -> EncoderOutput:
        """Blocks from number `first` on and the final norm."""
        aux = attention = None
        bias, last = self._attention_bias(tokens), len(self.blocks) - 1
        for index in range(first, len(self.blocks)):
            block = self.blocks[index]
            if with_attention and index == last:
                attention = self._raw_attention(block, tokens)
            tokens = self._run(block, tokens, bias)
            if index == last:
                tokens = self.norm(tokens)
            if index == self.aux_index:
                aux = tokens
                if only_aux:
                    break
        leading = self.cls_token.shape[1]
        if only_aux:
            return EncoderOutput(None, None, aux[:, leading:], grid)
        return EncoderOutput(tokens[:, self.regularising_tokens:leading], tokens[:, leading:],
                             None if aux is None else aux[:, leading:], grid, attention)

    def attention(self, images: Tensor) -> Tensor:
        """The last block's raw q·k [B,heads,C+N,C+N].

        Without scale, softmax and regularising tokens.
        """
        return self(images, with_attention=True).attention

    def positions(self, image_size: tuple[int, int]) -> Tensor:
        """Position vectors [1,R+C+N,D] for images of (H,W) pixels, see `positions_of`."""
        return positions_of(self.pos_embed, self.cls_token.shape[1], self._grid(image_size),
                            square=image_size[0] == image_size[1])

    def _grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        size = (images.shape[-2], images.shape[-1])
        grid = self._grid(size)
        if min(grid) < 1:
            raise UserError(f"an image of {size[0]}x{size[1]} pixels is smaller than a patch of "
                            f"{self.patch_size}", "use larger images or fewer small scales")
        cut = images[..., :grid[0] * self.patch_size, :grid[1] * self.patch_size]
        patches = self.patch_embed(cut).flatten(1, 2)  # timm's dynamic size gives [B,h,w,D]
        if self.frozen_blocks:
            positions = self.positions(size)[:, self.cls_token.shape[1]:]
            leading = self.prefix.expand(images.shape[0], -1, -1).to(patches.dtype)
            return self.norm_pre(torch.cat([leading, patches + positions], dim=1)), grid
        leading = self.cls_token.expand(images.shape[0], -1, -1).to(patches.dtype)
        tokens = torch.cat([leading, patches], dim=1)
        return self.norm_pre(tokens + self.positions(size)), grid

    def _attention_bias(self, tokens: Tensor) -> Tensor | None:
        """What is added to the attention scores, [1,1,1,R+C+N]; None with "full" attention."""
        if not self.shared_attention:
            return None
        leading = self.cls_token.shape[1]
        bias = tokens.new_zeros(1, 1, 1, tokens.shape[1])
        bias[..., :leading] = -log(leading)
        return bias

    def _run(self, block: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
        options = {} if bias is None else {"attn_mask": bias}
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False, **options)
        if (self.recompute_cheap and torch.is_grad_enabled()
                and block._compiled_call_impl is None):
            with keep_less(block):
                return block(tokens, **options)
        return block(tokens, **options)

    def _raw_attention(self, block: nn.Module, tokens: Tensor) -> Tensor:
        attention = getattr(block, "attn", None)
        if not hasattr(attention, "qkv") or not hasattr(block, "norm1"):
            raise UserError(f"raw attention cannot be read from {type(block).__name__}",
                            "use a plain ViT for attention maps")
        batch, count, _ = tokens.shape
        heads = attention.num_heads
        qkv = attention.qkv(block.norm1(tokens)).reshape(batch, count, 3, heads, -1)
        query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attention.q_norm(query), attention.k_norm(key)
        drop = self.regularising_tokens
        return query[:, :, drop:] @ key[:, :, drop:].transpose(-2, -1)
