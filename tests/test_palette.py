"""The colours of labels."""

from more.palette import colour_of, voc_palette


def test_colours_of_voc():
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128),
             8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(voc_palette()[index].tolist()) for index in known} == known


def test_colours_of_the_legend():
    assert [colour_of(label) for label in (0, 15, 20)] == ["#000000", "#c08080", "#004080"]
    assert colour_of(255) == "#e0e0e0"
