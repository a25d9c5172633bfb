"""The two lists of a hybrid search made one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from pipeline.stores.common import DENSE, SPARSE, best_chunks
from pipeline.stores.hybrid import DENSE_SHARE, Question, convex, search
from pipeline.stores.payload import to_payload
from pipeline.types import Chunk

COSINES = {"a": 0.9, "b": 0.85, "c": 0.8, "d": 0.5}
WORDS = {"b": 3.0, "d": 12.0}


class Vectors:
    """Answers as a store does: the best few of all points, or the points that are asked for."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.asked: list[list[Question[str]]] = []

    def ask(self, questions: Sequence[Question[str]]) -> list[dict[str, float]]:
        self.asked.append(list(questions))
        return [
            dict(sorted(scores.items(), key=lambda pair: -pair[1])[: self.depth])
            if ids is None
            else {id_: scores[id_] for id_ in ids if id_ in scores}
            for name, ids in questions
            for scores in [{DENSE: COSINES, SPARSE: WORDS}[name]]
        ]


def test_convex_combination_by_hand() -> None:
    """(1, 1, 1, -3) / sqrt(3) and (-1, 3, -1, -1) / sqrt(3) are the standardised scores of these."""
    fused = convex({"a": 0.8, "b": 0.8, "c": 0.8, "d": 0.4}, {"b": 5.0})
    root = 3**0.5
    words = 1 - DENSE_SHARE
    expected = [DENSE_SHARE - words, DENSE_SHARE + 3 * words, DENSE_SHARE - words, -3 * DENSE_SHARE - words]
    assert [pytest.approx(value / root) for value in expected] == list(fused.values())
    assert 0.5 < DENSE_SHARE < 1


def test_each_is_scored_by_both() -> None:
    """What one list alone has found gets its score from the other side, too: the result is that of all points."""
    vectors = Vectors(depth=2)
    found = search(vectors.ask)
    # Of "c", which neither list has, nothing is known.
    expected = convex({id_: COSINES[id_] for id_ in "abd"}, WORDS)
    assert expected == found
    assert sorted(found, key=lambda id_: -found[id_]) == list(found)
    assert [[(DENSE, None), (SPARSE, None)], [(DENSE, ["d"]), (SPARSE, ["a"])]] == vectors.asked


def test_order_of_equals() -> None:
    """Equal scores go by id; nothing more is asked where both lists have all."""
    asked = []

    def ask(questions: Sequence[Question[int]]) -> list[dict[int, float]]:
        asked.append(questions)
        return [{3: 0.5, 1: 0.5, 2: 0.5}, {1: 1.0, 2: 1.0, 3: 1.0}]

    assert [(1, 0.0), (2, 0.0), (3, 0.0)] == list(search(ask).items())
    assert 1 == len(asked)


def test_deleted_meanwhile() -> None:
    """A point that is gone when the other side is asked for its score is no candidate; nothing found is nothing."""

    def ask(questions: Sequence[Question[str]]) -> list[dict[str, float]]:
        return [{"a": 0.9}, {"gone": 2.0}] if questions[0][1] is None else [{}, {}]

    assert ["a"] == list(search(ask))
    assert {} == search(lambda questions: [{} for _ in questions])


def test_what_is_no_chunk_takes_no_place() -> None:
    """What was deleted meanwhile, or is of another program, is made up for by what comes next."""
    chunks = {f"{i}": Chunk(f"doc-{i}", "v1", 0, 1, "text", "", "source") for i in range(6)}
    stored = {id_: to_payload(chunk) for id_, chunk in chunks.items() if id_ != "1"} | {"0": {"somebody": "else's"}}
    asked: list[list[str]] = []

    def read(ids: Sequence[str]) -> list[SimpleNamespace]:
        asked.append(list(ids))
        return [SimpleNamespace(id=id_, payload=stored[id_]) for id_ in reversed(ids) if id_ in stored]

    found = best_chunks({id_: 1 / (1 + int(id_)) for id_ in chunks}, 3, read)
    assert [("doc-2", 1), ("doc-3", 2), ("doc-4", 3)] == [(one.chunk.document_id, one.rank) for one in found]
    assert [["0", "1", "2"], ["3", "4"]] == asked
    assert ["doc-2", "doc-3", "doc-4", "doc-5"] == [
        one.chunk.document_id for one in best_chunks({id_: 1 / (1 + int(id_)) for id_ in chunks}, 9, read)
    ]
