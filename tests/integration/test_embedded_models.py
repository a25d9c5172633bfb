"""What holds for the weights that come with the package and the engine beneath them, beyond the contracts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest

from pipeline import deadline
from pipeline.embedders.embedded import EmbeddedEmbedder
from pipeline.errors import SettingsError
from pipeline.inference.engine import Engine
from pipeline.inference.folder import FILES, ModelFolder
from pipeline.interfaces import Reranker
from pipeline.models import EMBEDDER, LATE_INTERACTION, RERANKER
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.rerankers.late_interaction import LateInteractionReranker

MEGABYTE = 1_000_000
PARALLEL = [
    ("Vitamin D and the risk of falling in older people.", "维生素D与老年人跌倒的风险。"),
    ("How a JSON file is read in Python.", "如何在 Python 中读取 JSON 文件。"),
    ("The bridge was closed after the flood.", "洪水过后，这座桥被关闭了。"),
    ("The central bank raised interest rates.", "中央银行提高了利率。"),
]


@pytest.fixture(scope="module")
def embedder() -> EmbeddedEmbedder:
    return EmbeddedEmbedder()


@pytest.fixture(scope="module", params=[EmbeddedReranker, LateInteractionReranker])
def reranker(request: pytest.FixtureRequest) -> Reranker:
    made: Reranker = request.param()
    return made


@pytest.mark.parametrize(
    ("folder", "most"),
    [(EMBEDDER, 42 * MEGABYTE), (RERANKER, 31 * MEGABYTE), (LATE_INTERACTION, 7 * MEGABYTE)],
)
def test_a_folder_is_complete_small_and_what_its_hash_says(folder: Path, most: int) -> None:
    """Weights cannot be exchanged without their revision, which is in the collection's fingerprint."""
    assert sum(file.stat().st_size for file in folder.iterdir()) <= most
    assert (folder / "README.md").is_file()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest() == config["revision"]


def test_a_text_and_its_translation_are_nearest(embedder: EmbeddedEmbedder) -> None:
    """English and Chinese share one space."""
    english = embedder.embed_documents([pair[0] for pair in PARALLEL])
    chinese = embedder.embed_documents([pair[1] for pair in PARALLEL])
    assert list(range(len(PARALLEL))) == np.argmax(english @ chinese.T, axis=1).tolist()


def test_a_query_and_a_document_are_different_inputs(embedder: EmbeddedEmbedder) -> None:
    """The model was trained with a prefix for each."""
    text = PARALLEL[0][0]
    assert float(embedder.embed_query(text) @ embedder.embed_documents([text])[0]) < 0.999


@pytest.mark.parametrize(
    ("query", "relevant", "other"),
    [
        (
            "How do I read a JSON file?",
            "json.load reads a file that holds JSON.",
            "The bridge was closed after the flood.",
        ),
        ("如何读取 JSON 文件？", "json.load 函数读取 JSON 文件。", "洪水过后，这座桥被关闭了。"),
    ],
)
def test_the_relevant_text_scores_higher(reranker: Reranker, query: str, relevant: str, other: str) -> None:
    """In both languages, wherever the text stands."""
    first, second = reranker.score(query, [relevant, other])
    assert first.raw > second.raw
    assert 0.0 < second.probability < first.probability < 1.0


def test_a_long_query_leaves_room_for_the_text(reranker: Reranker) -> None:
    """It is cut to half of the model's length, so texts still differ."""
    scores = reranker.score("What closed the bridge? " * 500, ["The flood closed the bridge.", "如何读取 JSON 文件。"])
    assert scores[0].raw != scores[1].raw


def test_of_a_long_pair_only_the_end_of_the_text_is_cut(reranker: Reranker) -> None:
    """What lies behind the model's length changes nothing; what lies before it does."""
    text = "The river rose for three days and the bridge was closed. " * 60
    whole, longer, other = reranker.score("Why was it closed?", [text, text + "More.", "No. " + text])
    assert whole.raw == pytest.approx(longer.raw, abs=1e-3)
    assert whole.raw != other.raw


def test_requests_that_fail_come_back() -> None:
    """All of them, else later calls would wait for them for good. Texts longer than the model reads fail in it."""
    engine = Engine(EMBEDDER / "model.xml")
    whole = engine._requests.qsize()
    assert whole > 1
    for _ in range(2):
        with pytest.raises(RuntimeError):
            engine.run([[5] * (600 + 8 * i) for i in range(2 * whole)])
        assert whole == engine._requests.qsize()
    assert (1, 384) == engine.run([[5] * 20]).shape


def test_work_that_nobody_waits_for_is_given_up(embedder: EmbeddedEmbedder) -> None:
    """So that Ctrl-C in an ingest need not wait for hundreds of texts; the next call finds all as it was."""
    texts = [f"Text number {i}." for i in range(300)]
    given_up = Event()
    given_up.set()
    with deadline.unless(given_up), pytest.raises(deadline.GivenUpError):
        embedder.embed_documents(texts)
    assert (300, embedder.dimension) == embedder.embed_documents(texts).shape


def test_the_first_failure_is_raised() -> None:
    """Not what becomes of requests that could not start then."""

    class Refusing:
        def start_async(self, inputs: object, share_inputs: bool) -> None:
            raise RuntimeError("it does not start")

        def wait(self) -> None:
            raise RuntimeError("it was not started")

    engine = Engine(EMBEDDER / "model.xml")
    last = [engine._requests.get() for _ in range(engine._requests.qsize())][-1]
    for request in (last, Refusing()):
        engine._requests.put(request)
    with pytest.raises(RuntimeError, match="it does not start"):
        engine.run([[5] * (600 + 8 * i) for i in range(2)])
    assert 2 == engine._requests.qsize()


class Gated:
    """A request whose end is not seen before the test says so; tells who has started it, and who waits for it."""

    def __init__(self, request: Any, told: list[str], go: Event) -> None:
        self._request = request
        self._told = told
        self._go = go

    def start_async(self, inputs: object, share_inputs: bool) -> None:
        self._told.append(current_thread().name)
        self._request.start_async(inputs, share_inputs=share_inputs)

    def wait(self) -> None:
        if not self._go.is_set():
            self._told.append("waits")
            assert self._go.wait(60)
        self._request.wait()

    def get_output_tensor(self, place: int) -> Any:
        return self._request.get_output_tensor(place)


def test_a_query_beside_an_ingest_gets_the_next_request() -> None:
    """The ingest, hundreds of texts long, would take back each that it has collected."""
    engine = Engine(EMBEDDER / "model.xml")
    ingest, query = [[5 + i] * 500 for i in range(20)], [[9] * 20]
    alone = engine.run(ingest), engine.run(query)
    told: list[str] = []
    go = Event()
    requests = [engine._requests.get() for _ in range(engine._requests.qsize())]
    engine._requests.put(Gated(requests[0], told, go))
    with ThreadPoolExecutor(1, "ingest") as first, ThreadPoolExecutor(1, "query") as second:
        ingested = first.submit(engine.run, ingest)
        while "waits" not in told:
            pass
        asked = second.submit(engine.run, query)
        while not engine._requests._line:  # until it stands in line
            pass
        go.set()
        assert np.array_equal(alone[0], ingested.result(60))
        assert np.array_equal(alone[1], asked.result(60))
    assert ["ingest_0", "waits", "query_0", "ingest_0"] == told[:4]
    assert 1 == engine._requests.qsize()


def test_one_call_has_few_more_requests_than_streams() -> None:
    """Who comes stands behind all that was started before."""
    engine = Engine(EMBEDDER / "model.xml")
    told: list[str] = []
    go = Event()
    requests = [engine._requests.get() for _ in range(engine._requests.qsize())]
    for request in requests:
        engine._requests.put(Gated(request, told, go))
    with ThreadPoolExecutor(1, "ingest") as pool:
        ingested = pool.submit(engine.run, [[5 + i] * 500 for i in range(4 * len(requests))])
        while "waits" not in told:
            pass
        held = len(told) - 1
        go.set()
        ingested.result(60)
    assert engine._streams < held <= 1.5 * engine._streams or (1, 2) == (engine._streams, held)
    assert len(requests) == engine._requests.qsize()


FORKED = """
import os, signal, sys
from pipeline import Document, Pipeline, Settings
from pipeline.embedders.embedded import EmbeddedEmbedder
from pipeline.errors import EmbedderError, ForkedError

rag = Pipeline.from_settings(Settings(data_dir=sys.argv[1], reranker=sys.argv[2]))
rag.ingest([Document(id="a", text="Qdrant stores vectors.")])
rag.query("What stores vectors?")
if (pid := os.fork()) == 0:
    signal.alarm(60)  # else it would hang for good where it does
    try:
        rag.query("Which fruit is yellow?")
    except ForkedError as error:
        print(error, flush=True)
    try:
        rag.embedder.embed_query("Which fruit is yellow?")
    except EmbedderError as error:
        print(error, flush=True)
    rag.close()
    print(*EmbeddedEmbedder().embed_query("one of its own").shape, flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(rag.query("What is stored?").hits))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("reranker", ["embedded", "embedded-cross-encoder"])
def test_a_forked_child_is_told_to_make_its_own(tmp_path: Path, reranker: str) -> None:
    """The engine's threads are the parent's. A child's call fails, what it makes itself works, and it can exit."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path), reranker],
        capture_output=True,
        text=True,
        timeout=300,
    )
    *said, made, after = run.stdout.splitlines() or [run.stderr] * 4
    assert 2 == len(said)
    assert all("loaded before the process was forked; make the pipeline in each worker" in line for line in said)
    assert ("384", "0 1") == (made, after)


def test_neither_torch_nor_transformers_is_loaded() -> None:
    """Embedding and reranking need the CPU engine alone."""
    script = (
        "import sys; from pipeline.embedders.embedded import EmbeddedEmbedder as E;"
        "from pipeline.rerankers.embedded import EmbeddedReranker as R;"
        "from pipeline.rerankers.late_interaction import LateInteractionReranker as L;"
        "E().embed_query('a'); R().score('a', ['b']); L().score('a', ['b']);"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_no_usage_statistics_are_sent() -> None:
    """OpenVINO would, at its import already; here it finds nothing to send them with."""
    script = (
        "import pipeline, sys; from openvino.tools.ovc import convert_impl, telemetry_utils;"
        "print({module.tm.__name__ for module in (convert_impl, telemetry_utils)}, "
        "[name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "{'openvino.tools.ovc.telemetry_stub'} []" == done.stdout.strip()


def test_a_model_is_loaded_once_a_process(tmp_path: Path) -> None:
    """All users of a folder share one compiled model, also when they come by another path."""
    link = tmp_path / "link"
    link.symlink_to(EMBEDDER, target_is_directory=True)
    engines = {id(ModelFolder(folder, "embedder").engine) for folder in (EMBEDDER, link, EMBEDDER)}
    assert 1 == len(engines)


def test_the_cache_changes_no_number(tmp_path: Path) -> None:
    """A model from the cache answers as the one that filled it."""
    sequences = [[0, 9, 8, 7, 2], [0, 100, 2]]
    made = Engine(RERANKER / "model.xml", tmp_path, 1).run(sequences)
    assert list(tmp_path.glob("*.blob"))
    assert np.array_equal(made, Engine(RERANKER / "model.xml", tmp_path, 1).run(sequences))


def test_a_damaged_cache_is_no_error(tmp_path: Path) -> None:
    """A cut-off cache file, as a crash or a full disk leaves it, is made anew."""
    sequences = [[0, 9, 8, 7, 2]]
    expected = Engine(RERANKER / "model.xml", tmp_path, 1).run(sequences)
    for blob in tmp_path.glob("*.blob"):
        data = blob.read_bytes()
        blob.unlink()
        blob.write_bytes(data[: len(data) // 2])
    assert np.array_equal(expected, Engine(RERANKER / "model.xml", tmp_path, 1).run(sequences))


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    """Folder and file are in the message."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDER, folder)
    (folder / missing).unlink()
    with pytest.raises(SettingsError, match=missing):
        EmbeddedEmbedder(folder)


def test_an_embedder_is_no_reranker() -> None:
    """A folder of the other kind is refused before anything is computed with it."""
    with pytest.raises(SettingsError, match="cross-encoder"):
        EmbeddedReranker(EMBEDDER)
    with pytest.raises(SettingsError, match="embedder"):
        EmbeddedEmbedder(RERANKER)


def test_a_copied_folder_works_the_same(tmp_path: Path, embedder: EmbeddedEmbedder) -> None:
    """A model is its folder: copied elsewhere it gives the same vectors under the same name."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDER, folder)
    copied = EmbeddedEmbedder(folder)
    assert embedder.name == copied.name
    assert np.array_equal(embedder.embed_query(PARALLEL[0][1]), copied.embed_query(PARALLEL[0][1]))
