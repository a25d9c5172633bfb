from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.build
from pipeline.build import (
    build_cascade,
    build_embedder,
    build_fallbacks,
    build_reranker,
    cascades,
    reads_for_reranker,
    register_embedder,
    register_reranker,
    reranker_factory,
)
from pipeline.errors import SettingsError
from pipeline.models import EMBEDDER, LATE_INTERACTION, RERANKER
from pipeline.settings import Settings
from tests.fakes import FakeEmbedder, FakeReranker


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No .env of the checkout, no key of the machine, and no name left behind."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAG_COHERE_API_KEY", "COHERE_API_KEY", "CO_API_KEY", "RAG_JINA_API_KEY", "JINA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pipeline.build, "_RERANKERS", dict(pipeline.build._RERANKERS))
    monkeypatch.setattr(pipeline.build, "_EMBEDDERS", dict(pipeline.build._EMBEDDERS))


def test_a_registered_name_is_built_with_the_settings() -> None:
    """The factory sees the settings, so that it can read a model name or a key from them."""
    register_reranker("mine", lambda settings: FakeReranker(name=settings.reranker_model or ""))
    built = build_reranker(Settings(reranker="mine", reranker_model="some/model"))
    assert built is not None
    assert "some/model" == built.name


def test_a_registered_embedder_is_built_with_the_settings() -> None:
    """And no reranker takes it for the one that reads texts for it."""
    register_embedder("mine", lambda settings: FakeEmbedder(dimension=len(settings.embedding_model or "")))
    settings = Settings(embedder="mine", embedding_model="abc", data_dir="data")
    assert 3 == build_embedder(settings).dimension
    assert not reads_for_reranker(settings)
    with pytest.raises(SettingsError, match="no embedder is called 'other'; there are: embedded, http, mine, "):
        build_embedder(Settings(embedder="other"))
    with pytest.raises(SettingsError, match="'http' is a built-in embedder"):
        register_embedder("http", lambda settings: FakeEmbedder())


@pytest.mark.parametrize(
    ("build", "settings", "said"),
    [
        (build_embedder, {"embedding_model": "BAAI/bge-m3"}, "RAG_EMBEDDER=sentence-transformers"),
        (build_reranker, {"reranker_model": "BAAI/bge-reranker-v2-m3"}, "RAG_RERANKER=cross-encoder"),
        (
            build_reranker,
            {"reranker": "embedded-cross-encoder", "reranker_model": "BAAI/bge-reranker-v2-m3"},
            "RAG_RERANKER=cross-encoder",
        ),
    ],
)
def test_a_hugging_face_name_for_an_embedded_model_is_told_what_opens_it(
    build: Callable[[Settings], object], settings: dict[str, Any], said: str
) -> None:
    """The embedded ones take folders in their own format, and are the default."""
    with pytest.raises(SettingsError, match=f"is no model folder: .*For a Hugging Face model set {said}"):
        build(Settings(**settings))


def test_a_built_in_name_cannot_be_taken() -> None:
    """Else RAG_RERANKER=cohere would mean different things in two programs."""
    with pytest.raises(SettingsError, match="built-in"):
        register_reranker("cohere", lambda _: None)


def test_an_installed_package_brings_a_reranker_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that the command line knows it without a call."""
    (tmp_path / "shortest_plugin.py").write_text(
        "from tests.fakes import FakeReranker\ndef make(settings):\n    return FakeReranker(name='from plugin')\n"
    )
    info = tmp_path / "shortest_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shortest-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[two_stage_rag.rerankers]\nshortest = shortest_plugin:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    built = reranker_factory("shortest")(Settings())
    assert built is not None
    assert "from plugin" == built.name


def test_an_unknown_name_lists_the_known_ones() -> None:
    """A typing mistake is found before any model is loaded."""
    with pytest.raises(
        SettingsError,
        match=r"'magic'; there are: bge, cohere, cross-encoder, embedded, embedded-cross-encoder, http, jina, none",
    ):
        build_reranker(Settings(reranker="magic"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reranker": "cohere"}, "RAG_COHERE_API_KEY"),
        ({"reranker": "jina"}, "RAG_JINA_API_KEY"),
        ({"reranker": "http"}, "RAG_RERANK_URL"),
        ({"reranker": "http", "rerank_url": "localhost:8080"}, "RAG_RERANK_URL"),
        ({"reranker": "cross-encoder"}, "RAG_RERANKER_MODEL"),
        ({"reranker": "embedded", "reranker_model": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_a_reranker_needs_is_asked_for_by_name(values: dict[str, str], said: str) -> None:
    """Before anything is loaded or sent."""
    with pytest.raises(SettingsError, match=said):
        build_reranker(Settings(**values))


def test_fallbacks_are_built_in_order_without_the_first_ones_model() -> None:
    """A model's name belongs to the reranker that was chosen with it."""
    seen: list[str | None] = []

    def make(settings: Settings) -> FakeReranker:
        seen.append(settings.reranker_model)
        return FakeReranker(name=settings.reranker)

    register_reranker("one", make)
    register_reranker("two", make)
    built = build_fallbacks(Settings(reranker="one", reranker_model="m", reranker_fallback="two, one,none"))
    assert ["two", "one", None] == [reranker and reranker.name for reranker in built]
    assert [None, None] == seen


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ({"reranker": "http", "rerank_url": "http://x"}, {"rerank_max_tokens": 64}),
        ({"reranker": "http", "rerank_url": "http://x"}, {"rerank_scores": "logit"}),
        ({"reranker": "cohere", "cohere_api_key": "k"}, {"cohere_max_tokens_per_doc": 512}),
        ({"reranker": "cross-encoder", "reranker_model": "/a/folder"}, {"engine": "torch"}),
        ({"reranker": "bge"}, {"device": "cpu"}),
    ],
)
def test_a_setting_that_changes_scores_is_told_to_the_cache(values: dict[str, Any], change: dict[str, Any]) -> None:
    """By the scale or the variant, while the identity is still that of the model."""

    def told(settings: Settings) -> list[object]:
        built = build_reranker(settings)
        return [getattr(built, name) for name in ("identity", "scale", "variant")]

    before, after = told(Settings(**values)), told(Settings(**values, **change))
    assert before[0] == after[0]
    assert before != after


def test_a_fallback_that_needs_a_model_is_told_that_it_has_none() -> None:
    """To set RAG_RERANKER_MODEL, which is set already, would not help."""
    with pytest.raises(SettingsError, match="RAG_RERANKER_FALLBACK=cross-encoder: a fallback has no model of its own"):
        build_fallbacks(Settings(reranker="bge", reranker_model="m", reranker_fallback="cross-encoder"))


def test_a_model_goes_to_no_other_reranker() -> None:
    """A folder's path means nothing to an API, and need not be known there."""
    settings = Settings(reranker="embedded", reranker_model="/a/folder", cohere_api_key="k")
    built = build_reranker(settings.with_reranker("cohere"))
    assert "rerank-v3.5" == getattr(built, "model", None)
    assert "/a/folder" == settings.with_reranker("embedded").reranker_model
    assert "k" == settings.with_reranker("cohere").cohere_api_key.get_secret_value()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "auto", "on"),
    [
        ({"reranker": "embedded-cross-encoder"}, True, True),
        ({"reranker": "bge"}, True, True),
        ({"reranker": "cross-encoder", "reranker_model": "a/model"}, True, True),
        ({"reranker": "embedded", "reranker_model": str(RERANKER)}, True, True),
        ({"reranker": "bge", "embedder": "sentence-transformers"}, False, True),
        ({"reranker": "bge", "device": "cuda"}, False, True),
        ({"reranker": "embedded-cross-encoder", "device": "cuda"}, True, True),
        ({"reranker": "bge", "embedding_model": str(EMBEDDER)}, False, True),
        ({"reranker": "cohere"}, False, True),
        ({"reranker": "registered"}, False, True),
        ({"reranker": "embedded"}, False, False),
        ({"reranker": "embedded", "reranker_model": str(LATE_INTERACTION)}, False, False),
        ({"reranker": "none"}, False, False),
    ],
)
def test_a_cascade_goes_before_what_reads_slowly(values: dict[str, str], auto: bool, on: bool) -> None:
    """``auto``: cross-encoders here, where an ingest reads for it; ``on``: whatever it can go before."""
    assert (auto, on, False) == tuple(cascades(Settings(cascade=mode, **values)) for mode in ("auto", "on", "off"))
    assert auto == cascades(Settings(**values))


def test_a_cascade_is_the_embedded_late_interaction_whatever_the_rerankers_model() -> None:
    """``RAG_RERANKER_MODEL`` is the full one's."""
    made = {mode: build_cascade(Settings(reranker="bge", reranker_model="m", cascade=mode)) for mode in ("auto", "on")}
    assert {"embedded"} == {cascade.reranker.name for cascade in made.values() if cascade}
    assert {LATE_INTERACTION} == {cascade.reranker._model.folder for cascade in made.values() if cascade}  # type: ignore[attr-defined]
    assert build_cascade(Settings(reranker="bge", cascade="off")) is None


@pytest.mark.parametrize(
    ("values", "reads"),
    [
        ({"reranker": "bge"}, True),
        ({"reranker": "bge", "cascade": "off"}, False),
        ({"reranker": "cohere"}, False),
        ({"reranker": "cohere", "cascade": "on"}, True),
        ({"reranker": "bge", "cascade": "on", "embedder": "http"}, False),
    ],
)
def test_an_ingest_reads_for_a_cascade(values: dict[str, str], reads: bool) -> None:
    """With the embedder whose lower layers are the same."""
    assert reads == reads_for_reranker(Settings(**values))


def test_an_unknown_fallback_is_found_at_the_start() -> None:
    """Not in the night when it is needed."""
    with pytest.raises(SettingsError, match="magic"):
        build_fallbacks(Settings(reranker_fallback="magic"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@proxy.example/v1?key=sesame", "https://proxy.example/v1/rerank (95b96fef)"),
        ("http://localhost:8080", "http://localhost:8080/v1/rerank"),
    ],
)
def test_a_rerankers_identity_holds_no_credentials(url: str, shown: str) -> None:
    """It is written into calibration files and cache keys, and shown by status."""
    reranker = build_reranker(Settings(reranker="http", rerank_url=url, reranker_model="m"))
    assert f"m at {shown}" == getattr(reranker, "identity", None)
    cohere = build_reranker(Settings(reranker="cohere", cohere_api_key="k", cohere_base_url=url))
    identity = str(getattr(cohere, "identity", None))
    assert "proxy.example" in identity or "localhost" in identity
    assert not any(secret in identity for secret in ("user", "pass", "sesame"))


def test_what_follows_a_question_mark_tells_rerankers_apart() -> None:
    """It may choose the model: scores and calibrations of one are not another's."""
    urls = [f"http://localhost/rerank{query}" for query in ("", "?deployment=small", "?deployment=large")]
    asked = [Settings(reranker="http", rerank_url=url, reranker_model="m") for url in urls]
    assert 3 == len({build_reranker(settings).identity for settings in asked})  # type: ignore[union-attr]


def test_an_endpoint_whose_model_is_not_named_says_so() -> None:
    """Another model may run there tomorrow: its scores would be taken for those of the one before."""
    reranker = build_reranker(Settings(reranker="http", rerank_url="http://localhost:8080"))
    assert getattr(reranker, "identity", "") is None


@pytest.mark.parametrize(("name", "factory"), [("", lambda settings: None), ("mine", 5)])
def test_what_cannot_be_registered(name: str, factory: Any) -> None:
    """Is found at once, not when it is asked for."""
    with pytest.raises(SettingsError, match="a name and a function"):
        register_reranker(name, factory)
