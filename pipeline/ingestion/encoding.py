"""Bytes to text where nothing says which encoding they are in."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Enough to judge an encoding by; the whole is then decoded with it.
_SAMPLE = 100_000
_GOOD = 0.7
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
_CJK_PUNCTUATION = re.compile("[\u3000-\u303f\uff00-\uffef\u2014\u2018-\u201d\u2026]")
_WESTERN = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0152-\u0178\u2013-\u2026\u20ac\u00a0-\u00bf]")


def decode(data: bytes) -> str | None:
    """The text of some bytes, without byte order mark; None if they are no text.

    Byte order marks and valid UTF-8 are certain. Of the others GB18030, Big5, Shift-JIS and Windows-1252 are told
    apart by which of them makes common characters of the bytes; what fits none of these is left to charset-normalizer.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data.decode(name, "replace")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return None if looks_binary(data[:_SAMPLE]) else text
    if b"\0" in data[:_SAMPLE]:
        return _utf16(data)
    guess = _guess(data[:_SAMPLE])
    return None if guess is None else data.decode(guess, "replace")


def looks_binary(sample: bytes) -> bool:
    """Whether valid UTF-8 is no text all the same: a NUL now and then is dirt, many control characters are not."""
    control = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\x0c\x1b")
    return control > len(sample) // 50


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a mark: one of the two orders makes ordinary characters of it, or it is binary."""
    sample = data[: _SAMPLE // 2 * 2]
    best, name = max((_plain(sample, name), name) for name in ("utf-16-be", "utf-16-le"))
    return data.decode(name, "replace") if best > 0.9 else None


def _plain(sample: bytes, name: str) -> float:
    text = sample.decode(name, "replace")
    ordinary = sum(1 for c in text if " " <= c <= "~" or c in "\r\n\t" or _ordinary_beyond_ascii(c))
    return ordinary / max(1, len(text))


def _ordinary_beyond_ascii(c: str) -> bool:
    return bool(_HAN.match(c) or _KANA.match(c) or _CJK_PUNCTUATION.match(c) or _WESTERN.match(c))


def _guess(sample: bytes) -> str | None:
    scores = [(_share(sample, name, judge), name) for name, judge in _JUDGES]
    best, likely = max(scores, key=lambda pair: pair[0])
    if best >= _GOOD:
        return likely
    from charset_normalizer import from_bytes

    match = from_bytes(sample).best()
    return match.encoding if match is not None else likely if best > 0 else None


def _share(sample: bytes, name: str, judge: Callable[[str], float]) -> float:
    """Mean judgement of the characters beyond ASCII, 0 if the bytes are invalid in this encoding."""
    try:
        # The sample may end inside a character.
        text = codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return 0.0
    beyond = [c for c in text if c > "~"]
    return sum(map(judge, beyond)) / max(1, len(beyond))


def _chinese(c: str, name: str, common: range) -> float:
    """1 for characters of the standard's first level, which holds the common ones, less for others it has."""
    if _CJK_PUNCTUATION.match(c):
        return 1.0
    if not _HAN.match(c):
        return 0.0
    try:
        return 1.0 if c.encode(name)[0] in common else 0.4
    except UnicodeEncodeError:
        return 0.1


def _simplified(c: str) -> float:
    return _chinese(c, "gb2312", range(0xB0, 0xD8))


def _traditional(c: str) -> float:
    return _chinese(c, "big5", range(0xA4, 0xC7))


def _japanese(c: str) -> float:
    # Half-width katakana are what Latin letters look like in Shift-JIS.
    return 1.0 if _KANA.match(c) else 0.7 if _HAN.match(c) else 0.8 if "\u3000" <= c <= "\u303f" else 0.0


def _western(c: str) -> float:
    # Below 1, so that text which is also perfect Chinese counts as Chinese.
    return 0.9 if _WESTERN.match(c) else 0.0


# In the order that decides between equals. A western text rarely is valid GB18030, whose pairs eat a letter each.
_JUDGES: tuple[tuple[str, Callable[[str], float]], ...] = (
    ("gb18030", _simplified),
    ("big5", _traditional),
    ("shift_jis", _japanese),
    ("cp1252", _western),
)
