"""A model folder: ``model.xml`` and ``model.bin`` (OpenVINO IR), ``tokenizer.json``, ``config.json``.

``config.json`` says what the weights are: ``kind`` ("embedder" or "cross-encoder"), ``name``, ``revision`` (the
sha256 of ``model.bin``), ``max_tokens``, ``pad_id``, and by kind ``dimension``, ``query_prefix``, ``document_prefix``
and ``around`` (the special tokens before and after a text), or ``default_alpha`` and ``around`` (those before the
query, between it and the text, and after the text). ``exact`` asks for float32 on every CPU, ``activation_group`` for
another :data:`~pipeline.inference.engine.ACTIVATION_GROUP`. Exchanging a model is exchanging these files.

A late-interaction model has what an embedder has, ``scale`` and ``bias``, which make a logit of its score, and
``default_alpha``. Its weights are the upper layers alone: ``trunk`` has the revision of the embedder that the lower
ones are taken from, and the ``node`` of that model at which they end. Its tokenizer is that embedder's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.forking import begin_anew
from pipeline.inference.engine import ACTIVATION_GROUP, Engine, Trunk, shared_engine
from pipeline.text import well_formed

_Array = NDArray[np.float32]
Kind = Literal["embedder", "cross-encoder", "late-interaction"]
_TOKENIZER = "tokenizer.json"
FILES = ("model.xml", "model.bin", _TOKENIZER, "config.json")
# What opens a Hugging Face model, which a folder or name that is none of ours most likely is.
_INSTEAD: dict[Kind, str] = {
    "embedder": "RAG_EMBEDDER=sentence-transformers",
    "cross-encoder": "RAG_RERANKER=cross-encoder",
    "late-interaction": "RAG_RERANKER=cross-encoder",
}

_tokenizers: dict[bytes, Tokenizer] = {}
_tokenizers_lock = threading.Lock()


def _forget_in_child() -> None:
    """After a fork those are the parent's: a tokenizer has locks of its own, which a thread may have held."""
    global _tokenizers_lock
    _tokenizers_lock = threading.Lock()
    _tokenizers.clear()


begin_anew(_forget_in_child)


class ModelFolder:
    """What all kinds of models share: configuration, tokenizer and engine, the latter two loaded at first use.

    Without ``shared`` the engine is its own, as suits a folder that is about to move. ``trunk`` is the folder of the
    model that the lower layers are taken from, for a kind that lacks them; with ``whole_trunk`` that model's own answer
    comes with the other (:meth:`both_vectors`).

    Raises:
        SettingsError: a file is missing, or the folder holds a model of another kind, or one for another trunk.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        cache_dir: Path | None = None,
        *,
        shared: bool = True,
        trunk: Path | None = None,
        whole_trunk: bool = False,
    ) -> None:
        self._reads = folder if trunk is None else trunk
        places = {name: self._reads if name == _TOKENIZER else folder for name in FILES}
        missing = [name for name, place in places.items() if not (place / name).is_file()]
        if missing:
            raise SettingsError(
                f"{folder.absolute()} is no model folder: {', '.join(missing)} missing. For a Hugging Face model set "
                f"{_INSTEAD[kind]}"
            )
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config.get("kind") != kind:
            raise SettingsError(f"{folder.absolute()} holds a model of kind {self.config.get('kind')!r}, not {kind!r}")
        self.max_tokens = int(self.config["max_tokens"])
        self._cache_dir = cache_dir
        self._shared = shared
        self._engine: Engine | None = None
        self._trunk = None if trunk is None else self._trunk_in(trunk, whole_trunk)

    @property
    def name(self) -> str:
        """Name and the beginning of the weights' hash."""
        return f"{self.config['name']}@{str(self.config['revision'])[:12]}"

    @property
    def dimension(self) -> int:
        """Components of an embedder's vectors."""
        return int(self.config["dimension"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Without truncation, padding or special tokens of its own; one a process for each content.

        The embedder and the reranker have equal files, and reading one takes longer than comparing them.
        """
        content = (self._reads / _TOKENIZER).read_bytes()
        key = hashlib.sha256(content).digest()
        with _tokenizers_lock:
            if key not in _tokenizers:
                _tokenizers[key] = Tokenizer.from_buffer(content)
            return _tokenizers[key]

    @property
    def engine(self) -> Engine:
        """The compiled model, which all users of the folder share unless this one is to have its own."""
        if self._engine is None:
            make = shared_engine if self._shared else Engine
            self._engine = make(
                self.folder / "model.xml",
                self._cache_dir,
                int(self.config["pad_id"]),
                exact=bool(self.config.get("exact")),
                group=int(self.config.get("activation_group", ACTIVATION_GROUP)),
                trunk=self._trunk,
            )
        return self._engine

    def load(self) -> None:
        """Loads now what the first use would load: the tokenizer beside the weights."""
        if self._engine is not None and "tokenizer" in self.__dict__:
            return
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: self.tokenizer)
            _ = self.engine
            reading.result()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        encoded = self.tokenizer.encode_batch_fast([well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def embed(self, texts: Sequence[str], *, query: bool) -> NDArray[np.float32]:
        """Unit-length vectors of queries or documents, cut at the model's longest input."""
        return _unit(self.engine.run(self.sequences(texts, query=query)))

    def token_vectors(self, texts: Sequence[str], *, query: bool) -> list[tuple[_Array, _Array]]:
        """For each text, special tokens and prefix included, unit vectors (tokens, dimension) and weights (tokens,)."""
        return [_with_weights(row) for row in self.engine.token_rows(self.sequences(texts, query=query))]

    def both_vectors(self, texts: Sequence[str], *, query: bool) -> tuple[_Array, list[tuple[_Array, _Array]]]:
        """The trunk's own embeddings, as :meth:`embed` gives them, and what :meth:`token_vectors` gives."""
        rows = self.engine.both_rows(self.sequences(texts, query=query))
        return _unit(np.stack([own for _, own in rows])), [_with_weights(tokens) for tokens, _ in rows]

    def logits(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """One logit for each pair of query and text; the query is tokenized once.

        Of a pair that is too long, the longer part loses its end until both are equally long, then both.
        """
        sequences, second = self.pairs(query, texts)
        return self.engine.run_together(sequences, second)[:, 0]

    def sequences(self, texts: Sequence[str], *, query: bool) -> list[list[int]]:
        """Token ids of each query or document as the model reads it, with its prefix, cut at its longest input."""
        prefix = self.config["query_prefix" if query else "document_prefix"]
        start, end = self.config["around"]
        room = self.max_tokens - len(start) - len(end)
        return [start + ids[:room] + end for ids in self.ids([prefix + text for text in texts])]

    def _trunk_in(self, folder: Path, whole: bool) -> Trunk:
        wanted = self.config["trunk"]
        revision = json.loads((folder / "config.json").read_text(encoding="utf-8"))["revision"]
        if wanted["revision"] != revision:
            raise SettingsError(
                f"{self.folder.absolute()} was made for the embedder {wanted['revision'][:12]}, "
                f"but that in {folder} is {revision[:12]}"
            )
        return Trunk(folder / "model.xml", wanted["node"], whole)

    def pairs(self, query: str, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Token ids of each pair as the model reads them, and where the text begins in each."""
        start, between, end = self.config["around"]
        room = self.max_tokens - len(start) - len(between) - len(end)
        asked = self.ids([query])[0]
        sequences, second = [], []
        for ids in self.ids(texts):
            first, last = shares(len(asked), len(ids), room)
            head = start + asked[:first] + between
            sequences.append(head + ids[:last] + end)
            second.append(len(head))
        return sequences, second


def _unit(vectors: _Array) -> _Array:
    """In float32 and outside the graph, whatever precision that runs in."""
    unit: _Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _with_weights(rows: _Array) -> tuple[_Array, _Array]:
    """A late-interaction model's output for one sequence: the last column is each token's weight."""
    return _unit(rows[:, :-1]), rows[:, -1]


def kind_of(folder: Path) -> str | None:
    """What a model folder says it holds; None where it says nothing, or is none."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        return None
    return kind if isinstance(kind, str) else None


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that two parts keep in ``room``: what tokenizers call the strategy "longest first"."""
    if first + second <= room:
        return first, second
    if first > second:
        return shares(second, first, room)[::-1]
    first = min(first, room // 2)
    return first, room - first
