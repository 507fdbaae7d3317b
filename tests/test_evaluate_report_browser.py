"""report.html in a real browser: it opens offline, tabs and displays work, phones and dark rooms are served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from foundation.evaluate.comparison import compare
from foundation.evaluate.displays import jet_pictures
from foundation.evaluate.plots import distribution_pictures
from foundation.evaluate.report import DatasetView, RunDescription, write_report
from foundation.evaluate.score_plots import score_pictures
from foundation.evaluate.scores import Published, Score

from evaluate_samples import JET_CARD, SHOWER_CARD, toy_jets, toy_showers
from headless_browser import VARIABLE, Page, browser, running

NEEDS_BROWSER = pytest.mark.skipif(
    browser() is None, reason=f"there is no Chromium or Chrome on the path; {VARIABLE} may name one"
)
DRAWN = """(() => { const c = document.querySelector('%s');
const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data; let n = 0;
for (let i = 0; i < d.length; i += 4) n += d[i] + d[i + 1] + d[i + 2] > 200; return n; })()"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def scores(dataset: str, model: str, worse: float) -> list[Score]:
    of = {"model": model, "dataset": dataset, "group": "all", "unit": "1", "n": 100}
    return [
        Score(**of, panel="distributions", name="hits", definition="w1/1", value=worse, error=0.1, floor=1.0),
        Score(**of, panel="calochallenge", name="fpd", definition="fpd/1", value=worse / 9, error=0.01, floor=0.1),
        Score(
            **of, panel="two-sample", name="auc", definition="auc/1", better="nearest", value=0.5 + worse / 9,
            error=0.01, floor=0.5, ideal=0.5,
        ),
        Score(**of, panel="two-sample", name="accuracy", definition="accuracy/1", problem="too few: <20>"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    jets = {"flow": compare(toy_jets(80, 1), toy_jets(80, 2), JET_CARD)}
    showers = {
        "flow": compare(toy_showers(80, 1), toy_showers(80, 2), SHOWER_CARD),
        "diffusion <2>": compare(toy_showers(80, 1), toy_showers(80, 3, 1.2), SHOWER_CARD),
    }
    found = [*scores("gflash_siw", "flow", 1.1), *scores("gflash_siw", "diffusion <2>", 4.0)]
    others = [Published("CaloX", "fpd/1", "fpd", 0.2, "arXiv:0000.00000, table 1")]
    views = [
        DatasetView(jets, scores("pythia_jets", "flow", 1.0), jet_pictures(jets)),
        DatasetView(showers, found, [*score_pictures(found), *distribution_pictures(showers)], others),
    ]
    run = RunDescription("Jets & showers", "toy objects", facts={"seed": 1}, reproduce=("foundation evaluate",))
    return write_report(folder / "report.html", run, views, problems=["nothing <else>"])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = browser()
    assert program is not None
    with running(program, tmp_path_factory.mktemp("browser")) as page:
        yield page


def visible(page: Page) -> list[str]:
    """Anchors of the tabs that are open."""
    return list(page.js("[...document.querySelectorAll('.tab')].filter(e => e.offsetParent).map(e => e.id)"))


@NEEDS_BROWSER
def test_it_opens_offline_without_complaints(page: Page, report: Path) -> None:
    page.open(report)
    assert page.complaints() == []
    assert page.requests() == [report.resolve().as_uri()]
    assert visible(page) == ["summary"]
    broken = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert page.js("document.images.length") == 7 and page.js(broken) == 0
    assert report.stat().st_size < 6e6


@NEEDS_BROWSER
def test_tabs_by_mouse_keyboard_and_address(page: Page, report: Path) -> None:
    page.open(report)
    page.click("#tab-gflash_siw")
    assert visible(page) == ["gflash_siw", "gflash_siw-distributions"]
    page.key("ArrowRight")
    assert visible(page)[0] == "run"
    page.key("Home")
    page.key("End")
    assert visible(page) == ["reproduce"]
    assert page.js("document.activeElement.id") == "tab-reproduce"
    assert page.js("document.activeElement.getAttribute('aria-selected')") == "true"
    page.key("ArrowRight")
    assert visible(page) == ["summary"]
    page.click("a[href='#gflash_siw-two-sample']")
    assert visible(page) == ["gflash_siw", "gflash_siw-two-sample"]
    page.open(report, "#gflash_siw-leaderboard")
    assert visible(page) == ["gflash_siw", "gflash_siw-leaderboard"]
    assert page.complaints() == []


@NEEDS_BROWSER
@pytest.mark.parametrize("dataset", ["gflash_siw", "pythia_jets"])
def test_displays_draw_turn_and_change(page: Page, report: Path, dataset: str) -> None:
    page.open(report, f"#{dataset}-events")
    canvas = f"#{dataset}-events canvas"
    picture = f"document.querySelector('{canvas}').toDataURL()"
    assert page.js(DRAWN % canvas) > 200
    seen = [page.js(picture)]
    page.drag(canvas, 60, 30)
    seen.append(page.js(picture))
    page.key("+")
    seen.append(page.js(picture))
    page.click(f"#{dataset}-events button[aria-label='next object']")
    seen.append(page.js(picture))
    assert len(set(seen)) == 4
    page.click(f"#{dataset}-events button[aria-label='reset the view']")
    page.click(f"#{dataset}-events button[aria-label='previous object']")
    assert page.js(picture) == seen[0]
    facts = page.js(f"[...document.querySelectorAll('#{dataset}-events .facts')].map(e => e.textContent)")
    assert all(re.search(r"\d+ (hits|constituents)", text) for text in facts)
    assert page.complaints() == []


@NEEDS_BROWSER
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_scrolling_to_the_side(page: Page, report: Path, dark: bool) -> None:
    page.open(report, width=360, height=740, dark=dark)
    for tab in page.js("[...document.querySelectorAll('.tab')].map(e => e.id)"):
        page.js(f"location.hash = '#{tab}'")
        page.settle()
        assert tab in visible(page) and page.js(OVERFLOW) <= 0, tab
    page.js("location.hash = '#summary'")
    assert page.js("Math.min(...[...document.querySelectorAll('[role=tab]')].map(e => e.offsetHeight || 99))") >= 24


@NEEDS_BROWSER
def test_dark_and_light(page: Page, report: Path) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.open(report)
    light = page.js(background)
    page.open(report, dark=True)
    assert page.js(background) != light
    page.click("#theme")
    assert page.js(background) == light


@NEEDS_BROWSER
def test_paper_and_browsers_without_script_show_everything(page: Page, report: Path) -> None:
    page.open(report)
    everything = page.js("document.querySelectorAll('.tab').length")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert len(visible(page)) == everything
    page.call("Emulation.setEmulatedMedia", media="")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.call("Page.navigate", url=report.resolve().as_uri())
        page.wait_for("document.readyState === 'complete'")
        assert len(visible(page)) == everything
        assert page.js("document.querySelector('nav.contents').offsetHeight") > 0
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


@NEEDS_BROWSER
def test_readers_of_the_screen_find_names(page: Page, report: Path) -> None:
    page.open(report)
    named = "img, canvas, select, input, [role=tabpanel], [role=region]"
    nameless = f"""[...document.querySelectorAll('{named}')].filter(e =>
        !(e.alt || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.closest('label'))).length"""
    assert page.js(nameless) == 0
    assert page.js("[...document.querySelectorAll('button')].every(b => b.textContent || b.ariaLabel)")
    levels = page.js("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.js("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == page.js(
        "document.querySelectorAll('[id]').length"
    )


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_of_all_colours_of_text(report: Path) -> None:
    # WCAG 2.2, success criterion 1.4.3
    page = report.read_text()
    pairs = [(text, ground) for text in ("fg", "soft", "link") for ground in ("bg", "panel")]
    pairs += [(level, f"{level}-bg") for level in ("good", "fair", "poor")] + [("poor", "bg")]
    for theme in re.findall(r"color-scheme:(?:light|dark);(--bg.*?)\}", page, re.S):
        colours = dict(re.findall(r"--([\w-]+):(#\w{6})", theme))
        for text, ground in pairs:
            bright, dim = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)


def test_models_stand_side_by_side_with_the_best_marked(report: Path) -> None:
    page = report.read_text()
    assert page.count("★") == 3  # hits, fpd and auc of the better model
    assert "diffusion &lt;2&gt;" in page and "<2>" not in page and "too few: &lt;20&gt;" in page
    board = page[page.index('id="gflash_siw-leaderboard"') :]
    places = re.findall(r'<td class="t">\d</td><td class="t">(.*?)</td>', board)
    assert places == ["flow", "CaloX", "diffusion &lt;2&gt;"]
    assert 'id="pythia_jets-leaderboard"' not in page
