"""The environment and ``.env``, read here and nowhere else.

Every field is one variable: ``top_k`` is ``RAG_TOP_K``. In Python the field's name is the argument:
``Settings(reranker="cohere", top_k=3)``. Arguments win over the environment, the environment over ``.env``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args

from dotenv.parser import parse_stream
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import SettingsError
from pipeline.types import HybridFusion, Quantization, SearchMode, StageFusion

PREFIX = "RAG_"
# Variables of the test suite; they configure no pipeline.
TEST_PREFIX = "RAG_TEST_"

# How the bounds of a field are said.
_BOUNDS = {"ge": "at least", "gt": "over", "le": "at most"}
_ENVIRONMENT = "the environment"
# Name and password in an address, and its query, which may hold a key.
_IN_ADDRESS = re.compile(r"(?<=://)[^/?#]*(?=@)|(?<=\?).+")
_KUBERNETES = re.compile(
    r"RAG_(SERVICE_.*|PORT(_.*)?|.*_SERVICE_HOST|.*_SERVICE_PORT(_.*)?|.*_PORT_[0-9]+_(TCP|UDP|SCTP)(_.*)?)"
)


class Settings(BaseSettings):
    """All settings of a pipeline.

    Raises:
        SettingsError: a variable is unknown, or a value is not allowed; names the variable and what is.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # "RAG_THRESHOLD=" in a .env file means: not set
        extra="ignore",  # a .env file holds other programs' variables too; ours are checked below
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    data_dir: Path = Field(Path(".rag"), description="where the embedded store and caches live")
    collection: str = Field("documents", description="collection name: letters, digits, `_`, `-`")
    qdrant_url: str | None = Field(
        None, description="empty: the embedded store; else the address of a Qdrant server, cluster or cloud"
    )
    qdrant_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("RAG_QDRANT_API_KEY", "QDRANT_API_KEY"),
        description="secret; `QDRANT_API_KEY` is read too",
    )
    qdrant_timeout: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="seconds that one request to a Qdrant server may take"
    )
    qdrant_deadline: float = Field(
        120.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that an ingest goes on trying while a Qdrant server does not answer",
    )
    qdrant_shards: int | None = Field(
        None, ge=1, le=1024, description="for a new collection on a server: its shards; empty: left to the server"
    )
    qdrant_replication: int | None = Field(
        None, ge=1, le=64, description="for a new collection on a server: copies of each shard; empty: left to it"
    )
    qdrant_write_consistency: int | None = Field(
        None,
        ge=1,
        le=64,
        description="for a new collection on a server: copies that must have a write before it counts, 1-"
        "`RAG_QDRANT_REPLICATION`; empty: left to it",
    )
    quantization: Quantization | None = Field(
        None,
        description="`int8`: besides each vector a copy of a quarter of its size, kept in memory, finds the candidates "
        "and the vector itself scores them; empty: as the collection is, a new one `none`",
    )
    oversampling: float = Field(
        2.0, ge=1, le=20, description="with `int8`: how many times the candidates asked for are scored that way, 1-20"
    )
    on_disk: bool | None = Field(
        None,
        description="`true`: vectors and BM25 index are read from disk as needed, not kept in memory; empty: as the "
        "collection is, a new one `false`",
    )
    embedder: str = Field(
        "embedded",
        min_length=1,
        description="embedding model: `embedded`, the one in the package; `sentence-transformers`, any that this "
        "library reads; `http`, an endpoint; or a name you registered",
    )
    embedding_model: str | None = Field(
        None,
        description="for `sentence-transformers`: Hugging Face name or folder; for `http`: the model's name at the "
        "endpoint; `embedded` takes a folder in its own format only",
    )
    embedding_url: str | None = Field(None, description="for `http`: base address of an OpenAI-shaped `/v1/embeddings`")
    embedding_api_key: SecretStr | None = Field(None, description="for `http`: secret")
    search: SearchMode = Field(
        "hybrid", description="first stage: `hybrid`, dense and BM25 together, or `dense` or `sparse` (BM25) alone"
    )
    hybrid_fusion: HybridFusion = Field(
        "convex",
        description="how the two lists of the first stage become one: `convex` has what one list found scored by the "
        "other, too, and adds the standardised scores; `dbsf` and `rrf` are Qdrant's own",
    )
    reranker: str = Field(
        "embedded",
        min_length=1,
        description="`embedded`, `embedded-cross-encoder`, `bge`, `cross-encoder`, `cohere`, `jina`, `http`, `none`, "
        "or a name you registered",
    )
    reranker_model: str | None = Field(
        None,
        description="by reranker: `bge` has `BAAI/bge-reranker-base`, `cohere` has `rerank-v3.5`, `cross-encoder` "
        "needs a Hugging Face name or a folder, `jina` has `jina-reranker-v2-base-multilingual`, `http` sends none "
        "unless set (then its scores are neither kept nor calibrated, as nobody would notice another model; change the "
        "name when the server's model changes), the embedded ones take a folder in their own format",
    )
    reranker_fallback: str = Field(
        "",
        description="rerankers tried in order when the first fails, comma-separated, such as `embedded,none`; empty: "
        "the failure is an error",
    )
    cohere_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("RAG_COHERE_API_KEY", "COHERE_API_KEY", "CO_API_KEY"),
        description="secret; `COHERE_API_KEY` and `CO_API_KEY` are read too",
    )
    cohere_base_url: str | None = Field(None, description="another address for the Cohere API")
    cohere_max_tokens_per_doc: int | None = Field(
        None,
        ge=1,
        description="where Cohere cuts a document; longer texts are sent in windows; empty: 4096, as the API",
    )
    cohere_priority: int | None = Field(
        None, ge=0, le=999, description="how early Cohere handles a request under load; 0 is the highest"
    )
    jina_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("RAG_JINA_API_KEY", "JINA_API_KEY"),
        description="secret; `JINA_API_KEY` is read too",
    )
    jina_base_url: str | None = Field(None, description="another address for the Jina API")
    rerank_url: str | None = Field(None, description="for `http`: base address, or the whole one ending in `/rerank`")
    rerank_api_key: SecretStr | None = Field(None, description="for `http`: secret, if the endpoint asks for one")
    rerank_shape: Literal["jina", "tei", "cohere", "voyage"] = Field(
        "jina",
        description="for `http`: what it speaks: `jina` (also vLLM's, Infinity's, llama.cpp's, LocalAI's, "
        "Xinference's), `tei`, `cohere` or `voyage`",
    )
    rerank_scores: Literal["probability", "logit"] | None = Field(
        None, description="for `http`: what its scores are; empty: `logit` for `tei`, `probability` for the others"
    )
    rerank_timeout: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="seconds that one request to a remote reranker may take"
    )
    rerank_deadline: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a remote reranker may take in all, with every retry",
    )
    rerank_rpm: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="requests a minute that a remote reranker is asked at most; empty: no limit",
    )
    rerank_concurrency: int = Field(8, ge=1, description="requests to a remote reranker that may be under way at once")
    rerank_max_tokens: int | None = Field(
        None,
        ge=16,
        description="for `http`: longest pair of query and text that the model reads; longer texts are sent "
        "in windows; empty: left to the endpoint",
    )
    rerank_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="for `rag eval`: price of 1,000 requests to a reranker that bills them, up to 100 documents each",
    )
    rerank_token_price: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="for `rag eval`: price of 1,000,000 tokens at a reranker that bills tokens",
    )
    top_n: int = Field(50, ge=1, le=1000, description="candidates recalled by the first stage, 1-1000")
    top_k: int = Field(5, ge=1, le=1000, description="hits returned, 1-`RAG_TOP_N`")
    per_document: int | None = Field(
        None, ge=1, le=1000, description="hits of one document at most; empty: as many as are among the best"
    )
    threshold: float | None = Field(None, ge=0, le=1, description="drop hits whose rerank probability is below it, 0-1")
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the rerank score against the first-stage score in the final order, 0-1; empty: by "
        "reranker (the embedded ones: as measured; others: 1.0)",
    )
    fusion: StageFusion = Field(
        "linear",
        description="how first stage and reranker make the final order: `linear` adds their standardised scores, `rrf` "
        "their reciprocal ranks, both weighted by `RAG_ALPHA`",
    )
    cascade: Literal["auto", "on", "off"] = Field(
        "auto",
        description="`embedded` looks at all candidates first, and the reranker reads the best third only, at least "
        "`RAG_TOP_K`; `auto`: if it is a cross-encoder on this CPU and the embedder is the embedded one; `on`: "
        "whichever they are; `off`: never",
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="milliseconds that a query may take; reranking is cut short or falls back to keep it, embedding "
        "and the first stage are not cut short; for programs that keep running, as loading models counts",
    )
    token_vectors_mb: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="room, in MB, for the token vectors that `embedded` and `RAG_CASCADE` need, some 20 KB for a text "
        "of 150 tokens: an ingest fills it, queries keep what they use; to score such a text takes next to no time",
    )
    token_vectors_disk: bool = Field(
        True, description="keep them in a file under `RAG_DATA_DIR`, for the next process, instead of in memory"
    )
    score_cache: int = Field(
        10_000, ge=0, le=10_000_000, description="rerank scores that are kept for the same query and text; 0: none"
    )
    score_cache_disk: bool = Field(
        False, description="keep them in a file under `RAG_DATA_DIR`, for the next process, instead of in memory"
    )
    chunk_tokens: int = Field(256, ge=16, le=8192, description="longest chunk, in the embedder's own tokens")
    chunk_overlap: int = Field(
        32,
        ge=0,
        le=4096,
        description="most tokens that neighbouring chunks share, in whole sentences, lines or paragraphs; "
        "less than half a chunk",
    )
    max_file_mb: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="largest file that is read, in MB; JSONL, which is read line by line, may be larger",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto",
        description="where Hugging Face models run: `cpu`, `cuda`, `mps`, or `auto`: on a GPU if there is one; the "
        "embedded ones run on the CPU",
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto",
        description="what runs Hugging Face models on a CPU: `openvino`, in int8, after a conversion at first use that "
        "is checked against PyTorch, or `torch`; `auto`: the former where the check is passed",
    )

    def __init__(self, **values: Any) -> None:
        _refuse_unknown_arguments(values)
        _refuse_unknown_variables(self.model_config.get("env_file"))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, given=set(values))) from error

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What is shown and logged: addresses without what may be a secret in them."""
        for name, value in super().__repr_args__():
            yield name, _IN_ADDRESS.sub("***", value) if isinstance(value, str) else value

    @field_validator("collection")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            raise ValueError(f"{name!r:.120} is no name for a collection, which has 1 to 100 of A-Z, a-z, 0-9, _ and -")
        return name

    @field_validator("data_dir")
    @classmethod
    def _at_home(cls, data_dir: Path) -> Path:
        """``~`` is the home directory, which no shell puts there for a line of ``.env``."""
        return data_dir.expanduser()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_k > self.top_n:
            raise ValueError(f"RAG_TOP_K ({self.top_k}) must not be larger than RAG_TOP_N ({self.top_n})")
        copies = self.qdrant_replication
        if copies is not None and (self.qdrant_write_consistency or 1) > copies:
            raise ValueError(
                f"RAG_QDRANT_WRITE_CONSISTENCY ({self.qdrant_write_consistency}) must not be larger than "
                f"RAG_QDRANT_REPLICATION ({copies})"
            )
        if self.chunk_overlap * 2 >= self.chunk_tokens:
            raise ValueError(
                f"RAG_CHUNK_OVERLAP ({self.chunk_overlap}) must be less than half of "
                f"RAG_CHUNK_TOKENS ({self.chunk_tokens})"
            )
        return self

    def updated(self, **changes: Any) -> Settings:
        """These settings with some fields changed, checked as at the start.

        Raises:
            SettingsError: a changed value is not allowed.
        """
        return Settings(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def with_reranker(self, name: str) -> Settings:
        """These settings with another reranker. ``reranker_model`` belongs to the one it was set with, and to no other.

        Raises:
            SettingsError: the name is empty.
        """
        return self if name == self.reranker else self.updated(reranker=name, reranker_model=None)


def variable(field: str) -> str:
    """Name of the environment variable of a field."""
    return PREFIX + field.upper()


def _refuse_unknown_arguments(values: dict[str, Any]) -> None:
    for name in values:
        if name not in Settings.model_fields:
            field = name.lower().removeprefix(PREFIX.lower())
            if field in Settings.model_fields:
                raise SettingsError(f"Settings has no field {name!r}: in Python write {field}")
            raise SettingsError(f"Settings has no field {name!r}.{_suggestion(name, set(Settings.model_fields))}")


def _suggestion(name: str, known: set[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else " The README lists all settings."


def _refuse_unknown_variables(env_file: Any) -> None:
    """A mistyped RAG_ variable is an error: pydantic-settings itself only looks for names it knows."""
    known = {variable(field) for field in Settings.model_fields}
    names = dict.fromkeys(os.environ, _ENVIRONMENT)
    if env_file is not None and Path(env_file).is_file():
        try:
            with Path(env_file).open(encoding="utf-8") as file:
                lines = list(parse_stream(file))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {Path(env_file).absolute()}: {error}") from error
        for line in lines:
            if line.error:  # as of a quotation mark that is not closed; the setting would silently not be made
                place = f"{Path(env_file).absolute()}, line {line.original.line}"
                raise SettingsError(f"{place}: not NAME=VALUE, or a quotation mark that is not closed")
            if line.key is not None:
                names[line.key] = str(env_file)
    for name, where in names.items():
        upper = name.upper()
        if upper.startswith(PREFIX) and not upper.startswith(TEST_PREFIX) and upper not in known:
            if where == _ENVIRONMENT and _is_of_kubernetes(name):
                continue
            raise SettingsError(f"unknown variable {name} in {where}.{_suggestion(upper, known)}")


def _is_of_kubernetes(name: str) -> bool:
    """Whether Kubernetes has set it, in every container, for a Service that is called ``rag`` or ``rag-...``."""
    address = name.endswith("_PORT") and "://" in os.environ[name]
    return address or _KUBERNETES.fullmatch(name) is not None


def _explain(error: ValidationError, *, given: set[str]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        if not place:
            lines.append(message + _as_arguments(message, given))
            continue
        field = place.lower().removeprefix(PREFIX.lower())
        known = Settings.model_fields.get(field)
        name = place if place in given or known is None else variable(field)
        lines.append(f"{name}: {_wrong(message, problem, known)}")
    return "; ".join(lines)


def _as_arguments(message: str, given: set[str]) -> str:
    """What the variables in a message are called by those who gave arguments."""
    fields = [name.removeprefix(PREFIX).lower() for name in re.findall(rf"\b{PREFIX}\w+", message)]
    return f"; in Python these are {' and '.join(fields)}" if given.intersection(fields) else ""


def _wrong(message: str, problem: Mapping[str, Any], field: FieldInfo | None) -> str:
    """What is wrong with a value, which is shown unless it is a secret, and what is allowed."""
    message = message[0].lower() + message[1:].partition(", unable to")[0]
    if field is None or SecretStr in (field.annotation, *get_args(field.annotation)):
        return message
    bounds = [
        f"{_BOUNDS[kind]} {value}"
        for kind in _BOUNDS
        for one in field.metadata
        if (value := getattr(one, kind, None)) is not None
    ]
    allowed = f" (allowed: {', '.join(bounds)})" if bounds else ""
    return re.sub(r"^input\b", lambda _: f"{problem['input']!r:.100}", message) + allowed


def markdown_table() -> str:
    """The settings as the README shows them; a test holds the two together."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "empty" if field.default in (None, "") else f"`{field.default}`"
        lines.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
