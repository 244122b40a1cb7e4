"""Class tokens and position embeddings: their resizing and their start from an ImageNet ViT.

R regularising tokens, C class tokens, N patches, D channels; s×s patches of the native image, h×w
of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from more.config.schema import ModelConfig
from more.errors import UserError

NEIGHBOUR_STD = 0.02  # spread of the position vectors of a usual ViT


@dataclass(frozen=True)
class SourceTokens:
    """Tokens and position vectors of a plain ViT."""

    class_token: Tensor  # [1,1,D]
    registers: Tensor | None  # [1,R,D]
    class_position: Tensor  # [1,1,D]
    register_positions: Tensor | None  # [1,R,D]
    patch_positions: Tensor  # [1,s·s,D]


def source_tokens(state: dict[str, Tensor], prefix: int, origin: str) -> SourceTokens:
    """Read the tokens of a state dict in timm's names.

    Args:
        state: tensors by name; needs `pos_embed`, may have `cls_token`, `reg_token`.
        prefix: leading tokens that have a position vector in timm's model of this backbone.
        origin: name of the file, for messages.

    Raises:
        UserError: `pos_embed` is missing or does not hold a square grid of patches.
    """
    positions = state.get("pos_embed")
    if positions is None:
        raise UserError(f"{origin}: no tensor pos_embed", "use a ViT with learned positions")
    positions = positions.float().reshape(1, -1, positions.shape[-1])
    count = positions.shape[1]
    prefix = _prefix_length(count, prefix, origin, "dist_token" in state)
    leading, patches = positions[:, :prefix], positions[:, prefix:]
    registers = state.get("reg_token", state.get("register_tokens"))
    # DeiT III, DINOv2 with registers and their kin give no position to the class token.
    nothing = torch.zeros_like(positions[:, :1])
    token = state.get("cls_token")
    if token is None:
        token = nn.init.trunc_normal_(torch.empty_like(nothing), std=NEIGHBOUR_STD)
        leading = leading[:, :0]
    known = registers is not None and prefix == 1 + registers.shape[1]
    return SourceTokens(
        class_token=token.float(),
        registers=None if registers is None else registers.float(),
        class_position=leading[:, :1] if leading.shape[1] else nothing,
        register_positions=leading[:, 1:] if known else None,
        patch_positions=patches)


@torch.no_grad()
def start_tokens(cls_token: Tensor, pos_embed: Tensor, source: SourceTokens, regularising: int,
                 start: ModelConfig) -> None:
    """Fill `cls_token` [1,R+C,D] and `pos_embed` [1,R+C+N,D] in place (method of the release).

    All leading tokens become copies of the source's class token and its position vector; the
    patch part is resized bicubically by size; the R regularising tokens then follow `start`.

    Args:
        cls_token: filled in place.
        pos_embed: filled in place.
        source: of the backbone.
        regularising: R.
        start: its `token_init`, `token_noise`, `register_init` and `regularising_std` count.

    Raises:
        UserError: `register_init` is "registers" and the source has too few of them.
    """
    leading = cls_token.shape[1]
    cls_token.copy_(source.class_token.expand_as(cls_token))
    if start.token_init == "perturbed":
        cls_token[:, regularising:] += start.token_noise * torch.randn_like(
            cls_token[:, regularising:])
    pos_embed[:, :leading] = source.class_position
    side = isqrt(pos_embed.shape[1] - leading)
    pos_embed[:, leading:] = resize_positions(source.patch_positions, (side, side))
    if start.register_init == "registers":
        _copy_registers(cls_token, pos_embed, source, regularising)
    elif regularising:
        std = NEIGHBOUR_STD if start.register_init == "small" else start.regularising_std
        fresh = torch.zeros_like(pos_embed[:, :regularising])
        if std > 0:
            nn.init.trunc_normal_(fresh, std=std, a=-2, b=2)
        pos_embed[:, :regularising] = fresh


@torch.no_grad()
def start_above(cls_token: Tensor, pos_embed: Tensor, prefix: Tensor, source: SourceTokens,
                start: ModelConfig) -> None:
    """Fill the tokens of an encoder with frozen blocks, in place.

    Args:
        cls_token: [1,R+C,D], vectors added to the backbone's class token: zero, or noise with
            "perturbed" tokens.
        pos_embed: [1,R+C+N,D]; the patches' part is the backbone's, resized; the rest is not used.
        prefix: [1,P,D], the backbone's leading tokens with their positions.
        source: of the backbone.
        start: its `token_init` and `token_noise` count.
    """
    nn.init.zeros_(cls_token)
    if start.token_init == "perturbed":
        cls_token += start.token_noise * torch.randn_like(cls_token)
    leading = cls_token.shape[1]
    nn.init.zeros_(pos_embed)
    side = isqrt(pos_embed.shape[1] - leading)
    pos_embed[:, leading:] = resize_positions(source.patch_positions, (side, side))
    prefix[:, :1] = source.class_token + source.class_position
    if prefix.shape[1] > 1:
        places = source.register_positions
        prefix[:, 1:] = source.registers + (0 if places is None else places)


def positions_of(pos_embed: Tensor, leading: int, grid: tuple[int, int], square: bool) -> Tensor:
    """Position vectors [1,R+C+h·w,D] for the tokens of an image.

    The native number of patches of a square image takes them as they are. Otherwise the patch part
    is resized by the factors (h+0.1)/s and (w+0.1)/s; the 0.1 keeps the floor of the size from
    falling short and moves the sampling points, as in the release.

    Args:
        pos_embed: [1,R+C+s·s,D].
        leading: R+C.
        grid: rows h and columns w of the image's patches.
        square: whether the image is as high as wide, in pixels.
    """
    native = pos_embed.shape[1] - leading
    if grid[0] * grid[1] == native and square:
        return pos_embed
    side = isqrt(native)
    factors = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    patches = resize_positions(pos_embed[:, leading:], grid, factors)
    return torch.cat([pos_embed[:, :leading], patches], dim=1)


def resize_positions(positions: Tensor, grid: tuple[int, int],
                     factors: tuple[float, float] | None = None) -> Tensor:
    """Resize position vectors [1,s·s,D] bicubically to [1,h·w,D], corners not aligned.

    Args:
        positions: vectors of a square grid in row-major order.
        grid: wanted rows and columns (h, w).
        factors: scale factors that set the source coordinates in place of h/s and w/s.
    """
    side = isqrt(positions.shape[1])
    if factors is None and grid == (side, side):
        return positions
    square = positions.float().reshape(1, side, side, -1)
    if positions.is_cuda:
        resized = resize_by_products(square, grid, factors)
    else:
        resized = _bicubic(square.permute(0, 3, 1, 2), grid, factors).permute(0, 2, 3, 1)
    return resized.flatten(1, 2).to(positions.dtype)


def resize_by_products(square: Tensor, grid: tuple[int, int],
                       factors: tuple[float, float] | None = None) -> Tensor:
    """[1,s,s,D] to [1,h,w,D] as `resize_positions` has it, by products with two small matrices.

    The same up to rounding. CUDA's bicubic kernel goes through all D channels in every thread: a
    fifth of the time of all CAM views of a ViT-B.
    """
    side = square.shape[1]
    ones = torch.eye(side, dtype=square.dtype, device=square.device)
    factors = factors or (None, None)
    rows, columns = (
        _bicubic(ones[None, :, :, None], (size, 1), factor and (factor, 1.0))[0, :, :, 0].T
        for size, factor in zip(grid, factors, strict=True))
    with torch.autocast(square.device.type, enabled=False):
        return torch.einsum("ys,xt,bstd->byxd", rows, columns, square)


def _bicubic(maps: Tensor, size: tuple[int, int],
             factors: tuple[float, float] | None) -> Tensor:
    """Maps [1,C,s,t] at `size`, or by `factors`, which then set the source coordinates."""
    if factors is None:
        return F.interpolate(maps, size=size, mode="bicubic", align_corners=False)
    return F.interpolate(maps, scale_factor=factors, mode="bicubic", align_corners=False,
                         recompute_scale_factor=False)


def _copy_registers(cls_token: Tensor, pos_embed: Tensor, source: SourceTokens,
                    regularising: int) -> None:
    found = 0 if source.registers is None else source.registers.shape[1]
    if found < regularising:
        raise UserError(
            f"model.register_init is 'registers', but the weights hold {found} register tokens "
            f"for model.regularising_tokens = {regularising}",
            "use a backbone with registers (…_reg4_dinov2) or model.register_init=small")
    cls_token[:, :regularising] = source.registers[:, :regularising]
    places = source.register_positions
    pos_embed[:, :regularising] = 0 if places is None else places[:, :regularising]


def _prefix_length(count: int, expected: int, origin: str, distilled: bool) -> int:
    for prefix in dict.fromkeys((expected, 1, 0)):
        if count > prefix and isqrt(count - prefix) ** 2 == count - prefix:
            return prefix
    raise UserError(f"{origin}: pos_embed holds {count} vectors, which is no square grid of "
                    f"patches after {expected} leading tokens", _grid_advice(count, distilled))


MOST_LEADING = 17  # a class token and 16 registers


def _grid_advice(count: int, distilled: bool) -> str:
    """What to do about positions that are no square grid after the expected leading tokens."""
    square = [n for n in range(2, MOST_LEADING + 1)
              if count > n and isqrt(count - n) ** 2 == count - n]
    if distilled and 2 in square:
        return ("these weights have a position for a distillation token: choose their own backbone "
                "(deit_…_distilled_…)")
    if square:
        side, number = isqrt(count - square[0]), square[0]
        return (f"after {number} leading tokens they are a grid of {side}×{side}: choose the "
                f"backbone that they belong to, with {number - 1} registers (…_reg{number - 1}_…)"
                + (" or a distillation token (deit_…_distilled_…)" if number == 2 else ""))
    return "use weights trained on square images"
