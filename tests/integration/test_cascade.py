"""The cascade with the models of the package, from the ingest to the hits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.core import Pipeline
from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.run import evaluate
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.rerankers.late_interaction import LateInteractionReranker
from pipeline.settings import Settings
from pipeline.types import Document
from tests import texts
from tests.texts import QUERY

TEXTS = [*texts.TEXTS, *(f"Report {i}: the harbour of town {i} was quiet all year." for i in range(5))]
DOCUMENTS = [Document(id=str(i), text=text, title="News") for i, text in enumerate(TEXTS)]


def test_the_cross_encoder_reads_its_share_and_the_first_step_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ingest has read the texts for the first step, the embedder the query; its own model is not even loaded."""
    settings = Settings(data_dir=tmp_path, reranker="embedded-cross-encoder", top_k=2)
    with Pipeline.from_settings(settings, rerank=False) as rag:
        rag.ingest(DOCUMENTS)
    with Pipeline.from_settings(settings) as rag:
        assert rag.cascade is not None
        quick = rag.cascade.reranker
        assert isinstance(quick, LateInteractionReranker)
        assert isinstance(rag.reranker, EmbeddedReranker)

        def refuse(texts: list[str], *, query: bool) -> object:
            raise AssertionError(f"read by itself: {texts}")

        monkeypatch.setattr(quick._model, "token_vectors", refuse)
        result = rag.query(QUERY)
        assert quick._model._engine is None
    assert ("embedded-cross-encoder", 9, 3, []) == (
        result.reranker,
        result.candidates,
        result.reranked,
        result.warnings,
    )
    assert ["0", "1"] == [hit.document_id for hit in result.hits]
    assert None not in [hit.rerank for hit in result.hits]


def test_what_no_ingest_has_read_the_first_query_reads(tmp_path: Path) -> None:
    """The answer does not depend on it."""
    settings = Settings(data_dir=tmp_path, reranker="embedded-cross-encoder", top_k=2)
    with Pipeline.from_settings(settings.updated(cascade="off"), rerank=False) as rag:
        rag.ingest(DOCUMENTS)
    for unread in (9, 0):
        with Pipeline.from_settings(settings) as rag:
            assert rag.cascade is not None
            quick = rag.cascade.reranker
            assert isinstance(quick, LateInteractionReranker)
            assert unread == quick.tokens_read([f"News\n{text}" for text in TEXTS]).count(None)
            result = rag.query(QUERY)
        assert (3, ["0", "1"]) == (result.reranked, [hit.document_id for hit in result.hits])
    with Pipeline.from_settings(settings.updated(cascade="off")) as rag:
        assert 9 == rag.query(QUERY).reranked


@pytest.mark.parametrize(("mode", "reranked"), [("auto", 3), ("off", 9)])
def test_an_evaluation_has_the_cascade_that_queries_have(mode: str, reranked: int, tmp_path: Path) -> None:
    """Its ingest reads for what it measures, whatever reranker the settings name."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": str(i), "text": text}, ensure_ascii=False) for i, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": QUERY}), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n", encoding="utf-8")
    settings = Settings(data_dir=tmp_path / "data", reranker="none", cascade=mode, top_k=2)
    found = evaluate(str(folder), settings, [RunSpec("hybrid", "embedded-cross-encoder", 50)], say=print)
    (answer,) = found.runs[0].answers.values()
    assert (reranked, 9, "0") == (len(answer.scores), len(answer.ranking), answer.ranking[0])
