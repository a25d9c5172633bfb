"""What holds for every embedder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.interfaces import Embedder
from tests.fakes import FakeEmbedder, word_tokenizer
from tests.loopback import Loopback, openai_embeddings
from tests.tiny_models import save_embedder

TEXTS = [
    "Use the json module: json.load reads a file.",
    "如何用 Python 读取 JSON 文件？使用 json 模块。",
    "Vitamin D in older people: a randomised trial with 5292 patients.",
    "The quick brown fox jumps over the lazy dog.",
]
ODD = ["\ud800 alone", "nul \x00 inside", "😀👩‍👩‍👧", "\udcff", "\u202e right to left", "ａｂｃ", "", " \n\t "]

Make = Callable[[Path, contextlib.ExitStack], Embedder]


def _fake(folder: Path, stack: contextlib.ExitStack) -> Embedder:
    return FakeEmbedder()


def _sentence_transformers(folder: Path, stack: contextlib.ExitStack) -> Embedder:
    from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(str(save_embedder(folder / "model")), device="cpu")


def _sentence_transformers_on_the_engine(folder: Path, stack: contextlib.ExitStack) -> Embedder:
    from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder

    model = save_embedder(folder / "model", architecture="modernbert")
    return SentenceTransformersEmbedder(str(model), device="cpu", engine="openvino", cache_dir=folder / "cache")


def _http(folder: Path, stack: contextlib.ExitStack) -> Embedder:
    from pipeline.embedders.http import HttpEmbedder

    server = stack.enter_context(Loopback(openai_embeddings))
    embedder = HttpEmbedder(server.url, "some-model", tokenizer=word_tokenizer(), batch_size=3)
    return stack.enter_context(contextlib.closing(embedder))


def _embedded(folder: Path, stack: contextlib.ExitStack) -> Embedder:
    from pipeline.embedders.embedded import EmbeddedEmbedder

    return EmbeddedEmbedder(cache_dir=folder / "cache")


MAKERS: dict[str, Make] = {
    "fake": _fake,
    "sentence-transformers": _sentence_transformers,
    "sentence-transformers-on-the-engine": _sentence_transformers_on_the_engine,
    "http": _http,
    "embedded": _embedded,
}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    with contextlib.ExitStack() as stack:
        yield MAKERS[request.param](tmp_path_factory.mktemp(request.param), stack)


def assert_unit(vectors: NDArray[np.float32]) -> None:
    assert vectors.dtype == np.float32
    assert [1.0] * len(vectors) == pytest.approx(np.linalg.norm(vectors, axis=1).tolist(), abs=1e-5)


def test_it_says_what_it_is(embedder: Embedder) -> None:
    """Name, dimension, length and a tokenizer that counts tokens are there before anything is embedded."""
    assert embedder.name
    assert embedder.dimension > 0
    assert embedder.max_tokens > 0
    assert len(embedder.tokenizer.encode("read json").ids) >= 2


def test_the_tokenizer_counts_long_texts_whole(embedder: Embedder) -> None:
    """It neither cuts nor pads: chunking measures with it."""
    assert len(embedder.tokenizer.encode("read json " * 5000).ids) >= 10_000
    counts = [len(encoding.ids) for encoding in embedder.tokenizer.encode_batch(["json", "read json read json"])]
    assert counts[0] < counts[1]


def test_documents_become_unit_vectors(embedder: Embedder) -> None:
    """Shape (n, dimension), float32, length 1."""
    vectors = embedder.embed_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dimension)
    assert_unit(vectors)


def test_a_query_becomes_a_unit_vector(embedder: Embedder) -> None:
    """Shape (dimension,), float32, length 1."""
    vector = embedder.embed_query(TEXTS[0])
    assert vector.shape == (embedder.dimension,)
    assert_unit(vector[None, :])


def test_no_documents_no_vectors(embedder: Embedder) -> None:
    """An empty list gives an array without rows, of the right width."""
    vectors = embedder.embed_documents([])
    assert vectors.shape == (0, embedder.dimension)
    assert vectors.dtype == np.float32


def test_vectors_stand_in_input_order(embedder: Embedder) -> None:
    """Each text has its own vector, wherever it stands and whatever stands beside it."""
    texts = [f"{TEXTS[i % 4]} {'word ' * (i % 11)}" for i in range(40)]
    together = embedder.embed_documents(texts)
    backwards = embedder.embed_documents(texts[::-1])[::-1]
    assert np.abs(together - backwards).max() < 0.02
    alone = embedder.embed_documents([texts[7]])[0]
    assert int(np.argmax(together @ alone)) == 7
    assert float(together[7] @ alone) > 0.999


def test_different_texts_differ_and_equal_ones_do_not(embedder: Embedder) -> None:
    """The same text gives the same vector each time."""
    first, second = embedder.embed_documents(TEXTS), embedder.embed_documents(TEXTS)
    assert np.array_equal(first, second)
    cosines = first @ first.T
    assert cosines[~np.eye(len(TEXTS), dtype=bool)].max() < 0.999


def test_odd_texts_are_fine(embedder: Embedder) -> None:
    """Lone surrogates, NUL, emoji, control characters, and blank texts."""
    vectors = embedder.embed_documents(ODD)
    assert vectors.shape == (len(ODD), embedder.dimension)
    assert_unit(vectors)
    for text in ODD:
        assert_unit(embedder.embed_query(text)[None, :])


def test_very_long_texts_are_cut(embedder: Embedder) -> None:
    """Many times the model's length is no error, and does not harm the text beside it."""
    long_text = "How to read JSON, and more of it. 如何读取 JSON 文件。" * 2000
    vectors = embedder.embed_documents([long_text, TEXTS[0], "x" * 20_000])
    assert_unit(vectors)
    assert float(vectors[1] @ embedder.embed_documents([TEXTS[0]])[0]) > 0.999
    assert_unit(embedder.embed_query(long_text)[None, :])


def test_threads_share_it(embedder: Embedder) -> None:
    """Eight threads at once get what one gets."""
    batches = [[f"{text} {i}" for text in TEXTS] for i in range(16)]
    expected = [embedder.embed_documents(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(embedder.embed_documents, batches))
    for one, other in zip(expected, actual, strict=True):
        assert np.abs(one - other).max() < 1e-3
