import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.calibration import Calibration
from pipeline.core import Pipeline
from pipeline.errors import FingerprintError, RerankerError, SettingsError
from pipeline.reports import (
    ExportReport,
    Failure,
    ImportReport,
    IngestReport,
    Problem,
    ReindexReport,
    VerifyReport,
)
from pipeline.scoring import logit
from pipeline.types import Document, DocumentVersion, Fingerprint, Hit, RerankScore, StageFusion
from pipeline.where import Where
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore

TEXTS = {
    "apple": "an apple is a fruit",
    "pear": "a pear is a fruit too",
    "car": "a car has four wheels",
    "苹果": "苹果是一种水果",
}


def pipeline(reranker: FakeReranker | None = None, **options: Any) -> Pipeline:
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), reranker=reranker, search="dense", **options)
    rag.ingest([Document(id=id_, text=text, metadata={"long": len(text) > 18}) for id_, text in TEXTS.items()])
    return rag


def preferring(*best: str) -> FakeReranker:
    """A reranker that likes these documents in this order, and the others equally little."""
    logits = dict.fromkeys(TEXTS.values(), -3.0) | {TEXTS[id_]: 3.0 - i for i, id_ in enumerate(best)}
    return FakeReranker(logits)


def test_the_reranker_decides_the_order_and_the_first_stage_stays_visible() -> None:
    """A hit shows where the first stage had put it."""
    result = pipeline(preferring("car", "pear")).query("apple fruit", top_k=2)
    assert ["car", "pear"] == [hit.document_id for hit in result.hits]
    assert [1, 2] == [hit.rank for hit in result.hits]
    assert result.hits[0].first_stage.rank > 1
    assert result.hits[0].rerank is not None
    assert result.hits[0].score == result.hits[0].rerank.probability


PLATEAUS = Calibration(
    "fake m@1",
    "isotonic",
    ((-3.0, 0.05), (-2.6, 0.3), (-2.0, 0.3), (1.0, 0.3), (2.0, 0.9)),
    "d",
    1,
    1,
    1,
    None,
    0.9,
    "",
)
SOFTER = replace(PLATEAUS, method="platt", points=((0.5, -1.0),))


@pytest.mark.parametrize("calibration", [PLATEAUS, SOFTER], ids=lambda one: str(one.method))
@pytest.mark.parametrize("fusion", get_args(StageFusion))
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_a_calibration_changes_no_order(alpha: float, fusion: StageFusion, calibration: Calibration) -> None:
    """Several raw scores may share one probability. The score goes along, and falls with the rank."""

    def hits(calibrations: Mapping[str, Calibration]) -> list[Hit]:
        reranker = FakeReranker({TEXTS["apple"]: -2.5, TEXTS["pear"]: 0.9, TEXTS["car"]: 0.5, TEXTS["苹果"]: -2.1})
        reranker.identity = "m@1"  # type: ignore[attr-defined]
        rag = pipeline(reranker, calibrations=calibrations.get, alpha=alpha, fusion=fusion)
        return rag.query("apple fruit").hits

    plain, mapped = hits({}), hits({"fake m@1": calibration})
    assert [hit.document_id for hit in plain] == [hit.document_id for hit in mapped]
    scores = [hit.score for hit in mapped]
    assert sorted(scores, reverse=True) == scores
    judged = [(old.rerank, new.rerank) for old, new in zip(plain, mapped, strict=True) if old.rerank and new.rerank]
    assert 4 == len(judged)
    for old, new in judged:
        assert replace(old, probability=calibration.probability(old.raw, "logit")) == new
    if fusion == "rrf":
        assert [hit.score for hit in plain] == scores
    elif alpha == 1.0:
        assert [new.probability for _, new in judged] == scores
    else:
        assert [calibration.probability(logit(hit.score), "logit") for hit in plain] == pytest.approx(scores)


def test_equal_rerank_scores_keep_the_order_of_the_first_stage() -> None:
    """A reranker that cannot tell texts apart changes nothing."""
    hits = pipeline(preferring()).query("apple fruit").hits
    assert [1, 2, 3, 4] == [hit.first_stage.rank for hit in hits]


def test_without_a_reranker_hits_have_no_rerank_score() -> None:
    """``none`` answers in first-stage order, and the output says that no reranker ran."""
    result = pipeline(None).query("apple fruit")
    assert ("none", False) == (result.reranker, result.degraded)
    assert [None] * 4 == [hit.to_dict()["rerank"] for hit in result.hits]
    assert [1, 2, 3, 4] == [hit.first_stage.rank for hit in result.hits]


def test_the_threshold_is_on_the_rerank_probability() -> None:
    """Hits below it are dropped, whatever their fused score."""
    result = pipeline(preferring("car", "pear"), alpha=0.1).query("apple fruit", threshold=0.5)
    assert {"car", "pear"} == {hit.document_id for hit in result.hits}
    assert 4 == result.candidates


def test_a_threshold_without_a_reranker_is_not_applied_and_said() -> None:
    """There is no probability to compare with; dropping by a cosine would be arbitrary."""
    result = pipeline(None).query("apple", threshold=0.9)
    assert 4 == len(result.hits)
    assert "threshold" in result.warnings[0]


def test_the_reranker_reads_title_and_text() -> None:
    """A heading often holds the word that the question asks for."""
    reranker = FakeReranker()
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), reranker=reranker)
    rag.ingest([Document(id="a", title="Wheels", text="four of them")])
    rag.query("wheels")
    assert ["Wheels\nfour of them"] == reranker.calls[0][1]


def test_the_rerankers_own_alpha_holds_unless_one_is_given() -> None:
    """A weak reranker declares a small weight; the user's number wins over it."""
    weak = preferring("car")
    weak.default_alpha = 0.0
    assert "car" != pipeline(weak).query("apple fruit").hits[0].document_id
    assert "car" == pipeline(weak).query("apple fruit", alpha=1.0).hits[0].document_id
    assert "car" == pipeline(weak, alpha=1.0).query("apple fruit").hits[0].document_id


def test_the_filter_reaches_the_first_stage() -> None:
    """``where`` narrows the candidates, so it cannot leave fewer hits than there are."""
    result = pipeline(preferring()).query("apple", where={"long": False}, top_n=2, top_k=2)
    assert {"苹果", "car", "apple", "pear"} > {hit.document_id for hit in result.hits}
    assert {False} == {hit.metadata["long"] for hit in result.hits}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"lang": "en", "long": False}, ["nothing in fake-store passes the filter on lang, long"]),
        ([{"lang": "en"}, {"lang": "zh", "long": None}], ["nothing in fake-store passes the filter on lang, long"]),
        ([{"lang": "en"}, {"long": False}], []),
        ({"long": False}, []),
        (None, []),
    ],
)
def test_a_filter_that_nothing_passes_is_said(where: Where | None, said: list[str]) -> None:
    """A misspelt key looks like a collection without answers."""
    assert said == pipeline().query("apple", where=where).warnings


def test_a_document_has_so_many_hits_at_most() -> None:
    """Then others come in; ranks and thresholds are as ever."""
    rag = pipeline(chunk_tokens=24, chunk_overlap=0)
    rag.ingest([Document(id="long", text="\n\n".join(f"an apple is a fruit, and so is plum {i}" for i in range(9)))])
    assert ["long"] * 5 == [hit.document_id for hit in rag.query("apple plum").hits]
    found = rag.query("apple plum", per_document=2)
    assert (5, 2) == (len(found.hits), [hit.document_id for hit in found.hits].count("long"))
    assert [1, 2, 3, 4, 5] == [hit.rank for hit in found.hits]
    assert 2 == len(rag.query("apple plum", per_document=1, top_k=2).hits)
    once = Pipeline(embedder=rag.embedder, store=rag.store, search="dense", per_document=1)
    assert 5 == len({hit.document_id for hit in once.query("apple plum").hits})


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1"])
def test_a_wrong_bound_of_hits_of_a_document(wrong: Any) -> None:
    """Is refused like other numbers."""
    with pytest.raises(SettingsError, match="per_document"):
        pipeline().query("apple", per_document=wrong)


def test_top_n_bounds_what_the_reranker_sees() -> None:
    """Only the candidates are paid for."""
    reranker = preferring()
    result = pipeline(reranker).query("apple fruit", top_n=2)
    assert (2, 2) == (len(reranker.calls[0][1]), len(result.hits))


def test_an_empty_collection_answers_with_a_note() -> None:
    """Asking before ingesting is not an error, but it is said."""
    result = Pipeline(embedder=FakeEmbedder(), store=FakeStore()).query("anything")
    assert ([], 0) == (result.hits, result.candidates)
    assert "empty" in result.warnings[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "top_k must be between 1 and top_n"),
        ({"top_n": 1001}, "top_n must be between 1 and 1000"),
        ({"top_n": 5, "top_k": 6}, "top_k must be between"),
        ({"threshold": 1.5}, "threshold must be between 0 and 1"),
        ({"alpha": -0.1}, "alpha must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(options: Mapping[str, Any], said: str) -> None:
    """The message says what is allowed."""
    with pytest.raises(SettingsError, match=said):
        pipeline().query("apple", **options)


def test_a_blank_query_is_refused() -> None:
    """There is nothing to look for."""
    with pytest.raises(SettingsError, match="empty"):
        pipeline().query("  \n ")


def test_a_collection_of_another_model_is_refused() -> None:
    """Cosines between vectors of two models look like answers and are noise."""
    rag = pipeline()
    other = Pipeline(embedder=FakeEmbedder(name="other@2"), store=rag.store)
    with pytest.raises(
        FingerprintError, match=r"embedder: stored 'fake-embedder@1', asked for 'other@2'.*RAG_COLLECTION"
    ):
        other.query("apple")


def test_other_chunking_may_query_but_not_ingest() -> None:
    """How chunks were cut does not matter for finding them, only for adding to them."""
    rag = pipeline()
    other = Pipeline(embedder=FakeEmbedder(), store=rag.store, chunk_tokens=100)
    assert 4 == len(other.query("apple").hits)
    with pytest.raises(FingerprintError, match="chunk_tokens: stored 256, asked for 100"):
        other.ingest([Document(id="x", text="y")])


def test_a_reranker_that_loses_a_score_is_an_error() -> None:
    """A list of another length cannot be put beside the candidates."""

    class Short(FakeReranker):
        def score(self, query: str, texts: Any) -> list[RerankScore]:
            return super().score(query, texts)[:-1]

    with pytest.raises(RerankerError, match="3 scores for 4 texts"):
        pipeline(Short()).query("apple")


def test_only_one_version_of_a_document_answers() -> None:
    """While a changed document is being written, both versions are stored; the complete one counts."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), chunk_tokens=32, chunk_overlap=0)
    old = Document(id="d", text="the apple is green. " * 30)
    rag.ingest([old])
    new = Document(id="d", text="the apple is red. " * 30)
    scratch = Pipeline(embedder=FakeEmbedder(), store=FakeStore(), chunk_tokens=32, chunk_overlap=0)
    scratch.ingest([new])
    assert isinstance(scratch.store, FakeStore)
    written = sorted((chunk for chunk, _ in scratch.store.points.values()), key=lambda chunk: chunk.index)
    rag.store.upsert(written[:2], FakeEmbedder().embed_documents([chunk.full_text for chunk in written[:2]]))
    assert {old.content_hash()} == {hit.chunk.content_hash for hit in rag.query("apple red", top_k=50).hits}
    rag.store.upsert(written[2:], FakeEmbedder().embed_documents([chunk.full_text for chunk in written[2:]]))
    assert 1 == len({hit.chunk.content_hash for hit in rag.query("apple red", top_k=50).hits})


def test_a_long_document_answers_once_it_is_all_there() -> None:
    """It is written in several steps; until the last one queries do not see it. Asked once, then known."""

    class Asked(FakeStore):
        whole_chunks = 3
        times = 0

        def versions(self, document_ids: Sequence[str] | None = None) -> Iterator[DocumentVersion]:
            self.times += 1
            return super().versions(document_ids)

    store = Asked()
    rag = Pipeline(embedder=FakeEmbedder(), store=store, chunk_tokens=32, chunk_overlap=0)
    rag.ingest([Document(id="long", text="the apple is green. " * 30), Document(id="short", text="an apple")])
    last = max((chunk for chunk, _ in store.points.values()), key=lambda chunk: chunk.index)
    taken = store.points.pop(last.id)
    assert {"short"} == {hit.document_id for hit in rag.query("apple", top_k=50).hits}
    store.points[last.id] = taken
    store.times = 0
    for _ in range(3):
        assert {"short", "long"} == {hit.document_id for hit in rag.query("apple", top_k=50).hits}
    assert 1 == store.times


def test_the_json_has_the_fields_of_the_interface() -> None:
    """Programs outside read these names."""
    value = pipeline(preferring("car")).query("apple").to_dict()
    assert ["query", "reranker", "degraded", "warnings", "hits", "candidates", "reranked", "timings_ms"] == list(value)
    assert {
        "rank",
        "id",
        "document_id",
        "title",
        "text",
        "source",
        "copies",
        "score",
        "rerank",
        "first_stage",
        "metadata",
    } == set(value["hits"][0])
    assert {"probability", "raw", "window"} == set(value["hits"][0]["rerank"])
    assert {"embed", "search", "rerank", "total"} == set(value["timings_ms"])


def written(value: object) -> str:
    """As web frameworks write JSON: strictly, and in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8").decode()


def test_dictionaries_are_json_for_every_writer() -> None:
    """NaN and lone surrogates, which metadata and file names bring, are in none; the commands ask for what is exact."""
    rag = pipeline()
    odd = {"n": [math.nan, 1.5], "m": {"\udce9": -math.inf}}
    rag.ingest([Document(id="caf\udce9", text="coffee \udce9 house", metadata=odd)])
    result = rag.query("coffee house \ud83d", top_k=1)
    shown = json.loads(written(result.to_dict()))
    assert ("coffee house \ufffd", "caf\ufffd") == (shown["query"], shown["hits"][0]["document_id"])
    assert {"n": [None, 1.5], "m": {"\ufffd": None}} == shown["hits"][0]["metadata"]
    assert shown["hits"][0] == json.loads(written(result.hits[0].to_dict()))
    exact = result.to_dict(exact=True)
    assert ("coffee house \ud83d", "caf\udce9") == (exact["query"], exact["hits"][0]["source"])
    reports: list[Any] = [
        IngestReport(failures=[Failure("\udce9", "\udce9")], warnings=["\udce9"]),
        VerifyReport(1, 1, [Problem("gone", "\udce9", "\udce9", "")]),
        ExportReport("\udce9", 1, 1, vectors=False),
        ImportReport("\udce9", 1, 1, 1, 1, embedded=False),
        ReindexReport("a", None, 1, 1, 0, warnings=["\udce9"]),
    ]
    assert all("\ufffd" in written(report.to_dict()) for report in reports)


def test_fingerprints_say_what_differs() -> None:
    """Each differing field is named with both values."""
    one = Fingerprint("a", 3, 256, 32, "b")
    two = Fingerprint("a", 4, 128, 32, "b")
    assert [("dimension", 3, 4), ("chunk_tokens", 256, 128)] == one.differences(two)
    assert [("dimension", 3, 4)] == one.differences(two, ignore=frozenset({"chunk_tokens"}))


class Failing(FakeReranker):
    """A reranker that never answers."""

    def __init__(self, name: str = "remote", operator: bool = False) -> None:
        super().__init__(name=name)
        self.operator = operator

    def score(self, query: str, texts: Any) -> list[RerankScore]:
        raise RerankerError(
            f"{self.name} is down", provider=self.name, retryable=not self.operator, operator=self.operator
        )


def test_a_fallback_answers_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Degraded, by whom, why, in a log line and in a counter; the threshold was meant for another scale."""
    rag = pipeline(Failing(), fallbacks=[Failing("second"), preferring("car")], threshold=0.99, alpha=0.0)
    result = rag.query("apple fruit")
    assert (True, "fake", "car", 4) == (
        result.degraded,
        result.reranker,
        result.hits[0].document_id,
        len(result.hits),
    )
    said = " ".join(result.warnings)
    assert all(
        part in said for part in ("remote is down", "second is down", "fake answered", "threshold was not applied")
    )
    assert {"remote": 1, "second": 1} == rag.fallbacks_taken
    assert ["remote", "second"] == [str(record.args[0]) for record in caplog.records if isinstance(record.args, tuple)]


def test_the_first_stage_is_a_fallback_that_never_fails() -> None:
    """``none`` at the end of the chain answers in first-stage order."""
    result = pipeline(Failing(), fallbacks=[None]).query("apple fruit")
    assert (True, "none", [1, 2, 3, 4]) == (
        result.degraded,
        result.reranker,
        [hit.first_stage.rank for hit in result.hits],
    )


class Raising(FakeReranker):
    """Somebody's own, which does not know this package's errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(name="own")
        self.error = error

    def score(self, query: str, texts: Any) -> list[RerankScore]:
        raise self.error


@pytest.mark.parametrize("error", [TimeoutError("my server is away"), ConnectionResetError()])
def test_a_rerankers_own_timeout_is_covered_by_a_fallback(error: Exception) -> None:
    """As that of the ones here."""
    result = pipeline(Raising(error), fallbacks=[None]).query("apple fruit")
    assert result.degraded
    assert f"reranker own failed: own raised {type(error).__name__}" in " ".join(result.warnings)


def test_a_rerankers_own_mistake_is_never_covered() -> None:
    """It comes out as it is, or nobody would ever mend it."""
    with pytest.raises(ZeroDivisionError):
        pipeline(Raising(ZeroDivisionError()), fallbacks=[None]).query("apple")


def test_without_a_fallback_the_failure_is_an_error() -> None:
    """Nothing is hidden."""
    with pytest.raises(RerankerError, match="remote is down"):
        pipeline(Failing()).query("apple")


def test_the_last_failure_of_a_chain_is_an_error() -> None:
    """All were asked."""
    with pytest.raises(RerankerError, match="second is down"):
        pipeline(Failing(), fallbacks=[Failing("second")]).query("apple")


def test_a_wrong_key_never_falls_back() -> None:
    """It would be hidden for good: the operator must hear of it."""
    with pytest.raises(RerankerError, match="remote is down"):
        pipeline(Failing(operator=True), fallbacks=[None]).query("apple")


class Slow(FakeReranker):
    """Takes a second a text on a clock of its own."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    def score(self, query: str, texts: Any) -> list[RerankScore]:
        self.clock[0] += len(texts)
        return super().score(query, texts)


def hurried(monkeypatch: pytest.MonkeyPatch, deadline_ms: float, **options: Any) -> Pipeline:
    """A pipeline over ten texts of equal length, whose reranker would take ten seconds."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    rag = Pipeline(
        embedder=FakeEmbedder(), store=FakeStore(), reranker=Slow(clock), deadline_ms=deadline_ms, top_k=10, **options
    )
    rag.ingest([Document(id=f"{i}", text=f"apple number {i} " + "pear " * i + "plum " * (10 - i)) for i in range(10)])
    return rag


def test_a_fallback_that_is_cut_short_has_no_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing is said of one."""
    rag = hurried(monkeypatch, 8000)
    clock = getattr(rag.reranker, "clock")  # noqa: B009
    rag = Pipeline(
        embedder=rag.embedder, store=rag.store, reranker=Failing(), fallbacks=[Slow(clock)], deadline_ms=8000, top_k=10
    )
    result = rag.query("apple pear", threshold=0.5)
    assert 0 < result.reranked < len(result.hits) == 10
    assert any(f"left time to rerank {result.reranked} of 10" in warning for warning in result.warnings)
    assert ["the threshold was not applied: it was meant for another reranker"] == [
        warning for warning in result.warnings if "threshold" in warning
    ]


def test_a_deadline_reranks_what_fits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of the first stage are reranked; the rest stand below them in first-stage order."""
    result = hurried(monkeypatch, 8000).query("apple pear")
    assert 4 <= result.reranked < 10
    assert [True] * result.reranked + [False] * (10 - result.reranked) == [
        hit.rerank is not None for hit in result.hits
    ]
    assert set(range(1, result.reranked + 1)) == {hit.first_stage.rank for hit in result.hits[: result.reranked]}
    rest = [hit.first_stage.rank for hit in result.hits[result.reranked :]]
    assert sorted(rest) == rest
    scores = [hit.score for hit in result.hits]
    assert sorted(scores, reverse=True) == scores
    assert not result.degraded
    assert f"left time to rerank {result.reranked} of 10" in result.warnings[0]


def test_hits_that_time_did_not_reach_are_under_any_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of them, and a threshold promises that something is."""
    result = hurried(monkeypatch, 8000).query("apple pear", threshold=0.0)
    assert result.reranked == len(result.hits) < 10
    assert result.warnings[0].endswith("of 10 candidates; the others are under every threshold")
    assert "threshold" not in hurried(monkeypatch, 8000).query("apple pear").warnings[0]


def test_no_time_at_all_is_the_order_of_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no reranker had been there, and that is said: degraded."""
    rag = hurried(monkeypatch, 4000)
    rag.query("apple pear")  # measures its pace: a second a text
    result = rag.query("apple pear", deadline_ms=1, threshold=0.5)
    assert (True, "none", 0, 10) == (result.degraded, result.reranker, result.reranked, len(result.hits))
    assert any("threshold was not applied" in warning for warning in result.warnings)


def test_without_a_deadline_all_are_reranked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices would cost speed where there is no hurry."""
    rag = hurried(monkeypatch, 1e9)
    rag.deadline_ms = None
    result = rag.query("apple pear")
    assert isinstance(rag.reranker, FakeReranker)
    assert (10, [10]) == (result.reranked, [len(texts) for _, texts in rag.reranker.calls])


class Loading(FakeReranker):
    """Loads its model, or fails to, once it is let."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.loads = 0
        self.loaded = threading.Event()

    def load(self) -> None:
        self.loads += 1
        self.loaded.set()
        if self.error is not None:
            raise self.error


class Waiting(FakeEmbedder):
    """Embeds a query once the reranker began to load: waits for ever where that comes after."""

    def __init__(self, reranker: Loading) -> None:
        super().__init__()
        self.reranker = reranker

    def embed_query(self, text: str) -> NDArray[np.float32]:
        assert self.reranker.loaded.wait(10)
        return super().embed_query(text)


@pytest.mark.parametrize("error", [None, RuntimeError("no memory")])
def test_the_reranker_loads_beside_the_first_stage(error: Exception | None) -> None:
    """Once a pipeline; a failure is left to the scoring, which says it properly."""
    reranker = Loading(error)
    store = FakeStore()
    with Pipeline(embedder=FakeEmbedder(), store=store, reranker=reranker, search="dense") as rag:
        rag.ingest([Document(id=id_, text=text) for id_, text in TEXTS.items()])
        assert 0 == reranker.loads
    with Pipeline(embedder=Waiting(reranker), store=store, reranker=reranker, search="dense") as rag:
        assert [4, 4] == [len(rag.query("apple").hits) for _ in range(2)]
    assert 1 == reranker.loads


class Held(Loading):
    """Is loading until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def load(self) -> None:
        super().load()
        assert self.let.wait(10)


def test_a_deadline_holds_while_the_reranker_loads() -> None:
    """The first stage answers and says why; without a deadline, or once it has loaded, the reranker does."""
    reranker = Held()
    with Pipeline(embedder=FakeEmbedder(), store=FakeStore(), reranker=reranker, search="dense", threshold=0.5) as rag:
        rag.ingest([Document(id=id_, text=text) for id_, text in TEXTS.items()])
        rag.deadline_ms = 20
        result = rag.query("apple")
        assert (True, 0, "none", 4) == (result.degraded, result.reranked, result.reranker, len(result.hits))
        assert "the reranker is still loading" in result.warnings
        assert [] == reranker.calls
        reranker.let.set()
        rag.deadline_ms = 60_000
        assert (4, "fake") == (rag.query("apple").reranked, rag.query("apple").reranker)


def test_a_deadline_holds_while_a_fallback_loads() -> None:
    """It is loaded when it is first needed: the first stage answers meanwhile, and nobody is said to have answered."""
    fallback = Held()
    rag = Pipeline(
        embedder=FakeEmbedder(), store=FakeStore(), reranker=Failing(), fallbacks=[fallback], search="dense", top_k=4
    )
    with rag:
        rag.ingest([Document(id=id_, text=text) for id_, text in TEXTS.items()])
        for _ in range(2):
            result = rag.query("apple", deadline_ms=20)
            assert (True, 0, "none", 4) == (result.degraded, result.reranked, result.reranker, len(result.hits))
            assert "reranker fake is still loading" in result.warnings
            assert not any("answered instead" in warning for warning in result.warnings)
        assert (1, []) == (fallback.loads, fallback.calls)
        fallback.let.set()
        result = rag.query("apple", deadline_ms=60_000)
        assert (4, "fake") == (result.reranked, result.reranker)
        assert "fake answered instead" in result.warnings


def test_a_collection_that_was_emptied_is_called_empty() -> None:
    """Whatever the filter."""
    rag = pipeline(None)
    rag.query("apple")
    rag.delete(list(TEXTS))
    for where in (None, {"lang": "en"}):
        assert ["fake-store is empty: ingest documents first"] == rag.query("apple", where=where).warnings


def test_nothing_is_loaded_for_an_empty_collection() -> None:
    """There is nothing to rerank, so the note comes at once."""

    class Unasked(FakeEmbedder):
        def embed_query(self, text: str) -> NDArray[np.float32]:
            raise AssertionError("nothing is there that its vector could find")

    reranker = Loading()
    with Pipeline(embedder=Unasked(), store=FakeStore(), reranker=reranker, search="dense") as rag:
        assert not rag.query("apple").hits
    assert 0 == reranker.loads


def test_rank_fusion_is_chosen_by_name() -> None:
    """``rrf`` needs no scores of comparable size; the first of both stages has score 1."""
    rag = pipeline(preferring("apple"), fusion="rrf", alpha=0.5)
    best = rag.query("apple fruit").hits[0]
    assert best.document_id == "apple"
    assert pytest.approx(1.0) == best.score


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"search": "Hybrid"}, "search is one of hybrid, dense, sparse, not 'Hybrid'"),
        ({"hybrid_fusion": "Convex"}, "hybrid_fusion is one of convex, dbsf, rrf, not 'Convex'"),
        ({"fusion": "RRF"}, "fusion is one of linear, rrf, not 'RRF'"),
    ],
)
def test_words_that_are_unknown(options: dict[str, Any], says: str) -> None:
    """Nothing is fused in another way than asked for."""
    with pytest.raises(SettingsError, match=says):
        Pipeline(embedder=FakeEmbedder(), store=FakeStore(), **options)


def test_scores_are_json_whatever_number_the_weight_is() -> None:
    """A score of NumPy's kind is none."""
    result = pipeline(preferring("apple"), fusion="rrf").query("apple", alpha=np.float32(0.5))  # type: ignore[arg-type]
    assert {float} == {type(hit.score) for hit in result.hits}
    assert written(result.to_dict())


@pytest.mark.parametrize("score", [RerankScore(None, 0.5), RerankScore("1", 0.5), RerankScore(10**400, 0.5)])  # type: ignore[arg-type]
def test_a_score_that_is_no_number_is_the_rerankers_fault(score: RerankScore) -> None:
    """So the fallback answers."""

    class Wrong(FakeReranker):
        def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
            return [score] * len(texts)

    result = pipeline(Wrong(), fallbacks=[None]).query("apple")
    assert (True, "none") == (result.degraded, result.reranker)
    assert "gave no finite raw score" in result.warnings[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": "3"}, "top_k is a whole number, not '3'"),
        ({"top_k": 2.5}, "top_k is a whole number, not 2.5"),
        ({"top_n": None, "top_k": True}, None),
        ({"threshold": "a"}, "threshold is a number, not 'a'"),
        ({"deadline_ms": [1]}, "deadline_ms is a number"),
        ({"deadline_ms": math.inf}, "deadline_ms must be over 0 and finite, not inf"),
        ({"deadline_ms": math.nan}, "deadline_ms must be over 0 and finite, not nan"),
        ({"deadline_ms": 10**400}, "deadline_ms is larger than any number"),
        ({"threshold": 10**400}, "threshold is larger than any number"),
        ({"alpha": np.float32(0.5), "top_k": np.int64(2)}, None),
    ],
)
def test_arguments_of_another_type(options: dict[str, Any], says: str | None) -> None:
    """Are refused by name, and numbers of NumPy are numbers."""
    rag = pipeline(FakeReranker())
    if says is None:
        assert rag.query("apple", **options).hits
        return
    with pytest.raises(SettingsError, match=says):
        rag.query("apple", **options)


def test_a_deadline_of_centuries_is_kept() -> None:
    """No wait of any kind takes a number of that size; so nobody waits longer than some days."""

    class Loading(FakeReranker):
        def load(self) -> None:
            pass

    with pipeline(Loading(), deadline_ms=1e300) as rag:
        assert rag.query("apple").reranked
        assert not rag.query("apple", deadline_ms=10**15).degraded


@pytest.mark.parametrize("text", [None, 5, b"apple"])
def test_a_query_that_is_no_string(text: Any) -> None:
    """Is refused in words."""
    with pytest.raises(SettingsError, match="a query is a string"):
        pipeline(FakeReranker()).query(text)


@pytest.mark.parametrize("scores", [[0.5] * 4, None, (0.5 for _ in range(4)), "1234"])
def test_a_reranker_that_gives_something_else(scores: Any) -> None:
    """Its author is told what it should have been."""

    class Other(FakeReranker):
        def score(self, query: str, texts: Sequence[str]) -> Any:
            return scores

    with pytest.raises(RerankerError, match="reranker fake gave no list of RerankScore, but "):
        pipeline(Other()).query("apple")


@pytest.mark.parametrize(("words", "warned"), [(500, False), (600, True)])
def test_a_query_that_is_not_read_to_its_end_says_so(words: int, warned: bool) -> None:
    """Else what is asked at the end of a long message would be lost without a word."""
    rag = pipeline()
    assert 512 == rag.embedder.max_tokens
    result = rag.query("apple " * words)
    assert warned == any("reads the first 512: shorten it" in warning for warning in result.warnings)


def test_a_long_query_with_half_a_character_is_answered() -> None:
    """As a short one is: JSON from elsewhere may bring it."""
    assert pipeline().query("apple " * 600 + "\ud83d").hits
