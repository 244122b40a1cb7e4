"""Both own engines against pydensecrf on photographs (environment variable MORE_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from more.data.seeds import SeedItem, seed_probabilities
from more.filtering.crf import refine, resolve_engine
from more.filtering.parameters import CRFParams

DATA = Path(os.environ.get("MORE_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
VOC = DATA / "voc12sub"
SIZE = (375, 500)
COUNT = 20


def photographs() -> list[tuple[np.ndarray, np.ndarray]]:
    """The first images of the val list that have SIZE, RGB, with their true masks."""
    found = []
    for name in (VOC / "ImageSets/Segmentation/val.txt").read_text().split():
        image = cv2.imread(str(VOC / f"JPEGImages/{name}.jpg"))
        if image is not None and image.shape[:2] == SIZE and len(found) < COUNT:
            mask = cv2.imread(str(VOC / f"SegmentationClass/{name}.png"), cv2.IMREAD_UNCHANGED)
            found.append((np.ascontiguousarray(image[..., ::-1]), indices(name, mask)))
    return found


def indices(name: str, mask: np.ndarray) -> np.ndarray:
    """OpenCV turns a palette into colours; Pillow keeps the indices."""
    if mask.ndim == 2:
        return mask
    from PIL import Image

    return np.asarray(Image.open(VOC / f"SegmentationClass/{name}.png"))


def blurred_seed(mask: np.ndarray, rng: np.random.Generator) -> SeedItem:
    """What a network might give: the true mask at 28×28, blurred, with noise, background first."""
    keys = np.unique(mask[mask < 255])
    keys = keys if len(keys) and keys[0] == 0 else np.concatenate([[0], keys])
    maps = [cv2.resize((mask == key).astype(np.float32), (28, 28), interpolation=cv2.INTER_AREA)
            for key in keys]
    maps = np.stack([cv2.GaussianBlur(one, (0, 0), 1.5) for one in maps])
    maps = maps + rng.normal(0, 0.08, maps.shape)
    return SeedItem(keys, maps.clip(0, 1).astype(np.float16))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not VOC.is_dir(), reason=f"{VOC} is not there: set MORE_DATA to a folder with "
                                             "voc12sub (VOC layout)")
@pytest.mark.parametrize("engine", ["fast", "lattice"])
def test_labels_agree_on_photographs(engine, record_property):
    pytest.importorskip("pydensecrf")
    resolve_engine(engine)
    rng, agreement, changed, labels = np.random.default_rng(0), [], [], []
    for image, mask in photographs():
        _, probs = seed_probabilities(blurred_seed(mask, rng), SIZE)
        ours, theirs = (refine(image, probs, CRFParams(), one).argmax(0)
                        for one in (engine, "pydensecrf"))
        agreement.append((ours == theirs).mean())
        changed.append((theirs != probs.argmax(0)).mean())
        labels.append(len(probs))
    record_property("agreement", agreement)
    print(f"\n{engine} = pydensecrf on {len(agreement)} images with {min(labels)} to {max(labels)} "
          f"labels: lowest {min(agreement):.6f}, mean {np.mean(agreement):.6f}; "
          f"the CRF changed {np.mean(changed):.3f} of the pixels")
    assert len(agreement) == COUNT and min(agreement) >= 0.999
    assert np.mean(changed) > 0.01  # the CRF did something
