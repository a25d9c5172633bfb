import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stores.edge import EdgeStore
from pipeline.types import Fingerprint
from tests.integration.conftest import Rag
from tests.loopback import Loopback, Reply, Request, cohere_rerank, rerank_server
from tests.tiny_models import save_cross_encoder

Points = Callable[[], dict[str, tuple[str, str]]]

ENGLISH = {
    "backup.md": "# Backups\n\nA snapshot of the collection is taken every night and copied to another machine.",
    "rerank.md": "# Reranking\n\nA cross-encoder reads the question and the passage together and gives one score.",
    "network.txt": "The server listens on port 6333 for HTTP and on port 6334 for gRPC.",
}
CHINESE = {
    "备份.md": "# 备份\n\n每天晚上都会对集合做一次快照,并复制到另一台机器。",
    "安装.txt": "安装需要 Python 3.11 或更高版本,不需要显卡。",
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of small files in both languages."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in (ENGLISH | CHINESE).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("question", "file"),
    [
        ("How often is the collection backed up?", "backup.md"),
        ("Which port does gRPC use?", "network.txt"),
        ("集合多久备份一次?", "备份.md"),
        ("需要哪个 Python 版本?", "安装.txt"),
    ],
)
def test_questions_in_both_languages_find_their_file(rag: Rag, docs: Path, question: str, file: str) -> None:
    """The whole of it with nothing but the package: real engine, real models."""
    assert 5 == rag.json("ingest", str(docs))["documents"]["new"]
    result = rag.json("query", question, "--top-k", "2")
    assert file in {Path(hit["source"]).name for hit in result["hits"]}
    assert ("embedded", False, []) == (result["reranker"], result["degraded"], result["warnings"])
    assert all(0 <= hit["score"] <= 1 and 0 <= hit["rerank"]["probability"] <= 1 for hit in result["hits"])


def test_a_folder_is_kept_in_step(rag: Rag, docs: Path, points: Points) -> None:
    """Twice changes nothing; one changed file rewrites itself alone; a removed one goes with --prune."""
    assert {"new": 5, "changed": 0, "unchanged": 0, "deleted": 0, "failed": 0} == rag.json("ingest", str(docs))[
        "documents"
    ]
    first = points()
    again = rag.json("ingest", str(docs))
    assert ({"written": 0, "deleted": 0}, 5) == (again["chunks"], again["documents"]["unchanged"])
    assert first == points()

    (docs / "network.txt").write_text("The server listens on port 7000.")
    changed = rag.json("ingest", str(docs))
    assert {"new": 0, "changed": 1, "unchanged": 4, "deleted": 0, "failed": 0} == changed["documents"]
    assert {"written": 1, "deleted": 1} == changed["chunks"]
    second = points()
    assert 4 == len(first.items() & second.items())

    (docs / "backup.md").unlink()
    assert 0 == rag.json("ingest", str(docs))["documents"]["deleted"]
    assert 1 == rag.json("ingest", str(docs), "--prune")["documents"]["deleted"]
    assert 4 == rag.json("status")["documents"]


@pytest.mark.parametrize("reranker", ["embedded", "embedded-cross-encoder"])
def test_a_query_where_nothing_is_ingested_says_so_and_writes_nothing(rag: Rag, reranker: str) -> None:
    """Neither a data directory nor a cache in it: it may be the wrong directory."""
    result = rag.json("query", "gRPC port", RAG_RERANKER=reranker, RAG_SCORE_CACHE_DISK="1")
    assert ([], 0) == (result["hits"], result["candidates"])
    assert "is empty: ingest documents first" in result["warnings"][0]
    assert [] == list(rag.folder.iterdir())


STOPPED = """
import os, signal, sys
from pipeline.cli import main
from pipeline.stores.edge import EdgeStore

write = EdgeStore.upsert
signal.signal(signal.SIGINT, signal.default_int_handler)  # which who runs the tests in the background may lack

def write_and_interrupt(self, chunks, vectors):
    EdgeStore.upsert = write
    write(self, chunks, vectors)
    os.kill(os.getpid(), signal.SIGINT)

EdgeStore.upsert = write_and_interrupt
main()
"""


def test_ctrl_c_says_what_stays(rag: Rag, tmp_path: Path) -> None:
    """And the next run goes on from there."""
    lines = ({"id": f"d{i}", "text": f"Document {i} is about {i % 7}."} for i in range(700))
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))
    script = [sys.executable, "-c", STOPPED, "ingest", str(tmp_path / "many.jsonl")]
    stopped = subprocess.run(script, cwd=rag.folder, env=rag.environment, capture_output=True, text=True)
    assert 130 == stopped.returncode
    assert "rag: stopped; what was written stays, run it again to go on" == stopped.stderr.splitlines()[-1]
    again = rag.json("ingest", str(tmp_path / "many.jsonl"))["documents"]
    assert again["unchanged"] > 0
    assert 700 == again["unchanged"] + again["new"]


EARLY = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupting:
    at = sys.argv.pop(1)

    def find_spec(self, name, path=None, target=None):
        if name == self.at:
            self.at = ""
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from pipeline.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("at", "arguments", "code", "said"),
    [
        ("typer", ["ingest", "."], 130, "rag: stopped"),
        ("pipeline.core", ["query", "x"], 130, "rag: stopped"),
        ("pipeline.ingestion.reindexing", ["gc", "--dry-run"], 130, "rag: stopped"),
        ("typer", ["watch", "."], 0, "rag: stopped"),
        ("pipeline.core", ["watch", "."], 0, "rag: stopped watching"),
    ],
)
def test_ctrl_c_while_a_command_starts(rag: Rag, at: str, arguments: list[str], code: int, said: str) -> None:
    """Imports take a second. What writes nothing does not speak of what was written, and a watch goes on until then."""
    script = [sys.executable, "-c", EARLY, at, *arguments]
    stopped = subprocess.run(script, cwd=rag.folder, env=rag.environment, capture_output=True, text=True)
    assert (code, said) == (stopped.returncode, stopped.stderr.splitlines()[-1])
    assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize("state", ["closed", "for reading"])
def test_what_cannot_be_printed_is_a_failure(rag: Rag, docs: Path, state: str) -> None:
    """As on a full disk: one line, and exit code 1. What a command does besides is done to its end."""

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        with open(os.devnull, "rb") as readable:  # noqa: PTH123  to give its number
            return subprocess.run(
                [sys.executable, "-m", "pipeline", *words],
                cwd=rag.folder,
                env=rag.environment,
                stdout=readable,
                stderr=subprocess.PIPE,
                preexec_fn=(lambda: os.close(1)) if state == "closed" else None,
            )

    line = b"rag: error: not all of the output could be written to stdout: it is closed"
    done = run("ingest", str(docs))
    assert (1, line) == (done.returncode, done.stderr.splitlines()[-1])
    for arguments in (["query", "port"], ["status", "--json"]):
        failed = run(*arguments)
        assert (1, [line]) == (failed.returncode, failed.stderr.splitlines()), arguments
    assert 5 == rag.json("status")["documents"]


def test_a_reader_that_has_had_enough_is_no_failure(rag: Rag, docs: Path) -> None:
    """As head, after the first line. Only the command itself fails, if it does."""

    def run(*words: str) -> tuple[int, bool]:
        ours, theirs = os.pipe()
        os.close(ours)
        with os.fdopen(theirs, "wb") as unread:
            command = [sys.executable, "-m", "pipeline", *words]
            done = subprocess.run(command, cwd=rag.folder, env=rag.environment, stdout=unread, stderr=subprocess.PIPE)
        return done.returncode, b"rror" in done.stderr

    for words in (["ingest", str(docs)], ["query", "port"], ["status"]):
        assert (0, False) == run(*words), words
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7 cut off")
    assert (1, False) == run("ingest", str(docs))


def test_messages_that_nobody_reads_stop_nothing(rag: Rag, docs: Path) -> None:
    """As with ``2>&1 | head``."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as unread:
        command = [sys.executable, "-m", "pipeline", "verify", str(docs)]
        rag.json("ingest", str(docs))
        done = subprocess.run(command, cwd=rag.folder, env=rag.environment, stdout=subprocess.PIPE, stderr=unread)
    assert (0, b"5 documents, 5 chunks: clean") == (done.returncode, done.stdout.strip())


DYING = """
import os, signal, sys
from pipeline import Pipeline, Settings
from pipeline.stores.edge import EdgeStore
from pipeline.types import Fingerprint

where, path = sys.argv[1:]
calls = {"upsert": 0, "delete": 0}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Dying(EdgeStore):
    def upsert(self, chunks, vectors):
        calls["upsert"] += 1
        if where == f"upsert {calls['upsert']}":
            super().upsert(chunks[: len(chunks) // 2], vectors[: len(chunks) // 2])
            die()
        super().upsert(chunks, vectors)

    def delete_versions(self, stale):
        if where == "delete":
            die()
        return super().delete_versions(stale)

with Pipeline.from_settings(Settings(reranker="none")) as rag:
    rag.store = Dying(rag.store.path)
    rag.ingest(path)
"""


@pytest.mark.parametrize("where", ["upsert 1", "upsert 2", "delete"])
def test_kill_9_and_a_rerun_end_as_an_undisturbed_run(rag: Rag, tmp_path: Path, points: Points, where: str) -> None:
    """Killed in the first or a later write, or before old chunks are removed: the rerun mends it, point by point."""

    def write(version: str) -> None:
        lines = ({"id": f"d{i}", "text": f"Document {i} {version} is about {i % 7}."} for i in range(700))
        (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, lines)))

    file = str(tmp_path / "many.jsonl")
    write("old")
    rag.json("ingest", file, RAG_COLLECTION="undisturbed")
    if where == "delete":
        rag.json("ingest", file)
    write("new")
    rag.json("ingest", file, RAG_COLLECTION="undisturbed")

    script = [sys.executable, "-c", DYING, where, file]
    killed = subprocess.run(script, cwd=rag.folder, env=rag.environment, capture_output=True)
    assert -signal.SIGKILL == killed.returncode, killed.stderr
    interrupted = points()
    assert interrupted
    rag.json("ingest", file)
    after = points()
    assert set(interrupted) != set(after)

    collections = tmp_path / "data" / "collections"
    (collections / "documents").rename(collections / "killed")
    (collections / "undisturbed").rename(collections / "documents")
    assert points() == after


def test_one_bad_file_does_not_stop_the_others(rag: Rag, docs: Path) -> None:
    """It is listed, the rest is ingested, and the exit code says that something failed."""
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing more")
    report = rag.json("ingest", str(docs), code=1)
    assert (5, 1) == (report["documents"]["new"], report["documents"]["failed"])
    assert ["broken.pdf"] == [Path(failure["source"]).name for failure in report["failures"]]


def test_a_project_folder_is_ingested_and_its_pictures_are_skipped(rag: Rag, docs: Path, tmp_path: Path) -> None:
    """With exit code 0 and one line, and without the data directory that lies in it."""
    (docs / "guide.md").write_text("# How to restore a backup\n\nCopy the snapshot into the data directory.")
    (docs / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for name in ("__init__.py", "empty.txt"):
        (docs / name).write_bytes(b"")
    for _ in range(2):  # the second time there is something in the data directory
        done = rag("ingest", str(tmp_path))
        assert (0, 1) == (done.returncode, done.stdout.count("3 files without text (empty file: 2, PNG image: 1)"))
        assert 6 == rag.json("status")["documents"]
    report = rag.json("ingest", str(tmp_path))
    assert (0, 3) == (report["documents"]["failed"], len(report["skipped"]))
    assert rag.json("verify", str(tmp_path))["clean"]
    made = rag.json("eval", "--make-questions", str(tmp_path), "--out", str(tmp_path / "questions.jsonl"))
    assert (6, 3, 0) == (made["documents"], made["skipped"], made["unreadable"])
    assert 1 == rag("ingest", str(docs / "picture.png")).returncode


def test_a_file_name_that_is_no_utf_8(rag: Rag, tmp_path: Path) -> None:
    """Old disks have them: ingested, found, printed, and unchanged the second time."""
    folder = tmp_path / "docs"
    folder.mkdir()
    path = os.fsencode(folder) + b"/caf\xe9.txt"
    with open(path, "w") as file:  # noqa: PTH123  only bytes can name it
        file.write("The menu of the day is soup.")
    assert 1 == rag.json("ingest", str(folder))["documents"]["new"]
    assert 1 == rag.json("ingest", str(folder))["documents"]["unchanged"]
    assert os.fsdecode(path) == rag.json("query", "menu")["hits"][0]["source"]
    done = rag("query", "menu")
    assert (0, True) == (done.returncode, "caf\\udce9.txt" in done.stdout.replace("\n", "").replace(" ", ""))


def test_equal_files_language_and_profile(rag: Rag, tmp_path: Path) -> None:
    """A copy is a source of the same document; its language can be filtered on; the time is accounted for."""
    for name in ("a.txt", "copy of a.txt"):
        (tmp_path / name).write_text("The gRPC interface listens on port 6334 of the server.")
    (tmp_path / "b.txt").write_text("服务器的 gRPC 接口监听 6334 端口。")
    report = rag.json(
        "ingest", str(tmp_path / "a.txt"), str(tmp_path / "copy of a.txt"), str(tmp_path / "b.txt"), "--profile"
    )
    assert (3, 2) == (report["documents"]["new"], rag.json("status")["documents"])
    assert 0 < report["profile"]["embedding"] <= report["profile"]["seconds"]
    (hit,) = rag.json("query", "gRPC port 6334", "--where", "language=en", "--reranker", "none")["hits"]
    real = tmp_path.resolve()
    assert [(real / "a.txt").as_posix(), (real / "copy of a.txt").as_posix()] == [hit["source"], *hit["copies"]]
    copy = f"source={(real / 'copy of a.txt').as_posix()}"
    assert hit["id"] == rag.json("query", "gRPC", "--where", copy, "--reranker", "none")["hits"][0]["id"]


def test_a_dry_run_writes_nothing(rag: Rag, docs: Path) -> None:
    """Only the plan is printed; not even the collection is made."""
    assert 5 == rag.json("ingest", str(docs), "--dry-run")["documents"]["new"]
    assert not (rag.folder / "data" / "collections" / "documents").exists()


def test_filters_on_metadata(rag: Rag, tmp_path: Path) -> None:
    """``--where`` is applied in the first stage: equality, any of, ranges, nested keys."""
    file = tmp_path / "m.jsonl"
    rows = [
        {
            "id": str(i),
            "text": f"release notes number {i}",
            "metadata": {"year": 2015 + i, "tag": {"lang": "en" if i % 2 else "zh"}},
        }
        for i in range(10)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    rag.json("ingest", str(file))

    def found(*conditions: str) -> set[str]:
        where = [word for condition in conditions for word in ("--where", condition)]
        return {hit["document_id"] for hit in rag.json("query", "release notes", "--top-k", "10", *where)["hits"]}

    assert {"3"} == found("year=2018")
    assert {"1", "4"} == found("year=2016", "year=2019")
    assert {"8", "9"} == found("year>=2023")
    assert {"1", "3", "5", "7", "9"} == found("tag.lang=en")
    assert 10 == len(found("source=m.jsonl"))
    assert {"7"} == found("document_id=7")
    assert {"0", "3"} == found('[{"year": 2018}, {"year": {"lt": 2017}, "tag.lang": "zh"}]')
    assert set() == found("year=1.10")
    nothing = rag.json("query", "release notes", "--where", "tag.lang=1")["warnings"]
    assert [True, False] == ["passes the filter" in warning for warning in nothing]
    assert "--where 'tag.lang=\"1\"'" in nothing[1]


def test_a_question_in_a_locale_that_does_not_know_it(rag: Rag, docs: Path) -> None:
    """Python then has lone surrogates in its place, of which every text is as far away as any other."""
    rag.json("ingest", str(docs))
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = rag.json("query", "集合多久备份一次?", "--where", "language=zh", code=0, **plain)
    assert ("集合多久备份一次?", "备份.md") == (result["query"], Path(result["hits"][0]["source"]).name)


def test_none_answers_in_first_stage_order(rag: Rag, docs: Path) -> None:
    """No reranker, no rerank score, and the output says so."""
    rag.json("ingest", str(docs))
    result = rag.json("query", "ports", RAG_RERANKER="none")
    assert "none" == result["reranker"]
    assert all(hit["rerank"] is None and hit["rank"] == hit["first_stage"]["rank"] for hit in result["hits"])


def test_an_unknown_embedding_model_does_not_touch_the_collection(rag: Rag, docs: Path, tmp_path: Path) -> None:
    """Other chunking is refused by ingest with both values and the way out."""
    rag.json("ingest", str(docs))
    done = rag("ingest", str(docs), RAG_CHUNK_TOKENS="128")
    assert 1 == done.returncode
    assert re.search(r"chunk_tokens: stored 256, asked for 128.*RAG_COLLECTION", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["query", "x"], {"RAG_TOP_K": "0"}, "RAG_TOP_K"),
        (["query", "x"], {"RAG_RERANKR": "none"}, "Did you mean RAG_RERANKER"),
        (["query", "x"], {"RAG_RERANKER": "magic"}, "no reranker is called 'magic'"),
        (["query", "x", "--reranker", "cohere"], {}, "RAG_COHERE_API_KEY"),
        (["query", "x"], {"RAG_RERANKER": "cross-encoder"}, "RAG_RERANKER_MODEL"),
        (["query", "x"], {"RAG_EMBEDDER": "sentence-transformers"}, "RAG_EMBEDDING_MODEL"),
        (["query", " "], {}, "query is empty"),
        (["query", "x", "--where", "lang"], {}, "KEY=VALUE"),
        (["query", "x", "--top-k", "60"], {}, "top_k"),
        (["ingest", "no/such/folder"], {}, "no/such/folder"),
        (["eval", "no/such/folder"], {}, "corpus.jsonl"),
        (["eval"], {}, "DATASET"),
        (["eval", "compare", "no/a.json", "no/b.json"], {}, "no/a"),
        (["ingest"], {}, "PATH"),
    ],
)
def test_wrong_settings_and_arguments_exit_2_with_one_clear_line(
    rag: Rag, arguments: list[str], variables: dict[str, str], said: str
) -> None:
    """No traceback, no half-done work, and the message names what to change."""
    done = rag(*arguments, **variables)
    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if arguments != ["ingest"]:
        assert 1 == len(done.stderr.strip().splitlines())
    assert not (rag.folder / "data" / "collections").exists()


def test_a_second_process_is_told_who_holds_the_store(rag: Rag, docs: Path, tmp_path: Path) -> None:
    """At once, by process id, and with what to do."""
    rag.json("ingest", str(docs))
    store = EdgeStore(tmp_path / "data" / "collections" / "documents")
    assert 5 == store.count().documents
    try:
        done = rag("query", "x")
    finally:
        store.close()
    assert (1, 1) == (done.returncode, len(done.stderr.strip().splitlines()))
    assert str(os.getpid()) in done.stderr
    assert "RAG_QDRANT_URL" in done.stderr


def test_doctor_uses_everything_once(rag: Rag) -> None:
    """On a plain machine all is in reach."""
    outcome = rag.json("doctor")
    assert outcome["ok"]
    assert ["settings", "data directory", "store", "embedder", "collection", "reranker"] == [
        check["name"] for check in outcome["checks"]
    ]


def test_doctor_says_that_the_collection_was_made_otherwise(rag: Rag, docs: Path) -> None:
    """Queries would still be answered, but the next ingest would fail."""
    rag.json("ingest", str(docs))
    assert rag.json("doctor")["ok"]
    outcome = rag.json("doctor", code=1, RAG_CHUNK_TOKENS="128")
    (failed,) = [check for check in outcome["checks"] if not check["ok"]]
    assert "collection" == failed["name"]
    assert "chunk_tokens: stored 256, asked for 128" in failed["detail"]


def test_doctor_asks_the_first_step_and_each_fallback(rag: Rag) -> None:
    """They are needed at the start, or on the day when the first choice fails."""
    given = {"RAG_RERANKER": "embedded-cross-encoder", "RAG_RERANKER_FALLBACK": "embedded, cohere,none"}
    outcome = rag.json("doctor", code=1, **given)
    found = {check["name"]: check for check in outcome["checks"]}
    assert {"fallback cohere"} == {name for name, check in found.items() if not check["ok"]}
    assert "RAG_COHERE_API_KEY" in found["fallback cohere"]["detail"]
    assert {"first step", "fallback embedded", "fallback none"} < found.keys()


def test_doctor_sees_a_data_directory_that_is_none(rag: Rag, tmp_path: Path) -> None:
    """A file, or a folder below one: no ingest could write there."""
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        outcome = rag.json("doctor", code=1, RAG_DATA_DIR=str(place))
        (check,) = (one for one in outcome["checks"] if one["name"] == "data directory")
        assert not check["ok"]
        assert f"{file} is no folder: set RAG_DATA_DIR to one" in check["detail"]


def test_doctor_names_what_is_out_of_reach(rag: Rag, tmp_path: Path) -> None:
    """A model folder that does not exist is one failed check; the others still run."""
    outcome = rag.json("doctor", code=1, RAG_RERANKER="cross-encoder", RAG_RERANKER_MODEL=str(tmp_path / "nowhere"))
    failed = [check for check in outcome["checks"] if not check["ok"]]
    assert ["reranker"] == [check["name"] for check in failed]
    assert "nowhere" in failed[0]["detail"]


def test_the_ranking_for_people_shows_both_ranks_and_sources(rag: Rag, docs: Path) -> None:
    """Without a terminal the text is plain: no colour codes in a pipe."""
    rag.json("ingest", str(docs))
    done = rag("query", "Which port does gRPC use?")
    assert 0 == done.returncode
    assert "\x1b" not in done.stdout
    assert re.search(r"^1\. network\.txt\n +score 0\.\d+ .*first stage #\d", done.stdout, re.M)
    assert not re.search(r"[ \t]$", done.stdout, re.M)
    assert "network.txt" in done.stdout


def test_eval_prints_the_runs_of_the_interface(rag: Rag, tmp_path: Path) -> None:
    """A tiny labelled set through the real pipeline; a second evaluation finds the corpus there."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    texts = ENGLISH | CHINESE
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items())
    )
    queries = {"q1": "Which port does gRPC use?", "q2": "集合多久备份一次?"}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": k, "text": v}) for k, v in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tnetwork.txt\t1\nq2\t备份.md\t1\n")
    outcome = rag.json("eval", str(folder), "--search", "hybrid", "--search", "sparse", "--reranker", "none")
    assert ("set", 2, 5) == (outcome["dataset"], outcome["queries"], outcome["documents"])
    assert [("hybrid", "none"), ("sparse", "none")] == [(run["search"], run["reranker"]) for run in outcome["runs"]]
    assert {"search", "reranker", "ndcg@10", "mrr@10", "recall@5", "recall@100", "latency_ms"} <= set(
        outcome["runs"][0]
    )
    assert 1.0 == outcome["runs"][0]["recall@5"]


def test_a_run_that_fails_midway_is_left_out_and_said(rag: Rag, docs: Path) -> None:
    """The others are printed and saved; the exit code says that something failed."""
    rag.json("ingest", str(docs))
    lines = [{"question": f"Which port does gRPC use, asked {n} times?", "relevant": ["network.txt"]} for n in range(4)]
    (rag.folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    good, asked = rerank_server("jina"), []

    def respond(request: Request) -> Reply:
        asked.append(request)
        return good(request) if len(asked) <= 3 else Reply(400, {"error": "out of credit"})

    with Loopback(respond) as server:
        outcome = rag.json("eval", "questions.jsonl", code=1, RAG_RERANKER="http", RAG_RERANK_URL=server.url)
    assert ["none"] == [run["reranker"] for run in outcome["runs"]]
    assert "hybrid + http, top 50 failed and is left out" in outcome["warnings"][0]
    assert "out of credit" in outcome["warnings"][0]
    assert 1 == len(list((rag.folder / "data" / "runs").glob("*/*.trec"))) - len(["qrels.trec"])


def test_ones_own_questions_are_made_measured_reported_and_compared(rag: Rag, docs: Path) -> None:
    """On the ingested collection, without a dataset from elsewhere."""
    (docs / "faq.txt").write_text("Q: Which port is for gRPC?\nA: 6334.\n\nQ: Which GPU is needed?\nA: none.\n")
    rag.json("ingest", str(docs))
    made = rag.json("eval", "--make-questions", str(docs))
    assert (str(rag.folder / "questions.jsonl"), 2) == (str(rag.folder / made["path"]), made["questions"])
    with (rag.folder / "questions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"question": "集合多久备份一次?", "relevant": ["每天晚上"]}, ensure_ascii=False) + "\n")
    outcome = rag.json("eval", "questions.jsonl", "--top-n", "3", "--k", "1", "--report", "report.html")
    assert (3, 6, ["none", "embedded"]) == (
        outcome["queries"],
        outcome["documents"],
        [run["reranker"] for run in outcome["runs"]],
    )
    assert outcome["runs"][0]["recall@5"] == 1.0
    assert "ndcg@1" in outcome["runs"][1]
    assert "hybrid + embedded" in (rag.folder / "report.html").read_text(encoding="utf-8")
    first, second = sorted((rag.folder / "data" / "runs").glob("*/*.trec"))[:2]
    compared = rag.json("eval", "compare", str(first), str(second))
    assert outcome["runs"][1]["ndcg@10"] == pytest.approx(compared["b"]["ndcg@10"])
    assert 2 == rag("eval", "--make-questions", str(docs)).returncode


def test_tune_prints_lines_for_env(rag: Rag, tmp_path: Path) -> None:
    """Through the real engine, for two sizes of chunks."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    names = [f"{a} {b}" for a in ("red", "green", "blue", "grey", "black") for b in ("north", "south", "east", "west")]
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": str(i), "text": f"The room {name} is open."}) for i, name in enumerate(names))
    )
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"room {name}"}) for i, name in enumerate(names))
    )
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\t{i}\t1\n" for i in range(len(names))))
    options = ["--budget-ms", "60000", "--chunk-tokens", "64"]
    found = rag.json("tune", str(folder), *options, RAG_RERANKER="none")
    assert (2 * 3, {"tuned_on": 10, "held_out": 10}) == (found["tried"], found["queries"])
    assert {"RAG_SEARCH", "RAG_RERANKER"} <= set(found["env"])
    assert found["chosen"]["ndcg@10"] > 0.5
    few = rag("tune", str(folder), "--max-queries", "12", RAG_RERANKER="none")
    assert 2 == few.returncode
    assert "12 queries are too few" in few.stderr
    assert "runs of 12 queries" not in few.stderr


def test_a_calibration_is_kept_shown_and_used(rag: Rag, tmp_path: Path) -> None:
    """From then on a query's probability is the fitted one; the raw score stays, and the page is written."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    names = [f"{a} {b}" for a in ("red", "green", "blue", "grey") for b in ("north", "south", "east", "west")]
    (folder / "corpus.jsonl").write_text(
        "\n".join(json.dumps({"_id": str(i), "text": f"The room {name} is open."}) for i, name in enumerate(names))
    )
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": f"room {name}"}) for i, name in enumerate(names))
    )
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\t{i}\t1\n" for i in range(len(names))))
    (tmp_path / "rooms.md").write_text("The room red north is open.")
    rag.json("ingest", str(tmp_path / "rooms.md"))
    with Loopback(rerank_server("jina")) as server:
        needed = {"RAG_RERANKER": "http", "RAG_RERANKER_MODEL": "m", "RAG_RERANK_URL": server.url, "RAG_TOP_N": "10"}
        before = rag.json("query", "room red north", code=0, **needed)["hits"][0]["rerank"]
        fitted = rag.json("calibrate", str(folder), "--report", str(tmp_path / "page.html"), code=0, **needed)
        after = rag.json("query", "room red north", code=0, **needed)["hits"][0]["rerank"]
    assert (16, 160, 16) == (fitted["queries"], fitted["pairs"], fitted["relevant"])
    assert fitted["calibration_error"]["after"] < fitted["calibration_error"]["before"]
    assert before["raw"] == before["probability"] == after["raw"] < after["probability"]
    assert [fitted["reranker"]] == [one["reranker"] for one in rag.json("status")["calibrations"]]
    assert fitted["reranker"] in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_switching_the_reranker_needs_no_other_change(rag: Rag, docs: Path, tmp_path: Path) -> None:
    """The same collection and query, the reranker named by one variable: each gives the JSON of the interface."""
    rag.json("ingest", str(docs))
    folder = save_cross_encoder(tmp_path / "model")
    with Loopback(cohere_rerank) as server, Loopback(rerank_server("jina")) as jina:
        variables: dict[str, dict[str, str]] = {
            "embedded": {},
            "none": {},
            "cross-encoder": {"RAG_RERANKER_MODEL": str(folder)},
            "bge": {"RAG_RERANKER_MODEL": str(folder)},
            "cohere": {"RAG_COHERE_API_KEY": "secret-key", "RAG_COHERE_BASE_URL": server.url},
            "jina": {"RAG_JINA_API_KEY": "secret-key", "RAG_JINA_BASE_URL": jina.url},
            "http": {"RAG_RERANK_URL": jina.url},
        }
        results = {
            name: rag.json("query", "gRPC port", code=0, **(needed | {"RAG_RERANKER": name}))
            for name, needed in variables.items()
        }
    for name, result in results.items():
        fields = ["query", "reranker", "degraded", "warnings", "hits", "candidates", "reranked", "timings_ms"]
        assert fields == list(result)
        assert (name, False, 5) == (result["reranker"], result["degraded"], result["candidates"])
        assert [1, 2, 3, 4, 5] == [hit["rank"] for hit in result["hits"]]
        assert all((hit["rerank"] is None) == (name == "none") for hit in result["hits"])
    assert "network.txt" == Path(results["cohere"]["hits"][0]["source"]).name
    assert results["cohere"]["hits"][0]["score"] == results["cohere"]["hits"][0]["rerank"]["raw"]


@pytest.mark.parametrize("command", ["query", "eval", "calibrate"])
def test_a_model_goes_to_no_reranker_but_its_own(rag: Rag, docs: Path, tmp_path: Path, command: str) -> None:
    """With RAG_RERANKER_MODEL set for another one, ``--reranker http`` asks its endpoint for no model.

    So there is none that a calibration could be kept for.
    """
    rag.json("ingest", str(docs))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Which port is for gRPC?", "relevant": ["port 6334"]}))
    with Loopback(rerank_server("jina")) as server:
        variables = {"RAG_RERANKER_MODEL": str(tmp_path / "my-reranker"), "RAG_RERANK_URL": server.url}
        done = rag(command, "gRPC" if command == "query" else str(questions), "--reranker", "http", **variables)
    named = list({"model" in request.json for request in server.requests})
    assert (done.returncode, named) == ((2, []) if command == "calibrate" else (0, [False]))


def test_a_rejected_key_is_one_line_without_the_key(rag: Rag, docs: Path) -> None:
    """Exit code 1, what to check, and no trace of the key."""
    rag.json("ingest", str(docs))
    with Loopback([Reply(401, {"message": "invalid api token"})]) as server:
        done = rag("query", "x", RAG_RERANKER="cohere", RAG_COHERE_API_KEY="sk-hidden", RAG_COHERE_BASE_URL=server.url)
    assert (1, "", 1) == (done.returncode, done.stdout, len(done.stderr.strip().splitlines()))
    assert "RAG_COHERE_API_KEY" in done.stderr
    assert "sk-hidden" not in done.stderr


def test_a_fallback_answers_where_the_api_is_down(rag: Rag, docs: Path) -> None:
    """Exit code 0, degraded, and why; a rejected key is no case for a fallback."""
    rag.json("ingest", str(docs))
    needed = {"RAG_RERANKER": "cohere", "RAG_COHERE_API_KEY": "k", "RAG_RERANKER_FALLBACK": "embedded,none"}
    with Loopback([Reply(503)]) as server:
        down = needed | {"RAG_COHERE_BASE_URL": server.url, "RAG_RERANK_DEADLINE": "1"}
        result = rag.json("query", "gRPC port", "--threshold", "0.99", code=0, **down)
        shown = rag("query", "gRPC port", **down)
    assert 1 == (shown.stdout + shown.stderr).count("reranker cohere failed")  # once, with the result
    assert (True, "embedded", 5) == (result["degraded"], result["reranker"], len(result["hits"]))
    assert "503" in result["warnings"][0]
    with Loopback([Reply(401)]) as server:
        done = rag("query", "gRPC port", **(needed | {"RAG_COHERE_BASE_URL": server.url}))
    assert (1, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize("state", ["free", "in use", "broken"])
def test_a_container_that_ingests_is_healthy(tmp_path: Path, state: str) -> None:
    """It holds the embedded store itself; what else is wrong makes it unhealthy, and is said."""
    dockerfile = (Path(__file__).parents[2] / "deploy" / "Dockerfile").read_text()
    check = re.search(r"^HEALTHCHECK .*\\\n +CMD (.+)$", dockerfile, re.M)
    assert check is not None
    rag = tmp_path / "bin" / "rag"
    rag.parent.mkdir()
    rag.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    rag.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")} | {
        "PATH": f"{rag.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAG_DATA_DIR": str(tmp_path),
        **({"RAG_TOP_K": "none"} if state == "broken" else {}),
    }
    store = EdgeStore(tmp_path / "collections" / "documents")
    try:
        if state == "in use":
            store.ensure_ready(Fingerprint("fake", 8, chunk_tokens=256, chunk_overlap=32, bm25=store.bm25))
        asked = ["/bin/sh", "-c", check[1]]
        done = subprocess.run(asked, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        store.close()
    assert (1 if state == "broken" else 0) == done.returncode
    assert ("RAG_TOP_K" in done.stdout) == (state == "broken")
