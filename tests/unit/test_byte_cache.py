"""What tests of the score cache, which stands on it, do not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.byte_cache import ByteCache, digest


@pytest.fixture(params=["memory", "file"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ByteCache:
    return ByteCache(tmp_path / "kept.sqlite" if request.param == "file" else None, 1000, "test", by_size=True)


def test_bytes_are_counted(cache: ByteCache) -> None:
    """Of the values; the newest ones stay, down to nine tenths of the room."""
    cache.put({bytes([i]): b"x" * 100 for i in range(11)})
    assert {bytes([i]) for i in range(2, 11)} == cache.known(bytes([i]) for i in range(11))
    cache.close()


def test_what_would_push_all_else_out_is_not_kept(cache: ByteCache) -> None:
    """A single value of nearly the whole room."""
    cache.put({b"small": b"x"})
    cache.put({b"large": b"x" * 901})
    assert {b"small": b"x"} == cache.get([b"small", b"large"])
    cache.close()


def test_only_what_is_got_counts_as_used(cache: ByteCache) -> None:
    """To ask whether something is there is not to use it."""
    for name in (b"got", b"asked", b"other"):
        cache.put({name: b"x" * 300})
    cache.get([b"got"])
    cache.known([b"asked"])
    cache.put({b"new": b"x" * 300})
    assert {b"got", b"other", b"new"} == cache.known([b"got", b"asked", b"other", b"new"])
    cache.close()


def test_no_room_keeps_nothing() -> None:
    """And asks for nothing."""
    cache = ByteCache(None, 0, "test", by_size=True)
    cache.put({b"a": b"x"})
    assert {} == cache.get([b"a"])
    cache.close()


def test_thousands_of_keys_at_once() -> None:
    """More than one statement takes."""
    cache = ByteCache(None, 100_000, "test")
    values = {i.to_bytes(4, "big"): b"" for i in range(25_000)}
    cache.put(values)
    assert values == cache.get(values)
    assert set(values) == cache.known([*values, b"another"])
    cache.close()


def test_keys_tell_apart_what_only_looks_equal_when_joined() -> None:
    """Where a part ends counts."""
    assert 4 == len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("ab", "c", "")})
