"""Pictures as people hand them over: a path, a PIL image or an array, all to RGB uint8 arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from more.data.shards.codec import decode_whole, pillow_pixels
from more.data.shards.format import sha256_bytes
from more.errors import UserError, from_system

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray"

_FIX = "give a path, a PIL image, or an RGB array of uint8 and of shape height × width × 3"


@dataclass(frozen=True)
class Pixels:
    """A picture in memory.

    Attributes:
        image: RGB uint8 `[H, W, 3]`, as stored: an EXIF rotation is not applied.
        file: where it was read from, if anywhere.
        sha256: of the bytes of that file; None for a picture that was in memory already, which
            may differ from its file.
    """

    image: np.ndarray
    file: Path | None = None
    sha256: str | None = None


def is_picture(value: Any) -> bool:
    """Whether a value stands for one picture (and not for several of them)."""
    return isinstance(value, str | os.PathLike | Image.Image | np.ndarray)


def read_pixels(picture: Picture) -> Pixels:
    """Read a picture.

    Args:
        picture: path of an image file of any format that `more predict` reads, PIL image, or RGB
            array uint8 `[H, W, 3]`.

    Returns:
        Its pixels.

    Raises:
        UserError: no such file, a damaged one, or an array of another type or shape.
    """
    if isinstance(picture, str | os.PathLike):
        return _read_file(Path(picture))
    if isinstance(picture, Image.Image):
        name = getattr(picture, "filename", "")
        file = Path(os.fsdecode(name)) if name else None
        return Pixels(pillow_pixels(picture, str(file or "the PIL image")), file)
    if not isinstance(picture, np.ndarray):
        raise UserError(f"a picture of type {type(picture).__name__} cannot be read", fix=_FIX)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"a picture is uint8 and height × width × 3, not {picture.dtype} "
                        f"{' × '.join(map(str, picture.shape))}", fix=_FIX)
    return Pixels(np.ascontiguousarray(picture))


def _read_file(path: Path) -> Pixels:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", fix="give the path of an image") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not an image",
                        fix="give a list of the images in it, as in sorted(folder.glob('*.jpg'))"
                        ) from None
    except OSError as error:
        raise from_system(error) or UserError(
            f"{path}: cannot be read ({error.strerror})") from error
    return Pixels(decode_whole(data, str(path)), path, sha256_bytes(data))
