"""Seeds of one image: class maps or probabilities at low resolution, as stored in seed shards.

Bytes of a seed (little endian): magic `SD1\\0`, uint16 K, uint16 h, uint16 w, uint16 keys `[K]`,
float16 maps `[K, h, w]`. Key 0 is an explicit background (probabilities of the decoder); keys
1..C are pixel values of classes. Seeds of CAM or LAM hold the image's classes only and no key 0.

K is the number of maps, h and w their height and width, H and W those of the image.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import numpy as np

from more.errors import UserError

_MAGIC = b"SD1\0"
_HEADER = struct.Struct("<4sHHH")
_CHANNELS = 64  # OpenCV 5 takes at most 128 channels in one call


@dataclass(frozen=True)
class SeedItem:
    """Maps of one image.

    Attributes:
        keys: `[K]` pixel values, strictly increasing; 0 only where the background is explicit.
        maps: `[K, h, w]` float16 in 0..1.
    """

    keys: np.ndarray
    maps: np.ndarray


def encode_seed(item: SeedItem) -> bytes:
    """The bytes of a seed, as shards store them.

    Args:
        item: keys of any integer type, maps of any float type.

    Returns:
        The bytes, see the top of this file.

    Raises:
        ValueError: shapes that do not fit, keys not increasing in 0..254, a value that is not
            finite as float16.
    """
    keys, maps = np.asarray(item.keys, np.int64), np.asarray(item.maps)
    if keys.ndim != 1 or maps.ndim != 3 or len(keys) != len(maps):
        raise ValueError(f"seed with keys {keys.shape} and maps {maps.shape}")
    if len(keys) and (keys[0] < 0 or keys[-1] > 254 or (np.diff(keys) <= 0).any()):
        raise ValueError(f"seed keys {keys.tolist()} must increase within 0..254")
    with np.errstate(over="ignore"):
        maps = maps.astype("<f2")
    if not np.isfinite(maps).all():
        raise ValueError("seed maps are not finite")
    return _HEADER.pack(_MAGIC, *maps.shape) + keys.astype("<u2").tobytes() + maps.tobytes()


def decode_seed(data: bytes) -> SeedItem:
    """The seed in the bytes of `encode_seed`.

    Args:
        data: the bytes.

    Returns:
        The seed, keys uint16 and maps float16.

    Raises:
        ValueError: the bytes are not a seed, or were cut.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError("not a seed")
    _, count, height, width = _HEADER.unpack_from(data)
    start = _HEADER.size + 2 * count
    if len(data) != start + 2 * count * height * width:
        raise ValueError("seed is cut or too long")
    keys = np.frombuffer(data, "<u2", count, _HEADER.size).astype(np.uint16)
    maps = np.frombuffer(data, "<f2", count * height * width, start).astype(np.float16)
    return SeedItem(keys, maps.reshape(count, height, width))


def seed_probabilities(item: SeedItem, size: tuple[int, int],
                       threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Maps at image size with background first, as the CRF takes them (method §4.12).

    An explicit background is used as it is; otherwise it is 1 - max over the class maps. The
    values need not sum to one.

    Args:
        item: the seed.
        size: height and width of the image.
        threshold: T in 0..1, the value of a class map at which class and background are equally
            likely. The values v of the maps are changed so that T becomes 0.5: v/(2T) up to T,
            and 0.5 + (v - T)/(2(1 - T)) above. T = 0.5 leaves them as they are.

    Returns:
        keys `[K]` with 0 first, and probabilities `[K, H, W]` float32.

    Raises:
        UserError: another threshold than 0.5 for a seed with an explicit background.
    """
    maps = _resize(item.maps, size)
    keys = np.asarray(item.keys, np.uint16)
    if len(keys) and keys[0] == 0:
        if threshold != 0.5:
            raise UserError(f"threshold {threshold} for a seed with a background of its own",
                            fix="leave the threshold out")
        return keys, maps
    if threshold != 0.5:
        maps = _move_threshold(maps, np.float32(threshold))
    background = 1.0 - maps.max(0, initial=0.0, keepdims=True)
    return np.concatenate([[0], keys]).astype(np.uint16), np.concatenate([background, maps])


def _move_threshold(maps: np.ndarray, threshold: np.float32) -> np.ndarray:
    """Values 0..1 to 0..1, piecewise linear, so that the threshold becomes 0.5."""
    half = np.float32(0.5)
    return np.where(maps < threshold, maps * (half / threshold),
                    half + (maps - threshold) * (half / (1 - threshold)))


def seed_label(item: SeedItem, size: tuple[int, int], threshold: float) -> np.ndarray:
    """The label map of a seed without a CRF.

    Args:
        item: the seed.
        size: height and width of the image.
        threshold: values up to and including it are background; not used where the background
            is explicit.

    Returns:
        uint8 `[H, W]`: 0 background, 1..C; of equal values the first class.
    """
    return plain_label(item, *seed_probabilities(item, size), threshold)


def plain_label(item: SeedItem, keys: np.ndarray, maps: np.ndarray,
                threshold: float) -> np.ndarray:
    """`seed_label` of a seed whose maps are at the size of the image already.

    Args:
        item: the seed.
        keys, maps: `[K]` and `[K, H, W]` from `seed_probabilities`, its threshold left out.
        threshold: as for `seed_label`.

    Returns:
        uint8 `[H, W]`.
    """
    if len(item.keys) and item.keys[0] == 0:
        return keys[maps.argmax(0)].astype(np.uint8)
    if len(keys) == 1:
        return np.zeros(maps.shape[1:], np.uint8)
    label = keys[1:][maps[1:].argmax(0)]
    return np.where(maps[1:].max(0) <= np.float32(threshold), 0, label).astype(np.uint8)


def _resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`[K, h, w]` → float32 `[K, H, W]`, bilinear, corners not aligned, as PyTorch does."""
    height, width = size
    if not len(maps):
        return np.zeros((0, height, width), np.float32)
    planes = np.ascontiguousarray(np.asarray(maps, np.float32).transpose(1, 2, 0))
    parts = [cv2.resize(np.ascontiguousarray(planes[..., start:start + _CHANNELS]),
                        (width, height), interpolation=cv2.INTER_LINEAR)
             .reshape(height, width, -1) for start in range(0, len(maps), _CHANNELS)]
    return np.ascontiguousarray(np.concatenate(parts, 2).transpose(2, 0, 1))
