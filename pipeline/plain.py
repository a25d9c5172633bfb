"""Values of other libraries as the plain ones that JSON has."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from pipeline.text import well_formed

_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any, levels: int) -> Any:
    """What JSON has of a value, as a copy: texts as keys, a list of a tuple, of a set (which is in another order in
    each process) and of an array, the number of a decimal, of an enumeration, or of NumPy's and so pandas' kinds, and
    the text of a path, of a UUID, and of an enumeration that has no number or text.

    What else JSON has nothing for stays as it is (see :func:`as_text`), and so does what lies deeper than ``levels``.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {_text(key): plain(one, levels - 1) for key, one in value.items()} if levels else value
    if isinstance(value, list | tuple):
        return [plain(one, levels - 1) for one in value] if levels else value
    if isinstance(value, set | frozenset):
        return sorted((plain(one, max(0, levels - 1)) for one in value), key=str)
    # Of subclasses, as enumerations are, the value itself: what they show as text may be another.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else float(value)  # of a signaling NaN no float is made
    if isinstance(value, UUID | PurePath | Enum):
        return str(value)
    numpy = sys.modules.get("numpy")  # who has none of its values need not load it, and another thread may just do so
    array: Any = getattr(numpy, "ndarray", ())
    if isinstance(value, array):
        # One by one, as tolist() would make integers of some dates.
        return plain(list(value) if value.ndim else value[()], levels)
    scalar: Any = getattr(numpy, "generic", ())
    return _of_numpy(value) if isinstance(value, scalar) else value


def _text(key: Any) -> str:
    return str.__str__(key) if isinstance(key, str) else str(key)


def _of_numpy(value: Any) -> Any:
    item = value.item()
    if value.dtype.kind == "M" and isinstance(item, int):  # of finer dates than Python's: nanoseconds, as in pandas
        day = value.astype("datetime64[us]").item()
        return str(value) if isinstance(day, int) else day  # beyond the year 9999 Python has none
    # Of a longdouble item() makes another one.
    return float(item) if value.dtype.kind == "f" else item


def as_text(value: object) -> str:
    """What is stored of a date, a time of day or a span of time, which :func:`plain` leaves as they are.

    Raises:
        TypeError: it is something else. The text of an object may have its address in memory, so that each process
            would see another value, and that of bytes is no text of theirs.
    """
    if isinstance(value, date | time | timedelta):
        return str(value)
    raise TypeError(f"a value of the type {type(value).__qualname__}")


def finite(value: Any) -> Any:
    """The value with None for NaN and infinities, which Python would write and no other reader of JSON take."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def for_json(value: Any) -> Any:
    """The value as :func:`finite` gives it, with texts that UTF-8 can hold: any writer of JSON takes it."""
    if isinstance(value, dict):
        return {for_json(key): for_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(one) for one in value]
    return well_formed(value) if isinstance(value, str) else finite(value)
