"""Colours that differ for colour-blind people, and names on the pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from more.errors import UserError
from more.evaluation.captions import draw_names, name_places
from more.evaluation.pictures import mask_overlay
from more.palette import colour_of, ink_on, palette

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]]}


def nearest(colours, kind):
    """Smallest distance in CIE Lab between any two colours, as this eye sees them."""
    linear = (np.asarray(colours, np.float32) / 255) ** 2.2
    seen = np.clip(linear @ np.array(BLINDNESS[kind], np.float32).T, 0, 1) ** (1 / 2.2)
    lab = cv2.cvtColor(seen[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return apart[~np.eye(len(lab), dtype=bool)].min()


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colour_blind_people_tell_seven_classes_apart(kind):
    found, usual = (nearest(palette(name)[:8], kind) for name in ("okabe-ito", "voc"))
    assert found > 12 and found > usual, (found, usual)


def test_all_classes_of_a_set_have_colours_of_their_own():
    colours = palette("okabe-ito")
    assert (colours[0] == 0).all() and len({bytes(colour) for colour in colours[:31]}) == 31
    assert colour_of(1, colours) == "#e69f00" and colour_of(255, colours) == "#e0e0e0"
    with pytest.raises(UserError, match="okabe"):
        palette("okabe")


def test_names_stand_deep_inside_the_largest_part():
    label = np.zeros((100, 200), np.uint8)
    label[10:90, 20:100] = 3
    label[40:60, 150:170] = 3
    label[0, 0] = 5
    label[:, 199] = 255
    (value, row, column), = name_places(label)
    assert value == 3 and abs(row - 50) < 3 and abs(column - 60) < 3, "no speck, no 255"
    assert name_places(np.full((20, 20), 2, np.uint8))[0][0] == 2


def test_an_overlay_names_its_classes_in_their_colours():
    image = np.full((240, 320, 3), 120, np.uint8)
    label = np.zeros((240, 320), np.uint8)
    label[20:200, 20:300] = 1
    colours = palette("okabe-ito")
    plain, named = (mask_overlay(image, label, colours, names) for names in (None, ["Übung"]))
    box = (named == colours[1]).all(2)
    assert not (plain == colours[1]).all(2).any() and box.sum() > 300
    assert (named[box | (plain != named).any(2)].shape[0]) > 400, "and letters on it"
    assert (named[230] == 120).all(), "the picture stays as it is outside the object"
    assert ink_on(np.array((240, 228, 66))) == (0, 0, 0) and ink_on((0, 0, 128)) == (255, 255, 255)


def test_names_do_not_cover_one_another_and_tiny_pictures_have_none():
    label = np.repeat(np.array([[1], [2], [3]], np.uint8), 8, 0).repeat(300, 1)
    picture = np.full((*label.shape, 3), 50, np.uint8)
    tall = np.vstack([picture, np.full((200, 300, 3), 50, np.uint8)])
    below = np.vstack([label, np.zeros((200, 300), np.uint8)])
    colours = palette("voc")
    drawn = draw_names(tall, below, ["one", "two", "three"], colours)
    assert [bool((drawn == colours[value]).all(2).sum() > 100) for value in (1, 2, 3)] == [True] * 3
    tiny = np.full((6, 6, 3), 9, np.uint8)
    assert (draw_names(tiny, np.ones((6, 6), np.uint8), ["long name"], colours) == 9).all()
