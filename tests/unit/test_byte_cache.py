"""What tests of the score cache, which stands on it, do not say."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import byte_cache
from pipeline.byte_cache import ByteCache, digest


@pytest.fixture(params=["memory", "file"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> ByteCache:
    return ByteCache(tmp_path / "kept.sqlite" if request.param == "file" else None, 1000, "test", by_size=True)


def test_bytes_are_counted(cache: ByteCache) -> None:
    """Of the values; the newest ones stay, down to nine tenths of the room."""
    cache.put({bytes([i]): b"x" * 100 for i in range(11)})
    assert {bytes([i]) for i in range(2, 11)} == cache.sizes(bytes([i]) for i in range(11)).keys()
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
    cache.sizes([b"asked"])
    cache.put({b"new": b"x" * 300})
    assert {b"got", b"other", b"new"} == cache.sizes([b"got", b"asked", b"other", b"new"]).keys()
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
    assert set(values) == cache.sizes([*values, b"another"]).keys()
    cache.close()


def test_keys_tell_apart_what_only_looks_equal_when_joined() -> None:
    """Where a part ends counts."""
    assert 4 == len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("ab", "c", "")})


def test_what_another_process_is_writing_keeps_nobody_from_reading(tmp_path: Path) -> None:
    """It only cannot be marked as used."""
    path = tmp_path / "kept.sqlite"
    cache = ByteCache(path, 1000, "test")
    cache.put({b"a": b"x"})
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert {b"a": b"x"} == cache.get([b"a", b"b"])
    cache.close()


def test_many_writers_wait_for_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each has a connection of its own, as processes have; nothing is lost and nothing is said."""
    path = tmp_path / "kept.sqlite"
    caches = [ByteCache(path, 10_000, "test") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for i, cache in enumerate(caches):
            pool.submit(cache.put, {f"{i} {j}".encode(): b"x" * 20_000 for j in range(200)})
    assert 800 == caches[0].weight()
    assert [] == caplog.records
    for cache in caches:
        cache.close()


def test_a_writer_waits_at_opening_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds the whole new file for longer than a reader would wait."""
    monkeypatch.setattr(byte_cache, "_PATIENCE", 60)
    path = tmp_path / "kept.sqlite"
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ending = threading.Timer(3 * byte_cache._MOMENT, other.rollback)
        ending.start()
        cache = ByteCache(path, 10, "test")
        cache.put({b"a": b"x"})
        ending.join()
    assert {b"a": b"x"} == cache.get([b"a"])
    cache.close()


def test_a_writer_that_waits_keeps_nobody_of_its_process_from_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for another process, and holds nothing meanwhile."""
    monkeypatch.setattr(byte_cache, "_PATIENCE", 5)
    path = tmp_path / "kept.sqlite"
    cache = ByteCache(path, 1000, "test")
    cache.put({b"a": b"x"})
    waiting = threading.Event()
    keep = cache._keep
    cache._keep = lambda rows, database: waiting.set() or keep(rows, database)  # type: ignore[method-assign, func-returns-value]
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("BEGIN IMMEDIATE")
        writer = pool.submit(cache.put, {b"b": b"y"})
        waiting.wait()
        assert ({b"a": b"x"}, False) == (cache.get([b"a", b"b"]), writer.done())
        other.execute("ROLLBACK")
    assert {b"a": b"x", b"b": b"y"} == cache.get([b"a", b"b"])
    cache.close()


def test_a_damaged_value_is_as_good_as_none(tmp_path: Path) -> None:
    """A disk gives back anything; a wrong score for good would be worse than reading again."""
    path = tmp_path / "kept.sqlite"
    cache = ByteCache(path, 1000, "test")
    cache.put({b"a": b"xyz", b"b": b"xyz"})
    with closing(sqlite3.connect(path)) as other:
        (value,) = other.execute("SELECT value FROM kept WHERE key = ?", (b"a",)).fetchone()
        other.execute("UPDATE kept SET value = ? WHERE key = ?", (value.replace(b"y", b"\0"), b"a"))
        other.commit()
    assert {b"b": b"xyz"} == cache.get([b"a", b"b"])
    assert {b"b"} == cache.sizes([b"a", b"b"]).keys()
    cache.close()


@pytest.mark.parametrize("damaged", [None, 17, "text", b""])
def test_a_value_of_another_kind_is_as_good_as_none(tmp_path: Path, damaged: object) -> None:
    """Damage to a row's header changes what its bytes are read as; the rows beside it are found."""
    path = tmp_path / "kept.sqlite"
    cache = ByteCache(path, 1000, "test")
    cache.put({b"a": b"xyz", b"b": b"xyz"})
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE kept SET value = ? WHERE key = ?", (damaged, b"a"))
        other.commit()
    assert {b"b": b"xyz"} == cache.get([b"a", b"b"])
    assert {b"b"} == cache.sizes([b"a", b"b"]).keys()
    cache.close()


def test_a_writer_that_does_not_end_is_waited_for_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not again for each piece of what is to be kept."""
    path = tmp_path / "kept.sqlite"
    cache = ByteCache(path, 10_000_000, "test", by_size=True)
    cache.put({b"a": b"x"})
    tried: set[bytes] = set()
    keep = cache._keep
    cache._keep = lambda rows, database: tried.add(rows[0][0]) or keep(rows, database)  # type: ignore[method-assign, func-returns-value]
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        cache.put({str(i).encode(): bytes(1_000_001) for i in range(5)})
    assert {b"0"} == tried
    assert 1 == len(caplog.records)
    cache.close()


def test_a_damaged_file_that_cannot_be_removed_is_an_empty_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that can only be read."""
    path = tmp_path / "kept.sqlite"
    path.write_bytes(b"no database" * 1000)

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(f"{self} is read only")

    monkeypatch.setattr(Path, "unlink", refuse)
    cache = ByteCache(path, 1000, "test")
    cache.put({b"a": b"x"})
    assert ({}, None) == (cache.get([b"a"]), cache.weight())
    cache.close()


def test_a_lower_limit_is_reached_bit_by_bit(tmp_path: Path) -> None:
    """No single call has to remove it all, for which others would wait."""
    path = tmp_path / "kept.sqlite"
    large = ByteCache(path, 10_000, "test")
    large.put({i.to_bytes(4, "big"): b"" for i in range(10_000)})
    large.close()
    small = ByteCache(path, 1000, "test")
    weights = []
    for i in range(100):
        small.put({f"new {i}".encode(): b""})
        weights.append(small.weight() or 0)
    assert 9000 < weights[0] < 10_000
    assert weights[-1] <= 1000
    assert b"new 99" in small.sizes([b"new 99"])
    small.close()


def test_recent_weight(cache: ByteCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put or used in the last seconds."""
    clock = [1000.0]
    monkeypatch.setattr("time.time_ns", lambda: int(clock[0] * 1e9))
    cache.put({b"a": b"x" * 100, b"b": b"x" * 200})
    clock[0] += 60
    cache.put({b"c": b"x" * 300})
    cache.get([b"a"])
    assert (600, 400, 600) == (cache.weight(), cache.weight(seconds=30), cache.weight(seconds=61))
    cache.close()
