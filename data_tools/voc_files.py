"""What a VOC download and SBD, the further masks for its images, hold: lists, images, masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools.convert import Record
from data_tools.images import read_index_png
from data_tools.tags import read_text
from more.data.shards.format import IGNORE
from more.errors import UserError
from more.progress import console

AUTO = "auto"
SBD = "SBD"
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first has 255 borders
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_HOME = Path("VOCdevkit") / "VOC2012"


def find_root(given: Path) -> Path:
    """The folder with `JPEGImages`: `given` itself, or VOC2012 as the archive unpacks it there.

    Raises:
        UserError: no such folder, or not in VOC layout.
    """
    if not given.is_dir():
        raise UserError(f"{given}: no such folder", fix="give the folder that holds JPEGImages")
    places = (given, given / _HOME.name, given / _HOME)
    root = next((place for place in places if (place / "JPEGImages").is_dir()), given)
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder}: no such folder", fix="give a folder in VOC layout")
    return root


def find_sbd(given: Path) -> Path:
    """The folder with `cls`: `given` itself, or `dataset` as the SBD release unpacks it there.

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


def read_split(root: Path, split: str, sbd: Path | None = None) -> list[str]:
    """Image ids of `ImageSets/Segmentation/SPLIT.txt`; a line may also be a path to an image.

    Two lists are made where they are missing: `trainval` from train and val, and `train_aug` from
    VOC's train and both lists of SBD without VOC's val (10,582 images in the full data).

    Raises:
        UserError: no such list and no way to make it (names the lists that exist), or an empty one.
    """
    lists = root / "ImageSets" / "Segmentation"
    path, train, val = (lists / f"{name}.txt" for name in (split, "train", "val"))
    if path.is_file():
        return read_list(path)
    if split == "trainval" and train.is_file() and val.is_file():
        ids = sorted([*read_list(train), *read_list(val)])
    elif split == "train_aug" and sbd is not None:
        parts = [read_list(file) for file in (train, sbd / "train.txt", sbd / "val.txt")]
        ids = sorted({name for part in parts for name in part} - set(read_list(val)))
    else:
        known = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        made = {"train_aug": "; or --sbd FOLDER with the SBD release, which the list is made from",
                "trainval": "; trainval is made where train and val are there"}.get(split, "")
        raise UserError(f"{path}: no such list", fix=f"--split NAME, lists there: {known}{made}")
    source = "train and val" if split == "trainval" else "VOC train and SBD, without VOC val"
    console.print(f"{split}: no such list, {len(ids)} images from {source}", highlight=False,
                  markup=False)
    return ids


def read_list(path: Path) -> list[str]:
    """Image ids of a list file: the first word of each line, without folder and image ending.

    Raises:
        UserError: no such file, or nothing in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such list", fix="complete the folder")
    first = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    if not first:
        raise UserError(f"{path}: the list is empty", fix="give another split")
    return [Path(word).stem if "/" in word or word.lower().endswith(_IMAGE_ENDINGS) else word
            for word in first]


def mask_places(root: Path, masks: str, sbd: Path | None) -> dict[str, dict[str, Path]]:
    """Mask files by id, place by place, the place that goes first at the front.

    Args:
        root: folder in VOC layout.
        masks: "auto" for VOC's two folders and SBD, or the only folder to take masks from.
        sbd: folder with `cls/ID.mat`.

    Raises:
        UserError: a folder was named that is not there.
    """
    if masks != AUTO:
        if not (root / masks).is_dir():
            known = ", ".join(path.name for path in sorted(root.iterdir()) if path.is_dir())
            raise UserError(f"{root / masks}: no such folder",
                            fix=f"--masks FOLDER or --masks {AUTO}; folders there: {known}")
        return {masks: _by_id(root / masks, ".png")}
    places = {name: _by_id(root / name, ".png") for name in MASK_FOLDERS}
    return places if sbd is None else {**places, SBD: _by_id(sbd / "cls", ".mat")}


def _by_id(folder: Path, ending: str) -> dict[str, Path]:
    return {path.stem: path for path in folder.glob(f"*{ending}")} if folder.is_dir() else {}


def find_files(root: Path, ids: Sequence[str], places: dict[str, dict[str, Path]],
               sbd: Path | None = None) -> tuple[list[Record], dict[str, int]]:
    """Image file and, where there is one, mask file of every id; tags still unknown.

    Returns:
        The records, and how many masks came from each of `places`. Images that `JPEGImages` lacks
        come from SBD.

    Raises:
        UserError: an image is missing.
    """
    folders = [root / "JPEGImages", *([sbd / "img"] if sbd else [])]
    images = [{path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
              for folder in folders]
    records, missing, used = [], [], dict.fromkeys(places, 0)
    for image_id in ids:
        found = [files[image_id + end] for files in images for end in _IMAGE_ENDINGS
                 if image_id + end in files]
        place = next((name for name in places if image_id in places[name]), None)
        if not found:
            missing.append(image_id)
            continue
        if place is not None:
            used[place] += 1
        records.append(Record(image_id, found[0], places[place][image_id] if place else None))
    if missing:
        raise UserError(f"{folders[0]}: {len(missing)} of {len(ids)} images of the list "
                        f"are missing: {', '.join(missing[:5])}",
                        fix="complete the folder or shorten the list")
    return records, used


def read_mask(path: Path) -> np.ndarray:
    """Index mask of VOC (PNG) or of SBD (.mat) → uint8 `[H, W]`."""
    return read_sbd_mask(path) if path.suffix == ".mat" else read_index_png(path)


def read_sbd_mask(path: Path) -> np.ndarray:
    """`cls/ID.mat` of SBD: field `Segmentation` of the struct `GTcls` → uint8 `[H, W]`.

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
