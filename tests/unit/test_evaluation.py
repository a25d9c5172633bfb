import json
import math
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import read_dataset
from pipeline.evaluation.metrics import mean_metrics


def write(folder: Path, *, qrels: str, queries: dict[str, str] | None = None) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(line) for line in corpus))
    lines = [{"_id": id_, "text": text} for id_, text in (queries or {"q1": "eins", "q2": "zwei"}).items()]
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_metrics_are_those_computed_by_hand() -> None:
    """Places 1 and 3 of three, and a query whose document was not found."""
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}}
    found = mean_metrics(qrels, {"q1": ["a", "x"], "q2": ["x", "y", "b"], "q3": ["x"]})
    assert (1 + 1 / math.log2(4) + 0) / 3 == pytest.approx(found["ndcg@10"])
    assert (1 + 1 / 3 + 0) / 3 == pytest.approx(found["mrr@10"])
    assert 2 / 3 == pytest.approx(found["recall@5"])


def test_a_query_without_a_ranking_counts_as_nothing_found() -> None:
    """Leaving out hard queries must not raise the mean."""
    assert 0.5 == mean_metrics({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": ["a"]})["ndcg@10"]


def test_a_shuffled_ranking_scores_lower() -> None:
    """The order given is the order that is measured."""
    qrels = {"q": {"a": 1}}
    best = mean_metrics(qrels, {"q": ["a", "b", "c"]})["ndcg@10"]
    assert best > mean_metrics(qrels, {"q": ["c", "b", "a"]})["ndcg@10"]


def test_rankings_of_other_queries_are_an_error() -> None:
    """A run of another dataset would otherwise score 0 without a word."""
    with pytest.raises(SettingsError, match="no judgements"):
        mean_metrics({"q1": {"a": 1}}, {"Q1": ["a"]})


def test_reads_queries_with_a_relevant_document_alone(tmp_path: Path) -> None:
    """A query whose judgements are all 0 cannot be scored."""
    dataset = read_dataset(write(tmp_path / "set", qrels="query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t0\n"))
    assert ({"q1": "eins"}, {"q1": {"d1": 2}}, "set") == (dataset.queries, dataset.qrels, dataset.name)
    assert [("d1", "T", "one"), ("d2", "", "two")] == [(d.id, d.title, d.text) for d in dataset.documents()]


def test_judgements_of_another_dataset_are_an_error(tmp_path: Path) -> None:
    """Swapped qrels are found out before anything is computed."""
    with pytest.raises(SettingsError, match="same dataset"):
        read_dataset(write(tmp_path / "set", qrels="other\td1\t1\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message says what the layout needs."""
    folder = write(tmp_path / "set", qrels="q1\td1\t1\n")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(SettingsError, match=r"queries\.jsonl is missing"):
        read_dataset(folder)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """By file and number."""
    folder = write(tmp_path / "set", qrels="q1\td1\n")
    with pytest.raises(SettingsError, match="line 1"):
        read_dataset(folder)
