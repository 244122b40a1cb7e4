"""Uncertain-region term (URE): uncertain patches move to present classes (§4.6, §4.7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from more.localization.regions import IGNORE
from more.losses.precision import Reduce, counts, full

BORDER = 3  # rows and columns cut from every side of the grid
WINDOW = 2 * BORDER
MEAN_REGION = 1.2  # least mean of the region map (0 background, 1 uncertain, 2 class)


def check_grid(height: int, width: int) -> None:
    """Raise ValueError when a patch grid is too small for the selection (6 or less a side)."""
    if min(height, width) <= WINDOW:
        raise ValueError(
            f"the uncertain-region term needs a patch grid of at least {WINDOW + 1} x {WINDOW + 1},"
            f" this one is {height} x {width}: use a larger crop or a smaller patch"
        )


def _regions(mask: Tensor) -> Tensor:
    """`[B, h, w]` float: 0 background, 1 uncertain, 2 a class."""
    return torch.where(mask == IGNORE, 1.0, torch.where(mask > 0, 2.0, 0.0))


def _cut(x: Tensor) -> Tensor:
    return x[..., BORDER:-BORDER, BORDER:-BORDER]


def uncertain_candidates(mask: Tensor) -> Tensor:
    """Uncertain patches with object around them: mean region of the window at least 1.2.

    (36 whole numbers never have the mean 1.2, so the paper's "more than" is the same.)

    Args: mask `[B, h, w]`, 255 uncertain.
    Returns: bool `[B, h-6, w-6]`; entry (i, j) speaks of pixel (i+3, j+3) and of the window of
    6 x 6 pixels that begins at (i, j).
    Raises: ValueError for a grid of 6 or less on a side.
    """
    check_grid(*mask.shape[-2:])
    regions = _regions(mask)
    sums = F.avg_pool2d(regions[:, None], WINDOW, stride=1, divisor_override=1)[:, 0, :-1, :-1]
    return (_cut(mask) == IGNORE) & (sums >= MEAN_REGION * WINDOW**2)


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
        mask: `[B, h, w]`. keys: uniform numbers `[B, 2, h·w]`, the first row ranks candidates and
            the second supplements; drawn from `generator` when not given.
        shift: released: the token taken is 3 rows and columns before the pixel that was tested;
            False: the tested one (paper).
        most: None takes every candidate and adds nothing (paper).

    Returns: (positions int64 `[B, M, 2]` as row, column of the full grid; valid bool `[B, M]`).
    Raises: ValueError for a grid of 6 or less on a side.
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
        classes = _cut(_regions(mask)).flatten(1) == 2
        chosen, valid = _draw(flat, classes, keys, most)
    positions = torch.stack([chosen // columns, chosen % columns], dim=-1)
    return (positions if shift else positions + BORDER), valid


def _draw(candidates: Tensor, classes: Tensor, keys: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Indices `[B, M]` into the cut map and which of them count, M at most `most`."""
    found = candidates.sum(dim=1, keepdim=True)
    missing = (most - found).clamp(min=0) // 4
    first, first_valid = _top(candidates, keys[:, 0], most)
    enough = classes.sum(dim=1, keepdim=True) >= missing
    second, second_valid = _top(classes | ~enough, keys[:, 1], most // 4)
    wanted = torch.arange(second.shape[1], device=second.device) < missing
    chosen = torch.cat([first, second], dim=1)
    valid = torch.cat([first_valid, second_valid & wanted], dim=1)
    order = valid.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return chosen.gather(1, order), valid.gather(1, order)


def _top(pool: Tensor, keys: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The members of `pool` `[B, P]` with the largest keys, best first, and which are members."""
    values, index = keys.masked_fill(~pool, -1.0).topk(min(number, pool.shape[1]), dim=1)
    return index, values >= 0


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
        class_tokens: `[B, C, D]`, no gradient reaches them. patch_tokens: `[B, D, h, w]`.
        tags: `[B, C]`. positions, valid: from `select_uncertain`.
        reduce: gives the mean over ranks of the number of chosen patches.
        form: "released", or "paper": signed cosine and plain means.

    Returns: a scalar, 0 with zero gradient where nothing was chosen.
    """
    tokens = F.normalize(full(class_tokens.detach()), dim=-1, eps=1e-8)
    index = positions[..., 0] * patch_tokens.shape[-1] + positions[..., 1]
    # Patches as rows: so they leave the network, and so their gradient is one piece per patch.
    rows = patch_tokens.flatten(2).transpose(1, 2)
    rows = rows.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, rows.shape[-1]))
    chosen = F.normalize(full(rows), dim=-1, eps=1e-8)
    similarity = tokens @ chosen.transpose(1, 2)
    present = (tags > 0).to(similarity.dtype)
    numbers = torch.stack([present.sum(dim=1), (1 - present).sum(dim=1)])
    if form == "released":
        similarity, numbers = similarity.abs(), numbers + 1
    elif form == "paper":
        numbers = numbers.clamp(min=1)
    else:
        raise ValueError(f"URE form is 'released' or 'paper', not {form!r}")
    pull = torch.einsum("bcm,bc->bm", similarity, present / numbers[0, :, None])
    push = torch.einsum("bcm,bc->bm", similarity, (1 - present) / numbers[1, :, None])
    losses = torch.where(valid, 0.5 * (1 - pull) + 0.5 * push, 0.0)
    (number,) = counts([valid.sum().to(losses.dtype)], reduce)
    return losses.sum() / torch.where(number > 0, number, 1.0)
