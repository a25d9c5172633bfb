"""A model folder: ``model.xml`` and ``model.bin`` (OpenVINO IR), ``tokenizer.json``, ``config.json``.

``config.json`` says what the weights are: ``kind`` ("embedder" or "cross-encoder"), ``name``, ``revision`` (the
sha256 of ``model.bin``), ``max_tokens``, the ids of the special tokens, and by kind ``dimension``, ``query_prefix``
and ``document_prefix``, or ``default_alpha`` and where it is not twice the closing token the ``between_ids`` of a pair.
Exchanging a model is exchanging these files.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.inference.engine import Engine, shared_engine
from pipeline.text import well_formed

Kind = Literal["embedder", "cross-encoder"]
FILES = ("model.xml", "model.bin", "tokenizer.json", "config.json")

_tokenizers: dict[bytes, Tokenizer] = {}
_tokenizers_lock = threading.Lock()


class ModelFolder:
    """What both embedded models share: configuration, tokenizer and engine, the latter loaded at first use.

    Raises:
        SettingsError: a file is missing, or the folder holds a model of another kind.
    """

    def __init__(self, folder: Path, kind: Kind, cache_dir: Path | None = None) -> None:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise SettingsError(f"{folder.absolute()} is no model folder: {', '.join(missing)} missing")
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config.get("kind") != kind:
            raise SettingsError(f"{folder.absolute()} holds a model of kind {self.config.get('kind')!r}, not {kind!r}")
        self.max_tokens = int(self.config["max_tokens"])
        self._cache_dir = cache_dir

    @property
    def name(self) -> str:
        """Name and the beginning of the weights' hash."""
        return f"{self.config['name']}@{str(self.config['revision'])[:12]}"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Without truncation, padding or special tokens of its own; one a process for each content.

        The embedder and the reranker have equal files, and reading one takes longer than comparing them.
        """
        content = (self.folder / "tokenizer.json").read_bytes()
        key = hashlib.sha256(content).digest()
        with _tokenizers_lock:
            if key not in _tokenizers:
                _tokenizers[key] = Tokenizer.from_buffer(content)
            return _tokenizers[key]

    @cached_property
    def engine(self) -> Engine:
        """The compiled model."""
        return shared_engine(self.folder / "model.xml", self._cache_dir, int(self.config["pad_id"]))

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        encoded = self.tokenizer.encode_batch_fast([well_formed(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length vectors of ``<s> text </s>``, cut at the model's longest input."""
        start, end = [int(self.config["bos_id"])], [int(self.config["eos_id"])]
        room = self.max_tokens - 2
        vectors = self.engine.run([start + ids[:room] + end for ids in self.ids(texts)])
        # In float32 and outside the graph, whatever precision the graph runs in.
        unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return unit

    def logits(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """One logit for each ``<s> query </s> </s> text </s>``, or what the model has for these tokens.

        The query is tokenized once. Too long a pair loses the end of its text; a query longer than half the room is cut
        to that half.
        """
        start, end = [int(self.config["bos_id"])], [int(self.config["eos_id"])]
        between = [int(id_) for id_ in self.config.get("between_ids", end + end)]
        room = self.max_tokens - 2 - len(between)
        asked = self.ids([query])[0][: room // 2]
        head = start + asked + between
        tail = room - len(asked)
        return self.engine.run_together([head + ids[:tail] + end for ids in self.ids(texts)])[:, 0]
