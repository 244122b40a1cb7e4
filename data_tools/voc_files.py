"""Folders and masks of a VOC download, and of SBD, which has more masks for VOC's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.convert import Record
from data_tools.mask_meaning import MaskReader
from data_tools.voc_lists import IMAGES
from more.data.index_masks import read_index_png
from more.data.shards.format import IGNORE
from more.errors import UserError, first_few, need_path

AUTO = "auto"
SBD = "SBD"
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first has 255 borders
LABELME_MASKS = "SegmentationClassPNG"  # of its older releases, with arrays in SegmentationClass
_HOME = Path("VOCdevkit") / "VOC2012"


def find_root(given: Path) -> Path:
    """Find the folder with `JPEGImages`: the given one, or VOC2012 as the archive unpacks it there.

    Exports in this layout are taken, too: those of CVAT and labelme have `JPEGImages`, those of
    Label Studio `images` and `Annotations`.

    Args:
        given: by the user.

    Returns:
        The folder.

    Raises:
        UserError: no such folder, or not in VOC layout.
    """
    need_path(given, "give the folder that holds JPEGImages", folder=True)
    places = (given, given / _HOME.name, given / _HOME)
    root = next((place for place in places if (place / IMAGES[0]).is_dir()), given)
    if not (root / IMAGES[0]).is_dir() and not all((root / name).is_dir()
                                                   for name in (IMAGES[1], "Annotations")):
        raise UserError(f"{root / IMAGES[0]}: no such folder",
                        fix="give a folder in VOC layout, or take data_tools.folder for pictures "
                            "with tags or masks in a layout of your own")
    return root


def find_sbd(given: Path) -> Path:
    """Find the folder with `cls`: the given one, or `dataset` as the SBD release unpacks it there.

    Args:
        given: by the user.

    Returns:
        The folder.

    Raises:
        UserError: no such folder, or no SBD in it.
    """
    places = (given, given / "dataset", given / "benchmark_RELEASE" / "dataset")
    for place in places:
        if (place / "cls").is_dir():
            return place
    raise UserError(f"{given}: no SBD release there",
                    fix="give the folder benchmark_RELEASE (its dataset/ holds cls, img, train.txt "
                        "and val.txt)")


def mask_places(root: Path, masks: str, sbd: Path | None) -> dict[str, dict[str, Path]]:
    """Find mask files in all places that may hold them.

    Args:
        root: folder in VOC layout.
        masks: "auto" for VOC's two folders and SBD, or the only folder to take masks from.
        sbd: folder with `cls/ID.mat`.

    Returns:
        By name of the place, mask files by id; a mask is taken from the first place that has it.

    Raises:
        UserError: a folder was named that is not there.
    """
    if masks != AUTO:
        if not (root / masks).is_dir():
            known = ", ".join(path.name for path in sorted(root.iterdir()) if path.is_dir())
            raise UserError(f"{root / masks}: no such folder",
                            fix=f"--masks FOLDER or --masks {AUTO}; folders there: {known}")
        return {masks: _by_id(root / masks, ".png")}
    names = (*MASK_FOLDERS, *([LABELME_MASKS] if (root / LABELME_MASKS).is_dir() else []))
    places = {name: _by_id(root / name, ".png") for name in names}
    return places if sbd is None else {**places, SBD: _by_id(sbd / "cls", ".mat")}


def _by_id(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.relative_to(folder).as_posix().removesuffix(ending).replace("/", "__"): path
            for path in folder.rglob(f"*{ending}")}


def find_files(root: Path, ids: Sequence[str], places: dict[str, dict[str, Path]],
               images: Mapping[str, Path]) -> tuple[list[Record], dict[str, int]]:
    """Make records of the images with their masks, still without tags.

    Args:
        root: folder in VOC layout, for messages.
        ids: of the list.
        places: from `mask_places`.
        images: from `list_images`.

    Returns:
        The records, and how many masks came from each of `places`.

    Raises:
        UserError: an image is missing.
    """
    records, missing, used = [], [], dict.fromkeys(places, 0)
    for image_id in ids:
        if image_id not in images:
            missing.append(image_id)
            continue
        place = next((name for name in places if image_id in places[name]), None)
        if place is not None:
            used[place] += 1
        records.append(Record(image_id, images[image_id],
                              places[place][image_id] if place else None))
    if missing:
        raise UserError(f"{root / IMAGES[0]}: {len(missing)} of {len(ids)} images of the list "
                        f"are missing: {first_few(missing)}",
                        fix="complete the folder or shorten the list")
    return records, used


def read_mask(path: Path) -> np.ndarray:
    """Read an index mask of VOC (PNG) or SBD (.mat), uint8 `[H, W]`."""
    return read_sbd_mask(path) if path.suffix == ".mat" else read_index_png(path)


@dataclass(frozen=True)
class MixedMaskReader:
    """As `read_mask`, for masks with a meaning of values or colours; masks of SBD hold indices.

    Attributes:
        reader: for masks that are not of SBD.
    """

    reader: MaskReader

    def __call__(self, path: Path) -> np.ndarray:
        """See `MaskReader` and `read_sbd_mask`."""
        return read_sbd_mask(path) if path.suffix == ".mat" else self.reader(path)


def read_sbd_mask(path: Path) -> np.ndarray:
    """Read a mask of SBD: field `Segmentation` of the struct `GTcls`.

    Args:
        path: `cls/ID.mat`.

    Returns:
        uint8 `[H, W]`.

    Raises:
        UserError: scipy is missing, or the file is damaged or something else.
    """
    try:
        from scipy.io import loadmat  # here: nothing else needs scipy
    except ImportError as error:
        raise UserError(f"{path}: masks of SBD need the package scipy ({error})",
                        fix="pip install -r requirements.txt") from error
    try:
        content = loadmat(path, appendmat=False, variable_names=["GTcls"])
        mask = content["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # noqa: BLE001 - foreign bytes raise anything in this reader
        raise UserError(f"{path}: unreadable SBD mask ({type(error).__name__}: {error})",
                        fix="unpack the SBD release again") from error
    if getattr(mask, "ndim", 0) != 2 or mask.dtype.kind not in "ui" or mask.size == 0 \
            or mask.min() < 0 or mask.max() > IGNORE:
        raise UserError(f"{path}: GTcls.Segmentation is not a map of class indices",
                        fix="give cls/ID.mat of the SBD release")
    return np.ascontiguousarray(mask, np.uint8)
