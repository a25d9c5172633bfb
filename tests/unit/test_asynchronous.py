"""aquery and aingest: who waits for whom, deadlines, and what becomes of them when they are cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core import Pipeline
from pipeline.ingestion.run import Progress
from pipeline.types import Document, QueryResult
from tests.fakes import FakeEmbedder, FakeReranker, FakeStore

# More than there are threads for one kind of work on any machine.
MANY = 40


class Held(FakeEmbedder):
    """Embeds queries once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.let = threading.Event()

    def embed_query(self, text: str) -> NDArray[np.float32]:
        self.asked.append(text)
        assert self.let.wait(60)
        return super().embed_query(text)


def documents(count: int, words: int = 1) -> list[Document]:
    return [Document(id=f"d{i}", text=f"word{i} " * words) for i in range(count)]


def stages() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rag-")]


def test_queries_do_not_wait_behind_ingests() -> None:
    """Nor does what else the program gives to the threads of asyncio."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    rag.ingest(documents(3))
    go = threading.Event()

    def held() -> Iterator[Document]:
        assert go.wait(60)
        yield from documents(3)

    async def main() -> None:
        ingests = [asyncio.create_task(rag.aingest(held())) for _ in range(MANY)]
        await asyncio.sleep(0)
        assert "d1" == (await asyncio.wait_for(rag.aquery("word1"), 60)).hits[0].document_id
        assert 7 == await asyncio.wait_for(asyncio.to_thread(lambda: 7), 60)
        go.set()
        assert {3} == {report.unchanged for report in await asyncio.gather(*ingests)}

    asyncio.run(main())


def test_a_deadline_counts_from_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that has waited for a thread until then is answered in first-stage order, and says how long it took."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    embedder = Held()
    rag = Pipeline(embedder=embedder, store=FakeStore(), reranker=FakeReranker())
    rag.ingest(documents(3))

    async def main() -> list[QueryResult]:
        asked = [asyncio.create_task(rag.aquery("word1")) for _ in range(MANY)]
        asked.append(asyncio.create_task(rag.aquery("word1", deadline_ms=5_000)))
        asked.append(asyncio.create_task(rag.aquery("word1", deadline_ms=60_000)))
        await asyncio.sleep(0)
        clock[0] += 10
        embedder.let.set()
        return await asyncio.gather(*asked)

    first, *_, late, early = asyncio.run(main())
    assert (False, 3) == (first.degraded, first.reranked)
    assert (True, 0, 3) == (late.degraded, late.reranked, len(late.hits))
    assert (False, 3) == (early.degraded, early.reranked)
    assert late.timings_ms["total"] >= 10_000


def test_a_cancelled_query_that_waits_for_a_thread_is_never_asked() -> None:
    """So those that come after it do not wait for it."""
    embedder = Held()
    rag = Pipeline(embedder=embedder, store=FakeStore())
    rag.ingest(documents(3))

    async def main() -> None:
        asked = [asyncio.create_task(rag.aquery("word1")) for _ in range(MANY)]
        dropped = [asyncio.create_task(rag.aquery("word2")) for _ in range(MANY)]
        await asyncio.sleep(0)
        for task in dropped:
            task.cancel()
        assert {asyncio.CancelledError} == {type(end) for end in await asyncio.gather(*dropped, return_exceptions=True)}
        embedder.let.set()
        await asyncio.gather(*asked)

    asyncio.run(main())
    assert ["word1"] * MANY == embedder.asked


def test_the_context_goes_along() -> None:
    """As with asyncio's own threads: a request id for log lines, for one."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    class Telling(FakeEmbedder):
        def embed_query(self, text: str) -> NDArray[np.float32]:
            seen.append(request.get())
            return super().embed_query(text)

    rag = Pipeline(embedder=Telling(), store=FakeStore())

    async def main() -> None:
        request.set("r1")
        await rag.aingest(documents(1), progress=lambda _: seen.append(request.get()))
        await rag.aquery("word0")

    asyncio.run(main())
    assert {"r1"} == set(seen)


def test_a_cancelled_ingest_ends_and_another_goes_on() -> None:
    """After asyncio.timeout or task.cancel() nothing of it runs any more, and what is written is whole."""
    store = FakeStore()
    rag = Pipeline(embedder=FakeEmbedder(), store=store)
    items = documents(3_000, words=20)
    written, go = threading.Event(), threading.Event()

    def hold(step: Progress) -> None:
        if step.chunks:
            written.set()
            assert go.wait(60)

    async def main() -> None:
        task = asyncio.create_task(rag.aingest(items, progress=hold))
        await asyncio.to_thread(written.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()  # it is still at work
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [] == stages()

    asyncio.run(main())
    there = {chunk.document_id for chunk, _ in store.points.values()}
    assert 0 < len(there) < 1_000
    assert [] == rag.verify().problems
    report = rag.ingest(items)
    assert (3_000 - len(there), len(there)) == (report.new, report.unchanged)


def test_an_ingest_with_nothing_to_write_ends_too() -> None:
    """Between two batches that it has looked at, and between two files that are read."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    rag.ingest(documents(300))
    read: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def again() -> Iterator[Document]:
        for number in range(1_000_000):
            read.append(number)
            if number == 10:
                begun.set()
                assert go.wait(60)
            yield Document(id=f"d{number % 300}", text=f"word{number % 300} ")

    async def main() -> None:
        task = asyncio.create_task(rag.aingest(again()))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert 11 == len(read)
    assert [] == stages()


def test_an_error_after_the_cancelling_is_not_lost() -> None:
    """It comes out in the place of the cancellation."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    begun, go = threading.Event(), threading.Event()

    def broken() -> Iterator[Document]:
        yield Document(id="a", text="x")
        begun.set()
        assert go.wait(60)
        raise ValueError("the database went away")

    async def main() -> None:
        task = asyncio.create_task(rag.aingest(broken()))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(ValueError, match="went away"):
            await task

    asyncio.run(main())


def test_cancelled_twice_it_is_not_awaited() -> None:
    """A source that does not answer holds nobody who insists; nor does it hold an ingest that has not begun."""
    rag = Pipeline(embedder=FakeEmbedder(), store=FakeStore())
    begun, go = threading.Semaphore(0), threading.Event()

    def slow() -> Iterator[Document]:
        begun.release()
        assert go.wait(60)
        yield Document(id="a", text="x")

    async def main() -> None:
        tasks = [asyncio.create_task(rag.aingest(slow())) for _ in range(MANY)]
        await asyncio.to_thread(begun.acquire, timeout=60)
        tasks[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[-1]
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not go.is_set()
        assert {asyncio.CancelledError} == {type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)}
        go.set()

    asyncio.run(main())
    assert 0 == rag.store.count().chunks
