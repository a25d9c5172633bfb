"""One's own questions over one's own collection: ``questions.jsonl``."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.evaluation.dataset import Dataset, json_lines, judged
from pipeline.interfaces import Store
from pipeline.types import Chunk, DocumentVersion

# A line that was broken within Chinese, which has no spaces.
_BESIDE_CJK = re.compile(
    r"(?<=[\u3000-\u30ff\u3400-\u9fff\uf900-\uffef]) | (?=[\u3000-\u30ff\u3400-\u9fff\uf900-\uffef])"
)
# A name with a folder and any ending, or one with the ending of a document. What an answer may be, such as "TCP/IP",
# "km/h", an address or "settings.json", is neither.
_PATH = re.compile(
    r"(?!\w+://|www\.)(\S*[/\\]\S*\.[a-z][a-z0-9_]{0,7}|\S+\.(md|markdown|txt|rst|html?|pdf|docx?|pptx?|xlsx?|epub|eml|jsonl))",
    re.IGNORECASE,
)
# An answer that so many documents have, at least, and this share of all, says little.
_MANY, _SHARE = 10, 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """A line of the file. Each of ``relevant`` is a document's id, a source path, or a string of the answer."""

    line: int
    text: str
    relevant: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Reads lines ``{"question": "...", "relevant": ["...", ...]}``; ``relevant`` may be one string.

    Raises:
        SettingsError: the file cannot be read, or a line is not of this form.
    """
    questions = []
    for number, line in json_lines(path):
        text, relevant = line.get("question"), line.get("relevant")
        if isinstance(relevant, str):
            relevant = [relevant]
        if not isinstance(text, str) or not text.strip():
            raise SettingsError(f'{path}, line {number}: no "question"')
        if (
            not isinstance(relevant, list)
            or not relevant
            or not all(isinstance(r, str) and r.strip() for r in relevant)
        ):
            raise SettingsError(
                f'{path}, line {number}: "relevant" must be a list of document ids, source paths or answer strings'
            )
        questions.append(Question(number, text, tuple(relevant)))
    if not questions:
        raise SettingsError(f"{path}: no questions in it")
    return questions


def resolve(
    path: Path,
    questions: Iterable[Question],
    store: Store,
    max_queries: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Dataset:
    """The questions as a dataset over the documents of ``store``.

    What is relevant is looked up as a document's id; then as a source: the same path, or the end of one
    ("docs/a.md"); else as an answer: every document with a chunk that has the string is relevant, whatever the case,
    the width of its characters, and the white space. What looks like a path is never an answer: other documents may
    mention a file that is not there. A question's id is its line number.

    Raises:
        SettingsError: the collection is empty, or something relevant is nowhere in it.
    """
    questions = list(questions)[:max_queries]
    found: dict[str, set[str]] = {wanted: set() for question in questions for wanted in question.relevant}
    count = _look_up(found, store.versions())
    if not count:
        raise SettingsError(f"{store.name} is empty: ingest the documents that {path} asks about first")
    answers = {wanted: documents for wanted, documents in found.items() if not documents}
    for question in questions:
        for wanted in question.relevant:
            if wanted in answers and _PATH.fullmatch(wanted.strip()):
                raise SettingsError(
                    f"{path}, line {question.line}: {wanted!r} looks like a path, and is no source and no document id "
                    f"in {store.name}: ingest it first; if it is a string of the answer, give a word more of it"
                )
    _search_answers(answers, store.chunks())

    qrels: dict[str, dict[str, int]] = {}
    for question in questions:
        for wanted in question.relevant:
            if not found[wanted]:
                raise SettingsError(
                    f"{path}, line {question.line}: {wanted!r} is no document id, no source and in no text of "
                    f"{store.name}: was everything ingested? A string of the answer must lie within one chunk: "
                    "a shorter piece of it may do"
                )
        qrels[str(question.line)] = {id_: 1 for wanted in question.relevant for id_ in sorted(found[wanted])}
    say(f"{path.name}: {len(found) - len(answers)} documents by id or path, {len(answers)} answers found in texts")
    for answer, documents in answers.items():
        if len(documents) >= _MANY and len(documents) > _SHARE * count:
            say(f"{answer!r} is in {len(documents)} of {count} documents, and all of them count as relevant")
    return judged(
        name=path.stem,
        texts={str(question.line): question.text for question in questions},
        qrels=qrels,
        origin=path.resolve(),
        corpus=None,
        max_queries=None,
    )


def _look_up(found: Mapping[str, set[str]], versions: Iterable[DocumentVersion]) -> int:
    """Adds to each wanted string the document with this id, else those with this source; returns how many there are.

    A path matches by its end, too, so that a file of questions moves with its folder.
    """
    paths: dict[str, set[str]] = {}
    for wanted in found:
        real = os.path.realpath(wanted) if os.path.exists(wanted) else wanted  # noqa: PTH110  Path raises on an answer
        for path in (wanted, wanted.removeprefix("./"), wanted.replace("\\", "/"), real):
            paths.setdefault(path, set()).add(wanted)
    ids: set[str] = set()
    sources: dict[str, set[str]] = {}
    count = 0
    for version in versions:
        count += 1
        if version.document_id in found:
            ids.add(version.document_id)
        for source in version.sources:
            parts = source.split("/")
            for start in range(len(parts)):
                for wanted in paths.get("/".join(parts[start:]), ()):
                    sources.setdefault(wanted, set()).add(version.document_id)
    for wanted, documents in found.items():
        documents |= {wanted} if wanted in ids else sources.get(wanted, set())
    return count


def _search_answers(answers: Mapping[str, set[str]], chunks: Iterable[Chunk]) -> None:
    """Adds to each answer the documents whose text has it."""
    if not answers:
        return
    folded = [(_fold(answer), documents) for answer, documents in answers.items()]
    for chunk in chunks:
        text = _fold(chunk.full_text)
        for answer, documents in folded:
            if answer in text:
                documents.add(chunk.document_id)


def _fold(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _BESIDE_CJK.sub("", words)
