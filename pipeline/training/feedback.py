"""Clicks and feedback: what people chose of what they were shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import json_lines
from pipeline.interfaces import Store
from pipeline.text import UNSPACED
from pipeline.types import Candidate, Chunk

# A text has white space or is Chinese; anything else is the id of a chunk or document, here or gone.
_TEXT = re.compile(rf"\s|[{UNSPACED}]")
# The id of a file's document is its path, which may have both.
_PATH = re.compile(r"(/|[A-Za-z]:[/\\])[^\n]*\Z")


@dataclass(frozen=True, slots=True)
class Feedback:
    """A line of the file. Each of ``chosen`` and ``shown`` is a chunk's or document's id, or a text itself."""

    line: int
    query: str
    chosen: tuple[str, ...]
    shown: tuple[str, ...]
    """Best first."""


def read_feedback(path: Path) -> list[Feedback]:
    """Reads lines ``{"query": "...", "chosen": "..." or [...], "shown": ["...", ...]}``.

    Raises:
        SettingsError: the file cannot be read, or a line is not of this form.
    """
    found = []
    for number, line in json_lines(path):
        query, chosen, shown = line.get("query"), line.get("chosen"), line.get("shown")
        chosen = [chosen] if isinstance(chosen, str) else chosen
        if not isinstance(query, str) or not query.strip():
            raise SettingsError(f'{path}, line {number}: no "query"')
        for name, values in (("chosen", chosen), ("shown", shown)):
            if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
                raise SettingsError(f'{path}, line {number}: "{name}" must be a list of ids or texts, not empty')
        assert isinstance(chosen, list)
        assert isinstance(shown, list)
        found.append(Feedback(number, query, tuple(dict.fromkeys(chosen)), tuple(dict.fromkeys(shown))))
    return found


class FeedbackSource:
    """A :class:`~pipeline.training.sources.Source`: the candidates of a query are what was shown, in that order.

    Only what was looked at and passed over counts as irrelevant: everything above the last choice, and the one below
    it ("skip above" and "no-click next": Joachims et al., "Accurately Interpreting Clickthrough Data as Implicit
    Feedback", SIGIR 2005).
    """

    def __init__(self, path: Path, lines: Sequence[Feedback], store: Store, say: Callable[[str], None]) -> None:
        self.name = path.stem
        wanted = {item for line in lines for item in (*line.shown, *line.chosen)}
        found = _look_up(wanted, store.chunks() if store.fingerprint() is not None else ())
        self._chunks = {item: sorted(chunks.values(), key=lambda chunk: chunk.index) for item, chunks in found.items()}
        self._ids = {item: chunks.keys() for item, chunks in found.items()}
        self._lines: dict[str, Feedback] = {}
        for line in lines:
            known = self._of_one_kind(line)
            if known.chosen:
                self._lines[str(line.line)] = known
        gone = len(lines) - len(self._lines)
        if not self._lines:
            raise SettingsError(
                f"{path}: nothing that was chosen is in {store.name}: are its ids those of another collection?"
            )
        if gone:
            say(f"{path.name}: {gone} of {len(lines)} lines are left out, what they chose is not in {store.name}")
        self.queries: Mapping[str, str] = {id_: line.query for id_, line in self._lines.items()}
        self.qrels: Mapping[str, Mapping[str, int]] = {
            id_: dict.fromkeys(line.chosen, 1) for id_, line in self._lines.items()
        }

    def _of_one_kind(self, line: Feedback) -> Feedback:
        """The line without what is gone; ``shown`` then holds all of ``chosen``.

        A document may be chosen whose chunk was shown: that chunk is what was chosen. Where a document was shown and
        its chunk chosen, the chunk stands in the document's place. What was never shown comes last.
        """
        ids = self._ids
        wanted = {id_ for item in line.chosen if item in ids for id_ in ids[item]}
        shown: list[str] = []
        chosen: list[str] = []
        for item in line.shown:
            if item in ids:
                parts = [one for one in line.chosen if one in ids and ids[one] & ids[item]]
                parts = [item] if ids[item] <= wanted else parts
                shown += parts or [item]
                chosen += parts
        found = {id_ for item in chosen for id_ in ids[item]}
        rest = [item for item in line.chosen if item in ids and not ids[item] & found]
        return replace(line, chosen=tuple(dict.fromkeys([*chosen, *rest])), shown=tuple(dict.fromkeys([*shown, *rest])))

    def candidates(self, query_id: str) -> list[Candidate]:
        """What was shown; the score says only the place."""
        shown = self._lines[query_id].shown
        return [
            Candidate(chunk, -float(rank), rank) for rank, item in enumerate(shown, 1) for chunk in self._chunks[item]
        ]

    def negatives(self, query_id: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """What was passed over."""
        line = self._lines[query_id]
        last = max(line.shown.index(item) for item in line.chosen)
        passed = set(line.shown[: last + 2]) - set(line.chosen)
        return [candidate for candidate in candidates if candidate.chunk.document_id in passed]

    def chunks(self, document_id: str) -> list[Chunk]:
        """Of an item that was shown."""
        return self._chunks.get(document_id, [])

    def sample(self, size: int, seed: int) -> list[Chunk]:
        """Out of everything that was ever shown."""
        every = [chunk for item in sorted(self._chunks) for chunk in self._chunks[item]]
        return Random(seed).sample(every, min(size, len(every)))


def _look_up(wanted: set[str], stored: Iterable[Chunk]) -> dict[str, dict[str, Chunk]]:
    """Item -> its chunks by id: the one with this id, all of a document, or the text that it is itself.

    Judgements are of items, so a chunk's document here is the item.
    """
    found: dict[str, dict[str, Chunk]] = {}
    for chunk in stored:
        for item in {chunk.id, chunk.document_id} & wanted:
            found.setdefault(item, {})[chunk.id] = replace(chunk, document_id=item)
    for item in wanted - set(found):
        if _TEXT.search(item) and not _PATH.match(item):
            content = hashlib.blake2b(item.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
            found[item] = {item: Chunk(item, content, 0, 1, text=item, title="", source="feedback")}
    return found
