"""What holds for the late-interaction reranker beyond the contract."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.build import build_embedder, build_reranker
from pipeline.calibration import Calibration, save_calibration
from pipeline.core import Pipeline
from pipeline.embedders.embedded import EmbeddedEmbedder
from pipeline.errors import SettingsError
from pipeline.inference.folder import ModelFolder
from pipeline.inference.token_vectors import TokenVectors
from pipeline.models import EMBEDDER, LATE_INTERACTION, RERANKER
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.rerankers.late_interaction import LateInteractionReranker
from pipeline.settings import Settings
from pipeline.types import Document, RerankScore
from tests.texts import QUERY, TEXTS

# How much a score may differ where a text is read in another batch, or by the embedder: bfloat16 rounds.
ROUNDED = 0.03


def raws(scores: list[RerankScore]) -> list[float]:
    return [score.raw for score in scores]


def reads(reranker: LateInteractionReranker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that its model computes from now on."""
    seen: list[str] = []
    compute = reranker._model.token_vectors

    def watched(texts: list[str], *, query: bool) -> object:
        seen.extend([] if query else texts)
        return compute(texts, query=query)

    monkeypatch.setattr(reranker._model, "token_vectors", watched)
    return seen


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vectors do not depend on the query: another one finds them, and gets the scores it would get without."""
    reranker = LateInteractionReranker()
    seen = reads(reranker, monkeypatch)
    reranker.score("What does the bank do?", TEXTS[2:])
    found = reranker.score(QUERY, TEXTS)
    assert [*TEXTS[2:], *TEXTS[:2]] == seen
    assert raws(LateInteractionReranker().score(QUERY, TEXTS)) == pytest.approx(
        raws(found), rel=ROUNDED, abs=2 * ROUNDED
    )


def test_the_next_process_finds_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file; the scores are those of the first one to the last digit."""
    path = tmp_path / "cache" / "vectors.sqlite"
    first = LateInteractionReranker(token_vectors=TokenVectors(path))
    expected = raws(first.score(QUERY, TEXTS))
    first.close()
    second = LateInteractionReranker(token_vectors=TokenVectors(path))
    model = ModelFolder(LATE_INTERACTION, "late-interaction", trunk=EMBEDDER)
    lengths = [len(ids) for ids in model.sequences(TEXTS, query=False)]
    assert [*lengths, None] == second.tokens_read([*TEXTS, "another"])
    seen = reads(second, monkeypatch)
    assert expected == raws(second.score(QUERY, TEXTS))
    assert [] == seen
    second.close()


def test_another_model_does_not_find_them(tmp_path: Path) -> None:
    """The revision is part of the key."""
    path = tmp_path / "vectors.sqlite"
    reranker = LateInteractionReranker(token_vectors=TokenVectors(path))
    reranker.score(QUERY, TEXTS)
    reranker.identity = "late-interaction@other"
    assert [None] * 4 == reranker.tokens_read(TEXTS)
    reranker.close()


def test_room_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With none, every text is read each time; the scores are the same."""
    reranker = LateInteractionReranker(token_vectors=TokenVectors(megabytes=0))
    seen = reads(reranker, monkeypatch)
    first, second = reranker.score(QUERY, TEXTS), reranker.score(QUERY, TEXTS)
    assert TEXTS * 2 == seen
    assert raws(first) == raws(second)


def test_what_was_not_used_for_long_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte holds some twenty texts of 400 tokens each, but not forty."""
    reranker = LateInteractionReranker(token_vectors=TokenVectors(megabytes=1))
    texts = [f"Number {i}. " + "The river rose and the bridge was closed. " * 40 for i in range(40)]
    reranker.score(QUERY, texts)
    seen = reads(reranker, monkeypatch)
    reranker.score(QUERY, texts[-2:])
    assert [] == seen
    reranker.score(QUERY, texts[:1])
    assert texts[:1] == seen


def test_threads_share_what_they_read() -> None:
    """Many queries at once get the scores that each gets alone."""
    reranker = LateInteractionReranker()
    queries = [f"{QUERY} {i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: raws(reranker.score(query, TEXTS)), queries))
    for query, scores in zip(queries, found, strict=True):
        assert raws(LateInteractionReranker().score(query, TEXTS)) == pytest.approx(
            scores, rel=ROUNDED, abs=2 * ROUNDED
        )


def test_it_stands_on_the_embedder_it_was_made_for(tmp_path: Path) -> None:
    """Other lower layers would give other numbers, and nobody would notice."""
    folder = tmp_path / "model"
    shutil.copytree(LATE_INTERACTION, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["trunk"]["revision"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(SettingsError, match=r"embedder 000000000000"):
        LateInteractionReranker(folder)


def test_the_trunk_is_the_embedders(tmp_path: Path) -> None:
    """The mean of the hidden states below is not needed, and the embedder's own answers are what they were."""
    before = EmbeddedEmbedder().embed_query(QUERY)
    LateInteractionReranker(cache_dir=tmp_path).score(QUERY, TEXTS)
    assert np.array_equal(before, EmbeddedEmbedder().embed_query(QUERY))
    config = json.loads((LATE_INTERACTION / "config.json").read_text(encoding="utf-8"))
    of_embedder = json.loads((EMBEDDER / "config.json").read_text(encoding="utf-8"))
    assert of_embedder["revision"] == config["trunk"]["revision"]


def test_embedded_takes_a_folder_of_either_kind(tmp_path: Path) -> None:
    """By what the folder says it holds."""
    built = {
        kind: build_reranker(Settings(data_dir=tmp_path, reranker="embedded", reranker_model=str(folder)))
        for kind, folder in (("late", LATE_INTERACTION), ("cross", RERANKER))
    }
    assert isinstance(built["late"], LateInteractionReranker)
    assert isinstance(built["cross"], EmbeddedReranker)
    assert {"embedded"} == {reranker.name for reranker in built.values() if reranker}


def test_an_ingest_reads_for_the_reranker_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first query reads nothing, in this process or in another."""
    settings = Settings(data_dir=tmp_path)
    documents = [Document(id=str(i), text=text, title="Title") for i, text in enumerate(TEXTS)]
    with Pipeline.from_settings(settings) as rag:
        rag.ingest(documents)
    with Pipeline.from_settings(settings) as rag:
        assert isinstance(rag.reranker, LateInteractionReranker)
        seen = reads(rag.reranker, monkeypatch)
        assert "0" == rag.query(QUERY).hits[0].document_id
    assert [] == seen


def test_what_an_ingest_reads_is_what_the_models_read_alone() -> None:
    """Embeddings as without a reranker, scores as without an ingest."""
    kept = TokenVectors()
    embedder = EmbeddedEmbedder(token_vectors=kept)
    vectors = embedder.embed_documents(TEXTS)
    assert np.allclose(EmbeddedEmbedder().embed_documents(TEXTS), vectors, atol=2e-3)
    prepared, alone = LateInteractionReranker(token_vectors=kept), LateInteractionReranker()
    assert None not in prepared.tokens_read(TEXTS)
    assert raws(alone.score(QUERY, TEXTS)) == pytest.approx(
        raws(prepared.score(QUERY, TEXTS)), rel=ROUNDED, abs=2 * ROUNDED
    )


def test_a_score_does_not_depend_on_who_has_read_the_text(tmp_path: Path) -> None:
    """An ingest and a query use one and the same graph, so that equal batches give equal vectors."""
    for name, rerank_first in (("ingest", False), ("query", True)):
        settings = Settings(data_dir=tmp_path / name)
        embedder, reranker = build_embedder(settings), build_reranker(settings)
        assert isinstance(reranker, LateInteractionReranker)
        if not rerank_first:
            embedder.embed_documents(TEXTS)
        read = reranker.tokens_read(TEXTS)
        assert rerank_first == (None in read)
        embedder.embed_query(QUERY)
        scores = raws(reranker.score(QUERY, TEXTS))
        if name == "ingest":
            expected = scores
        reranker.close()
    assert expected == scores


def test_the_embedder_reads_the_query_for_the_reranker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an ingest has read the texts, too, the reranker's own model has nothing to do, and is not loaded."""
    with Pipeline.from_settings(Settings(data_dir=tmp_path, chunk_tokens=64, chunk_overlap=8)) as rag:
        rag.ingest([Document(id=str(i), text=text) for i, text in enumerate(TEXTS)])
        reranker = rag.reranker
        assert isinstance(reranker, LateInteractionReranker)

        def refuse(texts: list[str], *, query: bool) -> object:
            raise AssertionError(f"read by itself: {texts}")

        with monkeypatch.context() as patched:
            patched.setattr(reranker._model, "token_vectors", refuse)
            hits = rag.query(QUERY).hits
        assert reranker._model._engine is None
        alone = LateInteractionReranker().score(QUERY, [hit.chunk.full_text for hit in hits])
        assert raws(alone) == pytest.approx(
            [hit.rerank.raw for hit in hits if hit.rerank], rel=ROUNDED, abs=2 * ROUNDED
        )


def test_the_embedder_forgets_what_it_read_of_queries() -> None:
    """For measurements of a search that does not embed them; the texts stay known, and the scores are the same."""
    kept = TokenVectors()
    embedder, reranker = EmbeddedEmbedder(token_vectors=kept), LateInteractionReranker(token_vectors=kept)
    embedder.embed_documents(TEXTS)
    embedder.embed_query(QUERY)
    assert kept.query(reranker.identity, QUERY) is not None
    before = raws(reranker.score(QUERY, TEXTS))
    embedder.forget_queries()
    assert kept.query(reranker.identity, QUERY) is None
    assert None not in reranker.tokens_read(TEXTS)
    assert before == pytest.approx(raws(reranker.score(QUERY, TEXTS)), rel=ROUNDED, abs=2 * ROUNDED)
    EmbeddedEmbedder().forget_queries()


def test_a_relative_data_directory_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its working directory keeps its store, caches and calibrations."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    with Pipeline.from_settings(Settings(data_dir=Path("data"), score_cache_disk=True)) as rag:
        assert isinstance(rag.reranker, LateInteractionReranker)
        name = f"{rag.reranker.name} {rag.reranker.identity}"
        flat = Calibration(name, "platt", ((0.0, 0.0),), "d", 10, 500, 10, 0.4, 0.9, "2026-01-01")
        save_calibration(home / "data" / "calibration", flat)
        monkeypatch.chdir(elsewhere)
        rag.ingest([Document(id=str(i), text=text) for i, text in enumerate(TEXTS)])
        hits = rag.query(QUERY).hits
    assert {0.5} == {hit.rerank.probability for hit in hits if hit.rerank}
    assert [] == list(elsewhere.iterdir())
    assert {"scores.sqlite", "token-vectors.sqlite"} <= {file.name for file in (home / "data" / "cache").iterdir()}


def test_queries_in_memory_are_few() -> None:
    """Those of long ago are read again."""
    kept = TokenVectors()
    for i in range(300):
        kept.put_query("model", str(i), (np.ones((2, 4), np.float32), np.ones(2, np.float32)))
    assert kept.query("model", "0") is None
    assert kept.query("model", "299") is not None
    assert kept.query("another", "299") is None
    kept.put_query("model", "44", (np.ones((2, 4), np.float32), np.ones(2, np.float32)))
    kept.put_query("model", "300", (np.ones((2, 4), np.float32), np.ones(2, np.float32)))
    assert kept.query("model", "44") is not None


def test_an_ingest_does_not_push_out_what_was_used_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """But what was used longer ago, such as vectors of texts that are gone, makes room for what is new."""
    clock = [1e9]
    monkeypatch.setattr("time.time_ns", lambda: int(clock[0] * 1e9))
    kept = TokenVectors(megabytes=1)
    kept.put("model", {f"old {i}": np.ones((950, 128), np.int8) for i in range(8)})
    assert not kept.room()
    embedder, reranker = EmbeddedEmbedder(token_vectors=kept), LateInteractionReranker(token_vectors=kept)
    embedder.embed_documents(TEXTS)
    assert [None] * 4 == reranker.tokens_read(TEXTS)
    clock[0] += 25 * 60 * 60
    embedder.embed_documents(TEXTS)
    assert None not in reranker.tokens_read(TEXTS)


def test_memory_stays_when_one_of_its_users_is_closed(tmp_path: Path) -> None:
    """All pipelines of a process share it: what one has read the next one finds."""
    settings = Settings(data_dir=tmp_path, token_vectors_disk=False)
    first, second = build_reranker(settings), build_reranker(settings)
    assert isinstance(first, LateInteractionReranker)
    assert isinstance(second, LateInteractionReranker)
    first.score(QUERY, TEXTS)
    first.close()
    assert None not in second.tokens_read(TEXTS)


def test_the_package_has_the_tokenizer_once() -> None:
    """That of the embedder, whose lower layers it stands on: reading a second one takes time and 55 MB."""
    assert LateInteractionReranker().tokenizer is EmbeddedEmbedder().tokenizer


def test_a_full_cache_is_not_filled_by_an_ingest() -> None:
    """It would push out what queries use; embeddings come as ever."""
    kept = TokenVectors(megabytes=0)
    assert (4, 384) == EmbeddedEmbedder(token_vectors=kept).embed_documents(TEXTS).shape
    assert [None] * 4 == LateInteractionReranker(token_vectors=kept).tokens_read(TEXTS)


@pytest.mark.parametrize(
    ("changes", "prepares"),
    [
        ({}, True),
        ({"reranker": "none"}, False),
        ({"reranker": "none", "reranker_fallback": "embedded"}, True),
        ({"reranker": "jina", "reranker_model": "another", "reranker_fallback": "none,embedded"}, True),
        ({"embedding_model": str(EMBEDDER)}, False),
        ({"reranker_model": str(RERANKER)}, True),
        ({"reranker_model": str(RERANKER), "cascade": "off"}, False),
    ],
)
def test_an_ingest_reads_only_for_a_reranker_that_will_ask(
    changes: dict[str, str], prepares: bool, tmp_path: Path
) -> None:
    """And only where both models are those of the package."""
    embedder = build_embedder(Settings(data_dir=tmp_path, **changes))
    embedder.embed_documents(TEXTS[:1])
    assert prepares == (tmp_path / "cache" / "token-vectors.sqlite").exists()
    embedder.close()  # type: ignore[attr-defined]
