"""The report as a plain parser sees it; tests/integration/test_report_in_a_browser.py opens it in a browser."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.report import charts
from pipeline.evaluation.report.page import page
from pipeline.evaluation.report.queries import changes
from pipeline.evaluation.run import Evaluation
from pipeline.evaluation.summary import outcome
from pipeline.settings import Settings
from tests.evaluations import QUERIES, evaluation
from tests.fakes import FakeReranker

pytestmark = pytest.mark.usefixtures("plain_settings")

VOID = frozenset({"meta", "link", "br"})


class Page(HTMLParser):
    """Checks that every element is closed, and collects ids, references and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.controls: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        assert len(values) == len(attrs), f"{tag} has an attribute twice"
        self.ids += [values["id"] or ""] if "id" in values else []
        self.controls += [values["aria-controls"] or ""] if "aria-controls" in values else []
        self.references += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += data


SPECS = (
    RunSpec("hybrid", "none", 100),
    RunSpec("hybrid", "contrary", 4),
    RunSpec("hybrid", "contrary", 6, 0.3, 0.2),
    RunSpec("dense", "none", 100),
)


def read(found: Evaluation) -> Page:
    return Page(page(found, outcome(found)))


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside() -> None:
    """Every element is closed, every id is there once, and no address is loaded."""
    found = evaluation(SPECS)
    html = page(found, outcome(found))
    parsed = Page(html)
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert set(parsed.controls) <= set(parsed.ids)
    assert ["data:,"] == parsed.references
    assert not re.search(r"https?://|//\w+\.|@import|url\(", html)
    assert "default-src 'none'" in html


def test_every_part_of_the_report_is_there() -> None:
    """Table, plots, stages, queries, scores and method; one panel for each reranked run."""
    parsed = read(evaluation(SPECS))
    assert {"runs", "plots", "stages", "queries", "scores", "method"} <= set(parsed.ids)
    assert {"queries-2", "queries-3", "scores-2", "scores-3"} == set(parsed.controls)
    assert parsed.tags.count("svg") >= 3 + len(SPECS)
    for spec in SPECS:
        assert spec.label.split(",")[0] in parsed.words


def test_texts_of_users_are_text() -> None:
    """Queries, names and documents with markup, and what no HTML can hold, show as they are or as a mark."""
    found = evaluation(SPECS)
    dataset = replace(
        found.dataset, name="<script>alert(1)</script>\ud800", queries={**QUERIES, "q4": "<img src=x>\x00"}
    )
    parsed = read(replace(found, dataset=dataset))
    assert 1 == parsed.tags.count("script")
    assert "img" not in parsed.tags
    assert "<script>alert(1)</script>�" in parsed.words


@pytest.mark.parametrize(
    "specs",
    [
        [RunSpec("hybrid", "none", 100)],
        [RunSpec("hybrid", "contrary", 1)],
        [RunSpec("hybrid", "contrary", 6, None, 1.0)],
        [RunSpec("hybrid", "none", 100), RunSpec("dense", "none", 100)],
        [RunSpec("hybrid", "contrary", n) for n in range(1, 12)],
    ],
    ids=["one run", "one candidate", "no hits", "no reranker", "many runs"],
)
def test_few_and_many_runs_make_a_page(specs: Sequence[RunSpec]) -> None:
    """Nothing in it needs a second run, a reranker, hits or a known number of colours."""
    assert "runs" in read(evaluation(specs)).ids


def test_one_query_makes_a_page() -> None:
    """All its intervals are points."""
    assert "Query by query" in read(evaluation(SPECS, queries=["q1"])).words


def test_costs_are_shown_where_there_are_any() -> None:
    """A column more."""
    specs = [RunSpec("hybrid", "none", 100), RunSpec("hybrid", "cohere", 4)]
    rerankers = {"none": None, "cohere": FakeReranker(name="cohere")}
    priced = Settings(data_dir=Path("x"), rerank_price=1.25)
    assert "1.25" in read(evaluation(specs, rerankers, priced)).words
    assert "cost of" not in read(evaluation(specs, rerankers)).words


def test_changes_say_where_the_relevant_document_went() -> None:
    """Ranks before and after, both texts, and the difference of nDCG@10."""
    found = evaluation(SPECS)
    run = found.runs[1]
    by_query = {change.query: change for change in changes(found, run)}
    worse = [change for change in by_query.values() if change.difference < 0]
    assert worse
    for change in worse:
        assert change.after is None or (change.before is not None and change.after > change.before)
        assert change.top is not None
        assert change.texts[change.top]
    for id_, text in QUERIES.items():
        ranking = run.answers[id_].ranking
        change = by_query[text]
        assert (ranking.index(change.relevant) + 1 if change.relevant in ranking else None) == change.after
        assert ranking[0] == change.top


def test_without_rerankers_runs_are_compared_with_the_first() -> None:
    """Search modes have winners and losers, too."""
    found = evaluation([RunSpec("hybrid", "none", 100), RunSpec("dense", "none", 100)])
    assert [0.0] * 5 == [change.difference for change in changes(found, found.runs[1])]
    assert "against run 1 (hybrid)" in read(found).words


def test_the_front_has_what_nothing_beats() -> None:
    """Faster and worse stays, slower and no better goes."""

    def point(label: str, x: float, y: float) -> charts.Point:
        return charts.Point(label, label, x, y, y, y, 1)

    points = [point("slow best", 90, 0.9), point("fast", 1, 0.5), point("beaten", 50, 0.4), point("equal", 60, 0.9)]
    assert ["fast", "equal"] == [p.label for p in charts.pareto(points)]


def test_a_histogram_holds_every_score() -> None:
    """The ends 0 and 1 belong to the first and last bin; shares are of each kind's own number."""
    drawn = charts.histogram([1.0, 1.0, 0.96], [0.0, 0.5], name="scores")
    assert "100.0% of the relevant between 0.95 and 1" in drawn
    assert "50.0% of the irrelevant between 0 and 0.05" in drawn
    assert "50.0% of the irrelevant between 0.5 and 0.55" in drawn
