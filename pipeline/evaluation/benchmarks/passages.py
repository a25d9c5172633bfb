"""The texts of a comparison: cut once, so that every system gets the same pieces and cuts none of them itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from pipeline.evaluation.dataset import Dataset
from pipeline.ingestion.chunking import Chunker

# Below what all-MiniLM-L6-v2 (256) and, with a query, 320-token cross-encoders read: nobody truncates.
PASSAGE_TOKENS = 192
_SEPARATOR = "#"


def cut(dataset: Dataset, tokenizer: Tokenizer, limit: int | None = None) -> list[dict[str, str]]:
    """Passages of the corpus (``id`` is the document's and a number, and ``text``).

    With ``limit`` at most so many, those of the relevant documents first: without them no ranking has any quality.
    """
    chunker = Chunker(tokenizer, chunk_tokens=PASSAGE_TOKENS, overlap=0)
    documents = dataset.documents()
    if limit is not None:
        relevant = {id_ for grades in dataset.qrels.values() for id_, grade in grades.items() if grade > 0}
        documents = iter(sorted(documents, key=lambda document: document.id not in relevant))
    passages = []
    for document in documents:
        for chunk in chunker.chunk(document):
            passages.append({"id": f"{document.id}{_SEPARATOR}{chunk.index}", "text": chunk.full_text})
            if limit is not None and len(passages) == limit:
                return passages
    return passages


def documents_of(passage_ids: Iterable[str]) -> list[str]:
    """Document ids in the order of their best passage."""
    return list(dict.fromkeys(id_.rpartition(_SEPARATOR)[0] for id_ in passage_ids))


def overlap(one: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> float:
    """Share of the results of ``one`` that ``other`` has too, over all queries."""
    shared = sum(len(set(mine) & set(theirs)) for mine, theirs in zip(one, other, strict=True))
    return shared / max(1, sum(map(len, one)))
