"""A test set from one's own documents, without labels and without a language model: known items.

Titles, headings and questions of FAQs become queries, and the document that each comes from is the one to find
(Azzopardi, de Rijke and Balog, 2007, call this known-item search and build such queries from the text, too).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.files import write_atomically
from pipeline.ingestion.loaders import real_source
from pipeline.ingestion.markdown import sections
from pipeline.ingestion.reading import read
from pipeline.reports import Failure
from pipeline.stores.payload import clean
from pipeline.text import HAN, title_of_path
from pipeline.types import Document

CAVEAT = (
    "This set shows whether documents are found by their own words: it catches broken ingestion, bad chunking, a model "
    "that does not know the language, and a change that makes search worse. It cannot show how well real users are "
    "served: they use other words than the documents (so BM25 looks better here than it is), they ask things that no "
    "heading says, and other documents that answer as well count as wrong. Add questions that people really asked."
)
# A heading that stands in more documents than this names none of them.
_MOST_DOCUMENTS = 3
_QUESTION = re.compile(
    # Only a mark of its own makes a line a question of a FAQ, with the answer on the same line or after it.
    r"^\s*(?:[-*>]\s+|\d+[.)]\s+)?(?:\*\*|__)?\s*(?:[QＱ]|Question|问|问题|问答)\s*\d*\s*[:：.]\s*(?:\*\*|__)?\s*"
    r"(?P<text>.+?)(?:(?<=[?？。!！\s])(?:\*\*|__)?(?:答|[AＡ]|Answer)\s*[:：].*)?(?:\*\*|__)?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
# Of a heading: "1.2", "一、", "第三章".
_NUMBERING = re.compile(
    r"^\s*(?:\d+(?:\.\d+)*[.)、]?\s|[一二三四五六七八九十]+[、.)）]|第[一二三四五六七八九十百\d]+[章节部篇])\s*"
)
_HAN = re.compile(f"[{HAN}]")


def make_questions(paths: Iterable[Path], into: Path, ignored: Iterable[Path] = ()) -> dict[str, Any]:
    """Writes ``into`` as a file of questions over the documents under ``paths``; returns what is in it.

    A query that stands in up to three documents has all of them as relevant; one in more is left out, and so is one
    too short to mean anything. ``ignored`` folders are not read as a part of others.

    Raises:
        SettingsError: a path does not exist, ``into`` exists already or cannot be written, or no query could be made.
    """
    with _writing(into):  # before the work, which may take minutes
        if into.exists():
            raise SettingsError(f"{into} exists already and may hold questions of yours: choose another --out")
        if not into.absolute().parent.is_dir():
            raise SettingsError(f"--out {into}: there is no folder {into.parent}")
    documents, failures, skipped = 0, 0, 0
    found: dict[str, tuple[str, str, set[str]]] = {}
    for batch in read(list(paths), [], ignored=list(map(real_source, ignored))):
        skipped += len(batch.skipped)
        for document in batch.items:
            if isinstance(document, Failure):
                failures += 1
                continue
            documents += 1
            for kind, text in queries_of(document):
                _, _, relevant = found.setdefault(text.casefold(), (kind, text, set()))
                relevant.add(document.id)
    lines = [
        {"question": text, "relevant": sorted(relevant), "kind": kind}
        for kind, text, relevant in found.values()
        if len(relevant) <= _MOST_DOCUMENTS
    ]
    if not lines:
        raise SettingsError(f"no titles, headings or questions in the {documents} documents there: write some by hand")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with _writing(into):
        # File names bring lone surrogates, which JSON reads as what they were if they are written out.
        write_atomically(into, clean(text))
    return {
        "path": str(into),
        "questions": len(lines),
        "kinds": dict(Counter(line["kind"] for line in lines)),
        "documents": documents,
        "unreadable": failures,
        "skipped": skipped,
        "left_out": len(found) - len(lines),
        "note": CAVEAT,
    }


@contextmanager
def _writing(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"cannot write {into}: {error.strerror}") from error


def queries_of(document: Document) -> Iterator[tuple[str, str]]:
    """(kind, query) for a document; kinds are "title", "heading" and "faq"."""
    title = " ".join(document.title.split())
    if title not in (document.metadata.get("file_name"), title_of_path(document.source)) and _telling(title):
        yield "title", title
    for match in _QUESTION.finditer(document.text):
        if _telling(match["text"]):
            yield "faq", " ".join(match["text"].split())
    if document.markdown:
        for section in sections(document.text):
            if section.path and section.path[-1] != title and _telling(section.path[-1]):
                yield "faq" if section.path[-1].endswith(("?", "？")) else "heading", section.path[-1]


def _telling(text: str) -> bool:
    """At least two words, or four Chinese characters: "Usage" or "1. 安装" is no query that one document answers."""
    text = _NUMBERING.sub("", text)
    return len(re.findall(r"\w+", text)) >= 2 or len(_HAN.findall(text)) >= 4
