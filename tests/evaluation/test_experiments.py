"""Stage two in a run's table, and the table over experiments, from score files written by hand."""

import json
import re

import pytest
from rich.console import Console

from more.errors import UserError
from more.evaluation.experiments import read_experiments
from more.evaluation.experiments_table import experiments_markdown, experiments_table
from more.evaluation.report import build_report
from more.evaluation.run_scores import read_scores, score_table
from tests.command.conftest import refused, run  # noqa: F401

ROUTES = {"seeds/lam": "LAM seeds, true image tags, 1 scale, threshold 0.50 (pseudo-labels of a "
                       "training set: route b)",
          "seeds/val": "decoder, 1 scale (route a without multi-scale, flip, CRF)",
          "masks/val": "decoder, 4 scales + flip, dense CRF (route a)"}


def score(folder, name, miou, data="val", file=None, **changes):
    """One score file; the classes' IoU are 0.1 below, at and 0.1 above the mean."""
    record = {"name": name, "data": data, "route": ROUTES.get(name, "?"), "miou": miou,
              "images": 10, "precision": 0.5, "recall": 0.5, "confusion": 0.5,
              "data_digest": data, "images_digest": data,
              "classes": {"background": {"iou": miou + 0.1, "recall": 0.5},
                          "dog": {"iou": miou, "recall": 0.5},
                          "cat": {"iou": miou - 0.1, "recall": 0.5}}, **changes}
    folder = folder / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file or name.replace('/', '_')}-{data}.json"
    path.write_text(json.dumps({key: value for key, value in record.items()
                                if value is not None}))


def about(folder, **record):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))


def stage_two(folder, supervision="tags", **scores):
    about(folder, stage=2, supervision=supervision)
    for name, miou in scores.items():
        score(folder, f"{name}/val", miou)


def one_run(folder, seed=1, lam=0.6, two=0.6, true=0.8):
    """Stage one with a score, stage two with one and its reference with two."""
    about(folder, version="0.1.0")
    (folder / "config.json").write_text(json.dumps({"train": {"seed": seed}}))
    score(folder, "seeds/lam", lam, "train")
    if two is not None:
        stage_two(folder / "two", masks=two)
    stage_two(folder / "true", "true masks", masks=true, seeds=true - 0.1)
    return folder


def read(folder):
    notes = []
    return {row["name"]: row for row in read_scores(folder, notes)}, notes


def shown(table, width=200):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_rows_of_stage_two_stand_after_the_runs_own_and_the_reference_last(tmp_path):
    one_run(tmp_path)
    score(tmp_path, "seeds/val", 0.3)
    stage_two(tmp_path / "two", seeds=0.5)
    stage_two(tmp_path / "zwei", seeds=0.5)
    rows, notes = read(tmp_path)
    assert list(rows) == ["seeds/lam", "seeds/val", "two: seeds/val", "two: masks/val",
                          "zwei: seeds/val", "true: seeds/val", "true: masks/val"]
    assert not notes
    routes = {name: row["route"] for name, row in rows.items()}
    assert routes["seeds/lam"] == ROUTES["seeds/lam"] and routes["seeds/val"] == ROUTES["seeds/val"]
    assert routes["two: masks/val"] == f"stage two: {ROUTES['masks/val']}"
    assert routes["true: masks/val"] == f"trained on true masks: {ROUTES['masks/val']}"


def test_other_folders_of_a_run_are_left_alone(tmp_path):
    score(tmp_path, "seeds/lam", 0.6, "train")
    about(tmp_path / "old", version="0.1.0")
    score(tmp_path / "old", "seeds/val", 0.5)
    score(tmp_path / "copy", "seeds/val", 0.5)
    stage_two(tmp_path / "deep" / "two", seeds=0.5)
    about(tmp_path / "empty", stage=2, supervision="tags")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text("{")
    rows, notes = read(tmp_path)
    assert list(rows) == ["seeds/lam"]
    assert len(notes) == 2 and "cut/run.json cannot be read" in notes[0]
    assert notes[1].startswith("empty is a run of stage two without scores")


def test_a_stage_two_folder_read_by_itself_says_what_it_was_trained_on(tmp_path):
    one_run(tmp_path)
    rows, _ = read(tmp_path / "true")
    assert rows["masks/val"]["route"].startswith("trained on true masks: decoder")
    assert "trained on true masks: this run" in shown(score_table(list(rows.values())))


def test_share_of_full_supervision(tmp_path):
    one_run(tmp_path, two=0.6, true=0.8)
    stage_two(tmp_path / "two", seeds=0.35)
    score(tmp_path, "masks/val", 0.4)
    rows, _ = read(tmp_path)
    assert rows["two: masks/val"]["share"] == pytest.approx(0.75)
    assert rows["two: seeds/val"]["share"] == pytest.approx(0.5)
    assert all(rows[name]["share"] is None
               for name in ("seeds/lam", "masks/val", "true: masks/val", "true: seeds/val"))
    stage_two(tmp_path / "again", "true masks", masks=0.96)
    assert read(tmp_path)[0]["two: masks/val"]["share"] == pytest.approx(0.625), "the best counts"


@pytest.mark.parametrize("change", [
    {"data": "train", "data_digest": "val", "images_digest": "val"},
    {"data_digest": "other"}, {"images_digest": "other"}, {"data_digest": None},
    {"miou": 0}, {"route": "decoder, restricted to the true image tags (route a, but given the "
                           "true tags)"}], ids=lambda change: next(iter(change)))
def test_no_share_of_a_score_that_does_not_compare(tmp_path, change):
    stage_two(tmp_path / "two", masks=0.6)
    about(tmp_path / "true", stage=2, supervision="true masks")
    score(tmp_path / "true", "masks/val", **{"miou": 0.8, **change})
    assert read(tmp_path)[0]["two: masks/val"]["share"] is None


def test_scores_without_digests_are_matched_by_their_data(tmp_path):
    bare = {"data_digest": None, "images_digest": None}
    for name, supervision, miou in (("two", "tags", 0.6), ("true", "true masks", 0.8)):
        about(tmp_path / name, stage=2, supervision=supervision)
        score(tmp_path / name, "masks/val", miou, **bare)
    assert read(tmp_path)[0]["two: masks/val"]["share"] == pytest.approx(0.75)


def test_the_column_is_shown_only_with_a_reference(tmp_path):
    one_run(tmp_path / "a")
    table = shown(score_table(list(read(tmp_path / "a")[0].values())))
    assert "of full supervision" in table
    assert re.search(r"two: masks/val +60.00 +75.00 ", table)
    narrow = shown(score_table([{**row, "boundary_iou": 0.5} for row in read(tmp_path / "a")[0]
                                .values()]), 80)
    assert "true: masks/val" in narrow and "…" not in narrow, "all columns fit 80 characters"
    page = build_report(tmp_path / "a").read_text(encoding="utf-8")
    assert '<th class="num">of full supervision</th>' in page and ">75.00 %</td>" in page
    score(tmp_path / "b", "seeds/lam", 0.6, "train")
    stage_two(tmp_path / "b" / "two", masks=0.6)
    table = shown(score_table(list(read(tmp_path / "b")[0].values())))
    assert "two: masks/val" in table and "full supervision" not in table
    page = build_report(tmp_path / "b").read_text(encoding="utf-8")
    assert "two: masks/val" in page and '<th class="num">of full supervision</th>' not in page
    assert "no reference on true masks yet" in page


def test_mean_and_spread_by_hand(tmp_path):
    runs = [one_run(tmp_path / f"s{seed}", seed, lam, two, true)
            for seed, lam, two, true in ((1, 0.60, 0.60, 0.80), (2, 0.62, 0.56, 0.80),
                                         (3, 0.67, 0.40, 0.50))]
    found = read_experiments([f"full={','.join(map(str, runs))}", f"one={runs[0]}"])
    assert found.columns == ["seeds/lam@train", "two:masks/val@val", "true:seeds/val@val",
                             "true:masks/val@val", "two:masks/val@val / true"]
    # lam: mean 63, deviations -3, -1, 4: √(26 / 2) = 3.6; shares 75, 70, 80: √(50 / 2) = 5.0.
    # two: mean 52, deviations 8, 4, -12: √(224 / 2) = 10.6
    assert [found.cell("full", column).text() for column in found.columns] == [
        "63.0 ± 3.6", "52.0 ± 10.6", "60.0 ± 17.3", "70.0 ± 17.3", "75.0 ± 5.0"]
    assert [found.cell("one", column).text() for column in found.columns] == [
        "60.0", "60.0", "70.0", "80.0", "75.0"]
    assert not found.warnings()


def test_a_missing_score_is_counted(tmp_path):
    runs = [one_run(tmp_path / "a", 1, two=0.6), one_run(tmp_path / "b", 2, two=0.4),
            one_run(tmp_path / "c", 3, two=None)]
    found = read_experiments([f"x={runs[0]},{runs[1]},{runs[2]}", f"y={runs[0]},{runs[2]}",
                     f"z={runs[2]}"])
    for name, own, share in (("x", "50.0 ± 14.1 (2 of 3)", "62.5 ± 17.7 (2 of 3)"),
                             ("y", "60.0 (1 of 2)", "75.0 (1 of 2)"), ("z", "–", "–")):
        assert found.cell(name, "two:masks/val@val").text() == own
        assert found.cell(name, "two:masks/val@val / true").text() == share


def test_columns_are_chosen_and_bring_their_shares(tmp_path):
    one_run(tmp_path)
    found = read_experiments([f"x={tmp_path}"], ["two:masks/val@val", "seeds/lam@train"])
    assert found.columns == ["two:masks/val@val", "seeds/lam@train", "two:masks/val@val / true"]
    assert read_experiments([f"x={tmp_path}"], ["two:masks/val@val / true"]).columns == [
        "two:masks/val@val / true"]
    with pytest.raises(UserError, match="two:masks/vol@val.*\n.*did you mean two:masks/val@val"):
        read_experiments([f"x={tmp_path}"], ["two:masks/vol@val"])


def test_means_over_some_classes_leave_out_those_without_truth(tmp_path):
    one_run(tmp_path, two=0.6, true=0.8)
    found = read_experiments([f"x={tmp_path}"], classes=["background", "dog"])
    # The classes lie 0.1 above the mIoU and on it: 0.65 and 0.65 / 0.85.
    assert found.cell("x", "two:masks/val@val").mean == pytest.approx(0.65)
    assert found.cell("x", "two:masks/val@val / true").mean == pytest.approx(0.65 / 0.85)
    score(tmp_path, "seeds/lam", 0.6, "train", classes={
        "background": {"iou": 0.5, "recall": 0.5}, "dog": {"iou": None},
        "cat": {"iou": 0.0, "recall": None}})  # cat was predicted where nothing is
    found = read_experiments([f"x={tmp_path}"], ["seeds/lam@train"], ["background", "dog", "cat"])
    assert found.cell("x", "seeds/lam@train").mean == 0.5
    score(tmp_path, "seeds/val", 0.3, classes={"tram": {"iou": 0.3}})
    found = read_experiments([f"x={tmp_path}"], classes=["background"])
    assert found.cell("x", "seeds/val@val").text() == "–", "of other data"


def test_an_unknown_class_is_refused_with_near_names(tmp_path):
    one_run(tmp_path)
    with pytest.raises(UserError, match="class 'dogg'.*\n.*did you mean dog"):
        read_experiments([f"x={tmp_path}"], classes=["background", "dogg"])


def test_what_is_no_experiment_is_refused(tmp_path):
    one_run(tmp_path / "a")
    (tmp_path / "bare").mkdir()
    a = tmp_path / "a"
    for texts, words in (([str(a)], "is not an experiment"), ([f"x={a},"], "is not an experiment"),
                         ([f"={a}"], "is not an experiment"), (["x="], "is not an experiment"),
                         ([f"x={a}", f"x={a}"], "x: is given twice"),
                         ([f"x={a},{a}/../a"], "has a run twice"),
                         ([f"x={a},{tmp_path}/none"], "none: no such run folder"),
                         ([f"x={a},{tmp_path}/bare"], "bare/scores: no score")):
        with pytest.raises(UserError, match=words) as error:
            read_experiments(texts)
        assert error.value.fix


def test_two_scores_of_one_column_are_refused_where_it_is_shown(tmp_path):
    one_run(tmp_path)
    score(tmp_path, "seeds/lam", 0.7, "train", file="at_040")
    with pytest.raises(UserError, match="at_040-train.json and scores/seeds_lam-train.json both"):
        read_experiments([f"x={tmp_path}"])
    chosen = read_experiments([f"x={tmp_path}"], ["two:masks/val@val"])
    assert chosen.columns[0] == "two:masks/val@val"


def test_what_must_not_be_compared_is_said(tmp_path):
    a, b = one_run(tmp_path / "a"), one_run(tmp_path / "b")
    score(b, "seeds/lam", 0.6, "train", route="LAM seeds, predicted image tags (route c)")
    about(b / "two", stage=2, supervision="true masks")
    score(b / "true", "masks/val", 0.8, data_digest="changed", images_digest="fewer")
    found = read_experiments([f"one={a}", f"other={b}"])
    differ = "inference routes or supervision differ; these figures must not be compared"
    assert [line.split(" with each")[0] for line in found.warnings()] == [
        f"seeds/lam@train: {differ}", f"two:masks/val@val: {differ}",
        "true:masks/val@val: scored on different versions of the data",
        "true:masks/val@val: scored on different images"]
    text = experiments_markdown(found)
    assert f"- `seeds/lam@train`: one: {ROUTES['seeds/lam']}; other: LAM seeds, predicted" in text
    assert text.count("- **Warning:** ") == 4
    assert "warning: two:masks/val@val" in shown(experiments_table(found, 200))


@pytest.fixture
def two_runs(tmp_path):
    return one_run(tmp_path / "a", 7, lam=0.6), one_run(tmp_path / "b", 8, lam=0.7)


def test_markdown(two_runs):
    a, b = two_runs
    text = experiments_markdown(read_experiments(
        [f"full|new={a},{b}"], ["seeds/lam@train", "two:masks/val@val"]))
    lines = text.splitlines()
    assert lines[:3] == [
        "| experiment | `seeds/lam@train` | `two:masks/val@val` | `two:masks/val@val / true` "
        "| runs |", "| --- | ---: | ---: | ---: | ---: |",
        r"| full\|new | 65.0 ± 7.1 | 60.0 ± 0.0 | 75.0 ± 0.0 | 2 |"]
    assert "± sample standard deviation" in lines[4]
    assert lines[6:8] == [f"- `seeds/lam@train`: {ROUTES['seeds/lam']}",
                          f"- `two:masks/val@val`: stage two: {ROUTES['masks/val']}"]
    assert lines[8].startswith(f"- `two:masks/val@val / true`: stage two: {ROUTES['masks/val']}; "
                               "in per cent of the same set from a folder trained on true masks")
    inside = text.split("<details><summary>Every run</summary>\n\n")[1].splitlines()
    assert inside[0].startswith("| experiment | run | seed | `seeds/lam@train` |")
    assert inside[2:4] == [rf"| full\|new | {a} | 7 | 60.00 | 60.00 | 75.00 |",
                           rf"| full\|new | {b} | 8 | 70.00 | 60.00 | 75.00 |"]
    assert inside[-1] == "</details>"


def test_the_table_goes_on_below_where_it_is_too_wide(two_runs):
    found = read_experiments([f"full={two_runs[0]},{two_runs[1]}"])
    wide, narrow = (shown(experiments_table(found, width), width) for width in (300, 60))
    assert wide.count("experiment") == 2 and narrow.count("experiment") > 3
    for text in (wide, narrow):
        assert all(cell in text for cell in ("65.0 ± 7.1", "60.0 ± 0.0", "80.0 ± 0.0", "route b"))
    assert re.search(r"full +\S+/a +7 +60\.00 ", wide) and "two:masks/val@val / true: " in wide


def test_command_line(run, two_runs, tmp_path):  # noqa: F811
    a, b = two_runs
    ended = run("more", "results", f"full={a},{b}", "--json", "--classes", "dog, background")
    out = json.loads(ended.out)
    assert ended.code == 0 and out["classes"] == ["dog", "background"]
    full = out["experiments"]["full"]
    assert full["cells"]["seeds/lam@train"] == {
        "mean": pytest.approx(0.7), "spread": pytest.approx(0.0707, abs=1e-4), "runs": 2}
    assert [(one["run"], one["seed"]) for one in full["runs"]] == [(str(a), 7), (str(b), 8)]
    assert full["runs"][0]["values"]["seeds/lam@train"] == pytest.approx(0.65)
    ended = run("more", "results", f"full={a},{b}", "--markdown", "--columns", "seeds/lam@train")
    assert ended.code == 0 and "| full | 65.0 ± 7.1 | 2 |" in ended.out
    ended = run("more", "results", f"full={a},{b}", "--columns", "seeds/lam@train")
    assert ended.code == 0 and "65.0 ± 7.1" in ended.out
    assert refused(run("more", "results", f"x={a}", "--markdown", "--json"), "--markdown")
    assert refused(run("more", "results", f"x={a}", "--classes", "dgo"), "dgo", "did you mean dog")
    (a / "scores" / "cut.json").write_text("{")
    ended = run("more", "results", f"x={a}", "--columns", "seeds/lam@train")
    assert ended.code == 0 and f"{a}: scores/cut.json cannot be read" in " ".join(ended.err.split())


def test_scores_on_the_command_line(run, two_runs):  # noqa: F811
    rows = json.loads(run("more", "scores", "--run", two_runs[0], "--json").out)
    assert [(row["name"], row["share"]) for row in rows] == [
        ("seeds/lam", None), ("two: masks/val", pytest.approx(0.75)),
        ("true: seeds/val", None), ("true: masks/val", None)]
    ended = run("more", "scores", "--run", two_runs[0])
    assert ended.code == 0 and "trained on true masks: true." in " ".join(ended.out.split())
