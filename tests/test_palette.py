"""The colours of labels."""

import numpy as np

from more.evaluation.pictures import mask_overlay
from more.palette import colour_of, voc_palette


def test_colours_of_voc():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(voc_palette()[index].tolist()) for index in known} == known


def test_colours_of_the_legend():
    assert [colour_of(label) for label in (0, 15, 20)] == ["#000000", "#c08080", "#004080"]
    assert colour_of(255) == "#e0e0e0"


def test_an_overlay_dims_the_background_and_colours_the_label():
    image = np.full((30, 40, 3), 100, np.uint8)
    label = np.zeros((30, 40), np.uint8)
    label[:, 20:] = 2
    painted = mask_overlay(image, label)
    assert painted[5, 35, 1] > 100 > painted[5, 35, 0] and painted[5, 5].max() < 100
    assert (painted[5, 19] == 255).all() and painted.shape == image.shape
