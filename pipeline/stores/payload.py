"""A chunk as a Qdrant payload, and back, without loss.

Layout: ``document_id``, ``content_hash``, ``index``, ``count``, ``text``, ``title``, ``source``, ``metadata``. What
was ingested is read back from the first four and ``source``: the collection is its own ledger. ``source`` is a list
where the document has copies, so that a filter finds it by each.

Some values cannot be held by the engine as they are: lone surrogates (no UTF-8 has them; file names bring them),
integers beyond 64 bits, floats of more digits than its JSON reader keeps, NaN and infinity. Such a field is stored in
the nearest form that can be (``\\udce9`` written out, the next float, null), which is also what filters see, and the
field as it was goes into ``exact``, a JSON text. Recall returns the exact one. NUL and all other Unicode is stored
as it is. Metadata that is no JSON at all (dates, paths, sets) becomes ``str(value)``, as in the content hash.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.types import Chunk, DocumentVersion, LedgerEntry

LEDGER_FIELDS = ["document_id", "content_hash", "index", "count", "source", "exact"]
"""What :func:`count_versions` and :func:`to_entry` read of a payload. ``exact`` is rare."""

INDEXED_FIELDS = ["document_id", "content_hash", "source"]
"""Fields with a keyword index from the start."""

_ENTRY_FIELDS = ["document_id", "content_hash", "index", "count"]
_FIELDS = ["document_id", "content_hash", "index", "count", "text", "title", "source", "metadata"]
CHUNK_FIELDS = [*_FIELDS, "exact"]
"""What :func:`to_chunk` reads of a payload."""

_LEAST, _MOST = -(2**63), 2**63 - 1


def is_chunk(payload: Mapping[str, Any]) -> bool:
    """Whether a point is one of ours, as far as its ledger fields tell; others may write into a collection, too."""
    return all(field in payload for field in [*_ENTRY_FIELDS, "source"])


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: lone surrogates are written out as ``\\udXXX``."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_payload(chunk: Chunk) -> dict[str, Any]:
    """The chunk as the engine stores it."""
    exact: dict[str, Any] = {}
    payload: dict[str, Any] = {}
    for field in _FIELDS:
        value = list(chunk.sources) if field == "source" and chunk.copies else getattr(chunk, field)
        stored = _storable(value)
        if not _same(value, stored):
            exact[field] = value
        payload[field] = stored
    if exact:
        # ASCII escapes are the one form of JSON that can hold a lone surrogate.
        payload["exact"] = json.dumps(_with_text_keys(exact), ensure_ascii=True)
    return payload


def to_chunk(payload: Mapping[str, Any]) -> Chunk:
    """The chunk that :func:`to_payload` was given."""
    fields = {field: _field(payload, field) for field in _FIELDS if field != "source"}
    source, *copies = _sources(payload)
    return Chunk(**fields, source=source, copies=tuple(copies))


def count_versions(payloads: Iterable[Mapping[str, Any]]) -> Iterator[DocumentVersion]:
    """Document versions from the payloads of their chunks; memory grows with the versions, not the chunks."""
    # Of a million versions the payloads would take half a gigabyte: what is odd alone is kept as it is.
    found: dict[tuple[str, str], tuple[Any, int, int]] = {}
    odd: dict[tuple[str, str], Mapping[str, Any]] = {}
    disagreeing: dict[tuple[str, str], list[str]] = {}
    for payload in payloads:
        if not is_chunk(payload):
            continue
        key = (payload["document_id"], payload["content_hash"])
        source = sys.intern(payload["source"]) if isinstance(payload["source"], str) else payload["source"]
        first, count, places = found.get(key) or (source, payload["count"], 0)
        # A bit for each place: a chunk that is stored twice shall not hide that another is missing.
        found[key] = (first, count, places | 1 << payload["index"])
        if "exact" in payload:
            odd.setdefault(key, payload)
        if first != source:
            named = disagreeing.get(key) or _sources(odd.get(key, {"source": first}))
            disagreeing[key] = [path for path in named if path in _sources(payload)]
    for key, (source, count, places) in found.items():
        payload = odd.get(key) or {"document_id": key[0], "content_hash": key[1], "source": source}
        source, *copies = disagreeing.get(key) or _sources(payload)
        yield DocumentVersion(
            document_id=_field(payload, "document_id"),
            content_hash=_field(payload, "content_hash"),
            source=source,
            present=places.bit_count(),
            count=count,
            copies=tuple(copies),
            torn=key in disagreeing,
        )


def to_entry(point_id: str, payload: Mapping[str, Any]) -> LedgerEntry:
    """A stored point as an entry of the ledger, with the index -1 if it is no chunk."""
    if not is_chunk(payload):
        return LedgerEntry(point_id, "", "", index=-1, count=0, source="")
    source, *copies = _sources(payload)
    return LedgerEntry(
        point_id, **{field: _field(payload, field) for field in _ENTRY_FIELDS}, source=source, copies=tuple(copies)
    )


def _sources(payload: Mapping[str, Any]) -> list[str]:
    value = _field(payload, "source")
    return list(value) if isinstance(value, list) else [value]


def _field(payload: Mapping[str, Any], field: str) -> Any:
    if "exact" in payload:
        exact = json.loads(payload["exact"])
        if field in exact:
            return exact[field]
    return payload[field]


def _storable(value: Any) -> Any:
    """The nearest value that every engine stores without changing it further."""
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Bounds, as a range would be walked through for an int of another type, such as an enumeration's.
        if _LEAST <= value <= _MOST:
            return int(value)
        return float(value) if abs(value) < 1e300 else None
    if isinstance(value, float):
        return short(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return clean(str(value))


def short(value: float) -> float:
    """The float to 15 digits: a JSON reader may be off in the last place of longer ones, and is never of these."""
    rounded = float(f"{value:.15g}")
    return rounded if math.isfinite(rounded) else value


def _same(value: Any, stored: Any) -> bool:
    """Whether what is read back equals what was given. Other than ``==``: 1 is not 1.0 and True is not 1."""
    if isinstance(stored, dict):
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and key in stored and _same(item, stored[key]) for key, item in value.items()
        )
    if isinstance(stored, list):
        # A tuple or set comes back as a list or text, as from any JSON: that is not kept.
        return isinstance(value, list | tuple) and all(map(_same, value, stored))
    if isinstance(value, float):
        # Beyond these bounds even 15 digits are not read back for certain.
        return value == stored and (value == 0 or 1e-7 < abs(value) < 1e15)
    if isinstance(value, str | int):
        return type(value) is type(stored) and value == stored
    return True


def _with_text_keys(value: Any) -> Any:
    """As JSON knows it: text keys, lists, and text for what JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_keys(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)
