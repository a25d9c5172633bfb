"""RTF with its characters as numbers: the extractor knows one code page a file, and each font may have its own."""

from __future__ import annotations

import re

# What a font calls its charset -> what its bytes are. Those of others are in the code page of the file.
_CHARSETS = {
    77: "mac_roman",
    128: "cp932",
    129: "cp949",
    130: "johab",
    134: "gb18030",
    136: "cp950",
    161: "cp1253",
    162: "cp1254",
    163: "cp1258",
    177: "cp1255",
    178: "cp1256",
    186: "cp1257",
    204: "cp1251",
    222: "cp874",
    238: "cp1250",
}
_TWO_BYTES = frozenset({"cp932", "cp949", "johab", "gb18030", "cp950"})
_TOKEN = re.compile(
    rb"\\'(?P<byte>[0-9a-fA-F]{2})|\\(?P<word>[a-z]{1,32})(?P<number>-?\d{1,9})? ?|\\(?P<sign>[^a-z])"
    rb"|(?P<brace>[{}])|(?P<text>[^\\{}\r\n]+)|[\r\n]+",
    re.DOTALL,
)


def with_numbers(data: bytes) -> bytes:
    """The file with a number for each character whose font says in which code page it is; the others as they are."""
    if b"\\fcharset" not in data:
        return data
    fonts: dict[int, str] = {}
    default = defined = 0  # numbers of fonts
    codec: str | None = None  # of the font in use
    above: list[tuple[str | None, int]] = []
    table: int | None = None  # how deep the font table lies, in it
    after = 1  # characters that stand behind a number for readers that know none,
    left = 0  # and how many of them are still to come
    lead = b""
    out: list[bytes] = []
    place = 0
    while match := _TOKEN.match(data, place):
        place = match.end()
        piece, text = match[0], match["text"] or b""
        if match["byte"]:
            text = bytes.fromhex(match["byte"].decode())
        elif match["sign"] and match["sign"] in b"\\{}":
            text = match["sign"]
        if text and lead:  # the second half of a character may look like a letter or a brace
            out += [_number(lead + text[:1], codec, after), text[1:]]
            lead = b""
            continue
        if text and left:
            left = max(0, left - len(text))
        elif match["byte"] and codec and text > b"\x7f":
            if codec in _TWO_BYTES and "\ufffd" in text.decode(codec, "replace"):
                lead = text
                continue
            piece = _number(text, codec, after)
        elif match["brace"] == b"{":
            above.append((codec, after))
        elif match["brace"] and above:
            codec, after = above.pop()
            if table is not None and len(above) < table:
                table, codec = None, fonts.get(default)
        elif match["word"]:
            word, number = match["word"], int(match["number"] or 0)
            left = after if word == b"u" else 0
            if word == b"fonttbl":
                table = len(above)
            elif word == b"deff":
                default = number
            elif word == b"fcharset" and number in _CHARSETS:
                fonts[defined] = _CHARSETS[number]
            elif word == b"f" and table is not None:
                defined = number
            elif word in (b"f", b"plain"):
                codec = fonts.get(number if word == b"f" else default)
            elif word == b"uc":
                after = number
            elif word == b"bin":
                place += max(0, number)
                piece = data[match.start() : place]
        out.append(piece)
    return b"".join([*out, data[place:]])


def _number(character: bytes, codec: str | None, after: int) -> bytes:
    text = character.decode(codec or "ascii", "replace")
    return b"".join(b"\\u%d %s" % (ord(char) - 65536 * (ord(char) > 32767), b"?" * after) for char in text)
