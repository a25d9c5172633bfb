"""Any sequence of ingests, changes, removals, crashes and reopenings against the real engine and a model in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.core import Pipeline
from pipeline.ingestion.loaders import load
from pipeline.stores.edge import EdgeStore
from pipeline.types import Chunk, Document
from tests.fakes import FakeEmbedder
from tests.killing import in_memory

WORDS = st.sampled_from(["apples", "pears", "plums", "figs"])
LENGTHS = st.sampled_from([1, 1, 3, 6, 12])  # few, so that files are often equal
TEXTS = st.builds(lambda word, count: f"This sentence is about {word}. " * count, WORDS, LENGTHS)
NAMES = st.sampled_from([f"file{i}.txt" for i in range(5)])
CHANGES = st.dictionaries(NAMES, TEXTS | TEXTS | st.none(), min_size=2)
"""File name -> its new text; None: it goes."""
KINDS = ("missing", "orphaned", "stale", "duplicate", "changed", "new")

Versions = dict[str, dict[str, bool]]
"""Path of a file -> content hash -> whether the document that has it, be it a copy's, is complete."""


class CrashError(Exception):
    """The process ends here."""


class Crashing(EdgeStore):
    """A store that ends in the middle of its writes: after so many chunks written and removals made."""

    fuse: int | None = None

    def upsert(self, chunks: Sequence[Chunk], vectors: Any) -> None:
        if self.fuse is not None and len(chunks) > self.fuse:
            super().upsert(chunks[: self.fuse], vectors[: self.fuse])
            raise CrashError
        self._burn(len(chunks))
        super().upsert(chunks, vectors)

    def delete_chunks(self, point_ids: Iterable[str]) -> int:
        doomed = list(point_ids)
        self._burn(len(doomed[:1]))
        return super().delete_chunks(doomed)

    def _burn(self, steps: int) -> None:
        if self.fuse is not None:
            if self.fuse < steps:
                raise CrashError
            self.fuse -= steps


class Collection(RuleBasedStateMachine):
    """The folder that is ingested, the collection, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("pipeline.ingestion.run._EMBED_CHUNKS", 5)  # several writes an ingest
        self.place = tempfile.TemporaryDirectory(dir=in_memory())
        self.folder = Path(self.place.name).resolve() / "docs"
        self.folder.mkdir()
        self.files: dict[str, str] = {}
        """Document id -> content hash of the file as it is now."""
        self.model: Versions = {}
        self.rag = self.opened()

    def opened(self) -> Pipeline:
        self.store = Crashing(Path(self.place.name) / "store")
        self.store.whole_chunks = 1  # longer documents are written in several steps
        return Pipeline(embedder=FakeEmbedder(dimension=16), store=self.store, chunk_tokens=16, chunk_overlap=0)

    def teardown(self) -> None:
        self.rag.close()
        self.patch.undo()
        self.place.cleanup()

    def stored(self) -> Versions:
        found: Versions = {}
        for version in self.store.versions():
            assert version.document_id == version.source
            for path in version.sources:
                complete = found.setdefault(path, {}).get(version.content_hash, False)
                found[path][version.content_hash] = complete or version.complete
        return found

    def keeps(self, found: Versions) -> None:
        """Nothing that was there as a whole is lost, but by a file's new content; nothing else comes."""
        for path, before in self.model.items():
            if any(before.values()):
                assert any(found[path].values())
            assert found.get(path, {}).keys() <= before.keys() | {self.files.get(path, "")}
        for path in found.keys() - self.model.keys():
            assert {self.files[path]} == found[path].keys()

    @initialize(changes=CHANGES)
    def start(self, changes: dict[str, str | None]) -> None:
        self.change(changes)
        self.ingest(prune=False)

    @rule(changes=CHANGES)
    def change(self, changes: dict[str, str | None]) -> None:
        """Files are made, get another text, or go."""
        for name, text in changes.items():
            path = self.folder / name
            self.files.pop(path.as_posix(), None)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
                (document,) = load(path)
                assert isinstance(document, Document)
                self.files[document.id] = document.content_hash()

    @rule(prune=st.booleans())
    def ingest(self, prune: bool) -> None:
        """Afterwards each content is there, once and whole; what is gone stays unless it is pruned."""
        report = self.rag.ingest(self.folder, prune=prune, max_delete=1.0)
        assert [] == report.failures
        found = self.stored()
        if prune:
            self.model = {path: before for path, before in self.model.items() if path in self.files}
        self.keeps(found)
        assert {path: {hash_: True} for path, hash_ in self.files.items()} == {
            path: found[path] for path in found.keys() & self.files.keys()
        }
        assert not prune or found.keys() == self.files.keys()
        for content_hash in set(self.files.values()):
            assert 1 == len(list(self.store.related([], [content_hash])))
        self.model = found
        self.query("pears")

    @rule(changes=CHANGES, fuse=st.integers(0, 10), prune=st.booleans(), reopen=st.booleans(), repair=st.booleans())
    def crash(self, changes: dict[str, str | None], fuse: int, prune: bool, reopen: bool, repair: bool) -> None:
        """An ingest ends anywhere: each document that was there is in its old or new state, or in both.

        The program may be started again after it, or go on, and the collection be repaired.
        """
        self.change(changes)
        self.store.fuse = fuse
        with suppress(CrashError):
            self.rag.ingest(self.folder, prune=prune, max_delete=1.0)
        self.store.fuse = None
        if reopen:
            self.rag.close()
            self.rag = self.opened()
        found = self.stored()
        if prune:
            self.model = {path: before for path, before in self.model.items() if path in self.files or path in found}
        self.keeps(found)
        self.model = found
        self.query("apples")
        if repair:
            self.repair()

    @rule()
    def mend(self) -> None:
        self.repair()

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        """A document is deleted by its id; its file stays."""
        id_ = (self.folder / name).as_posix()
        assert int(id_ in self.model) == self.rag.delete([id_])
        assert None is self.rag.get(id_)
        self.model.pop(id_, None)
        found = self.stored()
        self.keeps(found)
        self.model = found

    def repair(self) -> None:
        """What a crash left is mended as far as the files allow; no document loses its last whole version."""
        report = self.rag.verify(self.folder, repair=True)
        found = self.stored()
        self.keeps(found)
        for path, before in self.model.items():
            if any(before.values()) or path in self.files:
                assert any(found[path].values())
            if path in self.files or sum(before.values()) == 1:
                assert 1 == len(found[path])
        told = {kind: {p.document_id for p in report.problems if p.kind == kind} for kind in KINDS}
        assert set() == told["duplicate"]
        broken = {path for path, versions in found.items() if [True] != list(versions.values())}
        said = told["missing"] | told["orphaned"] | told["stale"]
        copies = {path for version in self.store.versions() for path in version.copies}
        assert broken - copies <= said <= broken
        differing = {path for path, now in self.files.items() if not found.get(path, {}).get(now)}
        assert differing == told["changed"] | told["new"]
        self.model = found

    def query(self, word: str) -> None:
        """Each content of which a document is complete is found once, and no other."""
        hits = self.rag.query(f"about {word}", top_n=300, top_k=300).hits
        complete: dict[str, set[str]] = {}
        for version in self.store.versions():
            if version.complete:
                for path in version.sources:
                    complete.setdefault(path, set()).add(version.content_hash)
        shown = {hit.document_id: hit.chunk.content_hash for hit in hits}
        assert len(hits) == len({(hit.chunk.content_hash, hit.chunk.index) for hit in hits})
        for hit in hits:
            assert hit.chunk.content_hash == shown[hit.document_id]
            assert hit.chunk.content_hash in complete[hit.document_id]
        for id_, hashes in complete.items():
            assert id_ in shown or hashes & {*shown.values()}

    @invariant()
    def the_collection_is_the_model(self) -> None:
        assert self.model == self.stored()


Collection.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a failure is at most 12 steps long, and shrinking it takes minutes
)
TestCollection = Collection.TestCase
