from pathlib import Path

import numpy as np
import pytest

from pipeline.score_cache import ScoreCache
from pipeline.types import RerankScore
from pipeline.windows import Passage

A, B = Passage("t", "a"), Passage("", "b")
SCORE = RerankScore(1.25, 0.75, (3, 9))


@pytest.fixture(params=["memory", "file"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "sub" / "scores.sqlite" if request.param == "file" else None, limit=20)


def test_what_was_put_is_found(cache: ScoreCache) -> None:
    """With its window; counters say how often."""
    cache.put("m@1", "q", {A: SCORE})
    assert {A: SCORE} == cache.get("m@1", "q", [A, B])
    assert (1, 1) == (cache.hits, cache.misses)
    cache.close()


@pytest.mark.parametrize(
    ("reranker", "query", "passage"),
    [("m@2", "q", A), ("m@1", "Q", A), ("m@1", "q", Passage("", "t\na")), ("m@", "1q", A)],
)
def test_everything_a_score_depends_on_is_in_its_key(reranker: str, query: str, passage: Passage) -> None:
    """Another model, query or text is never answered from the cache."""
    cache = ScoreCache()
    cache.put("m@1", "q", {A: SCORE})
    assert {} == cache.get(reranker, query, [passage])


def test_the_file_outlives_the_process(tmp_path: Path) -> None:
    """Another cache on the same file finds what the first one put."""
    path = tmp_path / "scores.sqlite"
    first, second = ScoreCache(path), ScoreCache(path)
    first.put("m@1", "q", {A: SCORE})
    assert {A: SCORE} == second.get("m@1", "q", [A])
    first.close()
    second.close()


def test_numbers_of_numpy_come_back_as_plain_ones(cache: ScoreCache) -> None:
    """As a reranker of one's own may give them."""
    cache.put("m@1", "q", {A: RerankScore(np.float32(1.25), np.float32(0.75))})  # type: ignore[arg-type]
    (found,) = cache.get("m@1", "q", [A]).values()
    assert RerankScore(1.25, 0.75) == found
    assert {float} == {type(found.raw), type(found.probability)}
    cache.close()


def test_it_stays_bounded_and_forgets_what_was_used_longest_ago(cache: ScoreCache) -> None:
    """A score that is asked for again stays."""
    for i in range(40):
        cache.put("m@1", "q", {Passage("", str(i)): SCORE})
        assert cache.get("m@1", "q", [Passage("", "0")])
    found = cache.get("m@1", "q", [Passage("", str(i)) for i in range(40)])
    assert 10 <= len(found) <= 20
    assert Passage("", "39") in found
    cache.close()


def test_a_damaged_file_is_an_empty_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is begun anew; no query fails for it."""
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"no database " * 1000)
    cache = ScoreCache(path)
    assert {} == cache.get("m@1", "q", [A])
    assert "not a database" in caplog.text
    cache.put("m@1", "q", {A: SCORE})
    assert {A: SCORE} == cache.get("m@1", "q", [A])
    cache.close()


def test_a_place_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And everything goes on without a cache."""
    (tmp_path / "file").write_text("")
    cache = ScoreCache(tmp_path / "file" / "scores.sqlite")
    for _ in range(3):
        cache.put("m@1", "q", {A: SCORE})
        assert {} == cache.get("m@1", "q", [A])
    assert 1 == len(caplog.records)
