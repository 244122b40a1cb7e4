"""What the short words in tables and on the page mean: inference routes and terms of the loss.

Every table, legend and page takes them from here.
"""

from __future__ import annotations

from collections.abc import Iterable

from more.evaluation.routes import route_letter

ROUTES = {
    "a": "the decoder on new pictures, over several sizes and mirrored, with CRF; it is told "
         "nothing",
    "b": "CAM or LAM with the image's true tags: the masks of a training set",
    "c": "CAM or LAM with the tags that the classifier finds, with CRF",
}
TERMS = {
    "total": "the weighted sum that is minimised",
    "cls": "the tags, predicted from the last layer's class tokens",
    "cls_aux": "the same from an earlier layer, whose maps serve as labels",
    "mcl": "class tokens of different classes shall differ",
    "cre": "a class token is drawn to the patches that are surely its own",
    "ure": "uncertain patches move towards one of the present classes",
    "ptc": "patches of one region alike, of two regions not",
    "seg": "the decoder against its labels, pixel by pixel",
    "energy": "neighbouring pixels of like colour shall share their class",
    "tags": "the prediction shall show the image's tags, and no others",
}


def route_lines(sentences: Iterable[str]) -> list[str]:
    """What the routes' letters mean, one line for each letter in the sentences of a table.

    Args:
        sentences: of `describe_route`.

    Returns:
        For example "route b: CAM or LAM with the image's true tags: the masks of a training set".
    """
    letters = {letter[0] for sentence in sentences if (letter := route_letter(sentence))}
    return [f"route {letter}: {meaning}" for letter, meaning in ROUTES.items()
            if letter in letters]
