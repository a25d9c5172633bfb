from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.core import Pipeline
from pipeline.evaluation.dataset import Dataset
from pipeline.reranking import Scorer
from pipeline.settings import Settings
from pipeline.training.mining import Example, Judge, Miner, read_examples, taught, write_examples
from pipeline.training.sources import CollectionSource
from pipeline.types import Document
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore, word_tokenizer

pytestmark = pytest.mark.usefixtures("plain_settings")

RIGHT = "gRPC listens on port 6334"
TEXTS = {
    "right": RIGHT,
    "copy": "GRPC  listens on port 6334",
    "near": "gRPC is on 6334 and listens there",
    "http": "HTTP listens on port 6333",
    "proxy": "The proxy listens on port 80",
    "blank": " ",
    **{f"other{i}": f"Sentence number {i} is about something else" for i in range(20)},
}
LOGITS = {"right": 4.0, "near": 3.9, "http": 1.0, "proxy": 0.0}


def source(qrels: Mapping[str, int] | None = None, texts: Mapping[str, str] = TEXTS) -> CollectionSource:
    store = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=store).ingest(Document(id=id_, text=text) for id_, text in texts.items())
    dataset = Dataset("set", {"q": "Which port listens gRPC on?"}, {"q": dict(qrels or {"right": 1})})
    return CollectionSource(dataset, store, FakeEmbedder(), Settings(top_n=10))


def judge(teaches: bool = False, logits: Mapping[str, float] = LOGITS) -> Judge:
    scores = {text: logits.get(id_, -3.0) for id_, text in TEXTS.items()}
    return Judge(Scorer(FakeReranker(scores), tokenizer=word_tokenizer()), 1.0, teaches)


def mine(of: CollectionSource, by: Judge | None, negatives: int = 8, seed: int = 0) -> list[Example]:
    return list(Miner(of, by, negatives=negatives, seed=seed).examples("q"))


def test_the_relevant_passage_comes_first_and_has_all_of_the_target() -> None:
    """And the list is as long as was asked for, without a passage twice."""
    (example,) = mine(source(), judge())
    assert RIGHT == example.passages[0]
    assert [1.0] + [0.0] * 8 == example.target
    assert 9 == len(set(example.passages))


def test_likely_relevant_candidates_are_no_negatives() -> None:
    """Judged by nobody, but as near to the relevant one as that: it would be punished for being right."""
    with_judge, without = mine(source(), judge()), mine(source(), None)
    assert TEXTS["near"] not in with_judge[0].passages
    assert TEXTS["near"] in without[0].passages
    assert TEXTS["http"] in with_judge[0].passages


def test_what_is_likely_relevant_does_not_depend_on_the_judge_s_scale() -> None:
    """One that gives all of them 0.9 and more separates them all the same."""
    sure = {id_: 3 + value / 50 for id_, value in LOGITS.items()}
    lists = [mine(source(), judge(logits={**dict.fromkeys(TEXTS, low), **logits}))[0].passages
             for logits, low in ((LOGITS, -3.0), (sure, 3 - 3 / 50))]  # fmt: skip
    assert lists[0] == lists[1]


def test_a_text_equal_to_the_relevant_one_is_no_negative() -> None:
    """Whatever its case and white space; nor is a blank one, which says nothing."""
    for seed in range(5):
        (example,) = mine(source(), None, negatives=20, seed=seed)
        assert {TEXTS["copy"], " "}.isdisjoint(example.passages[1:])


def test_hard_and_random_negatives_are_mixed() -> None:
    """Three quarters are candidates of the first stage; the others keep easy cases right."""
    miner = Miner(source(), None, negatives=8, seed=0)
    list(miner.examples("q"))
    assert {
        "queries": 1,
        "lists": 1,
        "hard negatives": 6,
        "random negatives": 2,
        "without a passage": 0,
    } == miner.counts


def test_where_few_candidates_are_left_random_ones_fill_the_list() -> None:
    """A list is worth more full."""
    everything_is_relevant = judge(logits=dict.fromkeys(TEXTS, 4.0))
    miner = Miner(source(), everything_is_relevant, negatives=8, seed=0)
    (example,) = miner.examples("q")
    assert 9 == len(example.passages)
    assert 0 == miner.counts["hard negatives"]


def test_relevant_passages_are_never_each_other_s_negatives() -> None:
    """Each relevant document has a list of its own, three at most."""
    relevant = {"right": 1, "near": 2, "http": 1, "proxy": 1}
    found = mine(source(relevant), None)
    assert [TEXTS["near"], RIGHT, TEXTS["http"]] == [example.passages[0] for example in found]
    for example in found:
        assert {TEXTS[id_] for id_ in relevant}.isdisjoint(example.passages[1:])


def test_no_chunk_of_a_relevant_document_is_a_negative() -> None:
    """Neither are those that the first stage did not recall, of which a long document has many."""
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=21, chunk_overlap=0)
    long = " ".join(f"The manual's sentence {i} is on ports and gRPC." for i in range(40))
    rag.ingest([Document(id="long", text=long), *(Document(id=f"o{i}", text=f"Number {i} of many") for i in range(9))])
    dataset = Dataset("set", {"q": "ports and gRPC in the manual"}, {"q": {"long": 1}})
    of = CollectionSource(dataset, store, FakeEmbedder(), Settings(top_n=5, top_k=5, chunk_tokens=21, chunk_overlap=0))
    assert len(of.chunks("long")) > len(of.candidates("q"))
    for seed in range(5):
        (example,) = mine(of, None, seed=seed)
        assert len(example.passages) > 1
        assert not any("manual" in passage for passage in example.passages[1:])


def test_of_a_long_document_the_best_chunk_is_the_relevant_passage() -> None:
    """A judgement is of a document; a chunk on something else in it would teach nonsense."""
    chunks = ["We start with how to install it.", "Then gRPC listens on port 6334.", "We end with a summary."]
    long = " ".join(chunks[0:1] * 3 + chunks[1:2] + chunks[2:] * 3)
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=21, chunk_overlap=0)
    rag.ingest([Document(id="long", text=long), *(Document(id=f"o{i}", text=f"Number {i}") for i in range(9))])
    dataset = Dataset("set", {"q": "gRPC listens on which port"}, {"q": {"long": 1}})
    of = CollectionSource(dataset, store, FakeEmbedder(), Settings(top_n=10, chunk_tokens=21, chunk_overlap=0))
    by = Judge(Scorer(FakeReranker(), tokenizer=word_tokenizer()), 1.0, teaches=False)
    assert len(of.chunks("long")) > 1
    (example,) = mine(of, by)
    assert chunks[1] in example.passages[0]


def test_a_relevant_document_that_is_missing_is_counted() -> None:
    """Nothing can be learned of it."""
    miner = Miner(source({"gone": 1}), None, negatives=4, seed=0)
    assert [] == list(miner.examples("q"))
    assert 1 == miner.counts["without a passage"]


def test_a_teacher_s_scores_are_half_of_the_target() -> None:
    """The other half stays with what people said."""
    (example,) = mine(source(), judge(teaches=True))
    of = {text: LOGITS.get(id_, -3.0) for id_, text in TEXTS.items()}
    weights = [math.exp(of[passage]) for passage in example.passages]
    expected = [0.5 * weight / sum(weights) for weight in weights]
    expected[0] += 0.5
    assert expected == pytest.approx(example.target)
    assert 1.0 == pytest.approx(sum(example.target))


def test_a_teacher_s_large_logits_do_not_overflow() -> None:
    """Its probability of 1.0 is a logit of 36."""
    assert [0.5, 0.5] == pytest.approx(taught([1.0, 0.0], [-800.0, 36.0]))


def test_equal_seeds_draw_alike() -> None:
    """And others not."""
    assert mine(source(), judge(), seed=1) == mine(source(), judge(), seed=1)
    assert mine(source(), None, seed=1) != mine(source(), None, seed=2)


def test_examples_survive_their_file(tmp_path: Path) -> None:
    """With whatever characters."""
    examples = [Example("备份?\n", ["a\u2028b", "\ud800"], [0.25, 0.75])]
    write_examples(tmp_path / "examples.jsonl", examples)
    assert examples == read_examples(tmp_path / "examples.jsonl")
