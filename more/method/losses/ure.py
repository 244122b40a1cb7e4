"""Term `ure`, uncertain regions: uncertain patches move to present classes (method §4.6, §4.7).

B batch, C classes, D channels, h×w patches, M chosen patches, P places of the cut grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from more.method.labels import IGNORE
from more.tensors import EPS, Reduce, counts, full

BORDER = 3  # rows and columns cut from every side of the grid
WINDOW = 2 * BORDER
ONE = 0x3F800000  # the bits of 1.0 in float32
MEAN_REGION = 1.2  # least mean of the region map (0 background, 1 uncertain, 2 class)


def check_grid(height: int, width: int) -> None:
    """Raise ValueError when a patch grid is too small for the selection (6 or less a side)."""
    if min(height, width) <= WINDOW:
        raise ValueError(
            f"the uncertain-region term needs a patch grid of at least {WINDOW + 1} x {WINDOW + 1},"
            f" this one is {height} x {width}: use a larger crop or a smaller patch"
        )


def _with_class(mask: Tensor) -> Tensor:
    return (mask > 0) & (mask != IGNORE)


def _cut(x: Tensor) -> Tensor:
    return x[..., BORDER:-BORDER, BORDER:-BORDER]


def uncertain_candidates(mask: Tensor) -> Tensor:
    """Uncertain patches with object around them: mean region of the window at least 1.2.

    (36 whole numbers never have the mean 1.2, so the paper's "more than" is the same.)

    Args:
        mask: `[B, h, w]`, 255 uncertain.

    Returns:
        bool `[B, h-6, w-6]`; entry (i, j) is about patch (i+3, j+3) and the window of 6×6 patches
        that begins at (i, j).

    Raises:
        ValueError: the grid has 6 patches or less on a side.
    """
    check_grid(*mask.shape[-2:])
    uncertain = mask == IGNORE
    regions = (mask > 0).float() + _with_class(mask)  # 0 background, 1 uncertain, 2 a class
    # A box filter by rows and by columns; the last window of each belongs to no pixel.
    sums = regions.unfold(2, WINDOW, 1)[:, :, :-1].sum(-1).unfold(1, WINDOW, 1)[:, :-1].sum(-1)
    return (sums >= MEAN_REGION * WINDOW**2).logical_and_(_cut(uncertain))


def random_keys(
    batch: int,
    grid: tuple[int, int],
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers `[batch, 2, h·w]` that decide URE's random choices."""
    return torch.rand(batch, 2, grid[0] * grid[1], generator=generator, device=device)


def select_uncertain(
    mask: Tensor,
    keys: Tensor | None = None,
    generator: torch.Generator | None = None,
    shift: bool = True,
    most: int | None = 8,
) -> tuple[Tensor, Tensor]:
    """Choose the patches that URE acts on.

    More than `most` candidates: `most` of them at random. Otherwise all, and ⌊(most-n)/4⌋ drawn
    from the class patches of the cut map, or from the whole cut map where too few have a class.

    Args:
        mask: `[B, h, w]`, 255 uncertain.
        keys: uniform numbers `[B, 2, h·w]`, the first row ranks candidates and the second
            supplements; drawn from `generator` when not given.
        generator: of the random choice, without `keys`.
        shift: released: the token taken is 3 rows and columns before the pixel that was tested;
            False: the tested one (paper).
        most: None takes every candidate and adds nothing (paper).

    Returns:
        Positions int64 `[B, M, 2]` as row, column of the full grid, and which are valid, bool
        `[B, M]`.

    Raises:
        ValueError: the grid has 6 patches or less on a side.
    """
    candidates = uncertain_candidates(mask)
    batch, rows, columns = candidates.shape
    flat = candidates.flatten(1)
    if most is None:
        chosen = torch.arange(rows * columns, device=mask.device).expand(batch, -1)
        valid = flat
    else:
        if keys is None:
            keys = random_keys(batch, tuple(mask.shape[-2:]), generator, mask.device)
        keys = keys.view(batch, 2, *mask.shape[-2:])[..., :rows, :columns].flatten(2)
        chosen, valid = _draw(flat, _cut(_with_class(mask)).flatten(1), keys, most)
    positions = torch.stack([chosen // columns, chosen % columns], dim=-1)
    return (positions if shift else positions + BORDER), valid


def _draw(candidates: Tensor, classes: Tensor, keys: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Indices `[B, M]` into the cut map and which of them count, M at most `most`.

    Args:
        candidates: bool `[B, P]`.
        classes: bool `[B, P]`, patches with a class.
        keys: `[B, 2, P]` in 0..1.
        most: largest number of patches.
    """
    found, classified = torch.stack([candidates, classes]).sum(dim=-1, keepdim=True)
    missing = (most - found).clamp_(min=0).div_(4, rounding_mode="floor")
    pools = torch.stack([candidates, classes | (classified < missing)], dim=1)
    # One order for both draws: the bits of floats from 0 to 1 are whole numbers in the same order,
    # at most ONE; the first draw's stand above all of the second's.
    first, second = keys.float().view(torch.int32).unbind(1)
    ranks, places = torch.stack([first + (ONE + 1), second], dim=1), pools.shape[-1]
    values, chosen = torch.where(pools, ranks, -1).flatten(1).topk(min(most, 2 * places), dim=1)
    drawn = torch.arange(chosen.shape[1], device=chosen.device) < found + missing
    return chosen % places, drawn & (values >= 0)


def uncertain_region_loss(
    class_tokens: Tensor,
    patch_tokens: Tensor,
    tags: Tensor,
    positions: Tensor,
    valid: Tensor,
    reduce: Reduce | None = None,
    form: str = "released",
) -> Tensor:
    """Pull the chosen patches to the present classes and push them off the absent ones.

    With `z = |n·u|` of unit tokens n and unit patches u, per patch:
    `½(1 - Σ_present z/(#present+1)) + ½ Σ_absent z/(#absent+1)`, averaged over all chosen patches.

    Args:
        class_tokens: `[B, C, D]`, no gradient reaches them.
        patch_tokens: `[B, D, h, w]`.
        tags: `[B, C]`.
        positions: from `select_uncertain`.
        valid: from `select_uncertain`.
        reduce: gives the mean over ranks and passes of the number of chosen patches, or is that
            mean `[1]`.
        form: "released", or "paper": signed cosine and plain means.

    Returns:
        A scalar, 0 with zero gradient where nothing was chosen.

    Raises:
        ValueError: unknown form.
    """
    dtype = torch.promote_types(patch_tokens.dtype, torch.float32)
    weights = _class_weights(tags > 0, form, dtype)
    (chosen,) = counts(lambda: [valid.sum(dtype=dtype)], reduce)
    shares = valid / chosen.clamp(min=torch.finfo(chosen.dtype).tiny)
    # Patches as rows: so they leave the network, and so their gradient is one piece per patch.
    rows = patch_tokens.flatten(2).transpose(1, 2)
    index = (positions[..., 0] * patch_tokens.shape[-1]).add_(positions[..., 1]).clamp_(min=0)
    gradient = torch.is_grad_enabled() and rows.requires_grad
    return _ChosenPatches.apply(class_tokens.detach(), rows, index, weights, shares,
                                form == "released", gradient)


def _class_weights(present: Tensor, form: str, dtype: torch.dtype) -> Tensor:
    """What the similarity to each class counts, `[B, C]`: negative for present classes."""
    number = present.sum(dim=1, keepdim=True, dtype=dtype)
    absent = present.shape[1] - number
    if form == "released":
        number, absent = number + 1, absent + 1
    elif form == "paper":
        number, absent = number.clamp(min=1), absent.clamp(min=1)
    else:
        raise ValueError(f"URE form is 'released' or 'paper', not {form!r}")
    return torch.where(present, -0.5 / number, 0.5 / absent)


class _ChosenPatches(torch.autograd.Function):
    """`Σ_m share·(½ + Σ_c weight·z)` over chosen patches; value and gradient in one go."""

    @staticmethod
    def forward(ctx, tokens, rows, index, weights, shares, magnitude, gradient) -> Tensor:
        """tokens `[B, C, D]`, rows `[B, N, D]`, index and shares `[B, M]`, weights `[B, C]`."""
        tokens = full(tokens)
        chosen = full(rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1])))
        lengths, sizes = _lengths(chosen)[..., None], _lengths(tokens)
        products = chosen @ tokens.transpose(1, 2)  # [B, M, C]
        factors = (weights / sizes)[:, None]
        factors = products.sign().mul_(factors) if magnitude else factors.expand_as(products)
        sums = (factors * products).sum(dim=-1, keepdim=True).div_(lengths)
        if gradient:
            # Of u = f/|f|: du/df = (1 - u·uᵀ)/|f|, and 1/eps alone where F.normalize takes eps.
            along = torch.where(lengths > EPS, sums / lengths, 0)
            slope = torch.baddbmm(along * chosen, factors, tokens, beta=-1)
            slope *= shares[..., None] / lengths
            ctx.save_for_backward(index, slope)
            ctx.size, ctx.dtype = rows.shape, rows.dtype
        return (shares[..., None] * (sums + 0.5)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream) -> tuple[None, Tensor, None, None, None, None, None]:
        """Gradient for the rows only; a patch that was chosen twice gets both parts."""
        index, slope = ctx.saved_tensors
        batch, patches, dim = ctx.size
        first = torch.arange(0, batch * patches, patches, device=index.device)[:, None]
        rows = slope.new_zeros(batch * patches, dim, dtype=ctx.dtype)
        # Upstream first: without a loss scale small numbers would be 0 in fp16.
        parts = (slope * upstream).to(ctx.dtype).flatten(0, 1)
        rows.index_add_(0, (index + first).flatten(), parts)
        return None, rows.view(ctx.size), None, None, None, None, None


def _lengths(x: Tensor) -> Tensor:
    """Of vectors along the last axis, at least what `F.normalize` divides by."""
    return torch.linalg.vector_norm(x, dim=-1).clamp_(min=EPS)
