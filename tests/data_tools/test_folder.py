"""Own folders to shards: ids, sources of tags, masks, classes, splits, refusals."""

from __future__ import annotations

import json
import re
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.folder import main
from data_tools.folder_files import Item, split_ids
from more.data.image_files import IMAGE_ENDINGS
from more.data.shards.reader import ShardSet
from more.data.shards.verification import verify_set
from more.errors import UserError
from tests.data_tools.layout import digests, pictures, save_mask, save_picture, tool

NAMES = ["a.jpg", "cats/b.PNG", "cats/c.d.webp", "dogs/small/e.JPEG", "Übung-写真/f g.bmp"]
IDS = ["a", "cats__b", "cats__c.d", "dogs__small__e", "Übung-写真__f g"]
CSV = "id,tags\na,cat\ncats/b.PNG,cat dog\ncats__c.d,\ndogs/small/e,dog\nÜbung-写真/f g.bmp,cat\n"


@pytest.fixture
def root(tmp_path):
    return pictures(tmp_path / "photos", NAMES)


@pytest.fixture
def tags(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text(CSV)
    return path


def run(root, out, **options):
    return main(root, out, **{
        "masks": None, "tags": None, "tags_from_folders": False, "classes": None, "split": None,
        "tag_separator": "auto", "join_names": False, "drop_unused": False, "seed": 0,
        "shard_size": 2, "workers": 1, "skip_bad": False, **options})


def masks_for(folder, names, value=1):
    """Index masks at the same paths: `value` in the upper half."""
    mask = np.zeros((24, 32), np.uint8)
    mask[:12] = value
    for name in names:
        path = (folder / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, mask)
    return folder


def test_contents(root, tags, tmp_path, capsys):
    """Ids come from paths, a tags file may use both; other and hidden files are left out."""
    (root / "notes.txt").write_text("")
    (root / ".cache").mkdir()
    save_picture(root / ".cache/h.jpg")
    save_picture(root / ".hidden.jpg")
    assert run(root, tmp_path / "set", tags=tags) == 0
    said = capsys.readouterr().err
    assert "other files, left out: 1 (notes.txt)" in said and "done 5" in said
    assert "classes, from the tags: cat, dog" in said and "5, 0 of them with mask" in said
    shards = ShardSet(tmp_path / "set", kind="images", check="full")
    assert shards.ids == IDS and shards.class_names == ["cat", "dog"]
    assert shards.tags.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]]
    assert [shards.blob("image", k) for k in range(5)] == [(root / n).read_bytes() for n in NAMES]
    assert shards.manifest.provenance["parameters"] == {
        "tags_from": "csv", "masks": False, "classes": ["cat", "dog"]}
    assert verify_set(tmp_path / "set", decode=True) == []


def test_every_ending_is_read(tmp_path):
    root = pictures(tmp_path / "photos", [f"x{k}{e}" for k, e in enumerate(IMAGE_ENDINGS)])
    for k, ending in enumerate(IMAGE_ENDINGS):
        (root / f"x{k}{ending}").rename(root / f"y{k}{ending.upper()}")
    lines = "".join(f"y{k},x\n" for k in range(len(IMAGE_ENDINGS)))
    (tmp_path / "tags.csv").write_text("id,tags\n" + lines)
    assert run(root, tmp_path / "set", tags=tmp_path / "tags.csv") == 0
    shards = ShardSet(tmp_path / "set")
    assert len(shards) == len(IMAGE_ENDINGS)
    assert all(shards.image(k).shape == (24, 32, 3) for k in range(len(shards)))


def test_a_folder_with_everything_beside_the_images(tmp_path, capsys):
    root = tmp_path / "mine"
    pictures(root / "images", NAMES)
    masks_for(root / "masks", NAMES[:2], 2)
    (root / "tags.csv").write_text(CSV)
    (root / "classes.txt").write_text("background\ndog\ncat\n")
    assert run(root, tmp_path / "set") == 0
    said = capsys.readouterr().err
    assert f"taken from {root}: images, tags.csv, masks\n" in said
    assert f"classes, from {root / 'classes.txt'}: dog, cat" in said
    assert "images: 5, 2 of them with mask" in said and "left out" not in said
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == IDS and shards.class_names == ["dog", "cat"]
    assert shards.mask(1).max() == 2 and shards.mask(2) is None
    assert shards.tags[0].tolist() == [0, 1]
    (root / "tags.json").write_text("{}")
    with pytest.raises(UserError, match="tags.csv and tags.json\n.*--tags .*tags.csv"):
        run(root, tmp_path / "other")
    assert run(root, tmp_path / "set", tags=root / "tags.csv") == 0  # named: the same set


@pytest.mark.parametrize("content", [
    {"a": ["cat"], "cats/b.PNG": ["cat", "dog"], "cats__c.d": [], "dogs/small/e": ["dog"],
     "Übung-写真/f g": ["traffic light"]},
    [{"id": "a", "tags": ["cat"], "by": "me"}, {"id": "cats__b", "tags": ["cat", "dog"]},
     {"id": "cats\\c.d", "tags": []}, {"id": "./dogs/small/e.JPEG", "tags": ["dog"]},
     {"tags": ["traffic_light"], "id": unicodedata.normalize("NFD", "Übung-写真__f g")}]])
def test_tags_from_json(root, tmp_path, content):
    path = tmp_path / "tags.json"
    path.write_text(json.dumps(content))
    assert run(root, tmp_path / "set", tags=path) == 0
    shards = ShardSet(tmp_path / "set")
    assert sorted(shards.class_names)[2] in ("traffic light", "traffic_light")
    assert shards.tags.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert shards.manifest.provenance["parameters"]["tags_from"] == "json"


def test_tags_from_folders(root, tmp_path):
    (root / "a.jpg").rename(root / "dogs/a.jpg")
    (root / "cats").rename(root / "wild  cats")
    assert run(root, tmp_path / "set", tags_from_folders=True) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.class_names == ["dogs", "wild cats", "Übung-写真"]
    assert shards.ids == ["dogs__a", "dogs__small__e", "wild  cats__b", "wild  cats__c.d", IDS[4]]
    assert shards.tags.argmax(1).tolist() == [0, 0, 1, 1, 2] and shards.tags.sum() == 5


def test_tags_from_masks_inside_the_image_folder(root, tmp_path, capsys):
    masks_for(root / "truth", [*NAMES, "nothing.png"], 2)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = {"masks": root / "truth", "classes": tmp_path / "names.txt"}
    assert run(root, tmp_path / "set", **options) == 0
    said = capsys.readouterr().err
    assert "masks of no image: 1 (nothing.png)" in said
    shards = ShardSet(tmp_path / "set", check="full")
    assert shards.ids == IDS and shards.tags.tolist() == [[0, 1]] * 5
    assert shards.manifest.provenance["parameters"]["tags_from"] == "masks"


def test_accents_are_kept_but_compared_in_one_spelling(tmp_path):
    """Ids keep the letters of the file system; tags and masks may spell the accents otherwise."""
    apart, whole = (unicodedata.normalize(form, "été/café") for form in ("NFD", "NFC"))
    root = pictures(tmp_path / "photos", [f"{apart}.png"])
    masks_for(tmp_path / "truth", [f"{whole}.png"])
    (tmp_path / "tags.csv").write_text(f"id,tags\n{whole}.png,x\n")
    (tmp_path / "classes.txt").write_text("x\n")
    options = {"masks": tmp_path / "truth", "classes": tmp_path / "classes.txt"}
    assert run(root, tmp_path / "set", tags=tmp_path / "tags.csv", **options) == 0
    shards = ShardSet(tmp_path / "set")
    assert shards.ids == [apart.replace("/", "__")] and shards.mask(0) is not None
    pictures(root, [f"{whole}.jpg"])
    with pytest.raises(UserError, match="have the same id"):
        run(root, tmp_path / "other", tags_from_folders=True)


def test_links_are_followed_but_not_for_ever(root, tags, tmp_path):
    (root / "cats").rename(tmp_path / "elsewhere")
    (root / "cats").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(root)
    assert run(root, tmp_path / "set", tags=tags) == 0
    assert ShardSet(tmp_path / "set").ids == IDS


def test_lines_about_no_image_are_said(root, tags, tmp_path, capsys):
    tags.write_text(CSV + "caats__b,cat\nz,dog\n")
    assert run(root, tmp_path / "set", tags=tags) == 0
    assert "lines about no image: 2 (caats__b, z)" in capsys.readouterr().err


def _line(old, new):
    def change(root, tags):
        assert old in CSV
        tags.write_text(CSV.replace(old, new))
    return change


def _json(text):
    def change(root, tags):
        tags.with_suffix(".json").write_text(text)
    return change


JSON = {"tags": "tags.json"}
MASKS = {"tags": None, "masks": "photos/truth"}
CLASSES = {"classes": "classes.txt"}


@pytest.mark.parametrize(("change", "options", "text"), [
    (lambda r, t: save_picture(r / "a.png"), {}, "a.jpg and a.png have the same id 'a'"),
    (lambda r, t: save_picture(r / "cats__b.jpg"), {}, "cats/b.PNG and cats__b.jpg .* 'cats__b'"),
    (lambda r, t: save_picture(r / ("n" * 110) / ("n" * 90 + ".png")), {}, "cannot be a file name"),
    (lambda r, t: (r / "x.jpg").symlink_to(r / "none.jpg"), {}, "x.jpg: a link to a missing file"),
    (_line("cats__c.d,\n", ""), {}, "tags.csv: 1 of 5 images have no line: cats__c.d"),
    (_line("a,cat", "a,cat\na,dog"), {}, "line 3: id 'a' comes twice"),
    (_line("a,cat", "a,cat\na.jpg,dog"), {}, "line 3: 'a.jpg' is the image of .*line 2 again"),
    (_line("a,cat", "a,cat,dog"), {}, "line 2: more cells than the header has\n.*one cell"),
    (_line("id,tags", "who,tags"), {}, "'who,tags' names no column of images.*\n.*id,tags"),
    (_line("id,tags", "id,text"), {}, "no column of tags, and text is 'cat', neither 0 nor 1"),
    (lambda r, t: t.write_text("id,tags\nx1,cat\nx2,\n"), {},
     "no line fits any of the 5 images\n.*'x1', an image is 'a.jpg'"),
    (lambda r, t: t.write_text("id,tags\n" + "".join(f"{name},\n" for name in IDS)), {},
     "the tags of tags.csv: 0 class names"),
    (_line("a,cat", "a,cta"), CLASSES, "line 2: unknown class 'cta'\n.*did you mean cat"),
    (None, {"tags": "none.csv"}, "none.csv: no such file"),
    (None, {"tags": "none.json"}, "none.json: no such file"),
    (_json("{"), JSON, "tags.json: not JSON"),
    (_json('{"a": [], "a": ["cat"]}'), JSON, "at 'a': id 'a' comes twice"),
    (_json('{"a": {"cat": 1}}'), JSON, "at 'a': tags are not a list"),
    (_json('{"a": [1]}'), JSON, "at 'a': tags are not a list"),
    (_json('[{"who": "a", "tags": []}]'), JSON, "entry 0 has no id and tags"),
    (_json('"a"'), JSON, "entry 0 has no id and tags"),
    (None, {"tags_from_folders": True}, "two sources of tags"),
    (None, {"tags": None, "tags_from_folders": True}, "1 of 5 images are in no sub-folder: a.jpg"),
    (None, {"tags": None}, "nothing to take tags from\n.*--tags .*--tags-from-folders .*--masks"),
    (lambda r, t: t.rename(r / "tags.csv"), {"tags": None}, "no tags given\n.*photos/tags.csv"),
    (None, {"classes": "none.txt"}, "none.txt: no such file"),
    (None, {"masks": "photos/truth"}, "photos/truth: no such folder"),
    (None, {"masks": "photos"}, "images and masks are in one folder"),
    (lambda r, t: masks_for(r / "truth", ["z.png"]), {**MASKS, **CLASSES},
     "none of its 1 PNG files is the mask of an image\n.*a.png for a.jpg"),
    (lambda r, t: masks_for(r / "truth", NAMES[1:]), {**MASKS, **CLASSES},
     "1 of 5 images have no mask: a\n.*--tags FILE.csv, or --tags-from-folders"),
    (lambda r, t: masks_for(r / "truth", NAMES), MASKS,
     "need the list of classes in their order\n.*classes.txt, one class a line"),
    (lambda r, t: masks_for(r / "truth", NAMES, 3), {**MASKS, **CLASSES},
     "mask value 3, .* 2 classes"),
    (lambda r, t: masks_for(r / "truth", [*NAMES, "cats__b"]), {**MASKS, **CLASSES},
     "cats/b.png and cats__b.png have the same id"),
    (None, {"split": ["train=0.7", "val=0.4"]}, "add up to 1.1"),
    (None, {"split": ["train=0.9", "val=0.01"]}, "val=0.01: no id is left"),
    (None, {"split": ["train=none.txt"]}, "none.txt is neither a share nor a file"),
    (None, {"split": ["train"]}, "train: not NAME=SHARE"),
    (lambda r, t: t.with_name("l").write_text("a\nzz\n"), {"split": ["val=l"]}, "not in .*: zz"),
    (lambda r, t: t.with_name("l").write_text("a\nb/a\n"), {"split": ["val=l"]}, "not in .*: b/a"),
    (lambda r, t: t.with_name("l").write_text("\n"), {"split": ["val=l"]}, "list is empty"),
    (lambda r, t: [t.with_name(n).write_text("a.jpg\n") for n in "lm"],
     {"split": ["val=l", "test=m"]}, "1 ids are also in the list of val: a"),
])
def test_refusals_come_before_any_work(root, tags, tmp_path, monkeypatch, change, options, text):
    monkeypatch.chdir(tmp_path)
    Path("classes.txt").write_text("cat\ndog\n")
    if change:
        change(root, tags)
    options = {"tags": "tags.csv", **options}
    options.update({key: Path(options[key]) for key in ("tags", "masks", "classes")
                    if options.get(key)})
    with pytest.raises(UserError) as caught:
        run(Path("photos"), tmp_path / "set", **options)
    assert re.search(text, str(caught.value), re.S) and caught.value.fix, str(caught.value)
    assert not (tmp_path / "set").exists()


def test_no_image_and_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("")
    with pytest.raises(UserError, match="empty: no image in it\n.*jpg"):
        run(tmp_path / "empty", tmp_path / "set", tags_from_folders=True)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        run(tmp_path / "nowhere", tmp_path / "set")


def test_splits_by_share_and_list(tmp_path, capsys):
    root = pictures(tmp_path / "photos", [f"{'cats' if k % 2 else 'dogs'}/{k:02}.png"
                                          for k in range(20)])
    (tmp_path / "val.txt").write_text("cats/01.png\ndogs__02\n\ncats/03\ncats__01\n")
    options = {"tags_from_folders": True, "seed": 3,
               "split": ["train=0.6", f"val={tmp_path / 'val.txt'}", "spare=1/4"]}
    assert run(root, tmp_path / "sets", **options) == 0
    said = capsys.readouterr().err
    assert "splits: train 10, val 3, spare 4; 3 of 20 images unused" in said
    assert "done 17, skipped 0, failed 0" in said
    sets = {name: ShardSet(tmp_path / "sets" / name) for name in ("train", "val", "spare")}
    assert sets["val"].ids == ["cats__01", "cats__03", "dogs__02"]
    ids = [image_id for shards in sets.values() for image_id in shards.ids]
    assert len(ids) == len(set(ids)) == 17
    assert all(shards.ids == sorted(shards.ids) for shards in sets.values())
    assert all(shards.class_names == ["cats", "dogs"] for shards in sets.values())
    part = sets["spare"].manifest.provenance["parameters"]["split"]
    assert part == {"name": "spare", "part": "1/4", "seed": 3}
    assert run(root, tmp_path / "sets", **options) == 0
    assert "done 0, skipped 17" in capsys.readouterr().err
    with pytest.raises(UserError, match="made with other parameters"):
        run(root, tmp_path / "sets", **{**options, "seed": 4})


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 5), st.integers(6, 80),
       st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_shares_are_disjoint_exact_and_repeatable(weights, unused, count, seed):
    images = {f"i{k}": Item(f"i{k}", f"i{k}.jpg", Path(f"i{k}.jpg")) for k in range(count)}
    total = sum(weights) + unused
    texts = [f"s{k}={weight}/{total}" for k, weight in enumerate(weights)]
    try:
        splits = split_ids(images, texts, seed)
    except UserError as error:
        assert "no id is left" in error.message and min(weights) * count < total
        return
    ids = [image_id for _, part in splits.values() for image_id in part]
    assert len(ids) == len(set(ids)) and set(ids) <= set(images)
    assert unused or len(ids) == count
    for weight, (_, part) in zip(weights, splits.values(), strict=True):
        assert abs(len(part) - Fraction(weight * count, total)) < 1
    assert split_ids(images, texts, seed) == splits
    backwards = split_ids(dict(reversed(images.items())), texts, seed)
    assert all(set(backwards[name][1]) == set(part) for name, (_, part) in splits.items())


def test_command_line(root, tags, tmp_path):
    """Any number of workers gives the same files; a bad image fails its shard, not the others."""
    arguments = ("--tags", tags, "--split", "train=0.6", "--split", "val=0.4", "--shard-size", 1)
    for workers in (1, 2):
        done = tool("folder", root, tmp_path / f"{workers}", *arguments, "--workers", workers)
        assert done.returncode == 0 and "done 5, skipped 0, failed 0" in done.stderr, done.stderr
    for name in ("train", "val"):
        assert digests(tmp_path / "1" / name) == digests(tmp_path / "2" / name)
    (root / "a.jpg").write_bytes(b"junk")
    bad = tool("folder", root, tmp_path / "bad", *arguments, "--workers", 1)
    assert bad.returncode == 1 and "done 4, skipped 0, failed 1" in bad.stderr, bad.stderr
    assert "a.jpg: cannot be decoded" in bad.stderr
    save_picture(root / "a.jpg")
    skipping = tool("folder", root, tmp_path / "1", *arguments, "--skip-bad")
    assert skipping.returncode == 2 and "skip_bad: False there, True now" in skipping.stderr
    refused = tool("folder", root, tmp_path / "none")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error: ") and "fix: " in refused.stderr
    shown = tool("folder", "--help")
    assert shown.returncode == 0 and "Example: python -m data_tools.folder" in shown.stdout
