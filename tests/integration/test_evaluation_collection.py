"""The collection that a dataset is evaluated on, on the real embedded store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import open_dataset
from pipeline.settings import Settings
from tests.fakes import FakeEmbedder

LONG = "The engine reads every page of the book, one after the other. " * 60


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    documents = [
        {"_id": "long", "title": "Book", "text": LONG + "The last word is xylophone."},
        {"_id": "short", "title": "", "text": "A short one."},
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "xylophone"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tlong\t1\n")
    return folder


def test_whole_documents_are_one_chunk_each(dataset: Path, tmp_path: Path) -> None:
    """Beside the cut ones, in a collection of their own; BM25 finds the last word of the longest."""
    settings = Settings(data_dir=tmp_path / "data", chunk_tokens=64, chunk_overlap=0)
    for whole in (True, False, True):
        _, store = open_dataset(
            str(dataset), settings, FakeEmbedder(), max_queries=None, whole_documents=whole, say=lambda _: None
        )
        try:
            assert (2, whole) == (store.count().documents, store.count().chunks == 2)
            best = store.search("xylophone", None, limit=1, mode="sparse")[0].chunk
            assert ("long", whole) == (best.document_id, len(best.text) > len(LONG))
        finally:
            store.close()


def test_questions_about_a_collection_have_no_whole_documents(tmp_path: Path) -> None:
    """Its documents were cut when they were ingested."""
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "q", "relevant": ["a"]}))
    with pytest.raises(SettingsError, match="cut already"):
        open_dataset(
            str(file),
            Settings(data_dir=tmp_path),
            FakeEmbedder(),
            max_queries=None,
            whole_documents=True,
            say=lambda _: None,
        )
