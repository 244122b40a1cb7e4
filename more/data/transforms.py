"""Image to network input: random views for training, plain resizing for inference.

NumPy and OpenCV on 8-bit pixels. Every random choice comes from the generator that is passed in, so
a view is a pure function of (seed, epoch, index).

H and W are the height and width of an image, S is the side of a view, K the number of maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from more.data.colours import UNCHANGED, draw_jitter, jitter_pil
from more.tensors import MEAN, STD


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one view of one sample, independent of workers and ranks."""
    return np.random.default_rng([seed, epoch, index])


def normalise(image: np.ndarray, mean: tuple[float, ...] = MEAN,
              std: tuple[float, ...] = STD) -> np.ndarray:
    """(pixel - mean) / std.

    Args:
        image: RGB `[H, W, 3]` in 0..255.
        mean: of RGB in 0..255.
        std: of RGB in 0..255.

    Returns:
        float32 `[3, H, W]`.
    """
    scale = 1 / np.asarray(std, np.float32)
    shifted = image.astype(np.float32) * scale - np.asarray(mean, np.float32) * scale
    return np.ascontiguousarray(shifted.transpose(2, 0, 1))


def inference_image(image: np.ndarray, size: int, mean: tuple[float, ...] = MEAN,
                    std: tuple[float, ...] = STD) -> np.ndarray:
    """An image resized to a square and normalised; its aspect ratio is lost.

    Bilinear, in float and without smoothing, as the released inference does (method §4.12).

    Args:
        image: RGB uint8 `[H, W, 3]`.
        size: side of the square in pixels.
        mean: of RGB in 0..255.
        std: of RGB in 0..255.

    Returns:
        float32 `[3, size, size]`.
    """
    resized = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return normalise(resized, mean, std)


def resize(image: np.ndarray, height: int, width: int,
           out: np.ndarray | None = None) -> np.ndarray:
    """Resize by area average where both sides shrink (no aliasing), else bilinear.

    Args:
        image: uint8 `[H, W, 3]`.
        height: of the result, in pixels.
        width: of the result, in pixels.
        out: uint8 `[height, width, 3]` to write the result to.

    Returns:
        uint8 `[height, width, 3]`, `out` if it was given.
    """
    shrinks = height < image.shape[0] and width < image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=out, interpolation=mode)


def resize_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as the released code does: Pillow's bilinear filter, which smooths when it shrinks.

    Args:
        image: RGB uint8 `[H, W, 3]`.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        uint8 `[height, width, 3]`.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


class View(NamedTuple):
    """A random view of an image.

    Attributes:
        pixels: uint8 `[S, S, 3]`, RGB.
        jitter: float32 `[13]`, colour changes still to be applied, see `more.data.colours`.
        box: int64 `[4]`, y0, y1, x0, x1 of real content in the view, ends exclusive.
        window: float64 `[5]`, what the box shows of the image: top, left, height and width in
            pixels, and 1 if it is mirrored.
    """

    pixels: np.ndarray
    jitter: np.ndarray
    box: np.ndarray
    window: np.ndarray


@dataclass(frozen=True)
class TrainTransform:
    """A random view of an image.

    Attributes:
        size: side of the crop in pixels.
        augment: "voc" random resized crop; "coco" random scale, padded with black up to the
            crop; "none" the whole image resized, no flip, no jitter.
        pipeline: "device" leaves the colours to the training device; "pil" changes them here, one
            after the other on 8-bit pixels, and resizes with Pillow, as the released code does.
        area: for "voc" the share of the image that a crop covers, for "coco" the scale factor.
        aspect: width over height of a "voc" crop before resizing.
        flip: probability of mirroring left and right.
        jitter: brightness, contrast, saturation (factor 1 ± value) and hue (turn ± value).
        jitter_probability: how often colours are jittered.
    """

    size: int
    augment: str = "voc"
    pipeline: str = "device"
    area: tuple[float, float] = (0.32, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8

    def __post_init__(self) -> None:
        if self.augment not in ("voc", "coco", "none"):
            raise ValueError(f"augment {self.augment!r} is not voc, coco or none")
        if self.pipeline not in ("device", "pil"):
            raise ValueError(f"pipeline {self.pipeline!r} is not device or pil")

    def __call__(self, image: np.ndarray, rng: np.random.Generator,
                 out: np.ndarray | None = None) -> View:
        """One view of an image. Both pipelines choose the same windows.

        Args:
            image: RGB uint8 `[H, W, 3]`.
            rng: what every choice is drawn from.
            out: uint8 `[S, S, 3]` to write the pixels to, which saves a copy.

        Returns:
            The view.
        """
        view = self._view(image, rng, out)
        if out is not None and view.pixels is not out:
            np.copyto(out, view.pixels)
        return view

    def _view(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None) -> View:
        scale = resize_pil if self.pipeline == "pil" else resize
        jitter, box = UNCHANGED, (0, self.size, 0, self.size)
        if self.augment == "none":
            return View(scale(image, self.size, self.size), jitter, np.array(box, np.int64),
                        np.array([0, 0, *image.shape[:2], 0], np.float64))
        if self.augment == "voc":
            window = top, left, height, width = crop_window(*image.shape[:2], self.area,
                                                            self.aspect, rng)
            image = image[top:top + height, left:left + width]
            image = (scale(image, self.size, self.size) if self.pipeline == "pil"
                     else resize(image, self.size, self.size, out))
        else:
            image, window = scaled_cut(image, self.size, self.area, rng, scale)
        mirrored = rng.random() < self.flip
        if mirrored:
            image = cv2.flip(image, 1, dst=image if image is out else None)
        if rng.random() < self.jitter_probability:
            if self.pipeline == "pil":
                image = jitter_pil(image, self.jitter, rng)
            else:
                jitter = draw_jitter(image, self.jitter, rng)
        if self.augment == "coco":
            image, box = pad(image, self.size, rng)
        return View(image, jitter, np.array(box, np.int64),
                    np.array([*window, mirrored], np.float64))


def crop_window(height: int, width: int, area: tuple[float, float],
                aspect: tuple[float, float], rng: np.random.Generator
                ) -> tuple[int, int, int, int]:
    """A random window as torchvision's RandomResizedCrop draws it.

    The area is uniform, the aspect ratio log-uniform. After ten windows that do not fit, the
    largest centred window of an allowed aspect ratio is taken.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        area: smallest and largest share of the image.
        aspect: smallest and largest width over height.
        rng: what the window is drawn from.

    Returns:
        top, left, height and width in pixels.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return int(top), int(left), int(h), int(w)
    w = min(width, max(round(height * aspect[1]), 1))
    h = min(height, max(round(width / aspect[0]), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def scaled_cut(image: np.ndarray, size: int, scale: tuple[float, float],
               rng: np.random.Generator,
               rescale: Callable[[np.ndarray, int, int], np.ndarray] = resize
               ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Scale an image by a random factor, and cut a random window where it is larger than `size`.

    Args:
        image: uint8 `[H, W, 3]`.
        size: largest side of the result in pixels.
        scale: smallest and largest factor.
        rng: what factor and window are drawn from.
        rescale: resizes an image to a height and width.

    Returns:
        The window, and its top, left, height and width in pixels of the original image.
    """
    factor = rng.uniform(*scale)
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    y, x = image.shape[0] / height, image.shape[1] / width
    image = rescale(image, height, width)
    top = int(rng.integers(0, max(height - size, 0) + 1))
    left = int(rng.integers(0, max(width - size, 0) + 1))
    image = image[top:top + size, left:left + size]
    return image, (top * y, left * x, image.shape[0] * y, image.shape[1] * x)


def labels_of_view(labels: np.ndarray, window: np.ndarray, box: np.ndarray, size: int,
                   outside: Sequence[int]) -> np.ndarray:
    """What a view shows of maps of the whole image, by nearest neighbour.

    Args:
        labels: `[H, W, K]`.
        window: of the view, see `View`.
        box: of the view, see `View`.
        size: side S of the view.
        outside: K values for the padding.

    Returns:
        `[S, S, K]` of the type of `labels`.
    """
    top, left, height, width, mirrored = window
    y0, y1, x0, x1 = (int(edge) for edge in box)
    rows = _nearest(top, height, y1 - y0, labels.shape[0])
    columns = _nearest(left, width, x1 - x0, labels.shape[1])
    if mirrored:
        columns = columns[::-1]
    view = np.empty((size, size, labels.shape[2]), labels.dtype)
    view[:] = outside
    view[y0:y1, x0:x1] = labels[rows[:, None], columns]
    return view


def thinned(labels: np.ndarray, stride: int) -> np.ndarray:
    """Keep every `stride`-th pixel in both directions, beginning with number `stride // 2`.

    Args:
        labels: `[S, S, K]`.
        stride: pixels for each one that is kept.

    Returns:
        `[s, s, K]`.
    """
    return np.ascontiguousarray(labels[stride // 2::stride, stride // 2::stride])


def _nearest(start: float, length: float, count: int, limit: int) -> np.ndarray:
    """Divide a stretch into `count` equal parts; the pixel under the middle of each."""
    middles = start + (np.arange(count) + 0.5) * (length / count)
    return np.clip(middles.astype(np.int64), 0, limit - 1)


def pad(image: np.ndarray, size: int, rng: np.random.Generator
        ) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Put an image at a random place on a black square.

    Args:
        image: uint8 `[H, W, 3]`, both sides at most `size`.
        size: side of the square in pixels.
        rng: what the place is drawn from.

    Returns:
        uint8 `[size, size, 3]`, and y0, y1, x0, x1 of the image in it, ends exclusive.
    """
    height, width = image.shape[:2]
    top = int(rng.integers(0, size - height + 1))
    left = int(rng.integers(0, size - width + 1))
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[top:top + height, left:left + width] = image
    return canvas, (top, top + height, left, left + width)
