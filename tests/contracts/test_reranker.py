"""What holds for every reranker."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from pipeline.interfaces import Reranker
from pipeline.rerankers.http import Shape
from pipeline.scoring import sigmoid
from pipeline.types import RerankScore
from tests.fakes import FakeReranker
from tests.loopback import Loopback, cohere_rerank, rerank_server
from tests.tiny_models import save_cross_encoder

QUERY = "How do I read JSON in Python?"
TEXTS = [
    "Use the json module: json.load reads a file.",
    "如何用 Python 读取 JSON 文件？使用 json 模块。",
    "Vitamin D in older people: a randomised trial with 5292 patients.",
    "The quick brown fox jumps over the lazy dog.",
    "json python read",
]
ODD = ["\ud800 alone", "nul \x00 inside", "😀👩‍👩‍👧", "\udcff", "\u202e right to left", "ａｂｃ", "\n\t"]

Make = Callable[[Path, contextlib.ExitStack], Reranker]


def _fake(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    return FakeReranker()


def _cohere(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    from pipeline.rerankers.cohere import CohereReranker

    server = stack.enter_context(Loopback(cohere_rerank))
    return stack.enter_context(
        contextlib.closing(CohereReranker(api_key="k", base_url=server.url, timeout_s=60, deadline_s=120))
    )


def _cross_encoder(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(str(save_cross_encoder(folder / "model")), device="cpu")


def _cross_encoder_on_the_engine(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    model = save_cross_encoder(folder / "model", architecture="xlm-roberta")
    return CrossEncoderReranker(str(model), device="cpu", engine="openvino", cache_dir=folder / "cache")


def _embedded(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    from pipeline.rerankers.late_interaction import LateInteractionReranker

    return LateInteractionReranker(cache_dir=folder / "cache")


def _embedded_cross_encoder(folder: Path, stack: contextlib.ExitStack) -> Reranker:
    from pipeline.rerankers.embedded import EmbeddedReranker

    return EmbeddedReranker(cache_dir=folder / "cache")


def _http(shape: Shape) -> Make:
    def make(folder: Path, stack: contextlib.ExitStack) -> Reranker:
        from pipeline.rerankers.http import HttpReranker

        server = stack.enter_context(Loopback(rerank_server(shape, logits=shape == "tei")))
        made = HttpReranker(server.url, shape=shape, model="m", api_key="k", timeout_s=60, deadline_s=120)
        return stack.enter_context(contextlib.closing(made))

    return make


MAKERS: dict[str, Make] = {
    **{f"http-{shape}": _http(shape) for shape in get_args(Shape)},
    "fake": _fake,
    "cohere": _cohere,
    "cross-encoder": _cross_encoder,
    "cross-encoder-on-the-engine": _cross_encoder_on_the_engine,
    "embedded": _embedded,
    "embedded-cross-encoder": _embedded_cross_encoder,
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reranker]:
    with contextlib.ExitStack() as stack:
        yield MAKERS[request.param](tmp_path_factory.mktemp(request.param), stack)


def raws(scores: list[RerankScore]) -> list[float]:
    return [score.raw for score in scores]


def test_it_says_what_it_is(reranker: Reranker) -> None:
    """Name, scale of raw scores, and default weight are declared, not found out from values."""
    assert reranker.name
    assert reranker.scale in {"logit", "probability"}
    assert 0.0 <= reranker.default_alpha <= 1.0


def test_no_texts_no_scores(reranker: Reranker) -> None:
    """An empty list of candidates is answered with an empty list."""
    assert reranker.score(QUERY, []) == []


def test_one_text_one_score(reranker: Reranker) -> None:
    """And it is the score that the text has among others."""
    alone = reranker.score(QUERY, [TEXTS[0]])
    assert len(alone) == 1
    assert raws(alone)[0] == pytest.approx(raws(reranker.score(QUERY, TEXTS))[0], abs=0.03)


def test_scores_stand_in_input_order(reranker: Reranker) -> None:
    """A permuted list gets the permuted scores: nothing is sorted, and no text's score depends on its place."""
    expected = dict(zip(TEXTS, raws(reranker.score(QUERY, TEXTS)), strict=True))
    assert len(set(expected.values())) > 1
    for seed in range(3):
        texts = Random(seed).sample(TEXTS, len(TEXTS))
        assert [expected[text] for text in texts] == pytest.approx(raws(reranker.score(QUERY, texts)), abs=1e-3)


def test_probabilities_follow_raw_scores(reranker: Reranker) -> None:
    """They lie in [0, 1], keep the order of raw, and are the sigmoid of a logit or the raw score itself."""
    scores = reranker.score(QUERY, TEXTS + ODD)
    for score in scores:
        assert math.isfinite(score.raw)
        assert 0.0 <= score.probability <= 1.0
        expected = sigmoid(score.raw) if reranker.scale == "logit" else score.raw
        assert expected == pytest.approx(score.probability, abs=1e-12)
    ranked = sorted(scores, key=lambda score: score.raw)
    assert ranked == sorted(ranked, key=lambda score: score.probability)


def test_equal_texts_get_equal_scores(reranker: Reranker) -> None:
    """Exactly equal: a tie must be a tie."""
    scores = reranker.score(QUERY, [TEXTS[0], TEXTS[2], TEXTS[0], *TEXTS, TEXTS[0]])
    assert scores[0] == scores[2] == scores[3] == scores[-1]


def test_blank_texts_are_scored(reranker: Reranker) -> None:
    """They get a score in their place and harm no other."""
    expected = raws(reranker.score(QUERY, TEXTS[:2]))
    scores = reranker.score(QUERY, ["", TEXTS[0], " \n\t ", TEXTS[1]])
    assert len(scores) == 4
    assert expected == pytest.approx([scores[1].raw, scores[3].raw], abs=0.03)
    assert len(reranker.score(QUERY, [""])) == 1


def test_odd_unicode_is_fine(reranker: Reranker) -> None:
    """Lone surrogates, NUL, emoji, control and full-width characters, in texts and queries."""
    assert len(ODD) == len(reranker.score(QUERY, ODD))
    for query in ODD[:-1]:
        assert len(reranker.score(query, TEXTS[:2])) == 2


def test_very_long_inputs_are_fine(reranker: Reranker) -> None:
    """Texts and queries of many times the model's length are cut, not refused."""
    long_text = "How to read JSON, and more of it. 如何读取 JSON 文件。" * 2000
    assert len(reranker.score(QUERY, [long_text, TEXTS[0], "x" * 20_000])) == 3
    assert len(reranker.score(long_text, TEXTS)) == len(TEXTS)


def test_a_thousand_texts(reranker: Reranker) -> None:
    """More than one batch comes back whole, in order, and the same each time."""
    texts = [f"{TEXTS[i % len(TEXTS)]} {'word ' * (i % 5)}{i}" for i in range(1000)]
    scores = reranker.score(QUERY, texts)
    assert len(scores) == 1000
    back = reranker.score(QUERY, texts[::-1])
    assert raws(scores) == pytest.approx(raws(back)[::-1], abs=1e-3)


def test_threads_share_it(reranker: Reranker) -> None:
    """Eight threads at once get what one gets."""
    queries = [f"{QUERY} {i}" for i in range(16)]
    expected = [raws(reranker.score(query, TEXTS)) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda query: raws(reranker.score(query, TEXTS)), queries))
    for one, other in zip(expected, actual, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
