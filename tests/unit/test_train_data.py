from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import Pipeline
from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset, read_dataset
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings
from pipeline.training import run
from pipeline.training.feedback import FeedbackSource, read_feedback
from pipeline.training.finishing import Prepared
from pipeline.training.measuring import Case
from pipeline.training.sources import CollectionSource, Sources
from pipeline.training.splitting import split
from pipeline.training.starting import Base
from pipeline.types import Document
from tests.fakes import FakeEmbedder, FakeStore

pytestmark = pytest.mark.usefixtures("plain_settings")

TEXTS = {"ports": "HTTP is on port 6333.", "grpc": "gRPC is on port 6334.", "备份": "每晚做一次快照。"}


@pytest.fixture
def store() -> FakeStore:
    found = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=found).ingest(Document(id=id_, text=text) for id_, text in TEXTS.items())
    return found


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def feedback(tmp_path: Path, store: FakeStore, *lines: dict[str, Any]) -> FeedbackSource:
    path = write(tmp_path / "clicks.jsonl", *lines)
    return FeedbackSource(path, read_feedback(path), store, lambda line: None)


# ---------------------------------------------------------------- feedback


def test_feedback_names_chunks_documents_or_is_text(tmp_path: Path, store: FakeStore) -> None:
    """What an app logs is what it has: ids of hits, ids of documents, or the texts."""
    chunk = next(chunk for chunk in store.chunks() if chunk.document_id == "grpc")
    shown = [chunk.id, "ports", "备份", "Some other text."]
    source = feedback(tmp_path, store, {"query": "port?", "chosen": "ports", "shown": shown})
    candidates = source.candidates("1")
    assert [TEXTS["grpc"], TEXTS["ports"], TEXTS["备份"], "Some other text."] == [one.chunk.text for one in candidates]
    assert [1, 2, 3, 4] == [one.rank for one in candidates]
    assert {"ports": 1} == source.qrels["1"]


@pytest.mark.parametrize(
    ("chosen", "passed"),
    [
        ("a a", {"b b"}),  # the one below the choice was looked at
        ("c c", {"a a", "b b", "d d"}),
        (["a a", "c c"], {"b b", "d d"}),
        ("e e", {"a a", "b b", "c c", "d d"}),
        ("new text", {"a a", "b b", "c c", "d d", "e e"}),
    ],
)
def test_only_what_was_passed_over_is_a_negative(
    tmp_path: Path, store: FakeStore, chosen: str | list[str], passed: set[str]
) -> None:
    """Nobody looked at what stands further below, so its not being chosen says nothing."""
    shown = ["a a", "b b", "c c", "d d", "e e"]
    source = feedback(tmp_path, store, {"query": "q", "chosen": chosen, "shown": shown})
    assert passed == {one.chunk.text for one in source.negatives("1", source.candidates("1"))}


def test_a_document_is_chosen_by_its_chunk_that_was_shown(tmp_path: Path) -> None:
    """And the other way round: an app may show one kind and log the other. No part of the choice is passed over."""
    store = FakeStore()
    words = " ".join(f"word{i}" for i in range(60))
    with Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=16, chunk_overlap=0) as rag:
        rag.ingest([Document(id="long", text=words), Document(id="ports", text="a"), Document(id="grpc", text="b")])
    ids: dict[str, list[str]] = {}
    for chunk in sorted(store.chunks(), key=lambda chunk: chunk.index):
        ids.setdefault(chunk.document_id, []).append(chunk.id)
    (ports,), (grpc,), (first, second, *_) = ids["ports"], ids["grpc"], ids["long"]
    source = feedback(
        tmp_path,
        store,
        {"query": "q", "chosen": "long", "shown": [ports, second, grpc]},
        {"query": "r", "chosen": [first], "shown": ["ports", "long", "grpc"]},
        {"query": "s", "chosen": "ports", "shown": [ports, grpc, second]},
    )
    for query, chosen, shown, passed in (
        ("1", second, [ports, second, grpc], {ports, grpc}),
        ("2", first, ["ports", first, "grpc"], {"ports", "grpc"}),
        ("3", ports, [ports, grpc, second], {grpc}),
    ):
        candidates = source.candidates(query)
        assert [chosen] == list(source.qrels[query])
        assert shown == [one.chunk.document_id for one in candidates]
        assert passed == {one.chunk.document_id for one in source.negatives(query, candidates)}


def test_choices_that_are_gone_are_left_out_and_said(tmp_path: Path, store: FakeStore) -> None:
    """An id of a chunk that was ingested anew is no text to train on."""
    path = write(
        tmp_path / "clicks.jsonl",
        {"query": "one", "chosen": "docs/gone.md", "shown": ["docs/gone.md", "ports"]},
        {"query": "two", "chosen": "ports", "shown": ["docs/gone.md", "ports"]},
    )
    said: list[str] = []
    source = FeedbackSource(path, read_feedback(path), store, said.append)
    assert ["2"] == list(source.queries)
    assert ["ports"] == [one.chunk.document_id for one in source.candidates("2")]
    assert ["clicks.jsonl: 1 of 2 lines are left out, what they chose is not in fake-store"] == said


def test_feedback_of_another_collection_is_an_error(tmp_path: Path, store: FakeStore) -> None:
    """Where nothing that was chosen is there, nothing can be learned."""
    with pytest.raises(SettingsError, match="ids those of another collection"):
        feedback(tmp_path, store, {"query": "q", "chosen": "gone", "shown": ["gone", "ports"]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"query": " ", "chosen": "a", "shown": ["a"]}, 'line 1: no "query"'),
        ({"query": "q", "chosen": [], "shown": ["a"]}, 'line 1: "chosen" must be'),
        ({"query": "q", "chosen": 3, "shown": ["a"]}, 'line 1: "chosen" must be'),
        ({"query": "q", "chosen": "a"}, 'line 1: "shown" must be'),
        ({"query": "q", "chosen": "a", "shown": "a"}, 'line 1: "shown" must be'),
    ],
)
def test_a_wrong_line_of_feedback_is_named(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    """With file and line."""
    with pytest.raises(SettingsError, match=message):
        read_feedback(write(tmp_path / "clicks.jsonl", line))


def test_the_path_of_a_document_that_is_gone_is_no_text(tmp_path: Path, store: FakeStore) -> None:
    """Though it may have white space or Chinese characters in it."""
    gone = ["/docs/\u5907\u4efd\u6307\u5357.md", "/docs/backup guide.md"]
    source = feedback(
        tmp_path,
        store,
        {"query": "q", "chosen": "ports", "shown": [*gone, "ports"]},
        {"query": "r", "chosen": gone[0], "shown": gone},
    )
    assert {"1": "q"} == source.queries
    assert ["ports"] == [candidate.chunk.document_id for candidate in source.candidates("1")]


# ----------------------------------------------------------------- sources


def test_a_folder_s_training_judgements_are_taken(tmp_path: Path) -> None:
    """So that those of the test part stay unseen."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", {"_id": "a", "text": "a"}, {"_id": "b", "text": "b"})
    write(folder / "queries.jsonl", {"_id": "1", "text": "one"}, {"_id": "2", "text": "two"})
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\tb\t1\n")
    assert {"1": "one"} == read_dataset(folder, split="train").queries
    assert {"2": "two"} == read_dataset(folder).queries
    (folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(SettingsError, match=r"qrels/train\.tsv is missing"):
        read_dataset(folder, split="train")


def test_what_is_no_data_is_an_error(tmp_path: Path) -> None:
    """A path that is not there, and a file that is neither questions nor feedback."""
    other = write(tmp_path / "other.jsonl", {"text": "a"})
    with Sources(Settings(data_dir=tmp_path / "data"), lambda line: None) as sources:
        with pytest.raises(SettingsError, match="no such folder or file"):
            sources.open(tmp_path / "nowhere")
        with pytest.raises(SettingsError, match="neither"):
            sources.open(other)
        with pytest.raises(SettingsError, match="no dataset in BEIR's layout"):
            sources.open(tmp_path)


def test_a_sample_does_not_depend_on_the_order_of_the_store(store: FakeStore) -> None:
    """A store gives its chunks in no particular order."""
    settings = Settings()
    dataset = Dataset("set", {"1": "port"}, {"1": {"ports": 1}})
    source = CollectionSource(dataset, store, FakeEmbedder(), settings)
    first = source.sample(2, seed=3)
    store.points = dict(reversed(store.points.items()))
    assert first == source.sample(2, seed=3)
    assert 2 == len(first)


# ------------------------------------------------------------------- split


def source(name: str, queries: dict[str, str]) -> CollectionSource:
    dataset = Dataset(name, queries, {id_: {"ports": 1} for id_ in queries})
    return CollectionSource(dataset, FakeStore(), FakeEmbedder(), Settings())


def test_a_question_is_on_one_side_only() -> None:
    """In another writing or another set it is still the same question: trained on, it is no test."""
    first = source("first", {f"{i}": f"Question {i}?" for i in range(60)})
    second = source("second", {f"{i}": f"question  {i}{'? ？.'[i % 4]}" for i in range(40, 100)})
    parts = split([first, second], seed=0)
    sides: dict[str, set[str]] = {}
    for one, part in zip((first, second), parts, strict=True):
        for side in ("train", "choose", "report"):
            for id_ in getattr(part, side):
                number = "".join(letter for letter in one.queries[id_] if letter.isdigit())
                sides.setdefault(number, set()).add(side)
    assert 100 == len(sides)
    assert all(len(found) == 1 for found in sides.values())
    assert (48, 6, 6) == (len(parts[0].train), len(parts[0].choose), len(parts[0].report))


def test_equal_seeds_split_alike() -> None:
    """And others not."""
    sources = [source("one", {f"{i}": f"Question {i}?" for i in range(100)})]
    assert split(sources, seed=1) == split(sources, seed=1)
    assert split(sources, seed=1) != split(sources, seed=2)


def test_a_sample_of_the_queries_is_no_other_split() -> None:
    """``--max-queries`` leaves some out, by the same draw."""
    sources = [source("one", {f"{i}": f"Question {i}?" for i in range(100)})]
    (part,) = split(sources, seed=1, max_queries=30)
    assert (24, 3, 3) == (len(part.train), len(part.choose), len(part.report))


def test_too_few_queries_are_an_error() -> None:
    """What comes of nine queries is chance."""
    with pytest.raises(SettingsError, match="9 labelled queries are too few"):
        split([source("one", {f"{i}": f"Question {i}?" for i in range(9)})], seed=0)


# ------------------------------------------------------------------ resuming


def prepared(tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Of forty clicks on documents of ``store``."""
    monkeypatch.setattr("pipeline.training.sources.build_store", lambda settings: store)
    monkeypatch.setattr("pipeline.training.sources.build_embedder", lambda settings: FakeEmbedder())
    clicks = [{"query": f"query {i}", "chosen": f"doc{i}", "shown": [f"other {i}", f"doc{i}"]} for i in range(40)]
    path = write(tmp_path / "clicks.jsonl", *clicks)
    base = Base("none", "none", None, None)
    arguments = {"seed": 0, "max_queries": None, "negatives": 2}
    return run._prepare([path], Settings(), base, None, ScoreCache(), tmp_path, arguments, lambda line: None)


@pytest.fixture
def clicked() -> FakeStore:
    found = FakeStore()
    documents = (Document(id=f"doc{i}", text=f"Number {i} of many") for i in range(40))
    Pipeline(embedder=FakeEmbedder(), store=found).ingest(documents)
    return found


def documents_of(cases: Sequence[Case]) -> list[str]:
    return [id_ for case in cases for id_ in case.grades]


def test_what_was_trained_on_is_not_reported_on_later(
    tmp_path: Path, clicked: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a training that was cut off finds fewer clicked documents when it goes on."""
    first = prepared(tmp_path, clicked, monkeypatch)
    assert (32, 4, 4) == (first.queries, len(first.choose), len(first.report))
    clicked.delete_documents(documents_of([*first.choose[:2], *first.report[:2]]))
    again = prepared(tmp_path, clicked, monkeypatch)
    assert first.examples == again.examples
    assert first.choose[2:] == again.choose
    assert first.report[2:] == again.report


def test_a_training_with_nothing_left_to_report_on_is_an_error(
    tmp_path: Path, clicked: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no other query that it has not seen."""
    first = prepared(tmp_path, clicked, monkeypatch)
    clicked.delete_documents(documents_of(first.report))
    with pytest.raises(SettingsError, match="is in the collection any more"):
        prepared(tmp_path, clicked, monkeypatch)
