import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer

from pipeline.build import calibration_dir
from pipeline.calibration import Calibration, save_calibration
from pipeline.cascade import Cascade
from pipeline.core import Pipeline
from pipeline.errors import RerankerError, SettingsError
from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.run import RunResult, run_all
from pipeline.evaluation.saved import compare, load, save
from pipeline.evaluation.summary import outcome
from pipeline.evaluation.terminal import print_comparison, print_eval
from pipeline.settings import Settings
from pipeline.types import Candidate, Document, RerankScore, SearchMode
from tests.evaluations import QUERIES, TEXTS, contrary, dataset, evaluation, filled_store
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore, word_tokenizer

pytestmark = pytest.mark.usefixtures("plain_settings")


def test_a_run_ranks_as_the_pipeline_does() -> None:
    """Remembered parts change no order; neither do other runs beside it."""
    found = evaluation(
        [RunSpec("hybrid", "none", 100), RunSpec("hybrid", "contrary", 4), RunSpec("hybrid", "contrary", 4, 0.3)]
    )
    for run, alpha in zip(found.runs[1:], (None, 0.3), strict=True):
        rag = Pipeline(
            embedder=FakeEmbedder(), store=filled_store(), reranker=contrary(), top_n=4, top_k=4, alpha=alpha
        )
        for id_, text in QUERIES.items():
            assert tuple(hit.document_id for hit in rag.query(text).hits) == run.answers[id_].ranking
    assert (None, 0.8, 0.3) == tuple(run.alpha for run in found.runs)


def test_runs_share_what_they_have_in_common() -> None:
    """One embedding and one search a query, and one scoring for all weights and thresholds."""
    reranker, embedder = contrary(), FakeEmbedder()
    specs = [RunSpec("hybrid", "contrary", 4, alpha, cut) for alpha in (0.1, 0.5, 1.0) for cut in (None, 0.5)]
    run_all(dataset(), Settings(data_dir=Path("x")), specs, embedder, filled_store(), {"contrary": reranker}, say=print)
    warm_up = 1
    assert len(QUERIES) + warm_up == len(reranker.calls)


class Failing(FakeReranker):
    """Answers the first ``good`` calls alone."""

    def __init__(self, good: int) -> None:
        super().__init__(name="failing")
        self.good = good

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        if len(self.calls) == self.good:
            raise RerankerError("the endpoint is overloaded", provider="failing", status=529)
        return super().score(query, texts)


FAILS = [RunSpec("hybrid", "failing", 4), RunSpec("hybrid", "none", 100), RunSpec("hybrid", "contrary", 4)]


def test_a_run_whose_reranker_fails_midway_takes_no_other_with_it() -> None:
    """The warm-up and two queries went well."""
    rerankers = {"failing": Failing(3), "none": None, "contrary": contrary()}
    found = evaluation(FAILS, rerankers)
    alone = evaluation(FAILS[1:])
    assert [FAILS[0]] == list(found.failed)
    assert [run.spec for run in alone.runs] == [run.spec for run in found.runs]
    for run, other in zip(found.runs, alone.runs, strict=True):
        assert other.values == run.values
    summary = outcome(found)
    assert "hybrid + failing, top 4 failed and is left out: the endpoint is overloaded" == summary["warnings"][0]
    assert [None, True] == [run["against_first"] and bool(run["against_first"]) for run in summary["runs"]]


@pytest.mark.parametrize(
    ("specs", "good"), [(FAILS, 0), (FAILS[:1], 3)], ids=["at the first query", "and there is no other run"]
)
def test_an_evaluation_fails_at_once_where_nothing_would_be_left_of_it(specs: list[RunSpec], good: int) -> None:
    """A wrong key is not found out after all other runs are done."""
    reranker, other = Failing(good), contrary()
    with pytest.raises(RerankerError, match="overloaded"):
        evaluation(specs, {"failing": reranker, "none": None, "contrary": other})
    assert good == len(reranker.calls)
    assert [] == other.calls


class Identified(FakeReranker):
    """One that says which model it runs."""

    identity = "model@1"


@pytest.mark.parametrize("fitted_on", [dataset().name, "other"])
def test_a_calibration_in_force_is_said(tmp_path: Path, fitted_on: str) -> None:
    """A threshold that was chosen on the same questions looks better than it is."""
    settings = Settings(data_dir=tmp_path)
    kept = Calibration("who model@1", "platt", ((1.0, 0.5),), fitted_on, 10, 500, 10, 0.4, 0.9, "2026-01-01")
    save_calibration(calibration_dir(settings), kept)
    specs = [RunSpec("hybrid", "who", 4), RunSpec("hybrid", "contrary", 4)]
    rerankers = {"who": Identified(name="who"), "contrary": contrary()}
    found = run_all(dataset(), settings, specs, FakeEmbedder(), filled_store(), rerankers, say=print)
    (line,) = (line for line in outcome(found)["warnings"] if "calibrated" in line)
    assert line.startswith(f"who is calibrated (platt, on 10 queries of {fitted_on})")
    assert (fitted_on != "other") == line.endswith("flattered")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What ``time.perf_counter`` says, in seconds; it stands still where nobody moves it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


class Unhurried(FakeReranker):
    """Takes 4 ms for its scores, and 16 ms before, for the tokenizer that cuts the texts for it."""

    max_tokens = 512

    def __init__(self, clock: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.clock = clock

    @property
    def tokenizer(self) -> Tokenizer:
        self.clock[0] += 0.016
        return word_tokenizer()

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.clock[0] += 0.004
        return super().score(query, texts)


def test_the_time_of_a_stage_is_all_that_it_takes(clock: list[float]) -> None:
    """What is done around a part counts beside the part's own time; a remembered part counts as if it had worked."""
    specs = [RunSpec("hybrid", "unhurried", 6, alpha) for alpha in (0.1, 0.5)]
    for run in evaluation(specs, {"unhurried": Unhurried(clock)}).runs:
        for answer in run.answers.values():
            assert {"embed": 0, "search": 0, "rerank": 20, "total": 20} == pytest.approx(answer.latency_ms)


class Reading(FakeEmbedder):
    """Reads a query for the reranker, too."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def embed_query(self, text: str) -> NDArray[np.float32]:
        self.read.add(text)
        return super().embed_query(text)

    def forget_queries(self) -> None:
        self.read.clear()


class Late(FakeReranker):
    """Takes 4 ms for its scores, and 30 ms more for a query that the embedder has not read."""

    def __init__(self, clock: list[float], embedder: Reading) -> None:
        super().__init__(name="late")
        self.clock, self.embedder = clock, embedder

    def score(self, query: str, texts: Sequence[str]) -> list[RerankScore]:
        self.clock[0] += 0.004 if query in self.embedder.read else 0.034
        return super().score(query, texts)


class Wordless(FakeStore):
    """Finds the same without a vector."""

    def search(self, text: str, vector: NDArray[np.float32] | None, **options: Any) -> list[Candidate]:
        return super().search(text, FakeEmbedder().embed_query(text) if vector is None else vector, **options)


@pytest.mark.parametrize("searches", [("hybrid", "sparse"), ("sparse", "hybrid")])
@pytest.mark.parametrize("cascade", [False, True])
def test_a_search_without_embedding_is_measured_with_a_query_that_nobody_has_read(
    clock: list[float], searches: tuple[SearchMode, ...], cascade: bool
) -> None:
    """Whatever runs are beside it, before or after, and though they find the same; the others find it read."""
    embedder, store = Reading(), Wordless()
    Pipeline(embedder=embedder, store=store).ingest(Document(id=id_, text=text) for id_, text in TEXTS.items())
    late = Late(clock, embedder)
    specs = [RunSpec(search, "asked", top_n) for top_n in (6, 3) for search in searches]
    rerankers = {"asked": contrary() if cascade else late}
    cascades = {"asked": Cascade(late) if cascade else None}
    found = run_all(dataset(), Settings(data_dir=Path("x")), specs, embedder, store, rerankers, cascades, say=print)
    for run in found.runs:
        times = {answer.latency_ms["rerank"] for answer in run.answers.values()}
        assert [4 if run.spec.search == "hybrid" else 34] * len(times) == pytest.approx(list(times))


def test_a_cascade_is_that_of_a_query_and_its_first_step_is_part_of_reranking(clock: list[float]) -> None:
    """Though all hits are looked at, the full reranker reads no more than for a query; the time is that of both."""
    quick, full = Unhurried(clock, name="quick"), contrary()
    settings = Settings(data_dir=Path("x"), top_k=2)
    specs = [RunSpec("hybrid", "contrary", 6), RunSpec("hybrid", "contrary", 6, 0.3), RunSpec("hybrid", "none", 100)]
    rerankers = {"contrary": full, "none": None}
    found = evaluation(specs, rerankers, settings, cascades={"contrary": Cascade(quick), "none": None})
    rag = Pipeline(
        embedder=FakeEmbedder(), store=filled_store(), reranker=contrary(), cascade=Cascade(FakeReranker()), top_k=2
    )
    for id_, text in QUERIES.items():
        expected = rag.query(text)
        answer = found.runs[0].answers[id_]
        assert tuple(hit.document_id for hit in expected.hits) == answer.ranking[:2]
        assert (6, 2) == (len(answer.ranking), len(answer.scores))
        assert [20, 20] == pytest.approx([run.answers[id_].latency_ms["rerank"] for run in found.runs[:2]])
    warm_up = 1
    assert [len(QUERIES) + warm_up] * 2 == [len(quick.calls), len(full.calls)]
    assert 0 == found.runs[2].answers["q1"].latency_ms["rerank"]


def test_a_threshold_drops_hits_and_keeps_the_first_stage() -> None:
    """Precision may rise and recall fall; the ceiling is that of all candidates."""
    plain, cut = evaluation([RunSpec("hybrid", "contrary", 6), RunSpec("hybrid", "contrary", 6, None, 0.75)]).runs
    for id_ in QUERIES:
        assert plain.answers[id_].first == cut.answers[id_].first
        passed = [document for document, probability in plain.answers[id_].scores if probability >= 0.75]
        assert set(passed) == set(cut.answers[id_].ranking)
        assert len(passed) == cut.answers[id_].hits < 6


def test_the_outcome_has_the_names_of_the_interface() -> None:
    """And beside them intervals, tests, stages and latencies."""
    found = outcome(evaluation())
    assert ("a set", 5, 6) == (found["dataset"], found["queries"], found["documents"])
    first, second = found["runs"]
    assert {"search", "reranker", "ndcg@10", "mrr@10", "recall@5", "recall@100", "latency_ms"} <= set(first)
    assert {"p50", "p95", "embed", "search", "rerank"} == set(first["latency_ms"])
    assert (None, "contrary", 4, 0.8) == (first["against_first"], second["reranker"], second["top_n"], second["alpha"])
    test = second["against_first"]["ndcg@10"]
    assert second["ndcg@10"] - first["ndcg@10"] == pytest.approx(test["difference"], abs=2e-5)
    assert test["low"] <= test["difference"] <= test["high"]
    assert (None, True) == (first["pairs_per_second"], second["pairs_per_second"] > 0)
    assert found == json.loads(json.dumps(found))


def test_the_first_stage_is_measured_apart() -> None:
    """Recall of all candidates bounds every order of them; the curve rises to it."""
    found = outcome(evaluation())
    curve = list(found["first_stage"]["hybrid"]["recall"].values())
    assert sorted(curve) == curve
    assert 1.0 == curve[-1]
    reranked = found["runs"][1]
    assert reranked["recall@100"] == reranked["first_stage"]["recall"] >= reranked["recall@5"]
    assert found["runs"][0]["ndcg@10"] == pytest.approx(found["runs"][0]["first_stage"]["ndcg@10"])


def test_the_time_of_a_query_is_the_sum_of_its_stages() -> None:
    """Also where another run did the work first."""
    for run in evaluation([RunSpec("hybrid", "contrary", 4), RunSpec("hybrid", "contrary", 4, 0.1)]).runs:
        for answer in run.answers.values():
            stages = sum(answer.latency_ms[stage] for stage in ("embed", "search", "rerank"))
            assert answer.latency_ms["rerank"] > 0
            assert answer.latency_ms["total"] >= stages > 0


def test_prices_are_those_of_the_settings_and_of_paid_rerankers_alone() -> None:
    """A request holds up to 100 documents; tokens count query and text of every pair."""
    specs = [RunSpec("hybrid", name, 4) for name in ("none", "embedded", "cohere")]
    rerankers = {"none": None, "embedded": FakeReranker(), "cohere": FakeReranker()}
    requests = evaluation(specs, rerankers, Settings(data_dir=Path("x"), rerank_price=2.0))
    assert [None, None, 2.0] == [run["cost_per_1000_queries"] for run in outcome(requests)["runs"]]
    tokens = evaluation(specs, rerankers, Settings(data_dir=Path("x"), rerank_token_price=1.0))
    sent = [answer.tokens for answer in tokens.runs[2].answers.values()]
    assert sum(sent) / len(sent) / 1000 == pytest.approx(outcome(tokens)["runs"][2]["cost_per_1000_queries"], abs=1e-4)
    assert min(sent) > 4 * 4


def test_judgements_that_no_search_agrees_with_are_pointed_out() -> None:
    """Swapped among themselves, ids all exist: only the quality, at that of chance, gives it away."""
    found = evaluation()
    lost = {id_: replace(answer, first=("x",) * 100) for id_, answer in found.first_stages["hybrid"].answers.items()}
    firsts: dict[SearchMode, RunResult] = {"hybrid": replace(found.first_stages["hybrid"], answers=lost)}
    assert any(
        "no better than a random order" in line
        for line in outcome(replace(found, documents=5000, first_stages=firsts))["warnings"]
    )
    assert not any("random" in line for line in outcome(replace(found, documents=5000))["warnings"])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a saved evaluation of two runs."""
    found = evaluation()
    return save(found, outcome(found), tmp_path / "runs")


def paths(folder: Path) -> tuple[Path, Path]:
    first, second = sorted(folder.glob("[0-9]-*.json"))
    return first, second


def test_saved_runs_are_trec_files_that_other_tools_read(saved: Path) -> None:
    """ir-measures' own readers give the same figures; an id with a space is one field."""
    import ir_measures

    for path in paths(saved):
        qrels = ir_measures.read_trec_qrels(str(saved / "qrels.trec"))
        run = ir_measures.read_trec_run(str(path.with_suffix(".trec")))
        summary = json.loads(path.read_text())["summary"]
        measure = ir_measures.nDCG @ 10
        assert summary["ndcg@10"] == pytest.approx(ir_measures.calc_aggregate([measure], qrels, run)[measure], abs=1e-5)
    assert "folders/with%20space%20100%25" in paths(saved)[0].with_suffix(".trec").read_text()


def test_two_saved_runs_are_compared_query_by_query(saved: Path) -> None:
    """By any of their names; the difference is the one that the evaluation found."""
    first, second = paths(saved)
    found = compare(load(first.with_suffix("")), load(second.with_suffix(".trec")))
    test = json.loads(second.read_text())["summary"]["against_first"]["ndcg@10"]
    assert test == found["difference"]["ndcg@10"]
    assert 5 == found["better"] + found["worse"] + found["equal"]
    assert found["worse"] >= 1
    worst = found["most_worse"][0]["ndcg@10"]
    assert worst[1] < worst[0]


def test_a_run_is_equal_to_itself(saved: Path) -> None:
    """No difference, and p is 1."""
    run = load(paths(saved)[0])
    found = compare(run, run)
    assert (0.0, 1.0, 5) == (*(found["difference"]["map"][key] for key in ("difference", "p")), found["equal"])


def test_a_shuffled_run_is_caught(saved: Path) -> None:
    """The metrics are computed again from the ranking; one that was reordered does not give them."""
    trec = paths(saved)[1].with_suffix(".trec")
    lines = [line.split() for line in trec.read_text().splitlines()]
    lines[0][2], lines[1][2] = lines[1][2], lines[0][2]
    trec.write_text("".join(" ".join(line) + "\n" for line in lines))
    with pytest.raises(SettingsError, match="does not give the metrics"):
        load(trec)


def test_rankings_under_other_queries_are_caught(saved: Path) -> None:
    """The right documents in the wrong place."""
    trec = paths(saved)[0].with_suffix(".trec")
    swap = {"q1": "q3", "q3": "q1"}
    lines = (line.split(" ", 1) for line in trec.read_text().splitlines())
    trec.write_text("".join(f"{swap.get(query, query)} {rest}\n" for query, rest in lines))
    with pytest.raises(SettingsError, match="does not give the metrics"):
        load(trec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("q1 0 ports", "q1 0 keys"), "changed or swapped"),
        (lambda text: text.replace("q", "other"), "not of the same queries"),
        (lambda text: text.replace("q1 0 ports 1\n", ""), "not of the same queries"),
    ],
)
def test_swapped_judgements_beside_a_run_are_caught(saved: Path, change: Callable[[str], str], said: str) -> None:
    """Another document, other queries, or a query that is missing."""
    qrels = saved / "qrels.trec"
    qrels.write_text(change(qrels.read_text()))
    with pytest.raises(SettingsError, match=said):
        load(paths(saved)[0])


def test_runs_over_other_queries_cannot_be_compared(saved: Path, tmp_path: Path) -> None:
    """Means of different queries say nothing about the runs."""
    part = evaluation(queries=["q1", "q2"])
    other = save(part, outcome(part), tmp_path / "other")
    with pytest.raises(SettingsError, match="3 queries are in one of them alone"):
        compare(load(paths(saved)[0]), load(paths(other)[0]))


def test_other_questions_under_the_same_ids_cannot_be_compared(saved: Path, tmp_path: Path) -> None:
    """As of a file of questions that was edited: its ids are line numbers."""
    changed = evaluation()
    changed.dataset.queries["q2"] = "copies on another machine"
    other = save(changed, outcome(changed), tmp_path / "other")
    with pytest.raises(SettingsError, match=r"query q2 is 'snapshot each night' in .* and 'copies on another machine'"):
        compare(load(paths(saved)[0]), load(paths(other)[0]))


def test_it_is_said_what_else_differs(saved: Path, tmp_path: Path) -> None:
    """The label of a run names neither model nor chunks; runs of one evaluation differ in nothing else."""
    other = evaluation(settings=Settings(data_dir=Path("unused"), chunk_tokens=128, reranker_model="a/model"))
    new = paths(save(other, outcome(other), tmp_path / "other"))[0]
    old, beside = paths(saved)
    assert {} == compare(load(old), load(beside))["made"]
    found = compare(load(old), load(new))
    assert ([256, 128], [None, "a/model"]) == (found["made"]["chunk_tokens"], found["made"]["reranker_model"])
    assert {"embedder", "at"}.isdisjoint(found["made"])
    console = Console(file=(out := StringIO()), width=80)
    print_comparison(console, found)
    assert "chunk_tokens: 256 in A, 128 in B\n" in out.getvalue()
    assert "reranker_model: none in A, a/model in B\n" in out.getvalue()
    assert str(new.with_suffix("")) in out.getvalue()


def test_what_is_no_saved_run_is_named(tmp_path: Path) -> None:
    """With what is missing."""
    with pytest.raises(SettingsError, match=r"nothing\.json"):
        load(tmp_path / "nothing")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SettingsError, match="bad"):
        load(tmp_path / "bad.json")


def test_of_a_folder_the_runs_in_it_are_named(saved: Path, tmp_path: Path) -> None:
    """rag eval prints the folder; what is compared are two runs."""
    with pytest.raises(SettingsError, match=r"is a folder: .*\(1-hybrid\.trec, 2-hybrid-contrary-top-4\.trec\)"):
        load(saved)
    with pytest.raises(SettingsError, match="there are none"):
        load(tmp_path)


def test_the_tables_fit_a_narrow_terminal(saved: Path) -> None:
    """Names stand above the tables, so that 80 columns hold every number."""
    console = Console(file=(out := StringIO()), width=80)
    print_eval(console, outcome(evaluation()))
    print_comparison(console, compare(*map(load, paths(saved))))
    shown = out.getvalue()
    assert "  2  hybrid + contrary, top 4\n" in shown
    assert "A  hybrid\n" in shown
    assert "B  hybrid + contrary, top 4\n" in shown
    assert "note: 5 queries are few" in shown
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines() if str(saved) not in line) <= 80
