"""Which queries are trained on, and which are kept back to choose by and to report on."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.training.sources import Source, drawn

# Of the queries of each source, so many are kept back, half of them to choose by, half to report on.
_KEPT_BACK = 0.2
_MOST_KEPT_BACK = 400
# With fewer queries than this, neither training nor its result means anything.
FEWEST = 10


@dataclass(frozen=True, slots=True)
class Split:
    """Query ids of one source."""

    train: list[str]
    choose: list[str]
    report: list[str]


def split(sources: Sequence[Source], *, seed: int, max_queries: int | None = None) -> list[Split]:
    """A split for each source; the same question, in whatever source and writing, is always on the same side.

    ``max_queries`` takes a random sample of so many of each source.

    Raises:
        SettingsError: there are too few queries.
    """
    part_of: dict[str, str] = {}
    found = []
    for source in sources:
        ids = sorted(source.queries, key=lambda id_: drawn(seed, source.queries[id_]))[:max_queries]
        texts = list(dict.fromkeys(folded(source.queries[id_]) for id_ in ids))
        kept = min(_MOST_KEPT_BACK, max(2, round(_KEPT_BACK * len(texts)))) if len(texts) > 2 else 0
        for place, text in enumerate(texts):
            part_of.setdefault(text, ("train" if place >= kept else ("choose", "report")[place % 2]))
        found.append(_parts(ids, source.queries, part_of))
    total = sum(len(one.train) + len(one.choose) + len(one.report) for one in found)
    if total < FEWEST or not all(any(getattr(one, part) for one in found) for part in ("train", "choose", "report")):
        raise SettingsError(
            f"{total} labelled queries are too few to train on some and keep others back: at least {FEWEST}, better "
            "some hundreds"
        )
    return found


def read_split(path: Path) -> list[Split]:
    """What was written of :func:`split`'s answer, as JSON; some of its queries may be gone since."""
    return [Split(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def _parts(ids: Sequence[str], texts: Mapping[str, str], part_of: Mapping[str, str]) -> Split:
    parts: dict[str, list[str]] = {"train": [], "choose": [], "report": []}
    for id_ in ids:
        parts[part_of[folded(texts[id_])]].append(id_)
    return Split(**parts)


def folded(text: str) -> str:
    """What is left of a query without its writing: case, widths of letters, punctuation and blanks."""
    letters = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in letters).split()) or letters
