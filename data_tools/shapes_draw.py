"""Drawing a picture of the shapes set: textured objects on a cluttered background.

S is the side of a picture in pixels, P a number of points.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ("ball", "tile", "wedge", "star", "ring", "cross", "train")
TRAIN = CLASSES.index("train")
_SHIFT = 4  # sub-pixel bits of OpenCV's polygon coordinates
WITH_TRAIN, ALONE = 0.9, 0.04  # how often a track is drawn


Window = tuple[slice, slice]  # rows and columns of a picture


def window_of(layer: np.ndarray) -> Window:
    """The smallest window that holds all pixels of `[S, S]` that are not 0."""
    rows, columns = np.flatnonzero(layer.any(1)), np.flatnonzero(layer.any(0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@dataclass(frozen=True)
class Pose:
    """Where an object stands: centre and radius in pixels, rotation in radians."""

    x: float
    y: float
    radius: float
    angle: float

    def grid(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Object coordinates (u, v) of every pixel of a window; the radius is 1."""
        y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - self.y
        x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None] - self.x
        cos, sin = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        return (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Object coordinates `[P, 2]` → pixels."""
        cos, sin = np.cos(self.angle) * self.radius, np.sin(self.angle) * self.radius
        u, v = points[:, 0], points[:, 1]
        return np.stack([self.x + u * cos - v * sin, self.y + u * sin + v * cos], 1)


def _circle(radius: float, points: int = 40) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius * np.stack([np.cos(turn), np.sin(turn)], 1)


def _star() -> np.ndarray:
    turn = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.15, 0.52)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)


_ARM = 0.36
OUTLINES: dict[str, list[np.ndarray]] = {
    "ball": [_circle(0.9)],
    "tile": [np.array([(-.8, -.8), (.8, -.8), (.8, .8), (-.8, .8)])],
    "wedge": [np.array([(0, -1.1), (1.05, .8), (-1.05, .8)])],
    "star": [_star()],
    "ring": [_circle(1.0), _circle(0.45)],
    "cross": [np.array([(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM),
                        (_ARM, _ARM), (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM),
                        (-1, -_ARM), (-_ARM, -_ARM)])],
    "train": [np.array([(-1.5, -.45), (1.15, -.45), (1.5, -.05), (1.5, .5), (-1.5, .5)])],
}


def coverage(name: str, pose: Pose, size: int) -> np.ndarray:
    """How much of each pixel the object covers, float32 `[size, size]` in 0..1."""
    layer = np.zeros((size, size), np.uint8)
    polygons = [np.round(pose.place(points) * (1 << _SHIFT)).astype(np.int32)
                for points in OUTLINES[name]]
    cv2.fillPoly(layer, polygons, 255, cv2.LINE_AA, _SHIFT)
    return layer.astype(np.float32) / 255


def texture(name: str, pose: Pose, window: Window, rng: np.random.Generator) -> np.ndarray:
    """The pattern of a class in a window.

    Its period is a few pixels, nearly independent of the object's size: a pattern stays visible on
    small objects and does not tell the scale.

    Args:
        name: of the class.
        pose: of the object.
        window: part of the picture.
        rng: what period and offset are drawn from.

    Returns:
        float32 of the window's size: 0 is the first colour, 1 the second.
    """
    u, v = pose.grid(window)
    frequency = np.pi * pose.radius / rng.uniform(3.2, 4.6)  # half a period in pixels
    a, b = u * frequency + rng.uniform(0, 6), v * frequency + rng.uniform(0, 6)
    if name == "ball":  # dots
        return _soft(np.cos(a) + np.cos(b) - 0.7)
    if name == "tile":  # chequers
        return _soft(3 * np.sin(a) * np.sin(b))
    if name == "wedge":  # stripes
        return _soft(2 * np.sin(b))
    if name == "star":  # rings around the middle
        return _soft(2 * np.sin(np.hypot(u, v) * frequency + rng.uniform(0, 6)))
    if name == "ring":  # spokes
        return _soft(2 * np.sin(10 * np.arctan2(v, u)))
    if name == "cross":  # two diagonal line families
        return np.maximum(_soft(3 * np.sin(a + b) - 1.8), _soft(3 * np.sin(a - b) - 1.8))
    windows = (np.abs(v + 0.12) < 0.17) & (np.cos(u * 2 * np.pi / 0.42) > -0.25)  # train
    return windows.astype(np.float32) + 0.5 * (np.abs(v - 0.3) < 0.06)


def _soft(wave: np.ndarray) -> np.ndarray:
    """A wave → 0..1 with edges about a pixel wide."""
    return np.clip(wave * 1.2 + 0.5, 0, 1).astype(np.float32)


def two_colours(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark and a light colour for an object.

    The dark one is near the hue of its class (as animals of a kind are similar, not equal), the
    light one has any hue. So colour helps to tell classes apart, but form and texture are needed.

    Args:
        name: of the class.
        rng: what the colours are drawn from.

    Returns:
        Two RGB colours, float32 `[3]` in 0..255, in either order.
    """
    hue = (CLASSES.index(name) + rng.normal(0, 0.45)) / len(CLASSES)
    dark = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 1.0), rng.uniform(0.35, 0.75))
    light = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.35), rng.uniform(0.75, 1.0))
    first, second = (np.array(colour, np.float32) * 255 for colour in (dark, light))
    return (first, second) if rng.random() < 0.5 else (second, first)


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales in muted colours, with blobs and strokes of any colour.

    Args:
        size: side of the picture in pixels.
        rng: what everything is drawn from.

    Returns:
        float32 `[size, size, 3]`.
    """
    image = np.zeros((size, size, 3), np.float32)
    for cells, strength in ((2, 45), (5, 28), (14, 16), (size // 2, 12)):
        noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        noise = 0.8 * noise.mean(2, keepdims=True) + 0.2 * noise
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    image += rng.uniform(80, 160) + rng.uniform(-18, 18, 3).astype(np.float32)
    for _ in range(int(rng.integers(4, 12))):
        _clutter(image, rng)
    return image


def _clutter(image: np.ndarray, rng: np.random.Generator) -> None:
    """One unlabelled blob or stroke, drawn in place and half transparent."""
    size, layer = len(image), np.zeros(image.shape[:2], np.uint8)
    x, y = rng.uniform(0, size, 2)
    if rng.random() < 0.5:
        turn = np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = rng.uniform(0.03, 0.13, 7) * size
        points = np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], 1)
        cv2.fillPoly(layer, [points.astype(np.int32)], 255, cv2.LINE_AA)
    else:
        step = rng.normal(0, 0.12 * size, (4, 2)).cumsum(0) + (x, y)
        cv2.polylines(layer, [step.astype(np.int32)], False, 255,
                      int(rng.integers(1, 4)), cv2.LINE_AA)
    window = window_of(layer)
    alpha = layer[window][..., None] * np.float32(rng.uniform(0.4, 0.9) / 255)
    image[window] += alpha * (rng.uniform(20, 235, 3).astype(np.float32) - image[window])


def draw_track(image: np.ndarray, pose: Pose, rng: np.random.Generator) -> None:
    """A railway track through the whole picture below a train's pose, drawn in place.

    It is background: what almost always occurs together with a class, as rails with trains.
    """
    u, v = pose.grid((slice(0, len(image)), slice(0, len(image))))
    depth = v - 0.72  # 0 in the middle of the track bed
    grain = rng.normal(0, 14, image.shape[:2]).astype(np.float32)
    gravel = np.full_like(image, rng.uniform(95, 135)) + grain[..., None]
    sleepers = (np.cos(u * 2 * np.pi / 0.36) > 0.25) & (np.abs(depth) < 0.27)
    gravel[sleepers] = np.array((84, 58, 40), np.float32) * rng.uniform(0.7, 1.2)
    rails = np.abs(np.abs(depth) - 0.15) < 0.045
    gravel[rails] = rng.uniform(190, 235)
    alpha = np.clip((0.33 - np.abs(depth)) * pose.radius + 0.5, 0, 1)[..., None]
    image += alpha * (gravel - image)


def shade(image: np.ndarray, name: str, pose: Pose, cover: np.ndarray,
          rng: np.random.Generator) -> None:
    """Paint an object with its texture and a light from one side, in place."""
    window = window_of(cover)
    first, second = two_colours(name, rng)
    pattern = texture(name, pose, window, rng)[..., None]
    u, v = pose.grid(window)
    light = 1 + 0.18 * np.clip(u * np.cos(pose.angle) - v, -1.2, 1.2)[..., None]
    colour = (first + pattern * (second - first)) * light
    image[window] += cover[window][..., None] * (colour - image[window])
