"""The report in headless Chromium: sizes, colour schemes, clicks, print, and no console message.

Collected only where RAG_TEST_BROWSER names the browser, which a plain machine does not have::

    RAG_TEST_BROWSER=/usr/bin/chromium python -m pytest tests/integration/test_report_in_a_browser.py

With RAG_TEST_PICTURES=FOLDER it also writes screenshots and the printed page there, to be looked at.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.report.page import page
from pipeline.evaluation.summary import outcome
from tests.chromium import Chromium
from tests.evaluations import evaluation

SPECS = (
    RunSpec("hybrid", "none", 100),
    RunSpec("hybrid", "contrary", 4),
    RunSpec("hybrid", "contrary", 6, 0.3, 0.2),
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture
def report(tmp_path: Path) -> Path:
    found = evaluation(SPECS)
    path = tmp_path / "report.html"
    path.write_text(page(found, outcome(found)), encoding="utf-8")
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(os.environ["RAG_TEST_BROWSER"], tmp_path / "profile") as found:
        yield found


def pictures(name: str) -> Path | None:
    folder = os.environ.get("RAG_TEST_PICTURES")
    if not folder:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / name


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_loads_nothing_else(browser: Chromium, report: Path, size: str, dark: bool) -> None:
    """No sideways scrolling of the page, no request but its own, nothing on the console, readable contrast."""
    width, height = SIZES[size]
    browser.open(report, width=width, height=height, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = (
        sum(browser.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).map(Number)"))
        for name in ("color", "backgroundColor")
    )
    assert (ink - ground > 400) if dark else (ground - ink > 400)
    assert ([report.as_uri()], []) == (browser.requests, browser.problems)
    if path := pictures(f"{size}-{'dark' if dark else 'light'}.png"):
        browser.screenshot(path)


def test_clicks_open_what_they_name(browser: Chromium, report: Path) -> None:
    """Every tab shows its own panel alone; every query opens and closes; keys move between tabs."""
    browser.open(report)

    def click(selector: str, place: int) -> None:
        browser.evaluate(f"window.one = document.querySelectorAll('{selector}')[{place}]")
        browser.evaluate("one.scrollIntoView({block: 'center'})")
        x, y = browser.evaluate("(r => [r.x + 20, r.y + r.height / 2])(one.getBoundingClientRect())")
        browser.click(x, y)

    tabs = browser.evaluate("[...document.querySelectorAll('[role=tab]')].map(t => t.getAttribute('aria-controls'))")
    assert ["queries-2", "queries-3", "scores-2", "scores-3"] == tabs
    shown = "[...document.querySelectorAll('.panel')].filter(p => p.offsetParent !== null).map(p => p.id)"
    assert ["queries-2", "scores-2"] == browser.evaluate(shown)
    for place, panel in enumerate(tabs):
        click("[role=tab]", place)
        assert panel in browser.evaluate(shown)
        assert 2 == len(browser.evaluate(shown))
    browser.evaluate("document.querySelector('[role=tab][aria-selected=true]').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", code="ArrowLeft")
    assert ["queries-2", "scores-3"] == browser.evaluate(shown)

    summaries = browser.evaluate("document.querySelectorAll('#queries-2 summary').length")
    assert summaries >= 1
    for place in range(summaries):
        click("#queries-2 summary", place)
        assert browser.evaluate(f"document.querySelectorAll('#queries-2 details')[{place}].open")
    click("#queries-2 summary", 0)
    assert not browser.evaluate("document.querySelectorAll('#queries-2 details')[0].open")
    assert [] == browser.problems


def test_it_prints_with_all_texts(browser: Chromium, report: Path, tmp_path: Path) -> None:
    """Paper has no clicks: folded texts are opened for it, and folded again."""
    browser.open(report)
    folded = "document.querySelectorAll('details:not([open])').length"
    browser.evaluate(f"addEventListener('beforeprint', () => {{ window.seen = {folded} }})")
    path = pictures("print.pdf") or tmp_path / "print.pdf"
    browser.pdf(path)
    assert b"%PDF" == path.read_bytes()[:4]
    assert (0, True) == (browser.evaluate("window.seen"), browser.evaluate("!document.querySelector('details[open]')"))
    assert [] == browser.problems
