"""MoRe: class-patch attention regularised for weakly supervised semantic segmentation.

In Python, names are imported when they are first used, so `import more` costs nothing:

    net = more.load("mine.safetensors")     # or a run folder
    net.predict("dog.jpg").save("masks/")   # mask, overlay, JSON
    more.open("data/mine")                  # a shard set as a torch Dataset
    more.refine(image, probabilities)       # dense CRF of one picture

`python -m more --help` lists the commands.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers; at run time `_HOME` says the same
    from more.data.image_set import ImageSet as ImageSet
    from more.data.image_set import open_set as open
    from more.errors import UserError as UserError
    from more.inference.api import Network as Network
    from more.inference.api import load as load
    from more.inference.prediction import Prediction as Prediction
    from more.refinement.arrays import refine as refine

_HOME = {
    "load": ("more.inference.api", "load"),
    "open": ("more.data.image_set", "open_set"),
    "refine": ("more.refinement.arrays", "refine"),
    "ImageSet": ("more.data.image_set", "ImageSet"),
    "Network": ("more.inference.api", "Network"),
    "Prediction": ("more.inference.prediction", "Prediction"),
    "UserError": ("more.errors", "UserError"),
}
__all__ = ["ImageSet", "Network", "Prediction", "UserError", "load", "open", "refine"]


def __getattr__(name: str) -> Any:
    """A name of `_HOME`, imported at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'more' has no attribute {name!r}")
    module, inside = _HOME[name]
    value = globals()[name] = getattr(import_module(module), inside)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
