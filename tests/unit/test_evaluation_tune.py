from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset
from pipeline.evaluation.plan import RunSpec
from pipeline.evaluation.run import Answer, Evaluation, RunResult
from pipeline.evaluation.terminal import print_tuned
from pipeline.evaluation.tune import Trial, choose, report, resized, split, threshold, tune
from pipeline.settings import Settings

pytestmark = pytest.mark.usefixtures("plain_settings")

IDS = [f"q{i}" for i in range(40)]
QRELS = {id_: {"right": 1} for id_ in IDS}


def settings() -> Settings:
    return Settings(data_dir=Path("unused"), top_k=3)


def trial(
    spec: RunSpec,
    *,
    ms: float,
    quality: Sequence[float],
    scores: tuple[tuple[str, float], ...] = (),
    chunk_tokens: int = 256,
) -> Trial:
    """A run of the given time on every query, whose nDCG repeats ``quality``."""
    answers = {id_: Answer((), (), scores, {}, 0, {"total": ms}, 0) for id_ in IDS}
    values = {"ndcg@10": {id_: quality[place % len(quality)] for place, id_ in enumerate(IDS)}}
    return Trial(
        chunk_tokens, RunResult(spec, None if spec.reranker == "none" else spec.alpha or 0.25, answers, values)
    )


def evaluation(trials: Sequence[Trial]) -> Evaluation:
    dataset = Dataset("set", dict.fromkeys(IDS, "text"), QRELS)
    return Evaluation(dataset, 100, [one.run for one in trials], {}, settings(), "fake")


NOW = trial(RunSpec("hybrid", "embedded", 50), ms=300, quality=[0.5, 0.7])
BETTER = trial(RunSpec("hybrid", "embedded", 100, 0.5), ms=450, quality=[0.6, 0.8], chunk_tokens=128)
SLOW = trial(RunSpec("hybrid", "cohere", 100), ms=900, quality=[0.9])
EQUAL = trial(RunSpec("dense", "embedded", 20, 0.5), ms=100, quality=[0.6, 0.8])
TRIALS = [NOW, BETTER, SLOW]


def test_the_best_within_the_budget_is_chosen() -> None:
    """And put beside the settings as they are, with the lines that get it."""
    found = report(evaluation(TRIALS), TRIALS, settings(), budget_ms=500, metric="ndcg@10")
    assert ("hybrid + embedded, top 100, alpha 0.5", 3, 2) == (
        found["chosen"]["run"],
        found["tried"],
        found["within_budget"],
    )
    assert 0.1 == pytest.approx(found["difference"])
    assert found["p"] < 0.01
    assert {"tuned_on": 20, "held_out": 20} == found["queries"]
    assert {
        "RAG_SEARCH": "hybrid",
        "RAG_RERANKER": "embedded",
        "RAG_TOP_N": "100",
        "RAG_ALPHA": "0.5",
        "RAG_CHUNK_TOKENS": "128",
        "RAG_CHUNK_OVERLAP": "32",
    } == found["env"]


def test_the_printed_lines_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of them is taken by the settings class as it is."""
    found = report(evaluation(TRIALS), TRIALS, settings(), budget_ms=500, metric="ndcg@10")
    for name, value in found["env"].items():
        monkeypatch.setenv(name, value)
    assert ("embedded", 100, 0.5) == ((s := Settings()).reranker, s.top_n, s.alpha)


def test_the_lines_for_env_can_be_copied() -> None:
    """Each on a line of its own, below the figures of the held-out half."""
    console = Console(file=(out := StringIO()), width=80)
    print_tuned(console, report(evaluation(TRIALS), TRIALS, settings(), budget_ms=500, metric="ndcg@10"))
    shown = out.getvalue()
    assert "RAG_TOP_N=100\nRAG_ALPHA=0.5\n" in shown
    assert "On the other 20 queries" in shown
    assert "+0.1000" in shown


@pytest.mark.parametrize(("size", "overlap"), [(256, 100), (128, 32), (512, 100)])
def test_the_size_as_it_is_keeps_its_overlap(size: int, overlap: int) -> None:
    """Else the run to beat were not the one that the settings give. Other sizes overlap by a quarter at most."""
    tried = resized(settings().updated(chunk_tokens=256, chunk_overlap=100), size)
    assert (size, overlap) == (tried.chunk_tokens, tried.chunk_overlap)


def test_the_lines_for_env_take_away_a_threshold_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was meant for another reranker, and may drop all hits of this one."""
    now = settings().updated(threshold=0.5)
    monkeypatch.setenv("RAG_THRESHOLD", "0.5")
    trials = [NOW, trial(RunSpec("hybrid", "none", 100), ms=100, quality=[0.9])]
    found = report(evaluation(trials), trials, now, budget_ms=500, metric="ndcg@10")
    assert found["threshold"] is None
    for name, value in found["env"].items():
        monkeypatch.setenv(name, value)
    assert Settings().threshold is None


@pytest.mark.parametrize(("reranker", "model"), [("embedded", "/a/folder"), ("cohere", None)])
def test_the_lines_for_env_take_a_model_away_from_another_reranker(
    reranker: str, model: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left where it is, the next query would ask Cohere for the folder."""
    now = settings().updated(reranker_model="/a/folder")
    monkeypatch.setenv("RAG_RERANKER_MODEL", "/a/folder")
    trials = [NOW, trial(RunSpec("hybrid", reranker, 100), ms=100, quality=[0.9])]
    for name, value in report(evaluation(trials), trials, now, budget_ms=500, metric="ndcg@10")["env"].items():
        monkeypatch.setenv(name, value)
    assert (reranker, model) == ((chosen := Settings()).reranker, chosen.reranker_model)


def test_a_wider_budget_lets_the_slow_one_win() -> None:
    """Latency alone kept it out."""
    found = report(evaluation(TRIALS), TRIALS, settings(), budget_ms=1000, metric="ndcg@10")
    assert "cohere" == found["env"]["RAG_RERANKER"]


def test_of_equals_the_fastest_is_chosen() -> None:
    """Time is not spent for nothing."""
    trials = [*TRIALS, EQUAL]
    assert (
        "dense" == report(evaluation(trials), trials, settings(), budget_ms=500, metric="ndcg@10")["env"]["RAG_SEARCH"]
    )


def test_of_equal_weights_it_is_the_one_that_is_set() -> None:
    """Not the one whose runs happened to be faster; a weight that is better is taken."""
    trials = [
        NOW,
        trial(RunSpec("hybrid", "embedded", 50, 0.1), ms=290, quality=[0.5, 0.7]),
        trial(RunSpec("hybrid", "embedded", 50, 0.5), ms=295, quality=[0.5, 0.7]),
    ]
    assert NOW is choose(trials, IDS, budget_ms=500, metric="ndcg@10")
    # Also where the weight that is set is tried by its number, too: 0.25 here.
    again = trial(RunSpec("hybrid", "embedded", 50, 0.25), ms=300, quality=[0.5, 0.7])
    slightly = trial(RunSpec("hybrid", "embedded", 50, 1.0), ms=300, quality=[0.5005, 0.7])
    assert 0.25 == choose([*trials, again, slightly], IDS, budget_ms=500, metric="ndcg@10").run.alpha
    better = trial(RunSpec("hybrid", "embedded", 50, 1.0), ms=310, quality=[0.8])
    assert better is choose([*trials, better], IDS, budget_ms=500, metric="ndcg@10")


def test_a_budget_that_nothing_meets_is_an_error() -> None:
    """With the fastest there is."""
    with pytest.raises(SettingsError, match=r"nothing answers within 10 ms.*top 50 with 300 ms"):
        report(evaluation(TRIALS), TRIALS, settings(), budget_ms=10, metric="ndcg@10")


def test_the_choice_sees_one_half_and_the_report_the_other() -> None:
    """A run that is good on the tuning half alone is chosen, and found out."""
    tuned_on, held_out = split(IDS)
    values = {"ndcg@10": {**dict.fromkeys(tuned_on, 1.0), **dict.fromkeys(held_out, 0.0)}}
    lucky = Trial(256, RunResult(RunSpec("sparse", "none", 100), None, NOW.run.answers, values))
    trials = [NOW, lucky]
    found = report(evaluation(trials), trials, settings(), budget_ms=500, metric="ndcg@10")
    assert ("sparse", 0.0) == (found["chosen"]["run"], found["chosen"]["ndcg@10"])
    assert found["difference"] < -0.5
    assert {"RAG_SEARCH": "sparse", "RAG_RERANKER": "none"} == found["env"]


def test_the_halves_share_nothing_and_are_always_the_same() -> None:
    """Whatever the order in which the queries come."""
    first, second = split(IDS)
    assert sorted(IDS) == sorted(first + second)
    assert (first, second) == split(reversed(IDS))
    assert 20 == len(set(first))


def test_too_few_queries_are_refused() -> None:
    """A half of a handful says nothing."""
    with pytest.raises(SettingsError, match="19 queries are too few"):
        split(IDS[:19])


def test_the_threshold_keeps_the_relevant_hits() -> None:
    """The highest one that does, looking at the first hits alone."""
    one = trial(
        RunSpec("hybrid", "embedded", 50),
        ms=1,
        quality=[1.0],
        scores=(("right", 0.734), ("wrong", 0.8), ("other", 0.1), ("right", 0.05)),
    )
    assert 0.73 == threshold(one.run, QRELS, IDS, 3)
    assert 0.05 == threshold(one.run, QRELS, IDS, 4)
    found = report(evaluation([one]), [one], settings(), budget_ms=5, metric="ndcg@10")
    assert {"value": 0.73, "relevant_kept": 1.0, "irrelevant_kept": 0.5} == found["threshold"]
    assert "0.73" == found["env"]["RAG_THRESHOLD"]


def test_no_threshold_without_probabilities() -> None:
    """There is nothing to compare with, and nothing is said."""
    assert threshold(NOW.run, QRELS, IDS, 3) is None
    assert "threshold" not in printed(NOW)


def test_it_is_said_why_there_is_no_threshold() -> None:
    """With what the lowest one would do."""
    scores = (("right", 0.004), ("wrong", 0.2), ("other", 0.001))
    one = trial(RunSpec("hybrid", "embedded", 50), ms=1, quality=[1.0], scores=scores)
    found = report(evaluation([one]), [one], settings(), budget_ms=5, metric="ndcg@10")
    assert found["threshold"] is None
    assert "RAG_THRESHOLD" not in found["env"]
    assert (
        "no threshold keeps 99 % of the relevant hits that it was to be chosen by: 0.01, the lowest that is tried, "
        "keeps 0.0%, and 50.0% of the others" in printed(one)
    )


def printed(one: Trial) -> str:
    console = Console(file=(out := StringIO()), width=300)
    print_tuned(console, report(evaluation([one]), [one], settings(), budget_ms=500, metric="ndcg@10"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "beauty"}, "--metric 'beauty'.*ndcg@10"),
        ({"top_ns": [2]}, "RAG_TOP_K"),
        ({"chunk_tokens": [64]}, "cut already"),
        ({"searches": ["x"]}, "--search"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path: Path, options: dict[str, object], said: str) -> None:
    """By name."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("")
    with pytest.raises(SettingsError, match=said):
        tune(str(questions), settings(), budget_ms=1, say=print, **options)  # type: ignore[arg-type]
