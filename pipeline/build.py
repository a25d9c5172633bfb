"""Settings -> Pipeline: the one place that knows every implementation.

Each builder imports only the file it needs, so that a program loads no model library it does not use.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import TypeVar, Unpack

from pipeline.calibration import load_calibration
from pipeline.cascade import Cascade
from pipeline.core import IngestOptions, Pipeline, QueryOptions
from pipeline.errors import SettingsError
from pipeline.forking import begin_anew
from pipeline.inference.token_vectors import TokenVectors, shared_token_vectors
from pipeline.interfaces import Embedder, Reranker, Store
from pipeline.reports import IngestReport
from pipeline.score_cache import ScoreCache
from pipeline.settings import Settings
from pipeline.traffic import Gate, shared_gate
from pipeline.types import Document, QueryResult

RerankerFactory = Callable[[Settings], Reranker | None]
EmbedderFactory = Callable[[Settings], Embedder]
Factory = TypeVar("Factory", RerankerFactory, EmbedderFactory)

BGE_MODEL = "BAAI/bge-reranker-base"
COHERE_MODEL = "rerank-v3.5"
JINA_MODEL = "jina-reranker-v2-base-multilingual"
ENTRY_POINTS = "two_stage_rag.rerankers"
EMBEDDER_ENTRY_POINTS = "two_stage_rag.embedders"
# Rerankers that read query and text together, on this machine.
_CROSS_ENCODERS = frozenset({"bge", "cross-encoder", "embedded-cross-encoder"})


def build(settings: Settings | None = None, *, rerank: bool = True) -> Pipeline:
    """The pipeline that the settings (by default those of the environment) describe, if wanted without a reranker.

    Raises:
        SettingsError: a setting that the chosen parts need is missing, or a name is unknown.
    """
    settings = settings or Settings()
    # First the reranker: a missing key should not be found out after a model was loaded.
    reranker = build_reranker(settings) if rerank else None
    fallbacks = build_fallbacks(settings) if rerank else []
    cascade = build_cascade(settings) if rerank else None
    return Pipeline(
        embedder=build_embedder(settings),
        store=build_store(settings),
        reranker=reranker,
        fallbacks=fallbacks,
        cascade=cascade,
        search=settings.search,
        hybrid_fusion=settings.hybrid_fusion,
        top_n=settings.top_n,
        top_k=settings.top_k,
        threshold=settings.threshold,
        alpha=settings.alpha,
        fusion=settings.fusion,
        deadline_ms=settings.deadline_ms,
        per_document=settings.per_document,
        score_cache=build_score_cache(settings),
        calibrations=partial(load_calibration, calibration_dir(settings).absolute()),
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
        max_file_mb=settings.max_file_mb,
        ignored=own_folders(settings),
    )


def own_folders(settings: Settings) -> list[Path]:
    """Those without documents of the user's: the data directory, or where documents are in it, too, its own folders."""
    names = ("cache", "calibration", "collections", "eval", "runs")
    return [settings.data_dir, *(settings.data_dir / name for name in names)]


# ------------------------------------------------------------------- stores


def build_store(settings: Settings) -> Store:
    """Qdrant in process, or the server that ``RAG_QDRANT_URL`` names."""
    from pipeline.stores.storage import Cluster, Storage

    storage = Storage(settings.quantization, settings.on_disk, settings.oversampling)
    if settings.qdrant_url:
        from pipeline.stores.connection import connect
        from pipeline.stores.server import ServerStore

        key = settings.qdrant_api_key
        client = connect(
            settings.qdrant_url,
            api_key=key.get_secret_value() if key else None,
            timeout=settings.qdrant_timeout,
        )
        cluster = Cluster(settings.qdrant_shards, settings.qdrant_replication, settings.qdrant_write_consistency)
        return ServerStore(
            client, settings.collection, deadline=settings.qdrant_deadline, storage=storage, cluster=cluster
        )
    from pipeline.stores.edge import EdgeStore

    return EdgeStore(settings.data_dir / "collections" / settings.collection, storage=storage)


# ---------------------------------------------------------------- embedders


def build_embedder(settings: Settings) -> Embedder:
    """The embedder that ``RAG_EMBEDDER`` names."""
    return _look_up("embedder", settings.embedder, _EMBEDDERS, EMBEDDER_ENTRY_POINTS)(settings)


def register_embedder(name: str, factory: EmbedderFactory) -> None:
    """Makes ``RAG_EMBEDDER=name`` build an embedder with ``factory(settings)``.

    A package can do the same without a call, by an entry point in the group ``two_stage_rag.embedders``.

    Raises:
        SettingsError: the name is taken by a built-in embedder, or is none, or ``factory`` cannot be called.
    """
    _check_registered("embedder", name, factory, _BUILT_IN_EMBEDDERS)
    _EMBEDDERS[name] = factory


def _embedded_embedder(settings: Settings) -> Embedder:
    from pipeline.embedders.embedded import EmbeddedEmbedder

    folder = Path(settings.embedding_model) if settings.embedding_model else None
    token_vectors = _token_vectors(settings) if reads_for_reranker(settings) else None
    return EmbeddedEmbedder(folder, cache_dir=model_cache(settings), token_vectors=token_vectors)


def _sentence_transformers_embedder(settings: Settings) -> Embedder:
    from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder

    model = _required(settings, "embedding_model", "a Hugging Face name or a folder")
    return SentenceTransformersEmbedder(
        model, device=settings.device, engine=settings.engine, cache_dir=model_cache(settings)
    )


def _http_embedder(settings: Settings) -> Embedder:
    from pipeline.embedders.embedded import embedded_tokenizer
    from pipeline.embedders.http import HttpEmbedder

    key = settings.embedding_api_key
    return HttpEmbedder(
        _required(settings, "embedding_url", "the base address of an OpenAI-shaped endpoint"),
        _required(settings, "embedding_model", "the model's name at that endpoint"),
        api_key=key.get_secret_value() if key else None,
        tokenizer=embedded_tokenizer(),
    )


def reads_for_reranker(settings: Settings) -> bool:
    """Whether the embedder computes token vectors: both models are those of the package and share lower layers."""
    asked = settings.reranker == "embedded" and settings.reranker_model is None
    wanted = asked or cascades(settings) or "embedded" in fallback_names(settings)
    return wanted and _own_embedder(settings)


def _own_embedder(settings: Settings) -> bool:
    return settings.embedder == "embedded" and settings.embedding_model is None


# ---------------------------------------------------------------- rerankers


def build_reranker(settings: Settings) -> Reranker | None:
    """The reranker that ``RAG_RERANKER`` names; None for ``none``."""
    return reranker_factory(settings.reranker)(settings)


def build_fallbacks(settings: Settings) -> list[Reranker | None]:
    """The rerankers that ``RAG_RERANKER_FALLBACK`` names, in order."""
    return [build_fallback(settings, name) for name in fallback_names(settings)]


def build_fallback(settings: Settings, name: str) -> Reranker | None:
    """One of them. ``RAG_RERANKER_MODEL`` is the first choice's alone.

    Raises:
        SettingsError: it needs a model, or another setting that is missing, or its name is unknown.
    """
    if name == "cross-encoder":
        raise SettingsError(
            "RAG_RERANKER_FALLBACK=cross-encoder: a fallback has no model of its own, RAG_RERANKER_MODEL is that of "
            "RAG_RERANKER; name bge or an embedded one, or register a reranker that opens the model you want "
            "(register_reranker)"
        )
    return reranker_factory(name)(settings.updated(reranker=name, reranker_model=None))


def fallback_names(settings: Settings) -> list[str]:
    """What ``RAG_RERANKER_FALLBACK`` lists."""
    return [name.strip() for name in settings.reranker_fallback.split(",") if name.strip()]


def build_cascade(settings: Settings) -> Cascade | None:
    """What goes before the reranker that ``RAG_RERANKER`` names, if ``RAG_CASCADE`` says so."""
    return Cascade(build_first_step(settings)) if cascades(settings) else None


def build_first_step(settings: Settings) -> Reranker:
    """The reranker of a cascade's first step."""
    return _embedded(settings.updated(reranker="embedded", reranker_model=None))


def cascades(settings: Settings) -> bool:
    """Whether late interaction goes before the reranker; there is nothing to spare before itself and ``none``."""
    cross_encoder = settings.reranker in _CROSS_ENCODERS or _is_cross_encoder(settings)
    if settings.cascade == "auto":
        return cross_encoder and _own_embedder(settings) and _on_cpu(settings)
    return settings.cascade == "on" and (cross_encoder or settings.reranker not in ("embedded", "none"))


def _on_cpu(settings: Settings) -> bool:
    """Whether the cross-encoder runs there: a GPU is through with all candidates before there is much to spare."""
    from pipeline.inference.choice import on_cpu

    return settings.reranker.startswith("embedded") or on_cpu(settings.device)


def _is_cross_encoder(settings: Settings) -> bool:
    """Whether ``embedded`` is a cross-encoder of the user's."""
    if settings.reranker != "embedded" or settings.reranker_model is None:
        return False
    from pipeline.inference.folder import kind_of

    return kind_of(Path(settings.reranker_model)) == "cross-encoder"


def build_score_cache(settings: Settings) -> ScoreCache | None:
    """Scores are kept in memory, or with ``RAG_SCORE_CACHE_DISK`` in a file."""
    if not settings.score_cache:
        return None
    path = _cache_dir(settings) / "scores.sqlite" if settings.score_cache_disk else None
    return ScoreCache(path, settings.score_cache)


def calibration_dir(settings: Settings) -> Path:
    """Where ``rag calibrate`` keeps what it fitted."""
    return settings.data_dir / "calibration"


def reranker_factory(name: str) -> RerankerFactory:
    """Looks a name up: first the built-in and registered ones, then installed packages' entry points."""
    return _look_up("reranker", name, _RERANKERS, ENTRY_POINTS)


def register_reranker(name: str, factory: RerankerFactory) -> None:
    """Makes ``RAG_RERANKER=name`` build a reranker with ``factory(settings)``.

    A package can do the same without a call, by an entry point in the group ``two_stage_rag.rerankers``.

    Raises:
        SettingsError: the name is taken by a built-in reranker, or is none, or ``factory`` cannot be called.
    """
    _check_registered("reranker", name, factory, _BUILT_IN)
    _RERANKERS[name] = factory


def _none(_: Settings) -> None:
    return None


def _embedded(settings: Settings) -> Reranker:
    from pipeline.rerankers.late_interaction import LateInteractionReranker

    if _is_cross_encoder(settings):
        return _embedded_cross_encoder(settings, name="embedded")
    folder = Path(settings.reranker_model) if settings.reranker_model else None
    return LateInteractionReranker(
        folder,
        cache_dir=model_cache(settings),
        name="embedded",
        token_vectors=_token_vectors(settings),
        early=not reads_for_reranker(settings) or settings.search == "sparse",
        with_embedder=reads_for_reranker(settings),
    )


def _token_vectors(settings: Settings) -> TokenVectors:
    path = _cache_dir(settings) / "token-vectors.sqlite" if settings.token_vectors_disk else None
    return shared_token_vectors(path, settings.token_vectors_mb)


def _embedded_cross_encoder(settings: Settings, name: str = "embedded-cross-encoder") -> Reranker:
    from pipeline.rerankers.embedded import EmbeddedReranker

    folder = Path(settings.reranker_model) if settings.reranker_model else None
    return EmbeddedReranker(folder, cache_dir=model_cache(settings), name=name)


def _bge(settings: Settings) -> Reranker:
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(
        settings.reranker_model or BGE_MODEL,
        name="bge",
        device=settings.device,
        engine=settings.engine,
        cache_dir=model_cache(settings),
    )


def _cross_encoder(settings: Settings) -> Reranker:
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    what = "a Hugging Face name or a folder, for the reranker that RAG_RERANKER names and no other"
    model = _required(settings, "reranker_model", what)
    return CrossEncoderReranker(model, device=settings.device, engine=settings.engine, cache_dir=model_cache(settings))


def _jina(settings: Settings) -> Reranker:
    from pipeline.rerankers.http import JINA_URL, HttpReranker

    if settings.jina_api_key is None:
        raise SettingsError("RAG_RERANKER=jina needs a key: set RAG_JINA_API_KEY (or JINA_API_KEY)")
    return HttpReranker(
        settings.jina_base_url or JINA_URL,
        model=settings.reranker_model or JINA_MODEL,
        api_key=settings.jina_api_key.get_secret_value(),
        name="jina",
        url_setting="RAG_JINA_BASE_URL",
        key_setting="RAG_JINA_API_KEY (or JINA_API_KEY)",
        length_setting="RAG_CHUNK_TOKENS",
        scores_setting=None,
        gate=_gate(settings, settings.jina_base_url or JINA_URL),
        timeout_s=settings.rerank_timeout,
        deadline_s=settings.rerank_deadline,
    )


def _http(settings: Settings) -> Reranker:
    from pipeline.rerankers.http import HttpReranker

    key = settings.rerank_api_key
    url = _required(settings, "rerank_url", "the address of the endpoint")
    return HttpReranker(
        url,
        shape=settings.rerank_shape,
        model=settings.reranker_model,
        api_key=key.get_secret_value() if key else None,
        scores=settings.rerank_scores,
        max_tokens=settings.rerank_max_tokens,
        gate=_gate(settings, url),
        timeout_s=settings.rerank_timeout,
        deadline_s=settings.rerank_deadline,
    )


def _cohere(settings: Settings) -> Reranker:
    from pipeline.rerankers.cohere import PUBLIC_URL, CohereReranker

    if settings.cohere_api_key is None:
        raise SettingsError("RAG_RERANKER=cohere needs a key: set RAG_COHERE_API_KEY (or COHERE_API_KEY)")
    return CohereReranker(
        api_key=settings.cohere_api_key.get_secret_value(),
        model=settings.reranker_model or COHERE_MODEL,
        base_url=settings.cohere_base_url,
        max_tokens_per_doc=settings.cohere_max_tokens_per_doc,
        priority=settings.cohere_priority,
        gate=_gate(settings, settings.cohere_base_url or PUBLIC_URL),
        timeout_s=settings.rerank_timeout,
        deadline_s=settings.rerank_deadline,
    )


def _gate(settings: Settings, url: str) -> Gate:
    """One for each address in the process, so that limits and breaker hold for all pipelines together."""
    return shared_gate(settings.reranker, url, settings.rerank_rpm, settings.rerank_concurrency)


_BUILT_IN: Mapping[str, RerankerFactory] = {
    "bge": _bge,
    "cohere": _cohere,
    "cross-encoder": _cross_encoder,
    "embedded": _embedded,
    "embedded-cross-encoder": _embedded_cross_encoder,
    "http": _http,
    "jina": _jina,
    "none": _none,
}
_RERANKERS: dict[str, RerankerFactory] = dict(_BUILT_IN)
_BUILT_IN_EMBEDDERS: Mapping[str, EmbedderFactory] = {
    "embedded": _embedded_embedder,
    "http": _http_embedder,
    "sentence-transformers": _sentence_transformers_embedder,
}
_EMBEDDERS: dict[str, EmbedderFactory] = dict(_BUILT_IN_EMBEDDERS)


def _look_up(what: str, name: str, known: Mapping[str, Factory], group: str) -> Factory:
    """First the built-in and registered ones, then installed packages' entry points."""
    if name in known:
        return known[name]
    installed: EntryPoints = entry_points(group=group)
    for point in installed:
        if point.name == name:
            try:
                factory: Factory = point.load()
            except Exception as error:
                raise SettingsError(
                    f"the {what} {name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
                ) from error
            return factory
    names = ", ".join(sorted({*known, *installed.names}))
    raise SettingsError(f"no {what} is called {name!r}; there are: {names}")


def _check_registered(what: str, name: str, factory: object, built_in: Container[str]) -> None:
    if not name or not callable(factory):
        raise SettingsError(f"registered are a name and a function of the settings that makes the {what}")
    if name in built_in:
        raise SettingsError(f"{name!r} is a built-in {what}: choose another name")


def model_cache(settings: Settings) -> Path:
    """Where the CPU engine keeps converted and compiled models between processes."""
    return _cache_dir(settings) / "models"


def _cache_dir(settings: Settings) -> Path:
    # Absolute, as the store's directory is: both stay together should the program change its working directory.
    return settings.data_dir.absolute() / "cache"


def _required(settings: Settings, field: str, what: str) -> str:
    value = getattr(settings, field)
    if not value:
        chosen = "reranker" if field.startswith("rerank") else "embedder"
        raise SettingsError(f"RAG_{chosen.upper()}={getattr(settings, chosen)} needs RAG_{field.upper()}: {what}")
    return str(value)


# -------------------------------------------------- the environment's pipeline

_default: Pipeline | None = None
_default_lock = threading.Lock()


def default_pipeline() -> Pipeline:
    """The pipeline of the environment's settings, built at the first call and closed when the program ends."""
    global _default
    with _default_lock:
        if _default is None:
            _default = build()
            atexit.register(_default.close)
        return _default


def _forget_in_child() -> None:
    """After a fork it is the parent's: a child that asks for one gets its own."""
    global _default, _default_lock
    _default_lock = threading.Lock()
    _default = None


begin_anew(_forget_in_child)


def query(text: str, **options: Unpack[QueryOptions]) -> QueryResult:
    """:meth:`Pipeline.query` on the pipeline of the environment's settings, which is opened once a process."""
    return default_pipeline().query(text, **options)


def ingest(
    items: Document | str | Path | Iterable[Document | str | Path], **options: Unpack[IngestOptions]
) -> IngestReport:
    """:meth:`Pipeline.ingest` on the pipeline of the environment's settings, which is opened once a process."""
    return default_pipeline().ingest(items, **options)
