"""What routes, terms of the loss and means say of themselves, in every table and on the page."""

import io
import json
from dataclasses import fields

import numpy as np
import pytest
from rich.console import Console

from more.config.sections.loss import TermConfig
from more.data.shards.codec import encode_mask
from more.evaluation.compare import compare, comparison_table
from more.evaluation.experiments import read_experiments
from more.evaluation.experiments_table import experiments_markdown, experiments_table
from more.evaluation.report import build_report
from more.evaluation.routes import describe_route
from more.evaluation.run_scores import read_scores, score_table
from more.evaluation.score import evaluate
from more.evaluation.score_result import dominance_note
from more.evaluation.words import ROUTES, TERMS, route_lines
from tests.evaluation.conftest import LAM, REFINED, mask_payload, write_set

B = f"route b: {ROUTES['b']}"
DECODER = {**LAM, "map": "decoder", "tags": "none"}


def stray_payload(row):
    """Every true pixel right, and half of the background taken as a dog."""
    mask = np.where(row.truth == 255, 0, row.truth).astype(np.uint8)
    mask[::2][mask[::2] == 0] = 1
    return {"mask": encode_mask(mask)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, rows, data):
    run = tmp_path_factory.mktemp("runs") / "run"
    for name, payload in (("stray", stray_payload), ("lam", mask_payload)):
        write_set(run / "masks" / name, "masks", rows, payload, REFINED, extra={"data": str(data)})
        evaluate(run / "masks" / name, data, progress=False).save(run / "scores" / f"{name}.json")
    (run / "log.jsonl").write_text("\n".join(json.dumps(
        {"step": step, "terms": {"cls": 1 / step}}) for step in range(1, 5)))
    return run


def shown(table, width=300):
    """What the terminal shows, as one line."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().split())


def test_a_line_for_every_letter_and_none_for_unknown_routes():
    assert route_lines([describe_route(REFINED), describe_route(LAM)]) == [B]
    assert [line[:8] for line in route_lines([describe_route(DECODER), describe_route(
        {**LAM, "tags": "predicted"}), describe_route({})])] == ["route a:", "route c:"]
    assert route_lines([describe_route({**DECODER, "tags": "true"})]) == [f"route a: {ROUTES['a']}"]


def test_every_term_of_the_loss_has_its_words():
    assert {field.name for field in fields(TermConfig)} <= set(TERMS)


def test_the_class_that_makes_most_of_a_mean_is_named(run, data):
    found = evaluate(run / "masks/stray", data, progress=False)
    figures = found.scores.confusion
    line = next(line for line in found.notes() if "FP/TP" in line)
    assert line == (f"mean FP/TP {figures.mean():.3f}, of which dog {figures[1]:.3f} makes more "
                    f"than half: without it {np.delete(figures, 1).mean():.3f}")
    assert dominance_note({"a": {"recall": 0.0, "confusion": None},
                           "b": {"recall": 1.0, "confusion": 9.0},
                           "c": {"recall": 1.0, "confusion": 0.1}}) is None, "a was missed"
    assert dominance_note({"a": {"recall": 1.0, "confusion": 0.2},
                           "b": {"recall": 1.0, "confusion": 9.0},
                           "c": {"recall": None, "confusion": None},
                           "d": {"recall": 1.0, "confusion": 0.1}}).startswith("mean FP/TP 3.100")


def test_tables_say_it_below(run, data):
    tables = [shown(evaluate(run / "masks/stray", data, progress=False).table()),
              shown(score_table(read_scores(run, []))),
              shown(comparison_table(compare(run / "masks/stray", run / "masks/lam", data,
                                             progress=False)))]
    for text in tables:
        assert B in text and text.count("route b:") == 1 and "of which dog" in text
    assert "masks/stray: mean FP/TP" in tables[1] and "A: mean FP/TP" in tables[2]
    found = read_experiments([f"one={run}"], None, None, [])
    assert B in shown(experiments_table(found)) and f"- {B}" in experiments_markdown(found)


def test_the_page_says_it(run):
    page = " ".join(build_report(run).read_text(encoding="utf-8").split()).replace("&#39;", "'")
    assert page.count(f"{B}.</p>") == 1 and "of which dog" in page
    for letter, meaning in ROUTES.items():
        assert f"<dt>route {letter}</dt><dd>{meaning}." in page
    assert f"<dt>loss cls</dt><dd>{TERMS['cls']}</dd>" in page
    assert "<dt>loss ure</dt>" not in page, "not in this run"
