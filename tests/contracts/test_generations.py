"""Reindexing on every store that can: what is built beside, the switch, rollback and gc, and who sees what."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from pipeline.closing import close
from pipeline.core import Pipeline
from pipeline.errors import EmbedderError, FingerprintError, SettingsError, StoreError, StoreLockedError
from pipeline.ingestion.reindexing import _Copy, collect_garbage, generations_of, rollback
from pipeline.interfaces import Store
from pipeline.reports import RollbackReport
from pipeline.retrying import RetryPolicy
from pipeline.stores.edge import EdgeStore
from pipeline.stores.locking import DirectoryLock
from pipeline.stores.server import ServerStore
from pipeline.stores.server_generations import ServerGenerations
from pipeline.types import Chunk, Document, Fingerprint
from tests.fakes import FakeEmbedder, FakeStore

Open = Callable[..., Pipeline]


class HookedEmbedder(FakeEmbedder):
    """Calls a function before it embeds."""

    def __init__(self, dimension: int, name: str) -> None:
        super().__init__(dimension, name)
        self.before: Callable[[], None] = lambda: None

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.before()
        return super().embed_documents(texts)


@pytest.fixture(params=["edge", "memory"])
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens pipelines on one collection, each with a model of the given name."""
    client = QdrantClient(":memory:")
    made: list[Pipeline] = []

    def store() -> Store:
        return EdgeStore(tmp_path / "documents") if request.param == "edge" else ServerStore(client, "documents")

    def open_one(model: str = "old", chunk_tokens: int = 32, overlap: int = 8) -> Pipeline:
        embedder = HookedEmbedder(48 if model == "new" else 32, model)
        made.append(Pipeline(embedder=embedder, store=store(), chunk_tokens=chunk_tokens, chunk_overlap=overlap))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


def documents(count: int = 30) -> list[Document]:
    return [
        Document(f"d{i}", " ".join(f"word{i} has number {n}, and more." for n in range(12)), title=f"T{i}")
        for i in range(count)
    ]


def best(rag: Pipeline, text: str) -> str:
    return rag.query(text).hits[0].document_id


def leave(rag: Pipeline) -> None:
    """As at the end of its program, which frees the directory; the client in memory is all stores' together."""
    if isinstance(rag.store, EdgeStore):
        rag.close()


def states(rag: Pipeline) -> dict[str, str]:
    return {one.name: one.state for one in generations_of(rag.store).all()}


def rolled_back(open_: Open) -> tuple[Pipeline, RollbackReport]:
    """After a reindex to the model "new", with one document more and another one rewritten before the rollback."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    new.reindex()
    new.ingest([Document("late", "a latecomer"), Document("d3", "rewritten entirely")])
    leave(old)
    return new, rollback(new.store)


def test_another_model(open_: Open) -> None:
    """The chunks are the same, embedded by the new model; an ingest of the sources then finds nothing to do."""
    old = open_()
    old.ingest(documents())
    chunks = {chunk.id: chunk for chunk in old.store.chunks()}
    new = open_("new")
    with pytest.raises(FingerprintError, match=r"stored 'old', asked for 'new'.*rag reindex"):
        new.query("word7")
    report = new.reindex()
    assert ("documents.2", "documents", 30, 0) == (report.collection, report.kept, report.documents, report.recut)
    assert chunks == {chunk.id: chunk for chunk in new.store.chunks()}
    assert "d7" == best(new, "word7")
    assert 30 == new.ingest(documents()).unchanged
    assert {"documents": "kept", "documents.2": "current"} == states(new)


def test_what_is_being_read_across_a_switch_is_one_collection(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of what was in use when the reading began, in whatever steps it is read."""
    for store in ("edge", "server"):
        monkeypatch.setattr(f"pipeline.stores.{store}._READ_BATCH", 7)
    rag = open_("old")
    rag.ingest(documents())
    before = {chunk.id for chunk in rag.store.chunks()}
    cut_anew = open_(chunk_tokens=64, overlap=16)
    reading = cut_anew.store.chunks()
    seen = [next(reading)]
    cut_anew.reindex()
    cut_anew.store.fingerprint()
    seen.extend(reading)
    assert len(before) == len(seen)
    assert before == {chunk.id for chunk in seen}
    after = {chunk.id for chunk in cut_anew.store.chunks()}
    assert after
    assert before.isdisjoint(after) or len(after) < len(before)


def test_other_chunking(open_: Open) -> None:
    """The chunks are those that an ingest with the new sizes would have made."""
    old = open_()
    old.ingest(documents())
    new = open_(chunk_tokens=64, overlap=16)
    report = new.reindex()
    assert 30 == report.recut
    chunker = new._ingest_run().chunker
    wanted = {chunk.id: chunk for document in documents() for chunk in chunker.chunk(document)}
    assert wanted == {chunk.id: chunk for chunk in new.store.chunks()}
    assert new.verify(documents()).clean


def test_open_pipelines_stay_with_what_they_opened(open_: Open) -> None:
    """After the switch they answer from the collection of their own model, and cannot write where it would be lost."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    new.reindex()
    assert "d7" == best(old, "word7")
    for write in (lambda: old.ingest([Document("more", "text")]), lambda: old.delete("d1")):
        with pytest.raises(StoreError, match="was switched to another collection"):
            write()
    with pytest.raises(FingerprintError, match="stored 'new', asked for 'old'"):
        open_().query("word7")
    new.ingest([Document("more", "text")])
    assert "more" == best(new, "text")


def test_queries_go_on(open_: Open) -> None:
    """Threads that query all the while get the right answer every time, before, during and after the switch."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    stop, asked, wrong = threading.Event(), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                if best(old, "word7") != "d7":
                    wrong.append("another answer")
            except Exception as error:  # noqa: BLE001  shown below
                wrong.append(repr(error))
            asked.set()

    thread = threading.Thread(target=ask)
    thread.start()

    def wait_for_queries() -> None:
        asked.clear()
        assert asked.wait(60)

    new.embedder.before = wait_for_queries  # type: ignore[attr-defined]
    new.reindex()
    wait_for_queries()
    stop.set()
    thread.join()
    assert [] == wrong


def test_what_is_ingested_meanwhile_is_there_after_the_switch(open_: Open) -> None:
    """New, changed and removed documents are caught up with."""
    old, new = open_(), open_("new")
    old.ingest(documents())

    def meanwhile() -> None:
        new.embedder.before = lambda: None  # type: ignore[attr-defined]
        old.ingest([Document("late", "a latecomer"), Document("d3", "rewritten entirely")])
        old.delete("d4")

    new.embedder.before = meanwhile  # type: ignore[attr-defined]
    new.reindex()
    wanted = {version.document_id: version.content_hash for version in old.documents()}
    assert wanted == {version.document_id: version.content_hash for version in new.documents()}
    assert ("late", "d3") == (best(new, "latecomer"), best(new, "rewritten entirely"))
    assert "d4" not in wanted
    assert new.verify().clean


def test_a_write_of_before_the_switch_is_there_although_the_program_is_killed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a server a request may take its time; what is brought after the switch would be lost with the program."""
    client = QdrantClient(":memory:")
    old = Pipeline(embedder=FakeEmbedder(32, "old"), store=ServerStore(client, "documents"))
    new = Pipeline(embedder=FakeEmbedder(48, "new"), store=ServerStore(client, "documents"))
    old.ingest(documents(5))
    catch_up, switch = _Copy.catch_up, ServerGenerations.switch
    looks = []

    def and_a_write_arrives(self: _Copy) -> Any:
        ledger = catch_up(self)
        looks.append(len(ledger))
        if len(looks) == 2:  # it had looked whether it may before it was told to wait
            monkeypatch.setattr(old.store, "_refuse_left", lambda: None)
            old.ingest([Document("late", "a latecomer")])
        return ledger

    def killed(self: Any, to: str, **options: Any) -> None:
        switch(self, to, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Copy, "catch_up", and_a_write_arrives)
    monkeypatch.setattr(ServerGenerations, "switch", killed)
    with pytest.raises(KeyboardInterrupt):
        new.reindex()
    assert new.reindex().kept is None
    assert "late" == best(new, "latecomer")


def test_a_write_that_comes_with_the_switch_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may arrive after the last look: it cannot be brought over any more, but must not be lost silently."""
    client = QdrantClient(":memory:")
    old = Pipeline(embedder=FakeEmbedder(32, "old"), store=ServerStore(client, "documents"))
    new = Pipeline(embedder=FakeEmbedder(48, "new"), store=ServerStore(client, "documents"))
    old.ingest(documents(5))
    switch = ServerGenerations.switch

    def and_a_write_arrives(self: Any, to: str, **options: Any) -> None:
        monkeypatch.setattr(old.store, "_refuse_left", lambda: None)
        old.ingest([Document("late", "a latecomer")])
        switch(self, to, **options)

    monkeypatch.setattr(ServerGenerations, "switch", and_a_write_arrives)
    (warning,) = new.reindex().warnings
    assert "1 documents, such as late, were written or deleted in documents by requests" in warning
    assert 5 == new.store.count().documents


@pytest.mark.parametrize("switched", [True, False])
def test_who_writes_to_a_server_waits_while_another_collection_may_come_into_use(switched: bool) -> None:
    """What it writes then would be in neither or in both; if there was no switch it goes on."""
    client = QdrantClient(":memory:")
    waiting, decided = threading.Event(), threading.Event()

    def sleep(_: float) -> None:
        waiting.set()
        assert decided.wait(60)

    store = ServerStore(client, "documents", retry=RetryPolicy(deadline_s=600, sleep=sleep))
    rag = Pipeline(embedder=FakeEmbedder(), store=store)
    rag.ingest(documents(2))
    generations = generations_of(ServerStore(client, "documents"))
    generations.open("documents.2").ensure_ready(rag.fingerprint)
    raised: list[str] = []

    def write() -> None:
        try:
            rag.ingest([Document("late", "a latecomer")])
        except StoreError as error:
            raised.append(str(error))

    thread = threading.Thread(target=write)
    with generations.frozen():
        thread.start()
        assert waiting.wait(60)
        assert 2 == generations.open("documents").count().documents
        if switched:
            generations.switch("documents.2")
    decided.set()
    thread.join()
    assert [switched] * len(raised) == ["was switched to another collection" in error for error in raised]
    assert switched == bool(raised)
    assert (2 if switched else 3) == generations.open("documents").count().documents
    assert 0 == generations.open("documents.2").count().documents


def test_a_kept_collection_is_caught_up_with_by_whole_documents(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has it open goes on answering from it."""
    monkeypatch.setattr("pipeline.ingestion.reindexing._CHUNKS", 3)
    old, new = open_(), open_("new")
    old.ingest(documents(1))
    new.reindex()
    new.ingest(documents(6))
    back = open_()
    written: list[list[Chunk]] = []
    kind = type(back.store)
    upsert = kind.upsert

    def note(self: Any, chunks: Sequence[Chunk], vectors: Any) -> None:
        written.append(list(chunks))
        upsert(self, chunks, vectors)

    monkeypatch.setattr(kind, "upsert", note)
    assert ("documents", 5) == ((report := back.reindex()).collection, report.documents)
    assert len(written) > 1
    for chunks in written:
        assert all(chunk.count > 1 for chunk in chunks)
        assert len(chunks) == sum({chunk.document_id: chunk.count for chunk in chunks}.values())


def test_goes_on_where_it_was_cut_off(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run embeds only what the first has not written; until it is done the old collection is in use."""
    monkeypatch.setattr("pipeline.ingestion.reindexing._DOCUMENTS", 10)
    old, new = open_(), open_("new")
    old.ingest(documents())
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise EmbedderError("out of luck")

    new.embedder.before = fail  # type: ignore[attr-defined]
    with pytest.raises(EmbedderError):
        new.reindex()
    assert {"documents": "current", "documents.2": "leftover"} == states(new)
    assert "d7" == best(open_(), "word7")
    new.embedder.before = lambda: None  # type: ignore[attr-defined]
    report = new.reindex()
    assert ("documents.2", 10) == (report.collection, report.documents)
    assert new.verify(documents()).clean


def test_nothing_to_do(open_: Open) -> None:
    """The settings of the collection in use build nothing; without a collection that is said."""
    rag = open_()
    with pytest.raises(SettingsError, match="nothing to reindex"):
        rag.reindex()
    rag.ingest(documents(3))
    assert rag.reindex().kept is None
    assert {"documents": "current"} == states(rag)


def test_rollback_and_back_again(open_: Open) -> None:
    """A rollback uses the old collection as it was, and counts what came since."""
    new, report = rolled_back(open_)
    assert ("documents", "old", 2) == (report.collection, report.fingerprint.embedder, report.behind)
    assert {"documents": "current", "documents.2": "kept"} == states(new)
    again = open_()
    assert "d7" == best(again, "word7")
    assert again.get("late") is None
    again.ingest([Document("later", "even later")])
    with pytest.raises(FingerprintError):
        open_("new").query("word7")


def test_reindex_after_a_rollback_keeps_what_came_before_it(open_: Open) -> None:
    """What was ingested between the switch and the rollback is in the kept collection alone: it is not overwritten."""
    new, _ = rolled_back(open_)
    leave(new)
    report = open_("new").reindex()
    assert ("documents.3", "documents") == (report.collection, report.kept)
    assert "documents.2, from which there was a rollback, is left as it is: 2 documents" in report.warnings[0]
    left = generations_of(open_("new").store).open("documents.2")
    assert {"late"} == {version.document_id for version in left.versions(["late"])}
    close(left)


def test_what_a_rollback_left_is_not_caught_up_with_although_it_is_the_older_one(open_: Open) -> None:
    """After a reindex back the first collection is in use again, and may be the one that a rollback leaves."""
    first, new = open_(), open_("new")
    first.ingest(documents(5))
    new.reindex()
    leave(first)
    leave(new)
    back = open_()
    back.reindex()
    back.ingest([Document("late", "a latecomer")])
    assert ("documents.2", 1) == ((report := rollback(back.store)).collection, report.behind)
    leave(back)
    again = open_()
    report_again = again.reindex()
    assert ("documents.3", "documents.2") == (report_again.collection, report_again.kept)
    assert "documents, from which there was a rollback, is left as it is: 1 documents" in report_again.warnings[0]
    left = generations_of(again.store).open("documents")
    assert {"late"} == {version.document_id for version in left.versions(["late"])}
    close(left)


def test_a_collection_that_was_in_use_is_not_taken_for_a_half_built_one(open_: Open) -> None:
    """After a rollback from it and a reindex to something else it may still hold what is nowhere else."""
    new, _ = rolled_back(open_)
    leave(new)
    third = open_("third")
    third.reindex()
    leave(third)
    report = open_("new").reindex()
    assert ("documents.4", "documents.3") == (report.collection, report.kept)
    assert "leftover" == states(open_("new"))["documents.2"]
    left = generations_of(open_("new").store).open("documents.2")
    assert {"late"} == {version.document_id for version in left.versions(["late"])}
    close(left)


def test_reindex_back_only_catches_up(open_: Open) -> None:
    """To the model whose collection is kept: what came since is brought over, the rest is there."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    new.reindex()
    new.ingest([Document("late", "a latecomer")])
    leave(old)
    back = open_()
    report = back.reindex()
    assert ("documents", "documents.2", 1) == (report.collection, report.kept, report.documents)
    assert "late" == best(back, "latecomer")


def test_gc(open_: Open) -> None:
    """All but the collection in use goes; then there is nothing to roll back to, and the name still works."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    new.reindex()
    leave(old)
    assert ["documents"] == [one.name for one in collect_garbage(new.store, dry_run=True).removed]
    assert {"documents": "kept", "documents.2": "current"} == states(new)
    assert ["documents"] == [one.name for one in collect_garbage(new.store).removed]
    assert {"documents.2": "current"} == states(new)
    with pytest.raises(SettingsError, match="no collection is kept"):
        rollback(new.store)
    assert "d7" == best(open_("new"), "word7")
    third = open_("third")
    leave(new)
    assert ("documents.3", "documents.2") == ((report := third.reindex()).collection, report.kept)


def test_gc_says_beforehand_what_it_would_do(open_: Open) -> None:
    """What a program has open is not listed as what would go: it would stay."""
    old, new = open_(), open_("new")
    old.ingest(documents(5))
    new.reindex()
    would = collect_garbage(new.store, dry_run=True)
    assert {"documents": "kept", "documents.2": "current"} == states(new)
    done = collect_garbage(new.store)
    assert (done.removed, done.failures) == (would.removed, would.failures)


def test_gc_does_not_come_between_the_steps_of_a_rollback(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rollback is about to use stays."""
    old, new = open_(), open_("new")
    old.ingest(documents(5))
    new.reindex()
    leave(old)
    kind = type(generations_of(new.store))
    switch, removed = kind.switch, []

    def after_gc(self: Any, to: str, **options: Any) -> None:
        removed.extend(collect_garbage(new.store).removed)
        switch(self, to, **options)

    monkeypatch.setattr(kind, "switch", after_gc)
    rollback(new.store)
    assert [] == removed
    assert {"documents": "current", "documents.2": "kept"} == states(open_())
    assert "d3" == best(open_(), "word3")


def test_a_rollback_to_what_gc_has_just_removed_is_none(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection in use stays in use."""
    old, new = open_(), open_("new")
    old.ingest(documents(5))
    new.reindex()
    leave(old)
    kind = type(generations_of(new.store))
    building = kind.building

    def after_gc(self: Any, name: str) -> Any:
        assert ["documents"] == [one.name for one in collect_garbage(new.store).removed]
        return building(self, name)

    monkeypatch.setattr(kind, "building", after_gc)
    with pytest.raises(StoreError, match="removed meanwhile"):
        rollback(new.store)
    assert {"documents.2": "current"} == states(new)
    assert "d3" == best(open_("new"), "word3")


def test_gc_looks_again_what_is_in_use_once_nobody_can_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reindex may have ended since it looked first, and then waits no longer for what it has built."""
    rag = Pipeline(embedder=FakeEmbedder(), store=EdgeStore(tmp_path / "documents"))
    rag.ingest(documents(2))
    generations = generations_of(rag.store)
    with closing(generations.open("documents.2")) as built:
        built.ensure_ready(rag.fingerprint)
    acquire = DirectoryLock.acquire

    def after_the_switch(self: DirectoryLock) -> None:
        monkeypatch.undo()
        generations.switch("documents.2")
        acquire(self)

    monkeypatch.setattr(DirectoryLock, "acquire", after_the_switch)
    with pytest.raises(StoreError, match="in use"):
        generations.remove("documents.2")
    assert {"documents": "kept", "documents.2": "current"} == states(rag)
    rag.close()


def test_gc_looks_what_is_in_use_after_it_looked_who_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server a reindex may end in between: it has switched before it says that it builds no longer."""
    rag = Pipeline(embedder=FakeEmbedder(), store=ServerStore(QdrantClient(":memory:"), "documents"))
    rag.ingest(documents(2))
    generations = generations_of(rag.store)
    with generations.building("documents.2"):
        generations.open("documents.2").ensure_ready(rag.fingerprint)

    def nobody(stored: object) -> None:
        monkeypatch.undo()
        generations.switch("documents.2")

    monkeypatch.setattr("pipeline.stores.server_generations._builder", nobody)
    with pytest.raises(StoreError, match="in use"):
        generations.remove("documents.2")
    assert {"documents": "kept", "documents.2": "current"} == states(rag)


def test_gc_removes_nothing_where_the_collection_in_use_is_not_there(tmp_path: Path) -> None:
    """The kept one may be all that is left."""
    rag = Pipeline(embedder=FakeEmbedder(), store=EdgeStore(tmp_path / "documents"))
    assert [] == collect_garbage(rag.store).removed
    rag.ingest(documents(2))
    rag.close()
    other = Pipeline(embedder=FakeEmbedder(name="new"), store=EdgeStore(tmp_path / "documents"))
    other.reindex()
    other.close()
    shutil.rmtree(tmp_path / "documents.2")
    for dry_run in (True, False):
        with pytest.raises(SettingsError, match=r"documents\.2, the collection in use, is not there"):
            collect_garbage(EdgeStore(tmp_path / "documents"), dry_run=dry_run)
    with closing(generations_of(rag.store).open("documents")) as left:
        assert 2 == left.count().documents


def test_gc_leaves_what_is_being_built(open_: Open) -> None:
    """The collection of a running reindex stays, with the reason; that of one that was cut off goes."""
    old, new = open_(), open_("new")
    old.ingest(documents())
    seen = []

    def collect() -> None:
        report = collect_garbage(old.store)
        seen.append(([one.name for one in report.removed], [failure.source for failure in report.failures]))
        raise EmbedderError("out of luck")

    new.embedder.before = collect  # type: ignore[attr-defined]
    with suppress(EmbedderError):
        new.reindex()
    assert [([], ["documents.2"])] == seen
    leave(new)
    assert ["documents.2"] == [one.name for one in collect_garbage(old.store).removed]


def test_the_collection_in_use_is_never_removed(open_: Open) -> None:
    """Not even when it is asked for by name."""
    rag = open_()
    rag.ingest(documents(2))
    with pytest.raises(StoreError, match="in use"):
        generations_of(rag.store).remove("documents")
    assert 2 == rag.store.count().documents


def test_a_document_that_is_not_complete_is_not_made_to_look_so(open_: Open) -> None:
    """What a cut-off ingest left is taken over as it is, and said; an ingest mends it."""
    old, new = open_(), open_("new", chunk_tokens=64)
    old.ingest(documents(3))
    chunks = sorted((chunk for chunk in old.store.chunks(["d1"])), key=lambda chunk: chunk.index)
    old.store.delete_chunks([chunks[1].id])
    report = new.reindex()
    assert 1 == len(report.warnings)
    assert "d1" in report.warnings[0]
    assert [False] == [version.complete for version in new.documents() if version.document_id == "d1"]
    new.ingest(documents(3))
    assert new.verify(documents(3)).clean


def test_a_reindex_that_another_one_overtook_switches_nothing(open_: Open) -> None:
    """What was ingested after the first switch is in that collection alone, so it stays in use."""
    open_().ingest(documents(5))
    slow, fast = open_(chunk_tokens=16, overlap=4), open_(chunk_tokens=64)

    def meanwhile() -> None:
        slow.embedder.before = lambda: None  # type: ignore[attr-defined]
        fast.reindex()
        fast.ingest([Document("late", "a latecomer")])

    slow.embedder.before = meanwhile  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"was switched from documents to documents\.3 meanwhile"):
        slow.reindex()
    assert {"documents": "kept", "documents.2": "leftover", "documents.3": "current"} == states(fast)
    assert "late" == best(open_(chunk_tokens=64), "latecomer")


def test_a_reindex_during_which_there_was_a_rollback_switches_nothing(open_: Open) -> None:
    """Neither of the two collections of the rollback is changed or forgotten."""
    old, new = open_(), open_("new")
    old.ingest(documents(5))
    new.reindex()
    third = open_(chunk_tokens=16, overlap=4)

    def meanwhile() -> None:
        third.embedder.before = lambda: None  # type: ignore[attr-defined]
        rollback(new.store)
        old.ingest([Document("late", "a latecomer")])

    third.embedder.before = meanwhile  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"was switched from documents\.2 to documents meanwhile"):
        third.reindex()
    assert {"documents": "current", "documents.2": "kept", "documents.3": "leftover"} == states(third)
    assert "late" == best(open_(), "latecomer")


def test_two_equal_reindexes_one_after_the_other(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two replicas start: the second would build what is in use by then, and leave out what came since."""
    open_().ingest(documents(5))
    first, second = open_("new"), open_("new")
    kind = type(generations_of(first.store))
    building = kind.building

    def after_the_first(self: Any, name: str) -> Any:
        monkeypatch.undo()
        first.reindex()
        first.ingest([Document("late", "a latecomer")])
        return building(self, name)

    monkeypatch.setattr(kind, "building", after_the_first)
    with pytest.raises(StoreError, match=r"was switched from documents to documents\.2 meanwhile"):
        second.reindex()
    assert "late" == best(open_("new"), "latecomer")
    assert {"documents": "kept", "documents.2": "current"} == states(first)


def test_two_equal_reindexes_at_once(open_: Open) -> None:
    """Of two threads of one program, too, the second is told."""
    open_().ingest(documents(5))
    first, second = open_("new"), open_("new")

    def meanwhile() -> None:
        first.embedder.before = lambda: None  # type: ignore[attr-defined]
        with pytest.raises(StoreLockedError, match=r"documents\.2.* is being built by"):
            second.reindex()

    first.embedder.before = meanwhile  # type: ignore[attr-defined]
    assert 5 == first.reindex().documents
    assert {"documents": "kept", "documents.2": "current"} == states(first)


def test_two_reindexes_to_different_models_never_share_a_collection(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that finds its new collection made by somebody else meanwhile leaves it alone."""
    open_().ingest(documents(5))
    mine, other = open_("mine"), open_("other")
    kind = type(mine.store)
    ensure_ready = kind.ensure_ready

    def after_the_other(self: Any, fingerprint: Fingerprint) -> None:
        monkeypatch.undo()
        made = generations_of(other.store).open("documents.2")
        made.ensure_ready(other.fingerprint)
        ensure_ready(self, fingerprint)
        close(made)

    monkeypatch.setattr(kind, "ensure_ready", after_the_other)
    with pytest.raises(FingerprintError, match="stored 'other', asked for 'mine'"):
        mine.reindex()
    assert {"documents": "current", "documents.2": "leftover"} == states(mine)


def test_the_note_of_another_builder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it came only after this one had looked whether somebody builds the collection."""
    client = QdrantClient(":memory:")
    rag = Pipeline(embedder=FakeEmbedder(32, "old"), store=ServerStore(client, "documents"))
    generations = generations_of(rag.store)
    with generations.building("documents.2"), monkeypatch.context() as patched:
        patched.setattr("socket.gethostname", lambda: "elsewhere")
        generations.open("documents.2").ensure_ready(rag.fingerprint)
    with pytest.raises(StoreLockedError, match="on elsewhere"):
        generations.remove("documents.2")


def test_what_is_in_use_is_not_switched_to(open_: Open) -> None:
    """It would be kept, too, and then there would be nothing to go back to."""
    old, new = open_(), open_("new")
    old.ingest(documents(2))
    new.reindex()
    with pytest.raises(StoreError, match="in use already"):
        generations_of(new.store).switch("documents.2")
    assert {"documents": "kept", "documents.2": "current"} == states(new)


def test_one_reindex_of_a_collection_at_a_time_on_a_server() -> None:
    """A second one for the same model is told who is at it."""
    client = QdrantClient(":memory:")
    old = Pipeline(embedder=FakeEmbedder(32, "old"), store=ServerStore(client, "documents"))
    old.ingest(documents(2))
    new = Pipeline(embedder=HookedEmbedder(48, "new"), store=ServerStore(client, "documents"))
    other = Pipeline(embedder=FakeEmbedder(48, "new"), store=ServerStore(client, "documents"))

    def second() -> None:
        new.embedder.before = lambda: None  # type: ignore[attr-defined]
        with pytest.raises(StoreLockedError, match="being built by process"):
            other.reindex()

    new.embedder.before = second  # type: ignore[attr-defined]
    new.reindex()
    assert {"documents": "kept", "documents.2": "current"} == states(new)


def test_a_store_of_one_collection() -> None:
    """A store that keeps no generations is said to be one."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    with pytest.raises(SettingsError, match="one collection only"):
        rag.reindex()
