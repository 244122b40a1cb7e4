"""Where the real image lies in a padded one: boxes (y0, y1, x0, x1), ends excluded.

B batch, H rows, W columns.
"""

from __future__ import annotations

from torch import Tensor

from more.constants import constant, counting


def box_mask(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels lie inside a box.

    Args:
        box: `[B, 4]`, in pixels.
        size: height and width.

    Returns:
        bool `[B, H, W]`.
    """
    height, width = size
    sides = box.unflatten(1, (2, 2, 1))  # of rows and of columns: first, end
    places = counting(max(size), box)
    inside = (places >= sides[:, :, 0]) & (places < sides[:, :, 1])
    return inside[:, 0, :height, None] & inside[:, 1, None, :width]


def scale_box(box: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """A box `[B, 4]` in pixels of `size` as one in cells of `new_size`, whole cells only.

    Rounded inwards, so that no cell inside the new box touches a pixel outside the old one.
    """
    (height, width), (rows, columns) = size, new_size
    new = constant((rows, rows, columns, columns), box)
    old = constant((height, height, width, width), box)
    up = constant((height - 1, 0, width - 1, 0), box)  # the first cell is rounded up
    return (box * new + up) // old
