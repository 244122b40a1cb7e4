"""Masks and their images as a folder that ordinary supervised training reads."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from more.data.shards.format import make_folder, remove_temporaries, sync
from more.data.shards.lock import folder_lock
from more.data.shards.reader import ShardSet
from more.data.split_parts import SplitPart, assign
from more.errors import UserError, first_few
from more.export.opened_sets import ENDINGS, ending_of, mask_of, open_images, open_masks
from more.export.output_files import reason, replace_file
from more.export.png import encode_png
from more.progress import Tally, track

TEMPLATES = Path(__file__).resolve().parent / "templates"
EXAMPLE = "train_example.py"
_FOLDERS = ("images", "masks", "splits")
_README = """\
# Images and masks for supervised training

{total} images, {classes} classes. {train} images are in `splits/train.txt`, {val} in
`splits/val.txt` (one id a line).

| file | content |
|---|---|
| `images/ID.jpg`, `.png`, … | the image, bytes as they came; EXIF rotation does not apply |
| `masks/ID.png` | same size, 8 bit: 0 background, k = line k of `classes.txt`, 255 ignore |
| `classes.txt` | names of the classes 1 to {classes}, one a line |
| `splits/*.txt` | ids for training and validation |
| `{example}` | trains a U-Net on this folder |

    pip install segmentation-models-pytorch
    python {example} --epochs 20

The masks are what the exported set holds. If they are pseudo-labels, so are those of the
validation images: then a score on them says how well a network agrees with the pseudo-labels, not
how good they are.
"""


def export_training(masks: Path, out: Path, data: Path, val_share: float = 0.1, seed: int = 0,
                    progress: bool = True) -> Tally:
    """Write images, masks, lists, class names, a README and an example script to `out`.

    Files that are there and equal are left alone. The lists come last and only if nothing failed,
    so a folder with lists is complete.

    Args:
        masks: shard set of kind `masks`, or `images` with masks.
        out: folder, made when missing.
        data: image set of the masks.
        val_share: part of the images for validation, 0 up to but not including 1.
        seed: another seed, other images for validation.
        progress: show a progress line.

    Returns:
        Counts of images; a damaged image or mask fails, the others go on.

    Raises:
        UserError: not a set of masks, images of others, a share out of range or without an image,
            files of other images in `out`, or another process writes there.
    """
    share = _share(val_share)
    source, out = open_masks(masks), Path(out)
    images, rows = open_images(data, source)
    train, val = split(source.ids, share, seed)
    tally = Tally("images")
    with folder_lock(out), track(len(source), "export", disable=not progress) as bar:
        for folder in (out, *(make_folder(out / name) for name in _FOLDERS)):
            remove_temporaries(folder)
        present = _present(out, source)
        for name in ("train", "val"):  # while files change, no list says that all are there
            _drop_other(out / "splits" / f"{name}.txt", train if name == "train" else val)
        for row, image_id in enumerate(source.ids):
            try:
                mask = encode_png(mask_of(source, row))
                written = _put_image(out, image_id, images.blob("image", rows[row]), present)
                written |= replace_file(out / "masks" / f"{image_id}.png", mask)
                tally.ok() if written else tally.skip()
            except (UserError, OSError) as error:
                tally.fail(image_id, reason(error))
            bar.advance()
        if tally.failures:
            for name in ("train", "val"):
                (out / "splits" / f"{name}.txt").unlink(missing_ok=True)
            bar.note(f"{out}/splits was not written: {len(tally.failures)} images failed")
        else:
            _finish(out, source.class_names, train, val)
        for folder in (*(out / name for name in _FOLDERS), out):
            sync(folder)
    return tally


def split(ids: list[str], share: Fraction, seed: int = 0) -> tuple[list[str], list[str]]:
    """Ids for training and for validation, each in the order given, as `data_tools.split` deals.

    Args:
        ids: of all images.
        share: for validation.
        seed: another seed, other images.

    Returns:
        The two lists.

    Raises:
        UserError: a share above 0 that gives no image, or one that leaves none to train on.
    """
    parts = [SplitPart("val", f"--val-share {float(share):g}", share)] if share else []
    parts.append(SplitPart("train", f"--val-share {float(share):g}, the rest", 1 - share))
    dealt = assign(ids, parts, seed)
    return dealt["train"], dealt.get("val", [])


def _share(value: float) -> Fraction:
    if not 0 <= value < 1:
        raise UserError(f"--val-share {value}: out of range",
                        fix="give 0.1 for a tenth; 0 for no validation")
    return Fraction(repr(float(value)))  # 0.1 is a tenth, not the nearest binary number


def _present(out: Path, source: ShardSet) -> set[str]:
    """Names of the images that are there already.

    Raises:
        UserError: images or masks of others.
    """
    known = set(source.ids)
    found = {name: sorted(path.name for path in (out / name).iterdir())
             for name in ("images", "masks")}
    allowed = {"images": tuple(f".{ending}" for ending in ENDINGS), "masks": (".png",)}
    strangers = [f"{folder}/{name}" for folder, names in found.items() for name in names
                 if Path(name).suffix not in allowed[folder] or Path(name).stem not in known]
    if strangers:
        raise UserError(f"{out}: holds {len(strangers)} files that are not of this set: "
                        f"{first_few(strangers)}", fix="write to a new folder, or delete this one")
    return set(found["images"])


def _put_image(out: Path, image_id: str, data: bytes | bytearray, present: set[str]) -> bool:
    """Write an image under the ending of its content; an older one of another ending goes."""
    ending = ending_of(data)
    written = replace_file(out / "images" / f"{image_id}.{ending}", data)
    for other in {*ENDINGS} - {ending}:
        if f"{image_id}.{other}" in present:
            (out / "images" / f"{image_id}.{other}").unlink(missing_ok=True)
    return written


def _lines(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode("utf-8")


def _drop_other(path: Path, names: list[str]) -> None:
    if path.is_file() and path.read_bytes() != _lines(names):
        path.unlink()


def _finish(out: Path, classes: list[str], train: list[str], val: list[str]) -> None:
    readme = _README.format(total=len(train) + len(val), classes=len(classes), train=len(train),
                            val=len(val), example=EXAMPLE)
    replace_file(out / "README.md", readme.encode("utf-8"))
    replace_file(out / EXAMPLE, (TEMPLATES / EXAMPLE).read_bytes())
    replace_file(out / "classes.txt", _lines(classes))
    replace_file(out / "splits" / "val.txt", _lines(val))
    replace_file(out / "splits" / "train.txt", _lines(train))
