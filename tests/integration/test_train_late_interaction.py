"""The late-interaction reranker's own training, for real: a tiny model learns a made-up task."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.core import Pipeline
from pipeline.evaluation.dataset import read_dataset
from pipeline.inference.engine import Engine, Trunk
from pipeline.inference.export import traced, write_folder
from pipeline.models.build import mean_pooled
from pipeline.models.upper_layers import DIMENSION, TRUNK_LAYERS, TRUNK_NODE, upper_layers
from pipeline.stores.edge import EdgeStore
from pipeline.training.late import fitting, unseen
from pipeline.training.late.__main__ import train
from pipeline.training.late.choosing import first_stage
from pipeline.training.late.questions import SHARES, Question, Questions, Share, bm25_scores, read_questions
from pipeline.training.late.states import lower_layers
from pipeline.types import Document
from tests.datasets import save_dataset
from tests.fakes import FakeEmbedder
from tests.tiny_models import save_embedder

ANIMALS = ("dog", "fox", "quick", "lazy")  # words that the tiny model has
SIZES: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 64}
TRUNK = 2
NODE = TRUNK_NODE.replace(f"layer.{TRUNK_LAYERS - 1}", f"layer.{TRUNK - 1}")
CONFIG = {"query_prefix": "query: ", "document_prefix": "passage: ", "around": [[2], [3]]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of texts that share the question's number, the one with the dog is relevant."""
    folder = tmp_path_factory.mktemp("data")
    texts = {f"{animal}{i}": f"report {i:03d} the {animal}" for i in range(60) for animal in ANIMALS}
    queries = {f"q{i}": f"report {i:03d}" for i in range(60)}
    save_dataset(folder / "dogs", texts, queries, {f"q{i}": f"dog{i}" for i in range(60)})
    return folder


@pytest.fixture(scope="module")
def questions(data: Path) -> Questions:
    return read_questions(data, {"dogs": Share(held_back=20)})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    import torch
    from transformers import BertModel

    folder = save_embedder(tmp_path_factory.mktemp("tiny") / "model", **SIZES)
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in bert.parameters():  # a bias that is zero everywhere would be left out of the model file
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return bert, Tokenizer.from_file(str(folder / "tokenizer.json"))


def save_lower(tiny: tuple[Any, Tokenizer], folder: Path) -> Path:
    """The tiny model as an embedder's folder."""
    bert, tokenizer = tiny
    write_folder(traced(mean_pooled(bert), ("input_ids", "attention_mask")), tokenizer, {}, folder / "lower")
    return folder / "lower"


def test_questions_are_held_back_with_their_passages(questions: Questions) -> None:
    """What is chosen by was never trained on; candidates are BM25's."""
    held = [question for question in questions.all if question.held_back]
    theirs = {number for question in held for number in question.relevant}
    assert 20 == len(held)
    assert 40 == len(questions.all) - 20
    assert all(theirs.isdisjoint(one.relevant) for one in questions.all if not one.held_back)
    assert all(question.text in questions.passages[question.candidates[0][0]] for question in questions.all)


def test_what_training_has_not_seen_is_the_rest(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No passage is in both, and all of a question's passages are there."""
    share = Share(passages=150, held_back=5)
    monkeypatch.setattr(unseen, "DATASETS", ("dogs",))
    monkeypatch.setitem(SHARES, "dogs", share)
    seen = read_questions(data, {"dogs": share})
    counts = unseen.write_unseen(data, tmp_path / "rest")
    rest = read_dataset(tmp_path / "rest")
    texts = {document.text for document in rest.documents()}
    assert 90 == len(texts)
    assert texts.isdisjoint(seen.passages)
    assert {question.text for question in seen.all}.isdisjoint(rest.queries.values())
    assert counts["dogs"] == len(rest.queries) > 0


def test_it_learns_what_the_first_stage_cannot_know(
    questions: Questions, tiny: tuple[Any, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM25 finds all four animals equal, and the embeddings know little of them; trained, it mostly knows the dog's,
    for numbers that were held back."""
    import torch

    monkeypatch.setattr(fitting, "_RATES", (2e-3, 2e-3, 3e-3, 1e-2))  # its weights are random: they have far to go
    bert, tokenizer = tiny
    lower = lower_layers(save_lower(tiny, tmp_path), NODE, SIZES["hidden_size"])
    torch.manual_seed(0)
    upper = upper_layers(bert, TRUNK)
    said: list[str] = []
    chosen = train(lower, upper, tokenizer, CONFIG, questions, steps=60, seed=1, say=said.append)
    measured = chosen["measured"]["dogs"]
    assert max(measured.values()) > 0.7
    assert max(measured.values()) - measured["0"] > 0.25
    assert chosen["default_alpha"] > 0
    assert chosen["scale"] > 0
    assert any(line.startswith("step 50 of 60") for line in said)


def test_upper_layers_on_the_trunk_are_the_whole_model(tiny: tuple[Any, Tokenizer], tmp_path: Path) -> None:
    """The engine joins the two model files; what comes out is what torch computes in one."""
    import torch

    bert, tokenizer = tiny
    upper = upper_layers(bert, TRUNK).eval()
    lower = save_lower(tiny, tmp_path)
    graph = traced(upper, ("hidden", "attention_mask"), width=128)
    write_folder(graph, tokenizer, {}, tmp_path / "upper")
    trunk = Trunk(lower / "model.xml", NODE)
    engine = Engine(tmp_path / "upper" / "model.xml", exact=True, trunk=trunk)
    sequences = [[2, 5, 6, 7, 3], [2, 8, 3], [2, 5, 6, 7, 9, 10, 11, 12, 5, 3]]
    for ids, rows in zip(sequences, engine.token_rows(sequences), strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([ids])
            seen = torch.ones_like(tokens)
            hidden = bert(input_ids=tokens, attention_mask=seen, output_hidden_states=True).hidden_states[TRUNK]
            expected = upper(hidden, seen)[0].numpy()
        assert (len(ids), DIMENSION + 1) == rows.shape
        assert np.allclose(expected, rows, atol=1e-4)


def test_bm25_is_the_stores(tmp_path: Path) -> None:
    """The same documents with the same scores, titles too; what shares no word is no candidate."""
    documents = [
        Document("0", "the red fox and the dog"),
        Document("1", "the blue fox"),
        Document("2", "a stone", title="red fox"),
        Document("3", "a stone"),
    ]
    (found,) = bm25_scores(documents, ["red fox"])
    with Pipeline(embedder=FakeEmbedder(), store=EdgeStore(tmp_path / "documents")) as rag:
        rag.ingest(documents)
        stored = rag.store.search("red fox", None, mode="sparse", limit=10)
    assert ["2", "0", "1"] == [documents[place].id for place in np.argsort(-found, kind="stable") if found[place] > 0]
    assert {one.chunk.document_id: pytest.approx(one.score, rel=1e-3) for one in stored} == {
        document.id: score for document, score in zip(documents, found.tolist(), strict=True) if score > 0
    }


def test_first_stage_is_the_stores(tmp_path: Path) -> None:
    """The same passages with the same fused scores, in the same order; what lists neither is not there."""
    words = ["red", "blue", "fox", "dog", "stone", "river", "tree", "cloud"]
    random = Random(3)
    documents = [Document(f"{i:03}", " ".join(random.choices(words, k=random.randint(3, 90)))) for i in range(300)]
    embedder = FakeEmbedder(dimension=16)
    query = "red fox river"
    with Pipeline(embedder=embedder, store=EdgeStore(tmp_path / "documents")) as rag:
        rag.ingest(documents)
        stored = rag.store.search(query, embedder.embed_query(query), limit=50, exact=True)
    (scores,) = bm25_scores(documents, [query])
    questions = Questions(
        [document.text for document in documents],
        {"all": range(300)},
        [Question("all", query, [7], [], True, scores)],
    )
    embeddings = np.vstack([embedder.embed_documents(questions.passages), embedder.embed_query(query)[np.newaxis]])
    found = first_stage(embeddings, questions, 0, 300)
    assert {one.chunk.document_id: pytest.approx(one.score, abs=1e-3) for one in stored[:40]} == {
        documents[number].id: score for number, score in found[:40]
    }
