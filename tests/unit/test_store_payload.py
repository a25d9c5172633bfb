"""Chunks as payloads, and back."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stores.common import batches, hnsw_ef, stale_ids, to_candidates
from pipeline.stores.payload import clean, count_versions, to_chunk, to_entry, to_payload
from pipeline.types import Chunk, DocumentVersion

TEXT = st.text(st.characters(), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def chunk(**changes: Any) -> Chunk:
    values: dict[str, Any] = {
        "document_id": "doc",
        "content_hash": "v1",
        "index": 0,
        "count": 1,
        "text": "text",
        "title": "title",
        "source": "source",
        "metadata": {},
    }
    return Chunk(**(values | changes))


@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=4))
def test_any_json_survives(text: str, title: str, source: str, metadata: dict[str, Any]) -> None:
    """Any text and any JSON come back as they were, and all that is stored is UTF-8 and finite."""
    given_chunk = chunk(text=text, title=title, source=source, metadata=metadata)
    payload = to_payload(given_chunk)
    stored = json.loads(json.dumps(payload, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    assert given_chunk == to_chunk(stored)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_stored_numbers_are_safe_for_every_reader(metadata: dict[str, Any]) -> None:
    """No integer beyond 64 bits and no float of more than 15 digits, or the exact form is beside it."""

    def safe(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(safe, value.values()))
        if isinstance(value, list):
            return all(map(safe, value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        if isinstance(value, int):
            return -(2**63) <= value < 2**63
        return math.isfinite(value) and (value == 0 or 1e-7 < abs(value) < 1e15) and float(f"{value:.15g}") == value

    payload = to_payload(chunk(metadata=metadata))
    assert "exact" in payload or safe(payload["metadata"])


def test_plain_chunks_have_no_second_form() -> None:
    """What the engine can hold as it is is stored once."""
    payload = to_payload(chunk(metadata={"a": [1, 0.25, True, None, "数据库\0😀"], "b": {"c": {}}}))
    assert ["document_id", "content_hash", "index", "count", "text", "title", "source", "metadata"] == list(payload)


def test_values_that_are_no_json_become_text() -> None:
    """Dates, paths and tuples are stored as JSON would have them."""
    metadata = {"day": date(2024, 1, 31), "path": PurePosixPath("/a"), "pair": (1, 2), 5: "five"}
    back = to_chunk(to_payload(chunk(metadata=metadata)))
    assert {"day": "2024-01-31", "path": "/a", "pair": [1, 2], "5": "five"} == back.metadata


def test_numbers_of_an_enumeration_are_stored_at_once() -> None:
    """To look for one in a range would take until the end of time, and no other thread would go on meanwhile."""
    script = (
        "import http; from pipeline.stores.payload import to_payload; from pipeline.types import Chunk\n"
        "print(to_payload(Chunk('d', 'v', 0, 1, '', '', 's', {'n': http.HTTPStatus.OK}))['metadata']['n'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert "200" == done.stdout.strip()


def test_clean_is_utf8_and_leaves_the_rest() -> None:
    """Lone surrogates are written out; all other text is untouched."""
    assert "a\\udce9b" == clean("a\udce9b")
    assert "数据库\0😀" == clean("数据库\0😀")


def test_versions_are_counted() -> None:
    """Chunks of one document and hash are one version, wherever they come in the stream."""
    payloads = [
        to_payload(chunk(document_id=name, content_hash=version, index=i, count=count))
        for name, version, i, count in [("a", "v1", 0, 2), ("b", "v1", 0, 1), ("a", "v2", 0, 1), ("a", "v1", 1, 2)]
    ]
    assert [
        DocumentVersion("a", "v1", "source", present=2, count=2),
        DocumentVersion("b", "v1", "source", present=1, count=1),
        DocumentVersion("a", "v2", "source", present=1, count=1),
    ] == list(count_versions(payloads))


def test_odd_sources_come_back_in_the_ledger() -> None:
    """A file name that is no UTF-8 is the same in the ledger as it was given."""
    (version,) = count_versions([to_payload(chunk(source="/files/caf\udce9"))])
    assert "/files/caf\udce9" == version.source


def test_stale_ids() -> None:
    """Documents and versions that are not named are none of our business."""
    points = [
        (str(i), {"document_id": name, "content_hash": version})
        for i, (name, version) in enumerate([("a", "v1"), ("a", "v2"), ("b", "v1"), ("c\\udce9", "v1")])
    ]
    assert ["0", "3"] == stale_ids(points, {"a": {"v1", "v0"}, "c\udce9": {"v1"}})


def test_batches() -> None:
    """All items once, in order, none for none."""
    assert [[1, 2], [3, 4], [5]] == list(batches([1, 2, 3, 4, 5], 2))
    assert [] == list(batches([], 2))


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_search_is_broader_than_the_list(limit: int) -> None:
    """The HNSW search grows with the limit, filtered or not."""
    assert all(hnsw_ef(limit, filtered=filtered) >= max(500, 4 * limit) for filtered in (False, True))


def test_a_chunk_that_is_stored_twice_counts_once() -> None:
    """It must not hide that another one is missing."""
    (version,) = count_versions([to_payload(chunk(index=1, count=2)), to_payload(chunk(index=1, count=2))])
    assert (1, 2, False) == (version.present, version.count, version.complete)


@pytest.mark.parametrize("payload", [{}, {"document_id": "a", "text": "of someone else"}])
def test_a_point_of_others_is_no_chunk(payload: dict[str, str]) -> None:
    """Known by what it lacks."""
    assert ("id", -1) == (to_entry("id", payload).point_id, to_entry("id", payload).index)


def test_what_others_wrote_is_passed_over() -> None:
    """A point of another program's is neither a candidate nor a document."""
    points = [("1", 0.9, {"note": "somebody else's"}), ("2", 0.8, to_payload(chunk())), ("3", 0.7, {})]
    assert [(chunk(), 0.8, 1)] == [(found.chunk, found.score, found.rank) for found in to_candidates(points)]
    assert ["doc"] == [version.document_id for version in count_versions(payload for *_, payload in points)]
