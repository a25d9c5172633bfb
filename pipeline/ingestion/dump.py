"""The file that ``rag export`` writes and ``rag import`` reads: JSON lines, gzipped if its name ends in ``.gz``.

The first line is ``{"two_stage_rag": 1, "fingerprint": {...}, "vectors": bool}``. Then comes a line for each chunk with
its fields (:class:`pipeline.types.Chunk`; ``copies`` only where there are some), documents one after another and each
in the order of its text; with vectors ``vector`` is the dense one as base64 of its float32 numbers, little-endian. The
last line is ``{"chunks": n}``, by which a file that was cut off is known.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import DocumentError, SettingsError
from pipeline.types import Chunk, Fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
_KINDS: Mapping[str, type] = {
    "document_id": str,
    "content_hash": str,
    "index": int,
    "count": int,
    "text": str,
    "title": str,
    "source": str,
    "metadata": dict,
}


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    fingerprint: Fingerprint
    vectors: bool


class Writer:
    """Writes a dump; made by :func:`writing`."""

    def __init__(self, file: IO[bytes], header: Header) -> None:
        self.chunks = 0
        self._file = file
        self._line({"two_stage_rag": FORMAT, "fingerprint": header.fingerprint.to_dict(), "vectors": header.vectors})

    def add(self, chunk: Chunk, vector: NDArray[np.float32] | None) -> None:
        """A line for a chunk."""
        line: dict[str, Any] = {field: getattr(chunk, field) for field in _KINDS}
        line["metadata"] = dict(chunk.metadata)
        if chunk.copies:
            line["copies"] = list(chunk.copies)
        if vector is not None:
            line["vector"] = base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        self._line(line)
        self.chunks += 1

    def end(self) -> None:
        """The last line."""
        self._line({"chunks": self.chunks})

    def _line(self, value: Any) -> None:
        try:
            data = json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # lone surrogates, which file names bring: only an escape can hold them
            data = json.dumps(value).encode("ascii")
        self._file.write(data + b"\n")


@contextmanager
def writing(path: Path, header: Header) -> Iterator[Writer]:
    """Writes beside the file first, so that a complete one is there or none.

    Raises:
        SettingsError: the file cannot be written.
    """
    if path.is_dir():
        raise SettingsError(f"cannot write {path}: it is a folder")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as raw, _packed(raw, path) as file:
            writer = Writer(file, header)
            yield writer
            writer.end()
        part.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _packed(raw: IO[bytes], path: Path) -> AbstractContextManager[Any]:
    return gzip.open(raw, "wb", compresslevel=5) if path.suffix == ".gz" else nullcontext(raw)


@contextmanager
def reading(path: Path) -> Iterator[tuple[Header, Iterator[tuple[Chunk, NDArray[np.float32] | None]]]]:
    """The header, and the chunks as they are read.

    Raises:
        SettingsError: there is no such file, or it is not of this format.
        DocumentError: a line is damaged, or the file was cut off; raised where it is met.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from error
    with raw, gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
        lines = _lines(path, file)
        yield _header(path, next(lines, (1, b""))[1]), _chunks(path, lines)


def _lines(path: Path, file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(file, 1)
    except (EOFError, zlib.error, OSError) as error:
        raise DocumentError(f"{path} is damaged or was cut off ({error}); what stands above is imported") from error


def _header(path: Path, line: bytes) -> Header:
    try:
        value = json.loads(line)
        made_by = value["two_stage_rag"]
        header = Header(Fingerprint.from_dict(value["fingerprint"]), bool(value["vectors"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is no file that rag export wrote") from error
    if made_by != FORMAT:
        raise SettingsError(f"{path} is of format {made_by}; this version reads format {FORMAT}: use a newer one")
    return header


def _chunks(path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[Chunk, NDArray[np.float32] | None]]:
    import numpy as np

    number = 1
    for number, line in lines:
        try:
            value = json.loads(line)
            if value.keys() == {"chunks"}:
                if value["chunks"] != number - 2:
                    raise ValueError(f"{value['chunks']} chunks were written and {number - 2} are here")
                return
            for field, kind in _KINDS.items():
                if type(value[field]) is not kind:  # a bool would pass for an int
                    raise ValueError(f"{field} is not of type {kind.__name__}")
            if not 0 <= value["index"] < value["count"]:
                raise ValueError(f"there is no chunk {value['index']} of {value['count']}")
            vector = value.pop("vector", None)
            chunk = Chunk(**{field: value[field] for field in _KINDS}, copies=tuple(map(str, value.get("copies", ()))))
            numbers = None if vector is None else np.frombuffer(base64.b64decode(vector), dtype="<f4")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DocumentError(
                f"{path}, line {number}: damaged ({error}); what stands above it is imported"
            ) from error
        yield chunk, None if numbers is None else numbers.astype(np.float32)
    raise DocumentError(f"{path} was cut off after line {number}; what is in it is imported")
