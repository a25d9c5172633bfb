"""Questions without people: a passage's title or one of its sentences, which is to find the passage without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
# A sentence that says enough, and not too much, in characters.
_LENGTHS = {"en": (40, 260), "zh": (12, 90)}
_FEWEST_SENTENCES = 3


def made_up(passage: str, sentences: int, random: Random, *, titled: bool) -> Iterator[tuple[str, str]]:
    """(question, passage without it): the first line where the passage is ``titled``, then so many sentences, each out
    of the text below; about every other passage comes without the title. Elsewhere a first line without a full stop
    counts to the first sentence."""
    title, _, body = passage.partition("\n") if titled else ("", "", passage)
    if title and body:
        yield title, body
    parts = [part for part in _SENTENCES.split(body) if part.strip()]
    if len(parts) < _FEWEST_SENTENCES:
        return
    chinese = len(_CHINESE.findall(body)) > len(body) / 4
    least, most = _LENGTHS["zh" if chinese else "en"]
    fitting = [place for place, part in enumerate(parts) if least <= len(part.strip()) <= most]
    for place in random.sample(fitting, min(sentences, len(fitting))):
        rest = ("" if chinese else " ").join(parts[:place] + parts[place + 1 :])
        yield parts[place].strip(), f"{title}\n{rest}" if title and random.random() < 0.5 else rest
