"""The benchmark's own adapter, in its process, through the protocol, with small models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.evaluation.benchmarks import report
from pipeline.evaluation.benchmarks.ingest import LOOPS, measure_ingest
from pipeline.evaluation.benchmarks.limit import model_flops
from pipeline.evaluation.benchmarks.measures import Run
from pipeline.evaluation.benchmarks.peers import Measured, Plan, run_peers, summaries, summary
from pipeline.evaluation.benchmarks.rerank import PAIR_TOKENS, measure_rerank, pairs_of
from pipeline.evaluation.benchmarks.scale import copies, run_scale
from pipeline.evaluation.benchmarks.systems import SystemSpec, command, environment, systems
from pipeline.evaluation.benchmarks.worker import Worker, WorkerError
from pipeline.evaluation.dataset import read_dataset
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from pipeline.settings import Settings
from pipeline.stores.storage import Storage
from tests.tiny_models import save_cross_encoder, save_embedder

PASSAGES = [
    {"id": "json#0", "text": "Use the json module of the standard library."},
    {"id": "dog#0", "text": "The quick brown fox jumps over the lazy dog."},
    {"id": "vitamin#0", "text": "Vitamin D and calcium in older people."},
]


def ours(tmp_path: Path) -> SystemSpec:
    embedder, reranker = save_embedder(tmp_path / "embedder"), save_cross_encoder(tmp_path / "reranker")
    return systems(str(embedder), str(reranker))[0]


# qdrant-client's local mode leaves a database of its own open, which Python 3.13 says.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <sqlite3:pytest.PytestUnraisableExceptionWarning")
def test_ingest_beside_a_plain_loop(tmp_path: Path) -> None:
    """The same vectors from both; what was stored for it is gone again."""
    folder = save_embedder(tmp_path / "embedder")
    settings = Settings(
        embedder="sentence-transformers", embedding_model=str(folder), reranker="none", data_dir=tmp_path / "data"
    )
    texts = [f"{passage['text']} Number {i}." for i in range(3) for passage in PASSAGES]
    result = measure_ingest(texts, str(folder), settings, rounds=2, say=print)
    assert (9, 2) == (result["documents"], result["rounds"])
    assert {"ours", *LOOPS} == result["documents_per_second"].keys()
    assert all(rate > 0 for rate in result["documents_per_second"].values())
    assert all(result["embedding_alone"][name] >= result["documents_per_second"][name] for name in LOOPS)
    assert result["cosine"]["least"] > 0.999
    assert not (tmp_path / "data").exists()


def test_reranking_beside_the_library_s_own(tmp_path: Path) -> None:
    """Pairs of one length, cut out of longer texts; both ways rank them alike."""
    folder = save_cross_encoder(tmp_path / "model", max_length=256)
    tokenizer = CrossEncoderReranker(str(folder), device="cpu").tokenizer
    assert tokenizer is not None
    long = [f"{'json dog vitamin '[i % 5 :]}{'the fox reads json ' * (30 + i)}" for i in range(12)]
    texts = pairs_of("How do I read JSON?", ["too short", *long], tokenizer, 10)
    assert [PAIR_TOKENS] * 10 == [len(tokenizer.encode("How do I read JSON?", text).ids) for text in texts]
    result = measure_rerank("How do I read JSON?", texts, str(folder), tmp_path, device="cpu", rounds=2, say=print)
    assert (10, 2, "OpenVINO", "CPU") == tuple(result[name] for name in ("texts", "rounds", "engine", "device"))
    assert result["ms"].keys() == {"ours", "CrossEncoder.predict"}
    assert all(value > 0 for value in [*result["ms"].values(), result["times_as_fast"]])
    assert result["rank_correlation"] > 0.8


def test_our_system_is_measured_from_start_to_end(tmp_path: Path) -> None:
    """Ingest, queries of one and several clients, a new process on what was stored, and the summary of it all."""
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "corpus.jsonl").write_text("", encoding="utf-8")
    queries = [{"_id": "q1", "text": "How do I read JSON?"}, {"_id": "q2", "text": "Who is lazy?"}]
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (data / "qrels" / "test.tsv").write_text("q1\tjson\t1\nq2\tdog\t1\n", encoding="utf-8")
    spec = ours(tmp_path)
    plan = Plan(
        dataset=read_dataset(data),
        passages=PASSAGES,
        embedder="",
        reranker="",
        dimension=32,
        work=tmp_path,
        pythons={spec.name: Path(sys.executable)},
        url=None,
        top_ns=[3],
        clients=[1, 2],
        rounds=1,
    )
    steps: list[dict[str, object]] = []

    def done(found: dict[str, Measured]) -> None:
        (row,) = json.loads(json.dumps(summaries([spec], found, plan)))
        steps.append({name: row[name] is not None for name in ("ingest_passages_per_s", "cold_start_s")})
        steps[-1]["queries"] = len(row["queries"])

    measured = run_peers([spec], plan, print, done)[spec.name]
    assert measured.failure is None
    # What there is can be written down after each step.
    assert [(True, 0, False), (True, 1, False), (True, 2, False), (True, 2, True)] == [
        (step["ingest_passages_per_s"], step["queries"], step["cold_start_s"]) for step in steps
    ]
    result = summary(spec, measured, plan, measured)
    assert [(3, 1, 0), (3, 2, 0)] == [
        (run["top_n"], run["clients"], run["failed_queries"]) for run in result["queries"]
    ]
    assert [{"json#0", "dog#0", "vitamin#0"}] * 2 == [set(ids) for ids in measured.rankings[3]]
    assert 1.0 == result["quality"]["3"]["same_results"]
    assert 0.3 < result["quality"]["3"]["ndcg@10"] <= 1.0
    assert result["ingest_passages_per_s"] > 0
    assert result["cold_start_s"] > 0
    assert result["versions"]["torch"]


def test_a_system_that_fails_says_why_and_goes_on(tmp_path: Path) -> None:
    spec = ours(tmp_path)
    configuration = {"folder": str(tmp_path), "url": None, "settings": spec.settings}
    log = tmp_path / "log"
    with Worker(command(spec, Path(sys.executable)), configuration, environment(spec), log) as worker:
        with pytest.raises(WorkerError, match="unknown request 'dance'"):
            worker.ask("dance")
        assert worker.ask("info", packages=[])["peak_mb"] > 1


def test_a_process_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"ended.*\blog\b"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"], {}, {}, tmp_path / "log")


def test_the_embedded_models_cost_what_their_shape_says() -> None:
    """Products of a BERT of width 384: 12 layers of 24 * 384^2 a token, and 4 * 384 a pair of tokens for attention."""
    import pipeline

    model = Path(pipeline.__file__).parent / "models" / "embedder" / "model.xml"
    length = 100
    expected = 12 * (24 * 384**2 * length + 4 * 384 * length**2)
    assert pytest.approx(expected, rel=0.02) == model_flops(model, [length])[0]


def test_sizes_and_ways_of_keeping_vectors_are_measured_one_after_another(tmp_path: Path) -> None:
    """Each size is handed out as it is done; a small store finds what exact search finds."""
    import numpy as np

    random = np.random.default_rng(0)
    vectors = copies(random.standard_normal((40, 16)).astype(np.float32), 0, 40)
    storages = [Storage("none", False), Storage("int8", True)]
    said: list[str] = []
    sizes = run_scale([300, 500], storages, ["text"] * 40, vectors, vectors[:5], tmp_path, said.append)
    first = next(sizes)
    assert [(300, "none"), (300, "int8, on disk")] == [(row["chunks"], row["vectors"]) for row in first]
    assert not any("500" in line for line in said)
    for row in first:
        shares = {name: run["recall@100"] for name, run in row["search"].items()}
        assert {"all": 1.0, "a tenth": 1.0, "half": 1.0} == shares
        assert 40 == row["distinct_texts"]
        assert row["disk_mb"] > 0
        assert row["search_memory_mb"]["own"] > 0
    report.write_plots(tmp_path, {"scale": first})
    assert "300 chunks, int8, on disk" in (tmp_path / "scale-search.svg").read_text(encoding="utf-8")


def test_a_run_that_is_cut_off_leaves_what_it_had(tmp_path: Path) -> None:
    """Whole, and said to be unfinished."""
    run = Run(tmp_path / "results.json")
    run.save(finished=False, scale=[{"chunks": 1}])
    with pytest.raises(TypeError):
        run.save(scale=[{"chunks": object()}])
    assert {"finished": False, "scale": [{"chunks": 1}]} == json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    ("option", "said"), [("--quantization=int4", "'int4': there are none, int8"), ("--sizes=x", "'x'")]
)
def test_a_wrong_option_is_told_in_one_line(tmp_path: Path, option: str, said: str) -> None:
    """With exit code 2."""
    command_ = [sys.executable, "-m", "pipeline.evaluation.benchmarks", "scale", str(tmp_path), option]
    done = subprocess.run([*command_, f"--out={tmp_path}"], capture_output=True, text=True)
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert said in done.stderr
