"""Models under PyTorch on every device of the machine: on a plain one the CPU, on others the GPU, too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import deadline
from pipeline.core import Pipeline
from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
from pipeline.inference.torch_cross_encoder import open_cross_encoder
from pipeline.inference.torch_embedder import open_embedder
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from pipeline.settings import Settings
from pipeline.training.fitting import Plan, fit
from pipeline.training.mining import Example
from pipeline.types import Document
from tests.tiny_models import save_cross_encoder, save_embedder

DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
QUERY = "How do I read JSON in Python?"
TEXTS = ["Use the json module.", "如何读取 JSON 文件？", "Vitamin D in older people.", "The lazy dog " * 40, "dog"]
# A logit of size 1 in bf16 is known to a hundredth or two.
TOLERANCE = 0.05


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_those_of_float32(tmp_path: Path, architecture: str, device: str) -> None:
    """One pair at a time through transformers alone, on the CPU."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save_cross_encoder(tmp_path / "model", architecture=architecture)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        expected = [
            model(**tokenizer(QUERY, text, truncation=True, max_length=64, return_tensors="pt")).logits.item()
            for text in TEXTS
        ]
    reranker = open_cross_encoder(
        str(folder), revision=None, device=device, max_length=None, batch_tokens=None, local=True
    )
    assert {device} == {parameter.device.type for parameter in reranker._model.parameters()}
    assert np.ptp(expected) > 4 * TOLERANCE
    assert reranker.logits(QUERY, TEXTS).tolist() == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_of_the_texts_changes_no_logit(tmp_path: Path, device: str) -> None:
    """In bf16 the shape of a batch does, so batches are the same ones whatever the order."""
    folder = save_cross_encoder(tmp_path / "model")
    reranker = CrossEncoderReranker(str(folder), device=device, engine="torch", batch_tokens=100)
    texts = [f"{text} {number}" for number in range(5) for text in TEXTS]
    forwards = [score.raw for score in reranker.score(QUERY, texts)]
    backwards = [score.raw for score in reranker.score(QUERY, texts[::-1])]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > len(TEXTS)


@pytest.mark.parametrize("device", DEVICES)
def test_embeddings_are_those_of_float32(tmp_path: Path, device: str) -> None:
    """A collection made on a GPU is searched on a CPU."""
    from sentence_transformers import SentenceTransformer

    folder = str(save_embedder(tmp_path / "model"))
    here = SentenceTransformersEmbedder(folder, device=device, engine="torch").embed_documents(TEXTS)
    there = SentenceTransformer(folder, device="cpu").encode(TEXTS, batch_size=1, normalize_embeddings=True)
    assert np.abs(np.asarray(here) - np.asarray(there)).max() < 1e-4


def test_a_query_waits_for_one_batch_of_an_ingest(tmp_path: Path) -> None:
    """Not for all of its texts, as where the ingest has the model until it is through."""
    model = open_embedder(str(save_embedder(tmp_path / "model")), revision=None, device="cpu", batch_size=2, local=True)
    texts = [text * number for number in (1, 2) for text in TEXTS]
    alone = model.embed(texts, query=False)
    encoded: list[str] = []
    go = threading.Event()
    encode = model._model.encode

    def gated(*args: Any, **options: Any) -> Any:
        encoded.append(threading.current_thread().name)
        assert go.wait(60)
        return encode(*args, **options)

    model._model.encode = gated
    with ThreadPoolExecutor(1, "ingest") as first, ThreadPoolExecutor(1, "query") as second:
        ingested = first.submit(model.embed, texts, query=False)
        while not encoded:
            pass
        asked = second.submit(model.embed, [QUERY], query=True)
        while not model._turns._line:  # until it stands in line
            pass
        go.set()
        assert np.array_equal(alone, ingested.result(60))
        assert (1, model.dimension) == asked.result(60).shape
    assert ["ingest_0", "query_0", *["ingest_0"] * 4] == encoded


def test_embedding_under_pytorch_can_be_given_up(tmp_path: Path) -> None:
    """Between two batches, as on the engine."""
    model = open_embedder(str(save_embedder(tmp_path / "model")), revision=None, device="cpu", batch_size=2, local=True)
    given_up = threading.Event()
    given_up.set()
    with deadline.unless(given_up), pytest.raises(deadline.GivenUpError):
        model.embed(TEXTS, query=False)
    assert (5, model.dimension) == model.embed(TEXTS, query=False).shape


@pytest.mark.parametrize("device", DEVICES)
def test_a_reranker_is_trained(tmp_path: Path, device: str) -> None:
    """It learns what tells the lists' passages apart, and what it learned is the same on a CPU."""
    base = save_cross_encoder(tmp_path / "base")
    examples = [Example(f"report {i:03d}", [f"{i:03d} the dog", f"{i:03d} the fox"], [1.0, 0.0]) for i in range(32)]
    plan = Plan(epochs=8, learning_rate=2e-3, batch_size=8, seed=1, device=device)
    losses = fit(str(base), examples, tmp_path / "work", tmp_path / "out", plan, print)
    assert losses[-1]["loss"] < 0.1 < losses[0]["loss"]
    trained = CrossEncoderReranker(str(tmp_path / "out"), device="cpu", engine="torch")
    dog, fox = trained.score("report 100", ["100 the dog", "100 the fox"])
    assert dog.raw > fox.raw + 1


@pytest.mark.parametrize("device", DEVICES)
def test_both_stages_run_there(tmp_path: Path, device: str) -> None:
    """Every candidate is scored there; no fallback, no cascade, no warning."""
    embedder, reranker = save_embedder(tmp_path / "embedder"), save_cross_encoder(tmp_path / "reranker")
    settings = Settings(
        data_dir=tmp_path / "data",
        embedder="sentence-transformers",
        embedding_model=str(embedder),
        reranker="cross-encoder",
        reranker_model=str(reranker),
        device=device,
        engine="torch",
    )
    with Pipeline.from_settings(settings) as rag:
        rag.ingest([Document(id=f"{number}", text=text) for number, text in enumerate(TEXTS)])
        found = rag.query(QUERY, top_k=50)
    assert not found.degraded
    assert not found.warnings
    assert {hit.chunk.document_id for hit in found.hits} == {f"{number}" for number in range(len(TEXTS))}
    assert all(hit.rerank is not None for hit in found.hits)
