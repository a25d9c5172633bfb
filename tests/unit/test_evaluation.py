import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset, check_documents, read_dataset
from pipeline.evaluation.metrics import METRICS, Qrels, Rankings, mean_metrics, metrics_at, metrics_by_query
from pipeline.evaluation.plan import RunSpec, cross
from pipeline.evaluation.statistics import bootstrap_interval, p_value, paired_p
from pipeline.models import RERANKER
from pipeline.settings import Settings

pytestmark = pytest.mark.usefixtures("plain_settings")


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


def test_judgements_are_read_as_editors_write_them(tmp_path: Path) -> None:
    """With a byte order mark; in another encoding the error names the file."""
    folder = write(tmp_path / "set", qrels="\ufeffquery-id\tcorpus-id\tscore\r\nq1\td1\t2\r\n")
    assert {"q1": {"d1": 2}} == read_dataset(folder).qrels
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t2\n", encoding="utf-16")
    with pytest.raises(SettingsError, match=r"test\.tsv cannot be read"):
        read_dataset(folder)


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


@pytest.mark.parametrize(
    "qrels",
    ["qid\tdocid\tscore\nq1\td1\t1\n", "q1\td1\t1.0\n", "q1\td1\t1\nq2\td2\t0\nq1\td1\t1\n"],
    ids=["other names", "a decimal", "twice the same"],
)
def test_judgements_that_mean_the_same_are_read(tmp_path: Path, qrels: str) -> None:
    """However the program that wrote them spelled it."""
    assert {"q1": {"d1": 1}} == read_dataset(write(tmp_path / "set", qrels=qrels)).qrels


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("q1 0 d1 1\n", "line 1: expected .*TREC's format"),
        ("q1\t0\td1\t1\n", "line 1: expected .*TREC's format"),
        ("q1 d1 1\n", "by spaces"),
        ("q1\td1\t0.5\n", "a whole number, not '0.5'"),
        ("q1\td1\thigh\n", "a whole number, not 'high'"),
        ("q1\td1\tnan\n", "a whole number, not 'nan'"),
        ("q1\td1\t1\n\nq1\td2\t1\nq1\td1\t0\n", "lines 1 and 4: 'd1' has two grades for query 'q1'"),
    ],
)
def test_judgements_of_another_form_are_named(tmp_path: Path, qrels: str, said: str) -> None:
    """With what they are, as far as it can be told."""
    with pytest.raises(SettingsError, match=said):
        read_dataset(write(tmp_path / "set", qrels=qrels))


def test_an_id_stands_for_one_text(tmp_path: Path) -> None:
    """Else one of two would be measured, and nobody knew which; equal lines do no harm."""
    folder = write(tmp_path / "set", qrels="q1\td1\t1\n")
    for name in ("queries", "corpus"):
        path = folder / f"{name}.jsonl"
        first = path.read_text().splitlines()[0]
        path.write_text(f"{path.read_text()}\n{first}\n")
    assert 3 == len(list(read_dataset(folder).documents()))
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d2", "text": "three"}\n')
    with pytest.raises(SettingsError, match="lines 2 and 4: two documents have the id 'd2'"):
        list(read_dataset(folder).documents())
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q1", "text": "drei"}\n')
    with pytest.raises(SettingsError, match="lines 1 and 4: two queries have the id 'q1'"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"{}"), "compressed by gzip; unpack it"),
        ('{"_id": "q1"}'.encode("utf-16"), "in UTF-16; save it as UTF-8"),
        ('{"_id": "é"}'.encode("latin-1"), "not in UTF-8"),
    ],
)
def test_a_file_that_is_no_utf_8_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    """With what it is instead."""
    folder = write(tmp_path / "set", qrels="q1\td1\t1\n")
    (folder / "queries.jsonl").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"queries\.jsonl cannot be read: it is {said}"):
        read_dataset(folder)


def by_the_book(qrels: Qrels, rankings: Rankings) -> dict[str, float]:
    """The metrics by their textbook definitions, independent of any library."""
    sums = dict.fromkeys(METRICS, 0.0)
    for query, grades in qrels.items():
        ranking = list(rankings.get(query, ()))
        relevant = {document for document, grade in grades.items() if grade > 0}
        gains = [grades.get(document, 0) / math.log2(place + 1) for place, document in enumerate(ranking[:10], 1)]
        ideal = sorted(grades.values(), reverse=True)[:10]
        sums["ndcg@10"] += sum(gains) / sum(grade / math.log2(place + 1) for place, grade in enumerate(ideal, 1))
        places = [place for place, document in enumerate(ranking, 1) if document in relevant]
        sums["mrr@10"] += 1 / places[0] if places and places[0] <= 10 else 0
        sums["recall@5"] += sum(place <= 5 for place in places) / len(relevant)
        sums["recall@100"] += sum(place <= 100 for place in places) / len(relevant)
        sums["precision@5"] += sum(place <= 5 for place in places) / 5
        sums["map"] += sum(found / place for found, place in enumerate(places, 1)) / len(relevant)
    return {name: total / len(qrels) for name, total in sums.items()}


def random_run(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    """Graded judgements and rankings of several lengths, one query without any result."""
    random = Random(seed)
    documents = [f"d{i}" for i in range(150)]
    qrels = {f"q{i}": {d: random.randint(1, 3) for d in random.sample(documents, 1 + i % 12)} for i in range(30)}
    rankings = {query: random.sample(documents, 5 + 11 * i % 146) for i, query in enumerate(qrels)}
    rankings["q7"] = []
    return qrels, rankings


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_agrees_with_its_definition(seed: int) -> None:
    """On random rankings with graded judgements."""
    qrels, rankings = random_run(seed)
    assert mean_metrics(qrels, rankings) == pytest.approx(by_the_book(qrels, rankings))


BROKEN: dict[str, Callable[[Qrels, Rankings], dict[str, float]]] = {
    "another depth": lambda qrels, run: mean_metrics(qrels, run, {**METRICS, "ndcg@10": "nDCG@5"}),
    "no cut": lambda qrels, run: mean_metrics(qrels, run, {**METRICS, "mrr@10": "RR"}),
    "grades ignored": lambda qrels, run: mean_metrics({q: dict.fromkeys(of, 1) for q, of in qrels.items()}, run),
    "worst first": lambda qrels, run: mean_metrics(qrels, {q: list(reversed(of)) for q, of in run.items()}),
    "failed queries left out": lambda qrels, run: mean_metrics(
        {q: qrels[q] for q in run if run[q]}, {q: run[q] for q in run if run[q]}
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_metric_is_caught(broken: str) -> None:
    """The comparison with the definitions fails for each way in which a metric is easily got wrong."""
    qrels, rankings = random_run(0)
    assert BROKEN[broken](qrels, rankings) != pytest.approx(by_the_book(qrels, rankings))


def test_swapped_judgements_are_caught(tmp_path: Path) -> None:
    """Judgements of another corpus with the same query ids: their documents are not there."""
    dataset = read_dataset(write(tmp_path / "set", qrels="q1\tx1\t1\nq2\tx2\t1\n"))
    with pytest.raises(SettingsError, match=r"2 of 2 relevant documents are not in the corpus.*same dataset"):
        check_documents(dataset, {document.id for document in dataset.documents()})


def test_a_few_missing_documents_are_said() -> None:
    """Some published datasets have them; they are no reason to stop."""
    relevant = {f"q{i}": {f"d{i}": 1} for i in range(20)}
    dataset = Dataset("set", dict.fromkeys(relevant, "text"), relevant)
    known = {f"d{i}" for i in range(19)}
    assert "1 of 20 relevant documents are not in the corpus, such as 'd19'" == check_documents(dataset, known)
    assert check_documents(dataset, known | {"d19"}) is None


def test_deeper_metrics_are_added() -> None:
    """``--k`` adds to what is always there."""
    qrels = {"q": {"c": 1}}
    found = mean_metrics(qrels, {"q": ["a", "b", "c"]}, metrics_at([3]))
    assert (1 / math.log2(4), 1 / 3, 1.0, 1 / 3) == pytest.approx(
        tuple(found[name] for name in ("ndcg@3", "mrr@3", "recall@3", "precision@3"))
    )
    assert set(METRICS) < set(found)


def test_the_interval_holds_the_mean_and_narrows_with_more_queries() -> None:
    """Width falls with the root of the number of queries; about 2 * 1.96 * deviation / root(n)."""
    few, many = [0.0, 1.0] * 20, [0.0, 1.0] * 320
    low, high = bootstrap_interval(few)
    assert 2 * 1.96 * 0.5 / math.sqrt(40) == pytest.approx(high - low, rel=0.1)
    assert low < 0.5 < high
    narrow = bootstrap_interval(many)
    assert (high - low) / 4 == pytest.approx(narrow[1] - narrow[0], rel=0.1)
    assert (low, high) == bootstrap_interval(few)


def test_the_paired_test_tells_chance_from_difference() -> None:
    """Equal runs: 1. A small gain on every query: sure. Gains and losses alike: not."""
    random = Random(1)
    first = [random.random() for _ in range(100)]
    assert 1.0 == paired_p(first, first)
    assert paired_p(first, [value + 0.01 for value in first]) < 0.001
    noise = [value + (0.1 if i % 2 else -0.1) for i, value in enumerate(first)]
    assert paired_p(first, noise) > 0.5
    # Three queries cannot be surer than 1/4, whatever the difference.
    assert 0.25 == pytest.approx(paired_p([0, 0, 0], [1, 1, 1]), abs=0.02)


def test_a_paired_test_of_different_queries_is_an_error() -> None:
    """There is nothing to pair."""
    with pytest.raises(SettingsError, match="same queries"):
        paired_p([0.1], [0.1, 0.2])


def test_runs_are_crossed_and_a_run_without_reranker_appears_once() -> None:
    """Alpha and depth mean nothing to it."""
    settings = Settings(data_dir="unused")
    found = cross(
        settings, searches=["hybrid", "sparse"], rerankers=["none", "embedded"], top_ns=[20, 50], alphas=[0.2, 1]
    )
    assert 2 * (1 + 2 * 2) == len(found)
    assert [RunSpec("hybrid", "none", 100), RunSpec("hybrid", "embedded", 20, 0.2)] == found[:2]
    assert [("none", 100), ("embedded", 50)] == [(spec.reranker, spec.top_n) for spec in cross(settings)]


def test_a_run_says_whether_there_is_a_cascade() -> None:
    """Else two runs that differ in nothing else would have one name."""
    labels = [
        spec.label
        for mode in ("on", "off")
        for spec in cross(Settings(data_dir="unused", cascade=mode), rerankers=["embedded", "embedded-cross-encoder"])
    ]
    assert [
        "hybrid + embedded, top 50",
        "hybrid + embedded-cross-encoder, top 50, cascade",
        "hybrid + embedded, top 50",
        "hybrid + embedded-cross-encoder, top 50",
    ] == labels


def test_a_run_of_another_reranker_does_not_go_by_the_model_of_the_settings() -> None:
    """``embedded`` with a cross-encoder's folder would have a cascade before it."""
    settings = Settings(data_dir="unused", reranker="embedded-cross-encoder", reranker_model=str(RERANKER))
    assert [True, False] == [spec.cascade for spec in cross(settings, rerankers=["embedded-cross-encoder", "embedded"])]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"searches": ["x"]}, "hybrid, dense, sparse"), ({"top_ns": [0]}, "1 and 1000"), ({"alphas": [2.0]}, "--alpha")],
)
def test_runs_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    """With the option and what it takes."""
    with pytest.raises(SettingsError, match=said):
        cross(Settings(data_dir="unused"), **options)


def test_ids_may_be_any_text() -> None:
    """File names that are no UTF-8, NULs, tabs and blanks: ids are paths, and trec_eval is C."""
    odd = ["caf\udce9.md", "a\0b", "a\0c", "a b\tc", "\u5907\u4efd"]
    qrels = {query: {odd[i]: 1} for i, query in enumerate(["q\0", "q\udce9", "q 3", "q4", ""])}
    rankings = {query: [odd[i - 1], odd[i]] for i, query in enumerate(qrels)}
    assert dict.fromkeys(qrels, 0.5) == metrics_by_query(qrels, rankings, {"mrr": "RR@10"})["mrr"]


def test_p_is_never_shown_as_nothing() -> None:
    """With 10,000 resamples it is 0.0001 at least."""
    assert ["p < 0.001", "p = 0.042", "< 0.001", "0.042"] == [
        p_value(p, *name) for name in ((), ("",)) for p in (0.0001, 0.042)
    ]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ('{"_id": "q1", "text": " "}', "1 of 1 judged queries have no text, such as 'q1'"),
        ('{"_id": "q1", "text": null}', "line 1: no 'text'"),
    ],
)
def test_a_query_without_text_is_named(tmp_path: Path, queries: str, message: str) -> None:
    """Before anything is ingested."""
    folder = write(tmp_path / "set", qrels="query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    (folder / "queries.jsonl").write_text(queries + "\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        read_dataset(folder)


def test_judgements_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """As where an id begins with a quotation mark, and everything behind it would be one field."""
    qrels = 'query-id\tcorpus-id\tscore\n"q1\td1\t1\n' + "q\td\t1\n" * 30_000
    folder = write(tmp_path / "set", qrels=qrels)
    with pytest.raises(SettingsError, match=r"test\.tsv, line \d+: field larger"):
        read_dataset(folder)
