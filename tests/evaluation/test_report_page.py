"""The page in a browser: nothing in the console, nothing too wide, filters, sorting, the viewer."""

from __future__ import annotations

import json

import pytest

from more.evaluation.report import build_report
from more.evaluation.score import evaluate
from tests.evaluation.browser import CHROMIUM, WHY_NOT, chromium
from tests.evaluation.conftest import LAM, REFINED, mask_payload, seed_payload, write_set

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
SHOWN = "[...document.querySelectorAll('#gallery-1 .card')].filter(card => !card.hidden)"
IOUS = SHOWN + ".map(card => Number(card.dataset.iou))"


@pytest.fixture(scope="module")
def file(tmp_path_factory, rows, data):
    """The page of a run with long names and many results."""
    run = tmp_path_factory.mktemp("runs") / "a_run_with_a_long_name_that_could_be_too_wide"
    extra = {"data": str(data)}
    for kind in ("cam", "lam"):
        write_set(run / "seeds" / kind, "seeds", rows, seed_payload, {**LAM, "map": kind},
                  extra=extra)
    write_set(run / "masks" / "lam", "masks", rows, mask_payload, REFINED, extra=extra)
    for name in ("seeds/cam", "seeds/lam", "masks/lam"):
        evaluate(run / name, data, progress=False).save(
            run / "scores" / f"{name.replace('/', '-')}.json")
    (run / "config.json").write_text(json.dumps({"name": "x" * 90, "data": {"crop": "y" * 300}}))
    (run / "log.jsonl").write_text("\n".join(json.dumps(
        {"step": step, "terms": {"total": 9 / step}}) for step in range(1, 9)))
    return build_report(run, images=12)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def choose(page, name, value):
    """Set a control of the first gallery as a reader does."""
    page.do(f"""(() => {{ const item = document.querySelector('#gallery-1 form').elements[{name!r}];
        item.value = {value!r}; item.dispatchEvent(new Event('input', {{bubbles: true}})); }})()""")


@pytest.mark.parametrize("width", [390, 1366])
def test_no_console_errors_no_overflow_and_no_network(page, file, width):
    page.open(file, width)
    assert page.do("innerWidth") == width
    assert page.do("document.documentElement.scrollWidth") <= width
    page.do("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert page.do("document.documentElement.scrollWidth") <= width, "tables scroll in themselves"
    if width == 390:
        assert page.do("[...document.querySelectorAll('.scroll')].some("
                       "item => item.scrollWidth > item.clientWidth)")
    assert page.errors == []
    assert all(address.startswith(("data:", "file:")) for address in page.asked)


def test_pictures_are_on_the_first_screen(page, file):
    page.open(file, 1366, 768)
    assert page.do("document.querySelector('.gallery').getBoundingClientRect().top") < 450
    assert page.do("document.querySelector('.picture').getBoundingClientRect().bottom") < 768


def test_figures_are_on_the_first_screen_of_a_telephone(page, file):
    page.open(file, 390, 844)
    bottoms = page.do("[...document.querySelectorAll('.headline b')].map("
                      "item => item.getBoundingClientRect().bottom)")
    assert len(bottoms) == 4 and max(bottoms) < 844
    code = "document.querySelector('.command')"
    assert page.do(f"{code}.scrollWidth <= {code}.clientWidth"), "the command is not cut"


def test_the_gallery_filters_by_class_and_iou_and_sorts(page, file):
    page.open(file, 1366)
    every = page.do(IOUS)
    assert len(every) == 12 and every == sorted(every), "worst first"
    choose(page, "order", "best")
    assert page.do(IOUS) == sorted(every, reverse=True)
    least = round(100 * (every[5] + every[6]) / 2, 3)
    choose(page, "least", f"{least}")
    assert page.do(IOUS) == sorted(every[6:], reverse=True)
    choose(page, "least", "0")
    choose(page, "class", "2")
    with_class = page.do(SHOWN + ".map(card => card.dataset.classes.split(' ').includes('2'))")
    assert 0 < len(with_class) <= 12 and all(with_class)
    choose(page, "class", "")
    choose(page, "layer", "mask")
    tiles = "[...document.querySelectorAll('#gallery-1 .tile')].filter(tile => tile.offsetWidth)"
    assert set(page.do(tiles + ".map(tile => tile.dataset.layer)")) == {"mask"}
    assert page.do("document.querySelector('#gallery-1 output').textContent") == "12 of 12 pictures"


def test_a_picture_opens_in_full_size_with_sliders_between_its_layers(page, file):
    page.open(file, 1366)
    page.do("document.querySelector('#gallery-1 .tile[data-layer=lam] .picture').click()")
    assert page.do("viewer.open") and page.do("viewer.querySelector('select.right').value") == "lam"
    layers = "[...viewer.querySelectorAll('select.left option')].map(item => item.value)"
    assert page.do(layers) == ["image", "cam", "lam", "mask", "truth"]
    assert page.do("viewer.querySelector('.frame').offsetWidth") > 100, "thrice the picture"
    page.do("(() => { const slider = viewer.querySelector('.wipe'); slider.value = 20; "
            "slider.dispatchEvent(new Event('input')); })()")
    assert "80%" in page.do("getComputedStyle(viewer.querySelector('.side.left')).clipPath")
    assert page.do("viewer.querySelector('.side.right img').naturalWidth") > 10
    first = page.do("viewer.querySelector('.id').textContent")
    page.do("viewer.querySelector('.following').click()")
    assert page.do("viewer.querySelector('.id').textContent") != first
    page.do("viewer.querySelector('.close').click()")
    assert not page.do("viewer.open") and page.errors == []


def test_tables_sort_by_a_click_on_their_heading(page, file):
    page.open(file, 1366)
    values = ("[...document.querySelectorAll('.bars tbody tr')]"
              ".map(row => +row.cells[1].dataset.value)")
    page.do("document.querySelectorAll('.bars th')[1].click()")
    assert page.do(values) == sorted(page.do(values), reverse=True)
    page.do("document.querySelectorAll('.bars th')[1].click()")
    assert page.do(values) == sorted(page.do(values))


def test_the_dark_scheme(page, file):
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    page.open(file, 1366)
    assert min(page.do(ground)) > 200
    page.open(file, 1366, dark=True)
    assert max(page.do(ground)) < 60
