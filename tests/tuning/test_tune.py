"""The search over real processes: what it finds, what it keeps, what it refuses."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from more.data.seeds import SeedItem
from more.data.shards.reader import ShardSet
from more.errors import UserError
from more.evaluation.score import evaluate
from more.filtering import crf
from more.filtering.parameters import CRFParams
from more.jobs.ranks import Rank
from more.refinement.image import Refinement
from more.refinement.refine import refine
from more.tuning import count_task as module
from more.tuning.count_store import CountStore
from more.tuning.counting import IMAGES_PER_TASK, Counting
from more.tuning.rank_share import Share
from more.tuning.tune import Search, tune
from tests.refinement.sets import POISON
from tests.tuning.sets import (
    ALL,
    FAST,
    GRID,
    INLINE,
    labelled_sets,
    logged_task,
    poisoned_task,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return labelled_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def found(sets, tmp_path_factory):
    """The folder of a finished search over all images, its result and tally."""
    out = tmp_path_factory.mktemp("found") / "tune"
    return out, *tune(*sets, out, ALL, **INLINE)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pictures take longer than these searches; tests/tuning/test_heat_map.py has them."""
    monkeypatch.setattr("more.tuning.tune.picture_bytes", lambda figure: b"")


def context(sets):
    source, images = map(ShardSet, sets)
    job = Counting(source, images, None, None, [], None, None, False)
    return job.context()


def read(out):
    return json.loads((out / "tune.json").read_text())


def test_every_point_is_what_refine_and_evaluate_give(sets, found, tmp_path):
    out, result, tally = found
    seeds, data = sets
    assert (tally.done, tally.skipped, tally.exit_code, len(result.points)) == (12, 0, 0, 8)
    assert len({round(point.scores.miou, 6) for point in result.scores}) > 5
    images, store = ShardSet(data), CountStore(out, context(sets))
    for number in {result.best, 1, 7}:
        how, point = result.points[number], result.scores[number]
        masks = tmp_path / str(number)
        refine(seeds, data, masks, how, **INLINE)
        score = evaluate(masks, data, boundary=0, calibration=False, workers=1, progress=False)
        for name in ("iou", "precision", "recall"):
            assert np.array_equal(getattr(score.scores, name), getattr(point.scores, name),
                                  equal_nan=True)
        assert score.miou == point.scores.miou
        assert score.unlabelled == pytest.approx(1 - point.kept, abs=1e-12)
        refined = ShardSet(masks)
        for row, counts in enumerate(store.counts(how, images.ids, 5)):
            truth, label = images.mask(row), refined.mask(refined.index_of(images.ids[row]))
            expected = np.zeros((256, 256), int)
            np.add.at(expected, (truth, label), 1)
            assert np.array_equal(counts, expected[:5, [0, 1, 2, 3, 4, 255]])


def test_the_printed_command_makes_the_masks_of_the_best_point(sets, run, tmp_path, monkeypatch):
    seeds, data = sets
    ended = run("more", "tune", seeds, "--data", data, "--out", tmp_path / "my tune", "--grid",
                "threshold=0.35", "--grid", "crf.bilateral_rgb=20", "--images", 12,
                "--set", "crf.iterations=2", "--workers", 1)
    assert ended.code == 0 and "image tags alone" in " ".join(ended.out.split()), ended
    assert "3 points" not in ended.err and "2 points need 2 dense CRFs" in ended.err
    line = ended.out.strip().splitlines()[-1]
    program, dash, package, *arguments = shlex.split(line.removeprefix("next: "))
    assert (program, dash, package) == ("python", "-m", "more") and arguments[0] == "refine"
    best = json.loads((tmp_path / "my tune" / "tune.json").read_text())
    best = best["points"][best["best"]]
    assert best["at"] == {"threshold": 0.35, "crf.bilateral_rgb": 20}, "else nothing is told apart"
    assert run("more", *arguments, "--workers", 1).code == 0
    score = evaluate(tmp_path / "my tune" / "masks", data, boundary=0, calibration=False,
                     workers=1, progress=False)
    assert score.miou == best["miou"]


def test_json_on_stdout(sets, run, tmp_path):
    ended = run("more", "tune", *sets[:1], "--data", sets[1], "--out", tmp_path, "--grid",
                "threshold=0.5", "--images", 2, "--set", "crf.iterations=1", "--workers", 1,
                "--json")
    printed = json.loads(ended.out)
    assert printed["best"] == printed["reference"] and printed.pop("command") is None
    assert printed == read(tmp_path) and ended.code == 0


def test_one_and_two_workers_write_the_same_bytes(sets, found, tmp_path):
    tune(*sets, tmp_path, ALL, 2, progress=False)
    assert (tmp_path / "tune.json").read_bytes() == (found[0] / "tune.json").read_bytes()


def test_the_crf_runs_once_for_points_that_share_it(sets, found, tmp_path, monkeypatch):
    runs, decoded, true_refine, true_image = [], [], crf.refine, ShardSet.image
    monkeypatch.setattr(crf, "refine", lambda *args: runs.append(args[2]) or true_refine(*args))
    monkeypatch.setattr(ShardSet, "image", lambda *args: decoded.append(1) or true_image(*args))
    tune(*sets, tmp_path, ALL, **INLINE)
    classes = ShardSet(sets[0]).tags.any(1).sum()  # an image without class needs no CRF
    assert classes < 12 and len(runs) == 4 * classes and len(decoded) == 4 * 12
    runs.clear()
    finer = replace(ALL, grid=(*GRID[:2], "ignore_below=0,0.3,0.6,0.9"))
    result, _ = tune(*sets, tmp_path, finer, **INLINE)
    assert len(runs) == 4 * classes  # half of the points were known, but none of their CRFs
    fresh, _ = tune(*sets, tmp_path / "fresh", finer, **INLINE)
    assert result.to_json() == fresh.to_json()


def test_another_grid_and_sample_reuse_what_is_known(sets, found, tmp_path):
    tune(*sets, tmp_path / "tune", replace(ALL, images=6), count_function=logged_task, **INLINE)
    (tmp_path / "calls").unlink()
    wider = replace(ALL, grid=("threshold=0.35,0.5,0.6", *GRID[1:]), images=7)
    result, tally = tune(*sets, tmp_path / "tune", wider, count_function=logged_task, **INLINE)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    per_row = {row: sum(int(n) for r, n in calls if r == row) for row, _ in calls}
    # Six images lack the four points of threshold 0.6, the seventh all twelve.
    assert sorted(per_row.values()) == [4] * 6 + [12] and tally.done == 7
    (tmp_path / "calls").unlink()
    again, tally = tune(*sets, tmp_path / "tune", wider, count_function=logged_task, **INLINE)
    assert not (tmp_path / "calls").exists() and (tally.done, tally.skipped) == (0, 7)
    assert again.to_json() == result.to_json()


def test_counts_of_other_sets_are_not_used(sets, tmp_path):
    small = replace(ALL, images=3, grid=("threshold=0.4,0.5",))
    tune(*sets, tmp_path / "tune", small, **INLINE)
    others = labelled_sets(tmp_path / "others", seed=1)
    mixed, tally = tune(*others, tmp_path / "tune", small, **INLINE)
    assert tally.done == 3
    assert mixed.to_json() == tune(*others, tmp_path / "own", small, **INLINE)[0].to_json()


def test_a_kill_costs_the_tasks_in_flight(sets, found, tmp_path):
    code = ("import sys\nfrom pathlib import Path\n"
            "from more.tuning.tune import tune\nfrom tests.tuning.sets import ALL, slow_task\n"
            "if __name__ == '__main__':\n"
            "    tune(*map(Path, sys.argv[1:]), ALL, 2, count_function=slow_task)\n")
    (tmp_path / "job.py").write_text(code)
    counts = tmp_path / "tune" / "counts.jsonl"
    job = subprocess.Popen([sys.executable, tmp_path / "job.py", *sets, counts.parent])
    try:
        deadline = time.monotonic() + 60
        while not (counts.is_file() and counts.read_bytes().count(b"\n") >= 3):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    tasks = 4 * 12 // IMAGES_PER_TASK
    kept = counts.read_bytes().count(b"\n")
    assert 3 <= kept < tasks - 2 and not (counts.parent / "tune.json").exists()
    time.sleep(1.5)  # workers end with their parent
    (tmp_path / "calls").unlink()
    with open(counts, "ab") as file:  # as if the kill had come while a line was written
        file.write(b'{"context": "')
    tune(*sets, counts.parent, ALL, count_function=logged_task, **INLINE)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (tasks - kept) * IMAGES_PER_TASK
    assert (counts.parent / "tune.json").read_bytes() == (found[0] / "tune.json").read_bytes()
    assert not list(counts.parent.glob("*.tmp.*")) and not (counts.parent / ".lock").exists()
    assert all(json.loads(line) for line in counts.read_bytes().splitlines())


def test_ranks_share_the_images_and_the_last_one_writes(sets, found, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MORE_RANKS", "1")
    for attempt in range(2):  # the second one does nothing, and ends alike
        monkeypatch.setenv("RANK", "1")
        result, tally = tune(*sets, tmp_path, ALL, executor="ranks", **INLINE)
        assert (result is None) == (attempt == 0)
        assert (tally.done, tally.skipped) == ((6, 0), (0, 6))[attempt]
        assert tally.what == "rank 1 of 2, images"
        monkeypatch.setenv("RANK", "0")
        result, tally = tune(*sets, tmp_path, ALL, executor="ranks", **INLINE)
        assert (tally.done, tally.skipped) == ((6, 0), (0, 6))[attempt]
        assert (tmp_path / "tune.json").read_bytes() == (found[0] / "tune.json").read_bytes()
    # Rank 1 is through with that search, not with this one.
    other = replace(ALL, grid=("threshold=0.4",))
    assert tune(*sets, tmp_path, other, executor="ranks", **INLINE)[0] is None
    # What ranks have counted serves a search without ranks.
    monkeypatch.delenv("WORLD_SIZE")
    _, tally = tune(*sets, tmp_path, ALL, **INLINE)
    assert tally.skipped == 12


def test_the_last_rank_sees_what_others_counted_meanwhile(sets, found, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MORE_RANKS", "1")
    first = []

    def after_the_other(spec):
        if not first:
            monkeypatch.setenv("RANK", "1")
            first.append(tune(*sets, tmp_path, ALL, executor="ranks", **INLINE)[0])
        return module.count_task(spec)

    monkeypatch.setenv("RANK", "0")
    result, _ = tune(*sets, tmp_path, ALL, executor="ranks", count_function=after_the_other,
                     **INLINE)
    assert first == [None] and result.to_json() == found[1].to_json()


def test_a_rank_that_starts_again_is_not_through(tmp_path):
    first, second = (Share(tmp_path, Rank(number, 2), "request") for number in (0, 1))
    with first.writing():
        assert first.through([]) is None
    with first.writing(), second.writing():
        assert second.through([("b", "why")]) is None
        assert list(map(tuple, first.through([("a", "why")]))) == [("a", "why"), ("b", "why")]


def test_failures_of_all_ranks_count(tmp_path, monkeypatch):
    seeds, data = labelled_sets(tmp_path, count=5, damage="image-02")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MORE_RANKS", "1")
    search, codes = replace(ALL, grid=GRID[:1]), []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        result, tally = tune(seeds, data, tmp_path / "tune", search, executor="ranks", **INLINE)
        codes.append(tally.exit_code)
    assert codes == [1, 0] and [name for name, _ in result.failed] == ["image-02"]
    assert result.images == 4


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_dask_cluster_gives_the_same(sets, found, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                                  processes=True) as cluster:
        result, _ = tune(*sets, tmp_path, ALL, executor=cluster.scheduler_address,
                         progress=False)
    assert result.to_json() == found[1].to_json() and not list(tmp_path.glob("*.tmp.*"))


@pytest.mark.timeout(90)
def test_a_poison_image_costs_itself(sets, found, tmp_path):
    out = tmp_path / "tune"
    search = replace(ALL, grid=GRID[1:])
    result, tally = tune(*sets, out, search, 1, count_function=poisoned_task, progress=False)
    assert (tally.done, tally.exit_code) == (11, 1)
    assert [name for name, _ in tally.failures] == [POISON] and "died" in tally.failures[0][1]
    assert (tmp_path / "deaths").read_text().count("died") == 2  # and not twice a CRF
    written = read(out)
    assert [name for name, _ in written["sample"]["failed"]] == [POISON] and result.images == 11
    # All points lack the same image: figures of the others alone.
    _, clean, _ = found
    for how, point in zip(result.points, result.scores, strict=True):
        if how in clean.points:
            other = clean.scores[clean.points.index(how)]
            keep = [n for n, name in enumerate(clean.sample.ids) if name != POISON]
            assert np.array_equal(point.margins, other.margins[keep])
    # The cause is gone: the same command does what is missing.
    result, tally = tune(*sets, out, search, **INLINE)
    assert (tally.done, tally.skipped, tally.exit_code, result.images) == (1, 11, 0, 12)


def test_a_damaged_image_is_reported_once(tmp_path, capsys):
    seeds, data = labelled_sets(tmp_path, count=4, damage="image-02")
    both = threading.Barrier(2)

    def together(spec):
        both.wait(30)  # two CRFs of the same images at the same time
        return module.count_task(spec)

    result, tally = tune(seeds, data, tmp_path / "tune", replace(ALL, grid=GRID[:1]),
                         count_function=together, **{**INLINE, "workers": 2})
    (name, why), = tally.failures
    assert name == "image-02" and "decoded" in why and tally.exit_code == 1
    assert result.images == 3 and capsys.readouterr().err.count("failed: image-02") == 1


def test_a_task_that_raises_fails_its_images(sets, tmp_path):
    small = replace(ALL, images=5, grid=("threshold=0.5",))

    def full(spec):
        if len(spec.ids) == IMAGES_PER_TASK:
            raise OSError(28, "No space left on device")
        return module.count_task(spec)

    result, tally = tune(*sets, tmp_path, small, count_function=full, **INLINE)
    assert (tally.done, len(tally.failures), result.images) == (1, 4, 1)
    assert all("No space left" in why for _, why in tally.failures)
    with pytest.raises(UserError, match="all 4 images failed.*No space"):
        tune(*sets, tmp_path / "none", replace(small, images=4), count_function=full, **INLINE)


def test_a_point_that_labels_too_little_is_not_the_best(sets, tmp_path):
    search = replace(ALL, grid=("ignore_below=0,0.999",), min_kept=0.0)
    free, _ = tune(*sets, tmp_path, search, **INLINE)
    strict, _ = tune(*sets, tmp_path, replace(search, min_kept=0.999), **INLINE)
    assert free.points[free.best].ignore_below == 0.999
    assert free.scores[free.best].kept < 0.999 < strict.scores[strict.best].kept
    assert strict.best == strict.reference
    assert "1 that keep less than 99.9 %" in " ".join(strict.notes())
    assert free.scores[free.best].miou_all < free.scores[free.best].scores.miou


def test_what_the_record_holds(sets, found):
    out, result, _ = found
    written = read(out)
    assert set(written) == {
        "format", "tool", "version", "name", "route", "grid", "random", "seed", "min_kept",
        "sample", "supervision", "reference", "reference_name", "best", "difference",
        "provenance", "points"}
    assert written["grid"] == {"threshold": [0.35, 0.5], "crf.bilateral_rgb": [3, 20],
                               "ignore_below": [0, 0.6]}
    assert written["sample"]["images"] == ShardSet(sets[0]).ids
    assert sum(written["sample"]["per_class"].values()) == ShardSet(sets[0]).tags.sum()
    assert written["reference_name"] == "configured" and "12 images" in written["supervision"]
    assert written["provenance"]["data"] == ShardSet(sets[1]).manifest.digest
    assert written["provenance"]["seeds_digest"] == ShardSet(sets[0]).manifest.digest
    for point in written["points"]:
        assert set(point) == {"settings", "at", "miou", "miou_all", "pixel_accuracy", "precision",
                              "recall", "kept", "iou"}
        assert all(0 <= point[name] <= 1 for name in ("miou", "precision", "recall", "kept"))
        assert list(point["at"]) == sorted(written["grid"]) and len(point["iou"]) == 5
    best = max(p["miou"] for p in written["points"] if p["kept"] >= 0.9)
    assert written["points"][written["best"]]["miou"] == best
    gap = written["difference"]
    assert gap["miou"] == best - written["points"][written["reference"]]["miou"]
    assert gap["low"] <= gap["miou"] <= gap["high"] and gap["draws"] == 1000
    assert "true image tags" in result.route


def test_released_settings_are_called_so(sets, tmp_path):
    search = Search(("crf.iterations=1",), images=2)
    result, _ = tune(*sets, tmp_path, search, **INLINE)
    assert result.reference_name == "released" and len(result.points) == 2
    assert result.points[result.reference].params == CRFParams()
    cells = [list(map(str, column.cells)) for column in result.table().columns]
    assert cells[0] == [f"{n:g}" for n in (1, 10)][::1 if result.best == 0 else -1] + ["10"]
    assert cells[2][-1] == "+0.00" and "over the released settings" in " ".join(result.notes())


def test_the_present_settings_as_the_best_print_no_command(sets, run, tmp_path):
    ended = run("more", "tune", *sets[:1], "--data", sets[1], "--out", tmp_path, "--grid",
                "threshold=0.5", "--images", 2, "--set", "crf.iterations=1", "--workers", 1)
    assert ended.code == 0 and "more refine" not in ended.out
    assert "the present (configured) settings are the best of these points" in ended.out


def test_a_gain_whose_interval_includes_0_is_said_to_be_none(found):
    result = found[1]
    other = next(n for n in range(len(result.points)) if n != result.reference)

    def said(low, high):
        gap = replace(result.difference, miou=0.01, low=low, high=high)
        return replace(result, best=other, difference=gap).verdict()

    assert said(-0.005, 0.02) == ("no gain is shown: +1.00, but its 95 % interval -0.50 to +2.00 "
                                  "includes 0")
    assert "includes 0" in said(0.0, 0.02) and "no gain" not in said(0.001, 0.02)
    assert "one image" in said(None, None)


def test_random_points(sets, tmp_path):
    search = replace(ALL, images=2, random=3, grid=("crf.bilateral_xy=10,20,30,40",))
    result, _ = tune(*sets, tmp_path, search, **INLINE)
    assert len(result.points) == 4 and read(tmp_path)["random"] == 3
    assert result.points[result.reference].params.bilateral_xy == 67


@pytest.mark.parametrize(("change", "words"), [
    ({"grid": ("treshold=1",)}, "did you mean threshold"),
    ({"axes": "threshold,crf.bilateral_xy"}, "--axes crf.bilateral_xy: unknown"),
    ({"axes": "threshold"}, "two different"), ({"axes": "threshold,threshold"}, "two different"),
    ({"random": 0}, "--random 0"), ({"min_kept": 1.5}, "--min-kept 1.5"),
    ({"seed": -1}, "--seed -1"), ({"images": 0}, "--images 0")])
def test_what_cannot_work_is_refused_before_any_work(sets, tmp_path, change, words):
    with pytest.raises(UserError) as error:
        tune(*sets, tmp_path / "tune", replace(ALL, **change), **INLINE)
    assert words in str(error.value) and error.value.fix
    assert not (tmp_path / "tune").exists()


def test_decoder_seeds_have_no_threshold_and_a_grid_of_their_own(tmp_path):
    seeds, data = labelled_sets(tmp_path, count=3, map="decoder", tags="predicted")
    with pytest.raises(UserError, match="decoder seeds have a background"):
        tune(seeds, data, tmp_path / "tune", ALL, **INLINE)
    result, _ = tune(seeds, data, tmp_path / "tune", replace(ALL, grid=()), **INLINE)
    assert [axis.key for axis in result.axes] == ["crf.bilateral_rgb", "crf.bilateral_compat"]


def test_a_seed_with_a_class_outside_the_tags_fails_as_in_refine(sets, tmp_path, monkeypatch):
    def refuse(item, tags, keep_to_tags):
        assert keep_to_tags
        raise ValueError("outside the tags")

    monkeypatch.setattr(module, "allowed_tags", refuse)
    with pytest.raises(UserError, match="outside the tags"):
        tune(*sets, tmp_path, replace(ALL, images=2), **INLINE)


def test_a_worker_imports_no_torch():
    pytest.importorskip("pydensecrf", reason="without pydensecrf the worker's engine is torch")
    code = ("import sys, numpy as np\nfrom more.refinement.image import Refinement\n"
            "from more.data.seeds import SeedItem\n"
            "from more.tuning.count_task import count_task, labels\n"
            "item = SeedItem(np.array([2]), np.full((1, 3, 3), .7, np.float16))\n"
            "labels(np.zeros((8, 9, 3), np.uint8), item, [Refinement()])\n"
            "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'matplotlib')))\n")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_labels_are_counted_or_refused():
    truth = np.array([[0, 1, 2, 255], [0, 1, 2, 3]], np.uint8)
    label = np.array([[0, 2, 255, 1], [0, 2, 2, 1]], np.uint8)
    assert module.count_cells(truth, label, 3) == [[0, 2], [6, 2], [10, 1], [11, 1]]
    for bad in (3, 7):
        with pytest.raises(ValueError, match=f"label {bad} is outside 0..2"):
            module.count_cells(truth, np.full_like(label, bad), 3)


def test_an_image_that_cannot_fit_is_refused_before_its_crf(monkeypatch):
    item = SeedItem(np.array([2]), np.full((1, 3, 3), .7, np.float16))
    monkeypatch.setattr("more.refinement.worker_memory.process_limit", lambda: 10e6)
    with pytest.raises(ValueError, match="0.2 megapixels and 2 labels.*more refine --max-pixels"):
        module.labels(np.zeros((400, 500, 3), np.uint8), item, [Refinement()])


def test_a_damaged_line_of_counts_costs_its_task(sets, tmp_path):
    search = replace(ALL, images=8, grid=("threshold=0.4",))
    result, _ = tune(*sets, tmp_path, search, **INLINE)
    lines = (tmp_path / "counts.jsonl").read_text().splitlines()
    assert len(lines) == 4
    for damaged in (lines[1][:50], '{"context": 3}', "7", json.dumps(
            {**json.loads(lines[1]), "settings": [1]})):
        lines[1] = damaged
        (tmp_path / "counts.jsonl").write_text("\n".join(lines) + "\n")
        again, tally = tune(*sets, tmp_path, search, **INLINE)
        assert tally.done == 4 and again.to_json() == result.to_json()


def test_default_search_covers_the_released_point(sets, tmp_path):
    result, _ = tune(*sets, tmp_path, replace(ALL, images=1, grid=(), base=Search().base),
                     **INLINE)
    assert len(result.points) == 12 and result.reference_name == "released"
    assert result.difference.low is None and result.points[result.reference] != FAST
