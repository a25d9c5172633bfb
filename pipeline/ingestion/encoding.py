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
# How much of a line before its first byte beyond ASCII belongs to the sample.
_BEFORE = 1000
# As Hong Kong and as Windows extend it, in the order that decides between equals.
_BIG5 = ("big5hkscs", "cp950")
_WORD_END = re.compile(rb"[ ,.\"'/]")
_GOOD = 0.7
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
_CJK_PUNCTUATION = re.compile("[\u3000-\u303f\uff00-\uffef\u00b7\u2014\u2018-\u201d\u2026]")
_WESTERN = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0152-\u0178\u2013-\u2026\u20ac\u00a0-\u00bf]")
_NO_TEXT = re.compile("[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd-\uffff]")


def decode(data: bytes) -> str | None:
    """The text of some bytes, without byte order mark; None if they are no text.

    Byte order marks and valid UTF-8 are certain. Of the others GB18030, Big5, Shift-JIS, UTF-16 and Windows-1252 are
    told apart by which of them makes common characters of the bytes; what fits none is left to charset-normalizer.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data.decode(name, "replace")
    encoding = find_encoding(data)
    return None if encoding is None else decode_as(data, encoding)


def find_encoding(data: bytes) -> str | None:
    """What some bytes without byte order mark are decoded with; None if they are no text."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_utf8(data) and not looks_binary(data[:_SAMPLE]):
            return "utf-8"
        # A long beginning in plain ASCII says nothing.
        begin = 0 if error.start < _SAMPLE // 2 else _before(data, error.start)
        return _guess(data[:_SAMPLE] if b"\0" in data[:_SAMPLE] else data[begin : begin + _SAMPLE])
    return _utf16(data[:_SAMPLE]) if looks_binary(data[:_SAMPLE]) else "utf-8"


def decode_as(data: bytes, name: str) -> str:
    """The text in this encoding, with what is invalid in it shown as missing."""
    # Which extension of Big5 it is may be seen long after the sample.
    names = _BIG5 if name in ("big5", *_BIG5) else (name,)
    return min((data.decode(name, "replace") for name in names), key=lambda text: text.count("\ufffd"))


def _before(data: bytes, place: int) -> int:
    """Where a sample begins that shall hold this place: with its line, or a word of it where the line is long."""
    line = data.rfind(b"\n", 0, place) + 1
    if place - line <= _BEFORE:
        return line
    # Such a byte is never the second half of a character.
    end = _WORD_END.search(data, place - _BEFORE, place)
    return end.end() if end else place


def is_utf8(data: bytes) -> bool:
    """Whether it is UTF-8, perhaps with a few broken bytes: no other makes so many valid sequences by chance."""
    return fits(data, "utf-8")


def fits(data: bytes, name: str) -> bool:
    """Whether some bytes are valid in this encoding, perhaps but for a few of those beyond ASCII."""
    text = data.decode(name, "replace")
    broken = text.count("\ufffd")
    whole = len(data) - len(text.encode("ascii", "ignore")) - broken
    return not broken or whole > 30 * broken


def looks_binary(sample: bytes) -> bool:
    """Whether valid UTF-8 is no text all the same: a NUL now and then is dirt, many control characters are not."""
    control = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\x0c\x1b")
    return control > len(sample) // 50


def _utf16(sample: bytes) -> str | None:
    """The byte order of UTF-16 with letters of ASCII in it, each of which brings a NUL; None for anything else."""
    best, name = max((_plain(sample[: len(sample) // 2 * 2], name), name) for name in ("utf-16-be", "utf-16-le"))
    return name if best > 0.9 else None


def _plain(sample: bytes, name: str) -> float:
    text = sample.decode(name, "replace")
    ordinary = sum(1 for c in text if " " <= c <= "~" or c in "\r\n\t" or _ordinary_beyond_ascii(c))
    return ordinary / max(1, len(text))


def _ordinary_beyond_ascii(c: str) -> bool:
    if _HAN.match(c):
        return _either(c) > 0.5  # numbers of two bytes are any ideograph, most of which are rare
    return bool(_KANA.match(c) or _CJK_PUNCTUATION.match(c) or _WESTERN.match(c))


def _guess(sample: bytes) -> str | None:
    if b"\0" in sample:
        return _utf16(sample)
    scores = [(_share(sample, name, judge), name) for name, judge in _JUDGES]
    best, likely = max(scores, key=lambda pair: pair[0])
    if best >= _GOOD:
        return likely
    if looks_binary(sample):
        return None
    from charset_normalizer import from_bytes

    match = from_bytes(sample).best()
    return match.encoding if match is not None else likely if best > 0 else None


def _share(sample: bytes, name: str, judge: Callable[[str], float]) -> float:
    """Judgement of the characters beyond ASCII, from 0 to 1; 0 if more than a few are invalid in this encoding."""
    # The sample may end inside a character. A byte that is damaged spoils its own character, not the file.
    text = codecs.getincrementaldecoder(name)("replace").decode(sample)
    if len(_NO_TEXT.findall(text)) > len(text) // 100:
        return 0.0
    return judge(text)


def _mean(judge: Callable[[str], float]) -> Callable[[str], float]:
    def mean(text: str) -> float:
        beyond = [c for c in text if c > "~"]
        return sum(map(judge, beyond)) / max(1, len(beyond))

    return mean


def _chinese(c: str, name: str, common: range) -> float:
    """1 for characters of the standard's first level, which holds the common ones, less for others it has."""
    if _CJK_PUNCTUATION.match(c):
        return 1.0
    try:
        first = c.encode(name)[0]
    except UnicodeEncodeError:
        return 0.1 if _HAN.match(c) else 0.0
    if not _HAN.match(c):
        return 0.5  # symbols, kana, Greek
    return 1.0 if first in common else 0.4


def _simplified(c: str) -> float:
    return _chinese(c, "gb2312", range(0xB0, 0xD8))


def _traditional(c: str) -> float:
    return _chinese(c, "big5", range(0xA4, 0xC7))


def _extended(text: str) -> float:
    """Big5 with what Hong Kong or Windows added: so many characters that a short text in GB18030 often fits, too."""
    return _GOOD if _mean(_traditional)(text) > 0.85 else 0.0


def _japanese(c: str) -> float:
    # Half-width katakana are what Latin letters look like in Shift-JIS.
    return 1.0 if _KANA.match(c) else 0.7 if _HAN.match(c) else 0.8 if "\u3000" <= c <= "\u303f" else 0.0


def _either(c: str) -> float:
    # Below the western 0.9: four plain letters may be two characters of UTF-16.
    return 0.85 * max(_simplified(c), _traditional(c)) if _HAN.match(c) or _CJK_PUNCTUATION.match(c) else 0.0


def _western(text: str) -> float:
    """Letters with accents stand alone or in twos among plain ones; bytes of Chinese stand in long rows."""
    good = total = 0.0
    for run in re.findall("[^\0-~]+", text):
        known = sum(1 for c in run if _WESTERN.match(c))
        letters = sum(1 for c in run if c.isalpha())
        good += known * (1.0 if letters <= 1 and len(run) <= 3 else 0.6 if len(run) == 2 else 0.0)
        total += len(run)
    # Below 1, so that text which is also perfect Chinese counts as Chinese.
    return 0.9 * good / max(1.0, total)


# In the order that decides between equals. A western text rarely is valid GB18030, whose pairs eat a letter each.
_JUDGES: tuple[tuple[str, Callable[[str], float]], ...] = (
    ("gb18030", _mean(_simplified)),
    ("big5", _mean(_traditional)),
    ("shift_jis", _mean(_japanese)),
    ("utf-16-le", _mean(_either)),
    ("utf-16-be", _mean(_either)),
    ("cp1252", _western),
    ("big5hkscs", _extended),
    ("cp950", _extended),
)
