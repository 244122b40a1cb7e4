"""Colours of the classes: PASCAL VOC's, or ones that colour-blind people tell apart."""

from __future__ import annotations

import numpy as np

from more.errors import UserError


def voc_palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC, uint8 [256, 3]: the bits of an index, dealt out to R, G, B.

    Bits 0, 3, 6 go to red, 1, 4, 7 to green, 2, 5 to blue, the lowest ones to the highest bit.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    bits = np.pad(bits, ((0, 0), (0, 1))).reshape(256, 3, 3)  # [index, triple, channel]
    weights = np.array([128, 64, 32])
    return (bits * weights[:, None]).sum(1).astype(np.uint8)


LINE = "#3b7dd8"  # of charts
NO_LABEL = 255  # the value of pixels without a label
PALETTE = voc_palette()
GREY = 224  # of pixels with the value 255
# Okabe and Ito, "Color Universal Design": told apart with each kind of colour blindness. Their
# black is left out, it is the background's.
_OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
              (213, 94, 0), (204, 121, 167))
# The 8th class and those after it take these colours again, mixed with white or black.
_MIXED = ((0.0, 0), (0.55, 255), (0.5, 0), (0.3, 255), (0.7, 0))


def palette(name: str) -> np.ndarray:
    """The colours of all pixel values.

    Args:
        name: "voc", as in the masks of PASCAL VOC, or "okabe-ito": seven colours that differ for
            colour-blind people, too; from the eighth class on lighter and darker ones of them.

    Returns:
        uint8 `[256, 3]` RGB, by pixel value; 0 (background) is black.

    Raises:
        UserError: another name.
    """
    if name not in PALETTES:
        raise UserError(f"palette {name!r}: unknown", fix=f"choose from {', '.join(PALETTES)}")
    return PALETTES[name]


def colour_of(label: int, colours: np.ndarray = PALETTE) -> str:
    """A label's colour as `#rrggbb`; light grey for 255."""
    return f"#{bytes([GREY] * 3 if label == NO_LABEL else colours[label]).hex()}"


def ink_on(colour: np.ndarray) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on an RGB colour."""
    bright = float(np.dot(np.asarray(colour, np.float64), (0.299, 0.587, 0.114)))
    return (0, 0, 0) if bright > 128 else (255, 255, 255)


def _okabe_ito() -> np.ndarray:
    colours = np.zeros((256, 3), np.uint8)
    base = np.array(_OKABE_ITO, np.float64)
    for label in range(1, 256):
        turn, place = divmod(label - 1, len(base))
        part, towards = _MIXED[turn % len(_MIXED)]
        colours[label] = np.round(base[place] * (1 - part) + towards * part)
    return colours


PALETTES = {"voc": PALETTE, "okabe-ito": _okabe_ito()}
