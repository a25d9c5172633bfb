"""The ``where`` of a search, as clauses."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from pipeline.errors import SettingsError
from pipeline.stores.filters import Clause, DateRange, Exactly, Missing, NumberRange, Words, parse, unquoted


def clauses(where: dict[str, Any]) -> list[Clause]:
    """Of a filter without alternatives."""
    (only,) = parse(where)
    return only


@pytest.mark.parametrize(
    ("wanted", "tests"),
    [
        ("en", (Words(("en",)),)),
        (3, (NumberRange(gte=3.0, lte=3.0),)),
        (0.1, (NumberRange(gte=0.1, lte=0.1),)),
        (True, (Exactly(True),)),
        (2**60 + 1, (Exactly(2**60 + 1),)),
        (["a", "b"], (Words(("a", "b")),)),
        (["a", 1, False], (Words(("a",)), NumberRange(gte=1.0, lte=1.0), Exactly(False))),
        ([], (Words(()),)),
        ({"gt": 1, "lte": 2.5}, (NumberRange(gt=1.0, lte=2.5),)),
        ({"gt": 0, "gte": 5, "lt": 9, "lte": 8}, (NumberRange(gte=5.0, lte=8.0),)),
        ({"gt": 5, "gte": 5, "lt": 8, "lte": 9}, (NumberRange(gt=5.0, lt=8.0),)),
        ({"gt": "2024-01-31", "gte": "2024-02-01"}, (DateRange(gte="2024-02-01T00:00:00+00:00"),)),
        ({"gte": "2024-01-31"}, (DateRange(gte="2024-01-31T00:00:00+00:00"),)),
        ({"lt": "2024-01-31T18:00:00Z"}, (DateRange(lt="2024-01-31T18:00:00+00:00"),)),
        ({"gte": date(2024, 1, 31)}, (DateRange(gte="2024-01-31T00:00:00+00:00"),)),
        ({"gte": datetime(2024, 1, 31, tzinfo=UTC)}, (DateRange(gte="2024-01-31T00:00:00+00:00"),)),
        (
            {"gte": datetime(2024, 1, 31, tzinfo=timezone(timedelta(hours=8)))},
            (DateRange(gte="2024-01-31T00:00:00+08:00"),),
        ),
        ("\udce9", (Words(("\\udce9",)),)),
        (date(2024, 1, 31), (Words(("2024-01-31",)),)),
        (UUID(int=5), (Words(("00000000-0000-0000-0000-000000000005",)),)),
        ([PurePosixPath("/文/a"), "b"], (Words(("/文/a", "b")),)),
        (Enum("Shelf", ["LOW"]).LOW, (Words(("Shelf.LOW",)),)),  # type: ignore[attr-defined]
        (datetime(2024, 1, 31, 18, tzinfo=UTC), (Words(("2024-01-31 18:00:00+00:00",)),)),
    ],
)
def test_conditions(wanted: Any, tests: tuple[Any, ...]) -> None:
    """Each allowed value becomes its test, and so does its negation."""
    assert [[Clause("metadata.key", tests)]] == parse({"key": wanted})
    assert [[Clause("metadata.key", tests, negated=True)]] == parse({"key": {"not": wanted}})


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("lang", "metadata.lang"),
        ("a.b-c", "metadata.a.b-c"),
        ("语言", 'metadata."语言"'),
        ("two words.x", 'metadata."two words".x'),
        ("tags[0]", 'metadata."tags[0]"'),
        ('"a.b"', 'metadata."a.b"'),
        ('x."a.b".c', 'metadata.x."a.b".c'),
        ('"plain"', "metadata.plain"),
        ("source", "source"),
        ("document_id", "document_id"),
        ("metadata.source", "metadata.source"),
        ("metadata", "metadata.metadata"),
        ("title", "metadata.title"),
    ],
)
def test_keys(key: str, path: str) -> None:
    """Keys lie under ``metadata``, except the chunk's own, and are quoted where the path syntax needs it."""
    assert [path] == [clause.path for clause in clauses({key: "x"})]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("en", "keyword"),
        (3, "float"),
        (0.5, "float"),
        (True, "bool"),
        ({"gt": 1}, "float"),
        ({"gt": "2024-01-01"}, "datetime"),
    ],
)
def test_index_follows_the_value(wanted: Any, index: str) -> None:
    """Numbers get a float index: an integer one does not see 1.5."""
    assert [index] == [clause.index_due(None) for clause in clauses({"key": wanted})]


@pytest.mark.parametrize(
    ("existing", "wanted", "due"),
    [
        ("float", {"gt": "2024-01-01"}, "keyword"),
        ("integer", {"gt": "2024-01-01"}, "keyword"),
        ("datetime", {"gt": 1}, "keyword"),
        ("datetime", 3, "keyword"),
        ("datetime", ["a", 3], "keyword"),
        ("float", {"gt": 1}, None),
        ("float", ["a", 3, True], None),
        ("integer", {"gt": 1}, None),
        ("datetime", {"gt": "2024-01-01"}, None),
        ("datetime", ["2024-01-01", True, 2**60 + 1], None),
        ("keyword", {"gt": 1}, None),
        ("keyword", {"gt": "2024-01-01"}, None),
        ("bool", 3, None),
        ("", {"gt": 1}, None),
    ],
)
def test_an_index_stays_unless_it_answers_wrongly(existing: str, wanted: Any, due: str | None) -> None:
    """One for either kind of range gives way to one for words, whichever test of a clause is the other kind."""
    assert [due] == [clause.index_due(existing) for clause in clauses({"key": wanted})]


def test_conditions_on_one_key_that_must_all_hold() -> None:
    """A mapping may say several things at once; each becomes a clause."""
    path = "metadata.key"
    assert [
        Clause(path, (NumberRange(gte=1.0),)),
        Clause(path, (NumberRange(gte=3.0, lte=3.0),), negated=True),
        Clause(path, (Words(("a",)),)),
        Clause(path, (Words(("b",)),)),
        Clause(path, (Missing(),), negated=True),
    ] == clauses({"key": {"gte": 1, "not": 3, "all": ["a", "b"], "exists": True}})
    assert [Clause(path, (Missing(),))] == clauses({"key": {"exists": False}})
    assert [None, None] == [clauses({"key": {"exists": True}})[0].index_due(existing) for existing in (None, "float")]


@pytest.mark.parametrize(
    ("engine", "ours"),
    [("metadata.a", 'metadata."a"'), ('metadata."a.b"', 'metadata."a.b"'), ("metadata.a.b", "metadata.a.b")],
)
def test_a_path_is_known_with_and_without_quotes(engine: str, ours: str) -> None:
    """Only where they say nothing: ``"a.b"`` is one key, and a.b is b within a."""
    assert unquoted(engine) == unquoted(ours)
    assert 2 == len({unquoted('metadata."a.b"'), unquoted("metadata.a.b")})


def test_alternatives() -> None:
    """Each mapping of a list is one, of clauses that must all hold."""
    where: list[dict[str, Any]] = [{"lang": "en", "year": {"not": 2020}}, {"draft": True}]
    assert [clauses(one) for one in where] == parse(where) == parse(tuple(where))


@pytest.mark.parametrize("where", [None, {}, [{}], [{"lang": "en"}, {}]])
def test_no_filter(where: Any) -> None:
    """Nothing asked for is no clause; and one alternative that asks nothing lets everything pass."""
    assert [] == parse(where)


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        {},
        {"near": 1},
        {"not": None},
        {"not": {"not": 1}},
        {"not": {"exists": True}},
        {"all": []},
        {"all": "a"},
        {"all": [None]},
        {"exists": None},
        {"exists": 1},
        {"gt": None},
        {"gt": True},
        {"gt": "soon"},
        {"gt": float("nan")},
        {"gt": 1, "lt": "2024-01-01"},
        float("inf"),
        {"gt": 10**400},
        2**64,
        [["nested"]],
        [None],
        b"bytes",
        10**5000,
        {"gt": 10**5000},
        [10**5000],
        Decimal("NaN"),
        np.datetime64("NaT", "s"),
    ],
    ids=lambda wanted: type(wanted).__name__,
)
def test_wrong_conditions_name_the_key(wanted: Any) -> None:
    """What cannot be compared is refused with the key's name."""
    with pytest.raises(SettingsError, match="price"):
        parse({"price": wanted})


@pytest.mark.parametrize(
    ("wanted", "plainly"),
    [
        (np.int64(2020), 2020),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("en"), "en"),
        (Decimal("1.5"), 1.5),
        (HTTPStatus.OK, 200),
        ([np.int64(1), Decimal(2)], [1, 2.0]),
        (np.array([1, 2]), [1, 2]),
        ({"gte": np.int64(2020), "lt": Decimal(2021)}, {"gte": 2020, "lt": 2021}),
        ({"gte": np.datetime64("2024-01-31", "ns")}, {"gte": "2024-01-31"}),
    ],
    ids=str,
)
def test_values_of_other_libraries(wanted: Any, plainly: Any) -> None:
    """Are asked for as they are stored: metadata are made plain in the same way."""
    assert parse({"key": plainly}) == parse({"key": wanted})


@pytest.mark.parametrize("key", ["", "a..b", ".a", 'a"b', '"a', '""', '"a"b', "a\\b", 3])
def test_wrong_keys(key: Any) -> None:
    """A key that no path can be made of is refused."""
    with pytest.raises(SettingsError, match="metadata key"):
        parse({key: "x"})


@pytest.mark.parametrize("where", ["lang=en", "", [("lang", "en")], 5, [], [{"lang": "en"}, None], {"lang"}])
def test_conditions_that_are_no_mapping(where: Any) -> None:
    """Are shown as they should be."""
    with pytest.raises(SettingsError, match="maps metadata keys to conditions"):
        parse(where)
