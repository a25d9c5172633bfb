"""The collection that a dataset is evaluated on, on the real embedded store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import open_dataset
from pipeline.settings import Settings
from pipeline.stores import bm25, edge_requests
from pipeline.stores.storage import Storage
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


def test_the_vectors_are_kept_as_the_settings_say(dataset: Path, tmp_path: Path) -> None:
    """Each way in a collection of its own, so that none is stored anew when the settings change back."""
    data = tmp_path / "data"

    def folders(**options: Any) -> set[str]:
        """Those there are after an evaluation with these settings."""
        settings = Settings(data_dir=data, chunk_tokens=64, chunk_overlap=0, **options)
        _, store = open_dataset(str(dataset), settings, FakeEmbedder(), max_queries=None, say=lambda _: None)
        store.close()
        return {folder.name for folder in (data / "eval").iterdir() if folder.is_dir()}

    plain = folders()
    assert plain == folders(quantization="none", on_disk=False, oversampling=4)
    int8 = folders(quantization="int8") - plain
    assert int8 == folders(quantization="int8", oversampling=4) - plain
    disk = folders(on_disk=True) - plain - int8
    ways = {
        Storage("none", on_disk=False): plain,
        Storage("int8", on_disk=False): int8,
        Storage("none", on_disk=True): disk,
    }
    for way, (folder,) in ways.items():
        (config,) = (data / "eval" / folder).rglob("edge_config.json")
        assert way == edge_requests.storage(json.loads(config.read_text()))


def test_collections_that_are_there_are_found_again(dataset: Path, tmp_path: Path) -> None:
    """How vectors are kept became part of the folder's name later: nothing is ingested anew for it."""
    settings = Settings(data_dir=tmp_path / "data", chunk_tokens=64, chunk_overlap=0)
    found, store = open_dataset(str(dataset), settings, FakeEmbedder(), max_queries=None, say=lambda _: None)
    store.close()
    made_with = (found.origin, FakeEmbedder().name, 64, 0, bm25.DESCRIPTION)
    key = hashlib.blake2b(repr(made_with).encode(), digest_size=6).hexdigest()
    assert (tmp_path / "data" / "eval" / f"set-{key}").is_dir()


@pytest.mark.parametrize("oversampling", [1.0, 4.0])
def test_searches_oversample_as_the_settings_say(
    dataset: Path, tmp_path: Path, oversampling: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes which candidates are found with int8, and so what is measured."""
    asked: list[float] = []
    params = edge_requests.params

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(options["oversampling"])
        return params(*args, **options)

    monkeypatch.setattr(edge_requests, "params", watched)
    settings = Settings(data_dir=tmp_path / "data", quantization="int8", oversampling=oversampling)
    _, store = open_dataset(str(dataset), settings, FakeEmbedder(), max_queries=None, say=lambda _: None)
    store.search("xylophone", FakeEmbedder().embed_query("xylophone"), limit=1)
    store.close()
    assert [oversampling] == asked


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
