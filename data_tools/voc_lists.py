"""Images of a folder in VOC's layout, and its lists of images."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from data_tools.folder_files import list_files
from more.data.image_files import IMAGE_ENDINGS
from more.data.tags import read_text
from more.errors import UserError
from more.progress import say

LISTS = Path("ImageSets") / "Segmentation"
IMAGES = ("JPEGImages", "images")  # VOC, CVAT and labelme; Label Studio beside Annotations


def choose_split(root: Path, given: str | None) -> str | None:
    """Choose the list of images.

    Args:
        root: folder in VOC layout.
        given: name of a list, or None.

    Returns:
        The list that is given, else the only one there is; None for all images if there is none.

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
    """Find all image files; SBD adds those that VOC's folder lacks.

    Args:
        root: folder in VOC layout.
        sbd: folder with `img`, or None.

    Returns:
        Files by id: the path in the folder of images without ending, `__` for `/`.

    Raises:
        UserError: two images with one id, or a name that is not UTF-8.
    """
    folder = next(root / name for name in IMAGES if (root / name).is_dir())
    found = {item.id: item.path for item in list_files(folder, IMAGE_ENDINGS, "images").values()}
    extra = {} if sbd is None or not (sbd / "img").is_dir() else {
        path.stem: path for path in (sbd / "img").iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS}
    return {**extra, **found}


def read_split(root: Path, split: str, sbd: Path | None = None,
               images: Container[str] = ()) -> list[str]:
    """Read `ImageSets/Segmentation/SPLIT.txt`; a line may also be a path to an image.

    Two lists are made if they are missing: `trainval` from train and val, and `train_aug` from
    VOC's train and both lists of SBD without VOC's val (10,582 images in the full data).

    Args:
        root: folder in VOC layout.
        split: name of the list.
        sbd: folder of SBD, or None.
        images: known ids, see `read_list`.

    Returns:
        Image ids.

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
    say(f"{split}: no such list, {len(ids)} images from {source}")
    return ids


def read_list(path: Path, images: Container[str] = ()) -> list[str]:
    """Read a list file: the first word of each line, without folder and image ending.

    CVAT writes names with blanks and paths below the folder of images. So if the whole line names
    an image, it is that one.

    Args:
        path: the list.
        images: known ids.

    Returns:
        Image ids.

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
