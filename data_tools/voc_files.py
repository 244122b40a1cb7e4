"""What a VOC download and SBD, the further masks for its images, hold: lists, images, masks."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.convert import Record
from data_tools.folder_files import list_files
from data_tools.images import read_index_png
from data_tools.mask_meaning import MaskReader
from data_tools.tags import read_text
from more.data.files import IMAGE_ENDINGS
from more.data.shards.format import IGNORE
from more.errors import UserError
from more.progress import console

AUTO = "auto"
SBD = "SBD"
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first has 255 borders
LABELME_MASKS = "SegmentationClassPNG"  # of its older releases, with arrays in SegmentationClass
LISTS = Path("ImageSets") / "Segmentation"
IMAGES = ("JPEGImages", "images")  # VOC, CVAT and labelme; Label Studio beside Annotations
_HOME = Path("VOCdevkit") / "VOC2012"


def find_root(given: Path) -> Path:
    """The folder with `JPEGImages`: `given` itself, or VOC2012 as the archive unpacks it there.

    Exports in this layout do for it, too: CVAT's and labelme's have `JPEGImages`, Label Studio's
    `images` and `Annotations`.

    Raises:
        UserError: no such folder, or not in VOC layout.
    """
    if not given.is_dir():
        raise UserError(f"{given}: no such folder", fix="give the folder that holds JPEGImages")
    places = (given, given / _HOME.name, given / _HOME)
    root = next((place for place in places if (place / IMAGES[0]).is_dir()), given)
    if not (root / IMAGES[0]).is_dir() and not all((root / name).is_dir()
                                                   for name in (IMAGES[1], "Annotations")):
        raise UserError(f"{root / IMAGES[0]}: no such folder",
                        fix="give a folder in VOC layout, or take data_tools.folder for pictures "
                            "with tags or masks in a layout of your own")
    return root


def choose_split(root: Path, given: str | None) -> str | None:
    """The list to take: the one given, the only one there, or None (all images) without any.

    Raises:
        UserError: several lists and none given.
    """
    known = sorted(file.stem for file in (root / LISTS).glob("*.txt"))
    if given is not None or not known:
        return given
    if len(known) > 1:
        raise UserError(f"{root / LISTS}: several lists of images", fix="choose one with --split: "
                                                                        + ", ".join(known))
    return known[0]


def list_images(root: Path, sbd: Path | None = None) -> dict[str, Path]:
    """Image files by id: the path in the folder of images without ending, `__` for `/`.

    Those of SBD come last, for what VOC's folder lacks.

    Raises:
        UserError: two images with one id, or a name that is not UTF-8.
    """
    folder = next(root / name for name in IMAGES if (root / name).is_dir())
    found = {item.id: item.path for item in list_files(folder, IMAGE_ENDINGS, "images").values()}
    extra = {} if sbd is None or not (sbd / "img").is_dir() else {
        path.stem: path for path in (sbd / "img").iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS}
    return {**extra, **found}


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


def read_split(root: Path, split: str, sbd: Path | None = None,
               images: Container[str] = ()) -> list[str]:
    """Image ids of `ImageSets/Segmentation/SPLIT.txt`; a line may also be a path to an image.

    `images` are the ids there are, see `read_list`.

    Two lists are made where they are missing: `trainval` from train and val, and `train_aug` from
    VOC's train and both lists of SBD without VOC's val (10,582 images in the full data).

    Raises:
        UserError: no such list and no way to make it (names the lists that exist), or an empty one.
    """
    lists = root / LISTS
    path, train, val = (lists / f"{name}.txt" for name in (split, "train", "val"))
    if path.is_file():
        return read_list(path, images)
    if split == "trainval" and train.is_file() and val.is_file():
        ids = sorted([*read_list(train), *read_list(val)])
    elif split == "train_aug" and sbd is not None:
        parts = [read_list(file) for file in (train, sbd / "train.txt", sbd / "val.txt")]
        ids = sorted({name for part in parts for name in part} - set(read_list(val)))
    else:
        known = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        made = {"train_aug": "; or --sbd FOLDER with the SBD release, which the list is made from",
                "trainval": "; trainval is made where train and val are there"}.get(split, "")
        raise UserError(f"{path}: no such list", fix=(
            f"leave --split out to take all images{made}" if known == "none" else
            f"--split NAME, lists there: {known}{made}"))
    source = "train and val" if split == "trainval" else "VOC train and SBD, without VOC val"
    console.print(f"{split}: no such list, {len(ids)} images from {source}", highlight=False,
                  markup=False)
    return ids


def read_list(path: Path, images: Container[str] = ()) -> list[str]:
    """Image ids of a list file: the first word of each line, without folder and image ending.

    Where `images` has an id that the whole line means (a name with blanks, a path below the folder
    of images, both as CVAT writes them), it is that one.

    Raises:
        UserError: no such file, or nothing in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such list", fix="complete the folder")
    lines = [line.strip() for line in read_text(path).splitlines()]
    ids = [_listed(line, images) for line in lines if line and not line.startswith("#")]
    if not ids:
        raise UserError(f"{path}: the list is empty", fix="give another split")
    return ids


def _listed(line: str, images: Container[str]) -> str:
    quoted = line.split('"')[1] if line.startswith('"') and line.count('"') > 1 else ""
    whole = _stem(quoted or line).replace("/", "__")
    if quoted or whole in images:
        return whole
    word = line.split()[0]
    stem = _stem(word)
    return stem.replace("/", "__") if stem.replace("/", "__") in images else Path(stem).name


def _stem(name: str) -> str:
    """The name without the ending of an image; other dots belong to it."""
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in IMAGE_ENDINGS else name


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
    """Image file and, where there is one, mask file of every id; tags still unknown.

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
                        f"are missing: {', '.join(missing[:5])}",
                        fix="complete the folder or shorten the list")
    return records, used


def read_mask(path: Path) -> np.ndarray:
    """Index mask of VOC (PNG) or of SBD (.mat) → uint8 `[H, W]`."""
    return read_sbd_mask(path) if path.suffix == ".mat" else read_index_png(path)


@dataclass(frozen=True)
class SomeMasks:
    """`read_mask` for masks of values or colours that mean something; SBD's stay indices."""

    reader: MaskReader

    def __call__(self, path: Path) -> np.ndarray:
        """See `MaskReader` and `read_sbd_mask`."""
        return read_sbd_mask(path) if path.suffix == ".mat" else self.reader(path)


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
