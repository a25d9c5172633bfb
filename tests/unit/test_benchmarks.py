"""The benchmarks' pure parts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.evaluation.benchmarks import machine, report
from pipeline.evaluation.benchmarks.passages import cut, documents_of, overlap
from pipeline.evaluation.benchmarks.peers import agreement
from pipeline.evaluation.benchmarks.scale import copies, recall
from pipeline.evaluation.benchmarks.systems import chosen, environment, systems
from pipeline.evaluation.dataset import Dataset
from pipeline.types import Document
from tests.fakes import word_tokenizer


def test_a_document_is_where_its_best_passage_is() -> None:
    assert ["b", "a#1", "c"] == documents_of(["b#2", "a#1#0", "b#0", "c#0"])


def test_a_part_of_the_passages_has_the_relevant_ones() -> None:
    """Without a limit all stand as in the corpus; with one, what the queries ask for is not lost."""
    documents = [Document(id=id_, text=f"text {id_}") for id_ in "abcd"]
    dataset = Dataset("set", {"q": "c?"}, {"q": {"c": 1, "a": 0}}, corpus=lambda: iter(documents))
    assert ["a#0", "b#0", "c#0", "d#0"] == [one["id"] for one in cut(dataset, word_tokenizer())]
    assert ["c#0", "a#0"] == [one["id"] for one in cut(dataset, word_tokenizer(), 2)]


def test_overlap_is_the_share_of_equal_results_whatever_their_order() -> None:
    assert 0.75 == overlap([["a", "b"], ["c", "d"]], [["b", "a"], ["d", "e"]])


def test_copies_are_as_far_from_each_other_as_the_texts() -> None:
    """No clusters around them: among as many of them, the tenth and thirtieth nearest are where they were."""
    random = np.random.default_rng(3)
    texts = (random.standard_normal((400, 64)) * np.geomspace(1, 0.1, 64) + 0.5).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    rows = copies(texts, 300, 8_100)
    assert np.allclose(texts[300:], rows[:100], atol=1e-6)
    assert np.allclose(1, np.linalg.norm(rows, axis=1), atol=1e-5)
    made = rows[100:]

    def nearest(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        cosines = np.sort(vectors @ vectors.T, axis=1)[:, [-2, -11, -31]]
        return np.asarray(np.sqrt(2 - 2 * cosines).mean(axis=0))

    distinct, copied = nearest(texts), nearest(made[random.permutation(len(made))[:400]])
    assert distinct[1:] == pytest.approx(copied[1:], rel=0.02)
    assert copied[0] > 0.6 * distinct[0]


def test_a_result_that_ties_with_the_last_exact_one_is_no_miss() -> None:
    assert 1.0 == recall([0.9, 0.8, 0.8], [0.9, 0.8, 0.8])
    assert pytest.approx(2 / 3) == recall([0.9, 0.8, 0.8], [0.9, 0.8, 0.7])
    assert pytest.approx(1 / 3) == recall([0.9, 0.8, 0.8], [0.9])
    assert 1.0 == recall([], [])


def result(system: str, ndcg: float, *, same: bool = True) -> dict[str, object]:
    return {"system": system, "same_weights": same, "quality": {"20": {"ndcg@10": ndcg}}}


def test_only_equal_weights_must_agree() -> None:
    close = [result("ours", 0.70), result("peer", 0.705), result("other", 0.9, same=False)]
    assert "agree" in agreement(close)[0]
    assert "DO NOT AGREE" in agreement([result("ours", 0.70), result("peer", 0.72)])[0]
    assert [] == agreement([{"system": "peer", "same_weights": True, "failed": "no"}])


def test_cpu_is_read_from_the_kernel() -> None:
    facts = machine.cpu_facts(
        "processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: fpu avx2 avx512f\n\nmodel name\t: Other\n"
    )
    assert {"model": "Fast CPU", "flags": ["avx2", "avx512f"]} == facts


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    chart = ElementTree.fromstring(report.bar_chart("a < b", [("ours", 10.0), ("peer & co", 40.0)]))
    bars = [rect for rect in chart.iter("{http://www.w3.org/2000/svg}rect") if rect.get("rx")]
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert pytest.approx(4.0, rel=0.01) == widths[1] / widths[0]
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "peer & co", "40"} <= set(texts)


def test_a_plot_for_each_measurement(tmp_path: Path) -> None:
    run = {"top_n": 20, "clients": 8, "p50_ms": 3.0}
    row = {"system": "ours", "ingest_passages_per_s": 5.0, "queries": [run]}
    failed = {"system": "peer", "failed": "no"}
    written = report.write_plots(tmp_path, {"peers": {"systems": [row, failed]}})
    assert ["ingest.svg", "query-top20-clients8.svg"] == sorted(path.name for path in written)
    report.write_json(tmp_path / "results.json", {"名": 1})
    assert {"名": 1} == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))


def test_peers_have_pinned_versions_and_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_TOP_K", "3")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    for spec in systems("embedder", "reranker"):
        assert all("==" in requirement or "torch<=" in requirement for requirement in spec.requirements)
        variables = environment(spec)
        assert "RAG_TOP_K" not in variables
        assert bool(spec.requirements) == ("PYTHONPATH" not in variables)


def test_an_unknown_system_is_named_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'haystak'.*Haystack"):
        chosen(systems("embedder", "reranker"), ["haystak"])
