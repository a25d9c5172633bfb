"""Collections of a server side by side, and which of them is in use.

Qdrant does not let an alias have a collection's name, and collections that were made before there was reindexing have
the plain name. So the plain name stays that of the first collection, and which one is in use is told by the alias
``<name>.current``; without it it is the plain one, and there is nothing to migrate. ``<name>.kept`` leads to the one
that a rollback goes back to, and if a rollback left it ``<name>.left``, too. They are set in one request, which Qdrant
carries out as a whole.

A store finds out once which collection is in use and then names that one, never the alias: behind an alias the vectors
of one model would from one request to the next be compared with those of another. Each collection made by a reindex
knows its own name (``generation`` in its metadata), so that this takes no more than looking the alias up.

Who builds one notes that in its metadata, with the time, again and again: a note of more than two minutes ago is that
of a builder who is dead. Clocks of machines that share a server must agree to that. In the same way who is about to
switch to another one notes that in the one in use, and who writes to it waits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from pipeline.errors import StoreError, StoreLockedError
from pipeline.stores import naming
from pipeline.stores.connection import Connection
from pipeline.stores.locking import alive
from pipeline.stores.server_errors import MissingCollectionError
from pipeline.types import Fingerprint, Generation

if TYPE_CHECKING:
    from pipeline.interfaces import Store

METADATA_KEY = "two_stage_rag"
_BUILDER, _SWITCHER = "builder", "switcher"
"""Keys of the notes."""
_NOTE_EVERY_S = 30.0
_NOTE_HOLDS_S = 120.0


def current_alias(collection: str) -> str:
    """The alias that leads to the collection in use, where there was a reindex."""
    return f"{collection}.current"


def _kept_alias(collection: str) -> str:
    return f"{collection}.kept"


def _left_alias(collection: str) -> str:
    return f"{collection}.left"


class ServerGenerations:
    """See :class:`pipeline.interfaces.Generations`."""

    def __init__(
        self,
        client: QdrantClient,
        server: Connection,
        collection: str,
        open_: Callable[[str], Store],
        follow: Callable[[], None],
    ) -> None:
        self._client = client
        self._server = server
        self._collection = collection
        self._open = open_
        self._follow = follow

    def all(self) -> list[Generation]:
        aliases = self._aliases()
        current = aliases.get(current_alias(self._collection), self._collection)
        kept, left = (aliases.get(alias(self._collection)) for alias in (_kept_alias, _left_alias))
        found = []
        for name in self._names():
            stored = self._metadata(name)
            if stored is None:
                continue  # removed in between, or somebody else's
            state = "current" if name == current else "kept" if name == kept else "leftover"
            found.append(Generation(name, state, Fingerprint.from_dict(stored), _builder(stored), name == left))  # type: ignore[arg-type]
        return found

    def _names(self) -> list[str]:
        listed = self._server.patiently("list", self._client.get_collections)
        return naming.ordered(self._collection, (one.name for one in listed.collections))

    def _aliases(self) -> dict[str, str]:
        listed = self._server.patiently("list the aliases of", self._client.get_aliases)
        return {alias.alias_name: alias.collection_name for alias in listed.aliases}

    def current(self) -> str:
        return self._aliases().get(current_alias(self._collection), self._collection)

    def _metadata(self, name: str) -> Mapping[str, Any] | None:
        try:
            info = self._server.patiently("look up", lambda: self._client.get_collection(name))
        except MissingCollectionError:
            return None
        stored = (info.config.metadata or {}).get(METADATA_KEY)
        return stored if isinstance(stored, Mapping) else None

    def next_name(self) -> str:
        return naming.following(self._collection, self._names())

    def open(self, name: str) -> Store:
        return self._open(name)

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        other = _builder(self._metadata(name) or {})
        if other is not None:
            raise StoreLockedError(f"{name} at {self._server.address} is being built by {other}: wait until it is done")
        with self._noting(name, _BUILDER):
            yield

    @contextmanager
    def _noting(self, name: str, key: str) -> Iterator[None]:
        stop = threading.Event()

        def note() -> None:
            while not stop.wait(_NOTE_EVERY_S):
                with suppress(StoreError):  # the next time, or never: then the builder notices by itself
                    self._note(name, key, own_note())

        self._note(name, key, own_note())
        thread = threading.Thread(target=note, name="rag-reindex-note", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with suppress(StoreError):
                self._note(name, key, None)

    def _note(self, name: str, key: str, own: Mapping[str, Any] | None) -> None:
        """Says in the metadata who is at work. Before it is made there is nothing to note anything in.

        Another program may then be the one that makes it: its note is left alone.
        """
        stored = self._metadata(name)
        if stored is not None and _noted(stored, key) in (None, _named(own_note())):
            metadata = {METADATA_KEY: {**stored, key: own}}
            self._server.patiently("note in", lambda: self._client.update_collection(name, metadata=metadata))

    def frozen(self) -> AbstractContextManager[None]:
        """A server knows no lock for its writers: who writes looks for this note before each batch, and waits."""
        return self._noting(self.current(), _SWITCHER)

    def switch(self, to: str, *, back: bool = False) -> None:
        aliases = self._aliases()
        current, kept, left = (alias(self._collection) for alias in (current_alias, _kept_alias, _left_alias))
        before = aliases.get(current, self._collection)
        if to == before:
            raise StoreError(f"{to} is in use already: nothing was switched")
        operations: list[Any] = [_delete(alias) for alias in (current, kept, left) if alias in aliases]
        operations += [_create(current, to), _create(kept, before), *([_create(left, before)] if back else [])]
        self._server.patiently("switch", lambda: self._client.update_collection_aliases(operations))
        self._follow()

    def remove(self, name: str, *, dry_run: bool = False) -> None:
        builder = _builder(self._metadata(name) or {})
        if builder is not None:
            raise StoreLockedError(f"{name} is being built by {builder}")
        # Only now: a reindex that is built no longer may just have switched to it.
        if name == self.current():
            raise StoreError(f"{name} is the collection in use: it is not removed")
        if not dry_run:
            # Its aliases go with it.
            self._server.patiently("remove", lambda: self._client.delete_collection(name))


def _create(alias: str, collection: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))


def _delete(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def own_note() -> dict[str, Any]:
    """This process as the one at work on a collection, from now on for two minutes."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "at": time.time()}


def _builder(stored: Mapping[str, Any]) -> str | None:
    """Who is building the collection."""
    return _noted(stored, _BUILDER)


def switcher(stored: Mapping[str, Any]) -> str | None:
    """Who is about to use another collection instead of this one."""
    return _noted(stored, _SWITCHER)


def _noted(stored: Mapping[str, Any], key: str) -> str | None:
    """Who is at work, if the note about it is fresh and, on this machine, the process alive."""
    note = stored.get(key)
    if not isinstance(note, Mapping) or time.time() - note["at"] > _NOTE_HOLDS_S:
        return None
    if note["host"] == socket.gethostname() and not alive(note["pid"]):
        return None
    return _named(note)


def _named(note: Mapping[str, Any]) -> str:
    return f"process {note['pid']} on {note['host']}"
