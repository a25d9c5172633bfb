"""Embedding models behind an OpenAI-shaped ``/v1/embeddings`` (OpenAI, vLLM, Ollama, TEI, Infinity, LM Studio)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr
from tokenizers import Tokenizer

from pipeline import deadline
from pipeline.embedders.vectors import unit_rows
from pipeline.errors import EmbedderError
from pipeline.http_client import open_client
from pipeline.remote import Endpoint, check_key, check_url, in_halves, in_input_order, post_json
from pipeline.retrying import RemoteError, RetryPolicy
from pipeline.text import well_formed

_URL_SETTING = "RAG_EMBEDDING_URL"
_KEY_SETTING = "RAG_EMBEDDING_API_KEY"
# Characters of a token, far above the four to five that real text has on average.
_LONGEST_TOKEN = 16


class HttpEmbedder:
    """Asks ``{url}/v1/embeddings``; the address may end in ``/v1`` already.

    ``tokenizer`` counts and cuts: texts are cut to ``max_tokens`` of it, prefix included, because servers refuse
    longer ones; a batch that is too large for a server goes in halves. Blank texts, which servers refuse too, are not
    sent and get a vector of equal components. Without ``dimension`` one call at construction finds it. ``timeout_s``
    bounds one request, ``deadline_s`` one :meth:`embed_documents` or :meth:`embed_query` with all its batches, tries
    and waits.

    Raises:
        SettingsError: the key or the address cannot be one.
        EmbedderError: the endpoint could not be asked for the dimension.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        tokenizer: Tokenizer,
        api_key: str | None = None,
        dimension: int | None = None,
        query_prefix: str = "",
        document_prefix: str = "",
        max_tokens: int = 512,
        batch_size: int = 64,
        timeout_s: float = 30.0,
        deadline_s: float = 120.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        base = check_url(url, _URL_SETTING)
        address = httpx.URL(base)  # what follows a "?" stays behind the path
        path = address.path.rstrip("/").removesuffix("/v1")
        self._url = str(address.copy_with(path=f"{path}/v1/embeddings"))
        self._key = SecretStr(check_key(api_key, _KEY_SETTING)) if api_key else None
        self._retry = replace(retry or RetryPolicy(), timeout_s=timeout_s, deadline_s=deadline_s)
        self._endpoint = Endpoint(
            provider="the embedding server",
            url=self._url,
            key_setting=_KEY_SETTING,
            url_setting=_URL_SETTING,
            model_setting="RAG_EMBEDDING_MODEL",
            timeout_setting="timeout_s of HttpEmbedder",
            length_setting="RAG_CHUNK_TOKENS",
        )
        self.model = model
        # Prefixes change the vectors, so they belong to what a collection was made with.
        prefixes = f" ({query_prefix!r}, {document_prefix!r})" if query_prefix or document_prefix else ""
        self.name = f"http:{model}{prefixes}"
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self._query_prefix = query_prefix
        self._document_prefix = document_prefix
        self._batch_size = batch_size
        self._http = open_client()
        self.dimension = dimension or self._find_dimension()

    def __repr__(self) -> str:
        return f"HttpEmbedder({self._endpoint.place!r}, {self.model!r})"

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`pipeline.interfaces.Embedder.embed_documents`."""
        return self._embed(self._document_prefix, texts)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """See :meth:`pipeline.interfaces.Embedder.embed_query`."""
        vector: NDArray[np.float32] = self._embed(self._query_prefix, [text])[0]
        return vector

    def close(self) -> None:
        """Closes the connections; closing twice is fine."""
        self._http.close()

    def _find_dimension(self) -> int:
        try:
            return len(self._vectors(["dimension"], self._retry.begin())[0])
        except EmbedderError:
            self.close()
            raise

    def _embed(self, prefix: str, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float64)
        sent = [i for i, text in enumerate(texts) if text.strip()]
        until = self._retry.begin()
        for start in range(0, len(sent), self._batch_size):
            deadline.check()
            part = sent[start : start + self._batch_size]
            answers = self._vectors([self._cut(prefix + well_formed(texts[i])) for i in part], until)
            for i, vector in zip(part, answers, strict=True):
                if len(vector) != self.dimension:
                    raise EmbedderError(
                        f"{self._endpoint.place} gave {len(vector)} dimensions, and {self.dimension} were expected; "
                        "check RAG_EMBEDDING_MODEL"
                    )
                vectors[i] = vector
        return unit_rows(vectors, model=self.name)

    def _cut(self, text: str) -> str:
        # A character is four tokens at most, the bytes of its UTF-8: short texts need no look.
        if len(text) <= self.max_tokens // 4:
            return text
        # Where the tokenizer here takes a long run of letters for one unknown word, the server's may not.
        text = text[: self.max_tokens * _LONGEST_TOKEN]
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        # Room for the two special tokens that most models add.
        room = max(1, self.max_tokens - 2)
        return text if len(offsets) <= room else text[: offsets[room - 1][1]]

    def _vectors(self, texts: list[str], until: float) -> list[list[float]]:
        def answered(part: Sequence[str]) -> list[list[float]]:
            answer = self._retry.run(lambda timeout_s: self._ask(part, timeout_s), until=until)
            return self._read(answer, len(part))

        try:
            return in_halves(texts, answered)
        except RemoteError as error:
            failure = EmbedderError(str(error))
            failure.__cause__ = error.__cause__
        raise failure

    def _ask(self, texts: Sequence[str], timeout_s: float) -> Any:
        secret = self._key.get_secret_value() if self._key else None
        body = {"model": self.model, "input": list(texts)}
        return post_json(self._http, self._url, body, endpoint=self._endpoint, secret=secret, timeout_s=timeout_s)

    def _read(self, answer: Any, count: int) -> list[list[float]]:
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise RemoteError(f"{self._endpoint.place} answered without data; check {_URL_SETTING}")
        vectors = in_input_order(((item.get("index"), item.get("embedding")) for item in data), count, self._endpoint)
        for vector in vectors:
            if not isinstance(vector, list) or not vector or not all(type(x) in {int, float} for x in vector):
                raise RemoteError(f"{self._endpoint.place} gave an embedding that is no list of numbers")
        return vectors
