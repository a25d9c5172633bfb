"""The block of ``key: value`` lines that a Markdown file may begin with."""

from __future__ import annotations

import re
from typing import Any

_BLOCK = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_PAIR = re.compile(r"[\w-]+[ \t]*:(?:[ \t]|$)")
# Among such lines a key may have several words, or be in quotes; further in it belongs to the key above.
_KEYED = re.compile(r"( *)(\"[^\"]+\"|'[^']+'|[^\s:#\"'\[\]{}-][^:]*?)[ \t]*:(?:[ \t]+(.*))?$")
# One of a list, which may have commas in quotes.
_ITEM = re.compile(r"(?:\"[^\"]*\"|'[^']*'|[^,])+")
_COMMENT = re.compile(r"(?:^|[ \t]+)#.*$")
# What begins a text that stands on the lines below.
_BLOCK_TEXT = re.compile(r"[>|][+-]?\d?")
# What YAML has at the beginning of a line: a key, an item, a comment, the end of a list or mapping.
_FIELD = re.compile(r"[^\s:#-][^:]*:(?:\s|$)|-(?:\s|$)|#|[\]}]")


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """(fields, the text below). Values, lists, and values a level below a key are read; what is deeper is left out.

    Numbers and true/false become such; ``[a, b]`` and lines of ``- a`` become lists; anything else stays text.
    """
    match = _BLOCK.match(text)
    if match is None or not _is_fields(match[1].splitlines()):
        return {}, text  # nothing, or a text between two rules
    fields: dict[str, Any] = {}
    key = inner = ""
    folds = False
    for line in match[1].splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pair = _KEYED.match(line)
        item = re.match(r"\s*-[ \t]+(.*)$", line)
        if pair and not pair[1]:
            key, inner = _unquoted(pair[2]), ""
            fields[key] = _value(pair[3])
            folds = bool(_BLOCK_TEXT.match((pair[3] or "").strip()))
        elif pair and key and not folds and (fields[key] == "" or (isinstance(fields[key], dict) and inner == pair[1])):
            inner = pair[1]
            value = _value(pair[3])
            fields[key] = {**(fields[key] or {}), **({} if value == "" else {_unquoted(pair[2]): value})}
        elif item and key and (fields.get(key) == "" or isinstance(fields.get(key), list)):
            fields[key] = [*(fields[key] or []), _scalar(item[1].strip())]
    return {name: value for name, value in fields.items() if value not in ("", {})}, text[match.end() :]


def _is_fields(lines: list[str]) -> bool:
    """Whether these lines are fields and nothing else; one line of prose among them would be lost."""
    found = [line for line in lines if line.strip()]
    return any(map(_PAIR.match, found)) and all(line[0].isspace() or _FIELD.match(line) for line in found)


def _unquoted(key: str) -> str:
    return key[1:-1] if key[0] in "\"'" else key


def _value(text: str | None) -> Any:
    value = (text or "").strip()
    return _list(value) if value.startswith("[") and value.endswith("]") else _scalar(value)


def _list(value: str) -> list[Any]:
    return [_scalar(part.strip()) for part in _ITEM.findall(value[1:-1]) if part.strip()]


def _scalar(value: str) -> Any:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    plain = _COMMENT.sub("", value)
    if not plain or _BLOCK_TEXT.fullmatch(plain):
        return ""  # the text below is left out, as what is nested
    if plain in {"true", "false"}:
        return plain == "true"
    # A leading zero or plus is an identifier, not a number.
    if number := re.fullmatch(r"-?(?:0|[1-9]\d*)(\.\d+)?", plain):
        return float(plain) if number[1] else _integer(plain)
    return value  # in a text a "#" is more often one than the begin of a comment


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:  # of more digits than Python reads
        return digits
