"""The ``where`` of a search, checked, in a form that every engine's filter can be made from.

A ``where`` is alternatives of which any must hold; an alternative is a list of clauses that must all hold, and a clause
a list of tests on one payload field of which any must. Numbers are always compared as ranges over a float index: an
integer index does not see 1.5, so that ``{"gt": 1}`` would miss it, and equality as integers tells 2 and 2.0 apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from pipeline.errors import SettingsError
from pipeline.plain import plain
from pipeline.stores.payload import clean, short
from pipeline.where import Where, alternatives

IndexType = Literal["keyword", "float", "bool", "datetime"]

OWN_FIELDS = frozenset({"source", "document_id"})
# How metadata of these names is asked for.
_HIDDEN_BY_THEM = frozenset(f"metadata.{name}" for name in OWN_FIELDS)
OPERATORS = ("gt", "gte", "lt", "lte")
NOT, ALL, EXISTS = "not", "all", "exists"

# Floats hold every integer up to here; larger ones are compared exactly, without an index.
_EXACT_FLOAT = 2**53
# A negation, in it a list, or a range, and the values in that.
_LEVELS = 2
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Of a key: as it is, or in quotes, where it has a dot of its own.
_PART = r'"[^"\\]+"|[^."\\]+'
_KEY = re.compile(rf"(?:{_PART})(?:\.(?:{_PART}))*")


@dataclass(frozen=True, slots=True)
class Words:
    """The field is one of these texts; no text, no match."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exactly:
    """The field is this truth value or large integer."""

    value: bool | int


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The field is a number within these bounds."""

    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class DateRange:
    """The field is an ISO date or time within these bounds (RFC 3339, UTC unless they say otherwise)."""

    gt: str | None = None
    gte: str | None = None
    lt: str | None = None
    lte: str | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """The field is not there, or null, or an empty list."""


Test = Words | Exactly | NumberRange | DateRange | Missing


@dataclass(frozen=True, slots=True)
class Clause:
    """Any of ``tests`` holds for a value of the field at ``path`` (in Qdrant's JSON path syntax); ``negated``: none."""

    path: str
    tests: tuple[Test, ...]
    negated: bool = False

    def index_due(self, existing: str | None) -> IndexType | None:
        """The payload index that the field has to get before it is filtered; None if it may stay as it is.

        ``existing``: the type of the index that it has; there is one a field. Where there is none, the first test's is
        made; the others are answered without, slower. One that there is stays, of whatever type, unless it would
        answer wrongly: the engine looks either kind of range up in an index of the other kind, with dates as
        microseconds since 1970. Such an index gives way to one for words. That answers no range, so that the engine
        looks at the values themselves; and as the field has an index now, no filter makes one for ranges again.
        """
        if existing is None:
            return self._first_index()
        misread = {"datetime": NumberRange, "float": DateRange, "integer": DateRange}.get(existing)
        return "keyword" if misread and any(isinstance(test, misread) for test in self.tests) else None

    def _first_index(self) -> IndexType | None:
        match self.tests[0]:
            case Words():
                return "keyword"
            case Exactly(value=value):
                return "bool" if isinstance(value, bool) else "float"
            case NumberRange():
                return "float"
            case DateRange():
                return "datetime"
            case Missing():
                return None


def parse(where: Where | None) -> list[list[Clause]]:
    """Alternatives of a ``where`` (see :meth:`pipeline.interfaces.Store.search`); none for none.

    Raises:
        SettingsError: a key or condition cannot be understood; names the key and what is allowed.
    """
    # Made plain as metadata are, so that what was stored is found by the value that it was given as.
    return [
        [clause for key, wanted in one.items() for clause in _clauses(key, plain(wanted, _LEVELS))]
        for one in alternatives(where)
    ]


def unquoted(path: str) -> str:
    """A field's path by which two are compared: engines name one with quotes only where it must have them."""
    return re.sub(r'"([^".]*)"', r"\1", path)


def _clauses(key: Any, wanted: Any) -> list[Clause]:
    path = _path(key)
    if not isinstance(wanted, Mapping):
        return [Clause(path, _tests(key, wanted))]
    clauses = []
    others = {operator: value for operator, value in wanted.items() if operator not in (NOT, ALL, EXISTS)}
    if others or not wanted:
        clauses.append(Clause(path, (_range(key, others),)))
    if NOT in wanted:
        clauses.append(Clause(path, _tests(key, wanted[NOT]), negated=True))
    if ALL in wanted:
        values = wanted[ALL]
        if not isinstance(values, list) or not values:
            raise SettingsError(f"where: {ALL} of {key} takes a list of values, not {_shown(values)}")
        clauses += [Clause(path, (_equals(key, value),)) for value in values]
    if EXISTS in wanted:
        if not isinstance(wanted[EXISTS], bool):
            raise SettingsError(f"where: {EXISTS} of {key} is true or false, not {_shown(wanted[EXISTS])}")
        clauses.append(Clause(path, (Missing(),), negated=wanted[EXISTS]))
    return clauses


def _path(key: Any) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise SettingsError(
            f'where: {key!r} is not a metadata key; write lang, or a.b for b within a, or "a.b" in quotes for a key '
            "that has a dot"
        )
    if key in OWN_FIELDS or key in _HIDDEN_BY_THEM:
        return key
    parts = [part.strip('"') for part in re.findall(_PART, clean(key))]
    return ".".join(["metadata", *(part if _PLAIN_KEY.fullmatch(part) else f'"{part}"' for part in parts)])


def _tests(key: str, wanted: Any) -> tuple[Test, ...]:
    if isinstance(wanted, Mapping):
        return (_range(key, wanted),)
    if not isinstance(wanted, list | tuple | set | frozenset):
        return (_equals(key, wanted),)
    tests = [_equals(key, value) for value in wanted]
    words = tuple(value for test in tests if isinstance(test, Words) for value in test.values)
    others = [test for test in tests if not isinstance(test, Words)]
    return (Words(words), *others) if words or not others else tuple(others)


def _equals(key: str, value: Any) -> Test:
    if isinstance(value, str):
        return Words((clean(value),))
    if isinstance(value, bool):
        return Exactly(value)
    if isinstance(value, int) and abs(value) > _EXACT_FLOAT:
        if not -(2**63) <= value < 2**63:
            raise SettingsError(f"where: {key} is compared with {_shown(value)}, which is beyond 64 bits")
        return Exactly(value)
    if isinstance(value, int | float) and math.isfinite(value):
        # The same rounding as in the payload, or a float of 17 digits would not find itself.
        number = _as_stored(value)
        return NumberRange(gte=number, lte=number)
    if isinstance(value, date):
        return Words((clean(str(value)),))  # as it is stored
    raise SettingsError(
        f"where: {key} cannot be compared with {_shown(value)}; allowed are text, numbers, true and false, a list of "
        "these, ranges such as {'gte': 3, 'lt': 5} or {'gte': '2024-01-31'}, {'not': ...} of any of them, "
        "{'all': [...]}, and {'exists': true} or false"
    )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # of a number of thousands of digits Python makes no text
        return "a number that is too long to show"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _range(key: str, bounds: Mapping[Any, Any]) -> Test:
    unknown = [operator for operator in bounds if operator not in OPERATORS]
    if unknown or not bounds:
        what = f"unknown operator {unknown[0]!r}" if unknown else "a range without bounds"
        raise SettingsError(f"where: {key} has {what}; allowed are {', '.join((*OPERATORS, NOT, ALL, EXISTS))}")
    numbers = {operator: _number(bound) for operator, bound in bounds.items()}
    if None not in numbers.values():
        return NumberRange(**_stricter(numbers))
    dates = {operator: _date(bound) for operator, bound in bounds.items()}
    if None not in dates.values():
        return DateRange(**_stricter(dates))
    raise SettingsError(
        f"where: the bounds of {key} must all be numbers, or all ISO dates such as 2024-01-31 or "
        f"2024-01-31T18:00:00Z, not {_shown(dict(bounds))}"
    )


def _stricter(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """One bound a side: of two, as gt and gte, the engine would read one alone, and not always the stricter."""
    found = dict(bounds)
    for open_, closed, above in (("gt", "gte", True), ("lt", "lte", False)):
        if open_ in found and closed in found:
            inner = found[closed] > found[open_] if above else found[closed] < found[open_]
            del found[open_ if inner else closed]
    return found


def _number(bound: Any) -> float | None:
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return None
    try:
        return _as_stored(bound) if math.isfinite(bound) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _as_stored(number: float) -> float:
    return short(number) if isinstance(number, float) else float(number)


def _date(bound: Any) -> str | None:
    if isinstance(bound, str):
        try:
            bound = datetime.fromisoformat(bound)
        except ValueError:
            return None
    if isinstance(bound, date) and not isinstance(bound, datetime):
        bound = datetime(bound.year, bound.month, bound.day)
    if not isinstance(bound, datetime):
        return None
    # Qdrant reads stored times without a zone as UTC; so must bounds.
    return (bound if bound.tzinfo else bound.replace(tzinfo=UTC)).isoformat()
