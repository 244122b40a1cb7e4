"""Small exports in the form that annotation tools write them, made by code.

Each maker fills a folder with two or three images and what the tool puts beside them. Where there
are masks, the upper third of an image is its first object.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data_tools.coco_layout import SIZE, box, runs
from tests.data_tools.layout import pictures, save_mask, save_picture, voc_folder

THIRD = SIZE[0] // 3
TOP = box(0, 0, THIRD, SIZE[1])
COLOURS = {"background": (0, 0, 0), "cat": (250, 50, 83), "traffic light": (51, 221, 255)}


def _coco(categories: list[dict[str, Any]], files: list[str], annotations: list[dict[str, Any]],
          path: Path) -> None:
    """A COCO file; annotations get numbers of their own."""
    images = [{"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
              for number, name in enumerate(files)]
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": number, "area": 1.0, "bbox": [0, 0, SIZE[1], THIRD], "iscrowd": 0, **item}
                for number, item in enumerate(annotations)]
    path.write_text(json.dumps({"images": images, "categories": categories,
                                "annotations": numbered}))


def roboflow_coco(root: Path) -> None:
    """Category 0 is the project's own, a root that owns nothing; names end in a hash."""
    files = ["a_jpg.rf.3f1c.jpg", "b_jpg.rf.77aa.jpg"]
    pictures(root / "train", files)
    _coco([{"id": 0, "name": "streets", "supercategory": "none"},
           {"id": 1, "name": "cat", "supercategory": "streets"},
           {"id": 2, "name": "traffic light", "supercategory": "streets"}], files,
          [{"image_id": 0, "category_id": 1, "segmentation": [TOP]},
           {"image_id": 1, "category_id": 2, "segmentation": [TOP]}],
          root / "train/_annotations.coco.json")


def roboflow_multi_label(root: Path) -> None:
    """One column a class, blanks after the commas."""
    pictures(root / "train", ["a_jpg.rf.3f1c.jpg", "b_jpg.rf.77aa.jpg"])
    (root / "train/_classes.csv").write_text(
        "filename, cat, traffic light\na_jpg.rf.3f1c.jpg, 1, 0\nb_jpg.rf.77aa.jpg, 1, 1\n")


def cvat_coco(root: Path) -> None:
    """Masks drawn with the brush come as run lengths with `iscrowd` 1."""
    files = ["a.jpg", "b.jpg"]
    pictures(root / "images/default", files)
    _coco([{"id": 1, "name": "cat", "supercategory": ""},
           {"id": 2, "name": "traffic light", "supercategory": ""}], files,
          [{"image_id": number, "category_id": number + 1, "iscrowd": 1,
            "segmentation": runs(0, 0, THIRD, SIZE[1])} for number in range(2)],
          root / "annotations/instances_default.json")


def cvat_masks(root: Path) -> None:
    """"Segmentation mask 1.1": a VOC folder with masks in colour and the colours of classes."""
    pictures(root / "JPEGImages", ["a.jpg", "b.jpg"])
    for folder in ("SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, label in (("a", "cat"), ("b", "traffic light")):
        mask = np.zeros((*SIZE, 3), np.uint8)
        mask[:THIRD] = COLOURS[label]
        for folder in ("SegmentationClass", "SegmentationObject"):
            Image.fromarray(mask).save(root / folder / f"{name}.png")
    (root / "ImageSets/Segmentation/default.txt").write_text("a\nb\n")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(
        f"{label}:{','.join(map(str, colour))}::\n" for label, colour in COLOURS.items()))


def label_studio_coco(root: Path) -> None:
    """Categories from 0; paths with a backslash where it ran on Windows."""
    files = ["images\\3f1c77aa-a.jpg", "images\\88bb1c2d-b.jpg"]
    pictures(root / "images", [name.rpartition("\\")[2] for name in files])
    _coco([{"id": 0, "name": "cat"}, {"id": 1, "name": "traffic light"}], files,
          [{"image_id": 0, "category_id": 0, "segmentation": [TOP]},
           {"image_id": 1, "category_id": 1, "segmentation": [TOP]}], root / "result.json")


def label_studio_csv(root: Path) -> None:
    """Choices of a classification: JSON in a cell where there are several."""
    pictures(root / "upload", ["3f1c77aa-a.jpg", "88bb1c2d-b.jpg"])
    (root / "project.csv").write_text(
        "annotation_id,annotator,choice,id,image,lead_time\n"
        '1,1,"{""choices"": [""cat"", ""traffic light""]}",7,/data/upload/1/3f1c77aa-a.jpg,2.1\n'
        "2,1,traffic light,8,/data/upload/1/88bb1c2d-b.jpg,1.4\n")


def labelme(root: Path) -> None:
    """What its script labelme2voc writes."""
    pictures(root / "JPEGImages", ["a.jpg", "b.jpg"])
    for folder in ("SegmentationClass", "SegmentationClassPNG", "SegmentationClassVisualization"):
        (root / folder).mkdir()
    for number, name in enumerate(("a", "b"), 1):
        mask = np.zeros(SIZE, np.uint8)
        mask[:THIRD] = number
        save_mask(root / "SegmentationClassPNG" / f"{name}.png", mask)
        np.save(root / "SegmentationClass" / f"{name}.npy", mask.astype(np.int32))
        save_picture(root / "SegmentationClassVisualization" / f"{name}.jpg", SIZE)
    (root / "class_names.txt").write_text("_background_\ncat\ntraffic light\n")


def fiftyone_coco(root: Path) -> None:
    """COCODetectionDataset: `data` and `labels.json`."""
    files = ["a.jpg", "b.jpg"]
    pictures(root / "data", files)
    _coco([{"id": 0, "name": "cat", "supercategory": None},
           {"id": 1, "name": "traffic light", "supercategory": None}], files,
          [{"image_id": 0, "category_id": 0, "segmentation": [TOP]},
           {"image_id": 1, "category_id": 1, "segmentation": [TOP]}], root / "labels.json")


def fiftyone_masks(root: Path) -> None:
    """ImageSegmentationDirectory: `data` and `labels`, masks of class numbers; the list of names
    is what the user has in the dataset's mask targets."""
    pictures(root / "data", ["a.jpg", "b.jpg"])
    (root / "labels").mkdir()
    for number, name in enumerate(("a", "b"), 1):
        mask = np.zeros(SIZE, np.uint8)
        mask[:THIRD] = number
        Image.fromarray(mask).save(root / "labels" / f"{name}.png")
    (root / "names.txt").write_text("background\ncat\ntraffic light\n")


def kaggle_columns(root: Path) -> None:
    """One column a class, ids without ending."""
    pictures(root / "images", ["Train_0.jpg", "Train_1.jpg", "Train_2.jpg"])
    (root / "train.csv").write_text(
        "image_id,cat,traffic light\nTrain_0,1,0\nTrain_1,0,1\nTrain_2,0,0\n")


def kaggle_labels(root: Path) -> None:
    """A column of tags separated by blanks, which each stand alone somewhere, too."""
    pictures(root / "train_images", ["a.jpg", "b.jpg", "c.jpg"])
    (root / "train.csv").write_text("image,labels\na.jpg,cat\nb.jpg,cat dog\nc.jpg,dog\n")


def binary_masks(root: Path) -> None:
    """Masks of 0 and 255 for one class, as many scripts and data sets have them."""
    pictures(root / "images", ["a.png", "b.png"])
    (root / "masks").mkdir()
    for name in "ab":
        mask = np.zeros(SIZE, np.uint8)
        mask[:THIRD] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")


def voc(root: Path) -> None:
    """PASCAL VOC as unpacked."""
    voc_folder(root / "VOCdevkit/VOC2012", images=3, size=SIZE)


def coco(root: Path) -> None:
    """The official files of 2017."""
    files = ["000000000009.jpg", "000000000025.jpg"]
    pictures(root / "train2017", files)
    _coco([{"id": 1, "name": "cat", "supercategory": "animal"},
           {"id": 10, "name": "traffic light", "supercategory": "outdoor"}], files,
          [{"image_id": 0, "category_id": 1, "segmentation": [TOP]},
           {"image_id": 1, "category_id": 10, "segmentation": [TOP]}],
          root / "annotations/instances_train2017.json")


TWO = ["cat", "traffic light"]
# By the first cell of the page's table: the maker, the classes, the tags of images in order of
# their ids, and whether there are masks.
EXPORTS = {
    "Roboflow, segmentation": (roboflow_coco, TWO, [["cat"], ["traffic light"]], True),
    "Roboflow, multi-label classification": (roboflow_multi_label, TWO, [["cat"], TWO], False),
    "CVAT, COCO": (cvat_coco, TWO, [["cat"], ["traffic light"]], True),
    "CVAT, masks": (cvat_masks, TWO, [["cat"], ["traffic light"]], True),
    "Label Studio, segmentation": (label_studio_coco, TWO, [["cat"], ["traffic light"]], True),
    "Label Studio, choices": (label_studio_csv, TWO, [TWO, ["traffic light"]], False),
    "labelme": (labelme, TWO, [["cat"], ["traffic light"]], True),
    "FiftyOne, COCO": (fiftyone_coco, TWO, [["cat"], ["traffic light"]], True),
    "FiftyOne, masks": (fiftyone_masks, TWO, [["cat"], ["traffic light"]], True),
    "Kaggle, a column a class": (kaggle_columns, TWO, [["cat"], ["traffic light"], []], False),
    "Kaggle, a column of tags": (kaggle_labels, ["cat", "dog"],
                                 [["cat"], ["cat", "dog"], ["dog"]], False),
    "masks of 0 and 255": (binary_masks, ["coin"], [["coin"], ["coin"]], True),
    "PASCAL VOC": (voc, ["cat", "dog", "cow"], [["cat"], ["dog"], ["cow"]], None),
    "COCO": (coco, TWO, [["cat"], ["traffic light"]], True),
}
