"""The headings of a Markdown text, with their places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.ingestion.frontmatter import split_front_matter

# Lines that can open a heading or a block in which '#' means something else; all others are skipped unseen.
_MARK = re.compile(
    r"^ {0,3}(?:(?P<hashes>#{1,6})(?:[ \t]+(?P<atx>[^\n]*))?"
    r"|(?P<fence>`{3,}|~{3,})(?P<info>[^\n]*)"
    r"|(?P<underline>=+|-+)[ \t]*"
    r"|<(?P<raw>pre|script|style|textarea|!--)[^\n]*)\r?$",
    re.MULTILINE | re.IGNORECASE,
)
# A line that cannot be the text of an underlined heading: list item, quote, table row, indented code, heading, rule.
_NO_PARAGRAPH = re.compile(r"[ \t]*(?:[-*+>|#=]|\d+[.)][ \t]|`{3}|~{3}|<!--)|    |\t")
_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:\s[^()]*)?\)|\[[^\[\]]*\])")
_EMPHASIS = re.compile(r"(\*\*|__|\*|`+|~~)(?=\S)(.+?)(?<=\S)\1")
_ANCHOR = re.compile(r"[ \t]*\{[#.:][^{}]*\}[ \t]*$")
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
# The first two lines of a table whose lines begin with "|", and all that follow.
_TABLE_HEAD = re.compile(r"^[ \t]*\|[^\n]*\n[ \t]*\|[ \t]*:?-[-:| \t\r]*\n(?=[ \t]*\|)", re.MULTILINE)
_ROWS = re.compile(r"(?:[ \t]*\|[^\n]*(?:\n|\Z))*+")
_MAX_UNDERLINED = 200
"""Characters of the longest line that an underline makes a heading; a longer one is a paragraph above a rule."""

_MAX_PLAIN = 1000
"""Characters of the longest heading that is looked into: the time for that grows with the square."""


@dataclass(frozen=True, slots=True)
class Section:
    """The text from one heading to the next."""

    start: int
    """Offset of the heading's line; 0 for text before the first heading."""
    level: int
    """1-6; 0 for text before the first heading."""
    path: tuple[str, ...]
    """Headings above the text, its own included."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where a table's header begins, its first row (the rule is above it), and what follows the last one."""

    start: int
    body: int
    end: int


def sections(text: str) -> list[Section]:
    """The sections of a Markdown text in order; the first begins at 0.

    A heading with nothing but a deeper heading below it belongs to that one's section: "# A", "## B", text is one
    section with the path ("A", "B").
    """
    found = [Section(0, 0, ())]
    stack: list[tuple[int, str]] = []
    body = _front_matter_end(text)  # where the text after the last heading begins
    for start, end, level, title in _headings(text):
        while stack and stack[-1][0] >= level:
            stack.pop()
        stack.append((level, title))
        path = tuple(name for _, name in stack)
        last = found[-1]
        if last.level < level and not text[body:start].strip():
            found[-1] = Section(last.start, last.level or level, path)
        else:
            found.append(Section(start, level, path))
        body = end
    return found


def first_heading(text: str) -> str:
    """The first heading of level 1, or an empty string."""
    return next((title for _, _, level, title in _headings(text) if level == 1), "")


def fences(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each fenced block of code; one that is never closed runs to the end."""
    opened: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match if match[1][0] == "~" or "`" not in match[2] else None
        elif match[1].startswith(opened[1]) and not match[2].strip():
            yield opened.start(), match.end()
            opened = None
    if opened is not None:
        yield opened.start(), len(text)


def tables(text: str) -> Iterator[Table]:
    """The tables whose lines begin with "|"."""
    end = 0
    while head := _TABLE_HEAD.search(text, end):
        rows = _ROWS.match(text, head.end())
        end = rows.end() if rows else head.end()
        yield Table(head.start(), head.end(), end)


def unescaped(text: str) -> str:
    """Without the backslashes that make signs plain text."""
    return _ESCAPE.sub(r"\1", text)


def _headings(text: str) -> Iterator[tuple[int, int, int, str]]:
    """Headings as (start, end, level, title)."""
    position = _front_matter_end(text)
    while match := _MARK.search(text, position):
        position = max(match.end(), position + 1)
        if match["hashes"]:
            title = plain(re.sub(r"(?:^|[ \t]+)#+[ \t]*$", "", (match["atx"] or "").strip()))
            if title:
                yield match.start(), match.end(), len(match["hashes"]), title
        elif match["fence"]:
            if match["fence"][0] == "~" or "`" not in match["info"]:
                position = _after(
                    text, match.end(), rf"^ {{0,3}}{re.escape(match['fence'])}{match['fence'][0]}*[ \t]*\r?$"
                )
        elif match["raw"]:
            closing = "-->" if match["raw"] == "!--" else f"</{match['raw']}>"
            position = _after(text, match.start(), re.escape(closing))
        else:
            line = text.rfind("\n", 0, max(0, match.start() - 1)) + 1
            candidate = text[line : max(line, match.start() - 1)].rstrip()
            above = text[text.rfind("\n", 0, max(0, line - 1)) + 1 : max(0, line - 1)]
            single = not above.strip() or above.lstrip().startswith("#")
            if single and 0 < len(candidate) <= _MAX_UNDERLINED and not _NO_PARAGRAPH.match(candidate):
                title = plain(candidate.strip())
                if title:
                    yield line, match.end(), 1 if match["underline"][0] == "=" else 2, title


def _front_matter_end(text: str) -> int:
    return len(text) - len(split_front_matter(text)[1])


def _after(text: str, position: int, pattern: str) -> int:
    """Where the first match of ``pattern`` ends; a block that is never closed runs to the end."""
    match = re.compile(pattern, re.MULTILINE | re.IGNORECASE).search(text, position)
    return match.end() if match else len(text)


def plain(heading: str) -> str:
    """A heading's text without links, emphasis, anchors and escapes; one that is far too long stays as it is."""
    if len(heading) > _MAX_PLAIN:
        return " ".join(heading.split())
    heading = _ANCHOR.sub("", heading)
    heading = _LINK.sub(r"\1", heading)
    heading = _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", heading))
    return " ".join(unescaped(heading).split())
