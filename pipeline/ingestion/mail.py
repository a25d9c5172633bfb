"""Mail in UTF-8: the extractor's own parser knows no charset of several bytes a character."""

from __future__ import annotations

import base64
import codecs
import re
from email import message_from_bytes, policy
from email.errors import HeaderParseError, MessageError
from email.header import decode_header
from email.message import Message

from pipeline.ingestion.encoding import decode

#: What a mail or page calls its charset -> what it is read with, in this order: programs name the standard and write
#: what Windows or Hong Kong made of it.
EAST_ASIAN = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030"), ("gb18030",)),
    **dict.fromkeys(("big5", "big5hkscs", "cp950"), ("cp950", "big5hkscs")),
    **dict.fromkeys(("shift_jis", "cp932"), ("cp932",)),
    **dict.fromkeys(("euc_kr", "cp949"), ("cp949",)),
    **{
        name: (name,)
        for name in ("hz", "euc_jp", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_3", "iso2022_kr")
    },
}
# Beginnings of names that the extractor knows and Python does not.
_ITS_OWN = ("iso-8859-", "iso-10646-", "koi", "x-cp125", "x-mac-")
# Words of a header that are encoded, with those after them: a character may be cut in two by the end of a word. With
# bounds, so that a header of nothing else is soon through.
_WORD = r"=\?[^?\s]{1,100}\?[bq]\?[^?\n]*\?="
_WORDS = re.compile(rf"{_WORD}(?:\s{{1,100}}{_WORD}){{0,100}}", re.IGNORECASE)


def in_utf8(data: bytes) -> bytes:
    """A mail with those headers and texts in UTF-8 that the extractor would not read; as it is if there are none."""
    mail = message_from_bytes(data)
    changed = False
    for part in mail.walk():
        changed |= _recode_headers(part)
        changed |= _recode_text(part)
    if not changed:
        return data
    try:
        # Lines as they are: none folded anew, and bytes beyond ASCII as such.
        return mail.as_bytes(policy=policy.default.clone(refold_source="none", utf8=True))
    except (UnicodeEncodeError, MessageError):  # a broken multipart, whose parts were not found, or a broken header
        return data


def _recode_headers(part: Message) -> bool:
    """Whether there was one to recode."""
    before = list(part.raw_items())
    after = [(name, _header(value)) for name, value in before]
    if before == after:
        return False
    for name in {name.lower() for name, _ in before}:
        del part[name]
    for name, value in after:
        part.set_raw(name, value)
    return True


def _header(value: str) -> str:
    """The header with what was to be recoded in UTF-8; bytes beyond ASCII are surrogates in it, as the parser has them.

    Encoded words stay such, so that a comma in a name separates nothing.
    """
    raw = value.encode("utf-8", "surrogateescape")
    text = _recoded(raw, None)
    if text is not None:
        value = text.encode("utf-8").decode("ascii", "surrogateescape")
    return _WORDS.sub(lambda match: _words(match[0]), value)


def _words(words: str) -> str:
    try:
        pieces = [
            (piece.encode("ascii", "surrogateescape") if isinstance(piece, str) else piece, charset)
            for piece, charset in decode_header(words)
        ]
    except HeaderParseError:
        return words
    texts = [_recoded(piece, charset) for piece, charset in pieces]
    if all(text is None for text in texts):
        return words
    whole = "".join(
        piece.decode(codec_of(charset) or "utf-8", "replace") if text is None else text
        for text, (piece, charset) in zip(texts, pieces, strict=True)
    )
    return f"=?utf-8?B?{base64.b64encode(whole.encode('utf-8', 'replace')).decode('ascii')}?="


def _recode_text(part: Message) -> bool:
    """Whether the part is a text to recode."""
    if part.is_multipart() or part.get_content_maintype() != "text":
        return False
    data = part.get_payload(decode=True)
    charset = part.get_param("charset")
    text = _recoded(data, charset if isinstance(charset, str) else None) if isinstance(data, bytes) else None
    if text is None:
        return False
    part.set_payload(base64.encodebytes(text.encode("utf-8", "replace")).decode("ascii"))
    if not isinstance(part.get("Content-Type", ""), str):  # bytes beyond ASCII in a name
        part.replace_header("Content-Type", part.get_content_type())
    part.set_param("charset", "utf-8")
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = "base64"
    return True


def _recoded(data: bytes, charset: str | None) -> str | None:
    """The text of some bytes that the extractor would not read in this charset; None for those that it would."""
    codec = codec_of(charset)
    for name in EAST_ASIAN.get(codec, ()):
        try:
            return data.decode(name)
        except UnicodeDecodeError:
            continue
    if codec not in EAST_ASIAN and codec not in ("", "utf-8", "ascii"):
        return None
    if charset and not codec and charset.lower().startswith(_ITS_OWN):
        return None
    try:
        data.decode("ascii" if codec == "ascii" else "utf-8")
    except UnicodeDecodeError:
        # Not what it says that it is, or it says nothing.
        return decode(data)
    return None


def codec_of(charset: str | None) -> str:
    """Python's name of the charset; empty if there is none or it is unknown."""
    try:
        return codecs.lookup(charset).name if charset else ""
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return ""
