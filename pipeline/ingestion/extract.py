"""PDF, Office, EPUB, HTML and mail into Markdown by kreuzberg, which is imported for the first file that needs it."""

from __future__ import annotations

import html
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DocumentError, ForkedError, NoTextError
from pipeline.ingestion import kinds
from pipeline.ingestion.encoding import decode, fits
from pipeline.ingestion.mail import EAST_ASIAN, codec_of, in_utf8
from pipeline.ingestion.pages import SLIDE_MARK, find_pages, take_out_marks
from pipeline.ingestion.rtf import with_numbers
from pipeline.ingestion.web import content_of

# A ZIP-based file that unpacks to more than this is a bomb, not a document.
_MAX_UNPACKED = 1_000_000_000
# What a page says of its encoding, and how far from its beginning.
_DECLARED = re.compile(
    rb"<meta\b[^<>]{0,500}?\bcharset\s{0,9}=\s{0,9}[\"']?\s{0,9}([\w.:-]{1,40})"
    rb"|\A\s{0,9}<\?xml\b[^<>]{0,200}?\bencoding\s{0,9}=\s{0,9}[\"']([\w.:-]{1,40})",
    re.IGNORECASE,
)
_DECLARED_WITHIN = 4096
# Python's names of those that it is believed: of the others the bytes tell more than the word.
_BELIEVED = re.compile("cp(?:125|866|874|932|949)|euc_|hz|iso2022_|iso8859-|koi8-|mac-|shift_|tis")
# With bounds, so that a page of nothing but beginnings is soon through.
_TITLE = re.compile(r"<title\b[^<>]*>(.{0,1000}?)</title\s*>", re.IGNORECASE | re.DOTALL)
_HEADING, _HEADING_END = re.compile(r"<h1\b[^<>]*>", re.IGNORECASE), re.compile(r"</h1\b", re.IGNORECASE)
# What the extractor would print above the text as a heading of its own.
_HEAD = re.compile(r"<title\b[^<>]*>.{0,1000}?</title\s*>|<(?:meta|link|base)\b[^<>]*>", re.IGNORECASE | re.DOTALL)
_INLINE_IMAGE = re.compile(r"!\[([^\]\n]{0,1000})\]\(data:[^)\s!]*\)")
# Begin and end of a link. An attribute with a "<" or ">" in it is not seen to its end: such a link is left as it is.
_ANCHOR = re.compile(r"<(?P<end>/?)a\b(?P<attributes>[^<>]*)>", re.IGNORECASE)
_HREF = re.compile(r"(?<![\w-])href\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))", re.IGNORECASE)
_OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_QUOTED, _QUOTE = re.compile(r"\"[^\"]*\"|'[^']*'"), re.compile(r"[\"']")
_TAG = re.compile(r"<[^<>]*>")
# What links to a heading's own place show.
_PERMALINKS = frozenset({"", "\u200b", "#", "¶", "§", "🔗"})

# Ideographs, kana, and marks of full width.
_CHINESE = "\u2018-\u201d\u2e80-\u3002\u3008-\u30ff\u3400-\u9fff\uff01-\uff5e"
_IS_CHINESE = re.compile(f"[{_CHINESE}]")
_GAP, _LINE_END = re.compile(f"(?<=[{_CHINESE}]) (?=[{_CHINESE}])"), re.compile(f"(?<=[{_CHINESE}])\n(?=[{_CHINESE}])")
# Characters on each side by which a place is known again, and of the shortest line that is taken for a full one.
_AROUND, _FULL_LINE = 4, 12
# Where the extractor may take a line of Chinese for a paragraph: before what does not begin a list or a heading.
_PARAGRAPH_END = re.compile(
    rf"(?<=[{_CHINESE}])(?<![。！？；：])(?<![。！？；：][”’」』）】》])\n\n(?=[{_CHINESE}A-Za-z0-9])"
    r"(?![（(]?[一二三四五六七八九十百\d]+[、.)）]|第[一二三四五六七八九十百\d]+[章节節条條部篇]|[・※])"
)
# Half widths by which a full line may be shorter than the widest: an indent, or what must not begin or end a line.
_SHORTER = 6
_SOURCE_LINE_END = re.compile(r"<(?P<end>/?)(?:pre|textarea|script|style)\b|\n\s*", re.IGNORECASE)
# Characters of the longest tag before a line end that is seen as one.
_LONGEST_TAG = 2000
# Tags within a line: all but those that begin or end one.
_INLINE_TAG = re.compile(
    r"</?(?!(?:address|article|aside|blockquote|body|br|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt"
    r"|fieldset|figcaption|figure|footer|form|h[1-6]|head|header|hgroup|hr|html|legend|li|link|main|menu|meta|nav|ol"
    r"|optgroup|option|p|pre|script|section|style|summary|table|tbody|td|template|textarea|tfoot|th|thead|title|tr|ul)"
    r"\b)[a-z][^<>]*>",
    re.IGNORECASE,
)
# Signs for radicals that a PDF has in place of characters that look alike, -> the characters. For those of the Kangxi
# dictionary Unicode says it itself; the others are those of its EquivalentUnifiedIdeograph.txt that are in use.
_RADICALS = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x2F00, 0x2FD6)} | str.maketrans(
    "⺁⺂⺃⺄⺅⺆⺉⺊⺋⺌⺍⺎⺏⺐⺒⺓⺔⺕⺖⺗⺘⺙⺛⺝⺞⺟⺠⺡⺢⺣⺥⺦⺧⺨⺩⺬⺭⺮⺯⺰⺹⺺⺼⺽⺾"
    "⺿⻀⻁⻂⻃⻄⻅⻆⻈⻉⻊⻋⻍⻏⻐⻑⻒⻓⻔⻖⻗⻘⻙⻚⻛⻜⻝⻟⻠⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱"
    "⻲⻳",
    "厂乛乚乙亻冂刂卜㔾小小兀尣尢巳幺彑彐忄㣺扌攵旡月歺母民氵氺灬爫丬牛犭王示礻竹糹纟耂肀月臼艹"
    "艹艹虎衤覀西见角讠贝足车辶阝钅長镸长门阝雨青韦页风飞食飠饣马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜"
    "亀龟",
)
# The traditional form by Unicode; it is met where a font has one shape for it and the simplified character.
_RADICALS[ord("⼾")] = "户"
# What tells the loaders of Linux and macOS where to search for libraries.
_SEARCHED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
# The process that has extracted something; None before the first time.
_extracting: int | None = None


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was in a file: its text as Markdown, and where its pages or slides begin in it."""

    title: str
    text: str
    metadata: dict[str, Any]
    page_starts: tuple[int, ...]


def extract(kind: str, data: bytes) -> Extracted:
    """The content of a file of one of ``kinds.EXTRACTED``.

    Raises:
        DocumentError: it is broken, encrypted or unpacks to too much; says which.
        ForkedError: the parent of this process has extracted something. The library's threads are the parent's, and
            nobody would ever answer here.
    """
    global _extracting
    if _extracting is None:
        _extracting = os.getpid()
    elif _extracting != os.getpid():
        raise ForkedError(
            "PDF, Office, EPUB, HTML and mail files were read before the process was forked, and the library that does "
            "it does not work in a child then: start the workers with 'spawn'"
        )
    if kinds.is_encrypted_office(data):
        raise DocumentError("encrypted Office file: remove the password first")
    if kinds.unpacked_size(data) > _MAX_UNPACKED:
        raise DocumentError(f"unpacks to more than {_MAX_UNPACKED / 1e9:.0f} GB")
    title = ""
    if kind == "html":
        title, data = _page(data)
    elif kind == "eml":
        data = in_utf8(data)
    elif kind == "rtf":
        data = with_numbers(data)
    kreuzberg = _library()
    # No cache on disk, no rewriting of the text; without an ocr setting no OCR and nothing downloaded.
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format="markdown",
        pages=kreuzberg.PageConfig(insert_page_markers=True, marker_format=SLIDE_MARK) if kind == "pptx" else None,
        # It would leave out every form, also one that holds all of a page.
        html_options={"preprocessing": {"enabled": False}} if kind == "html" else None,
    )
    try:
        result = kreuzberg.extract_bytes_sync(data, kinds.EXTRACTED[kind], config=config)
    except Exception as error:
        raise DocumentError(_why(kind, error)) from error
    found: dict[str, Any] = dict(result.metadata)
    pages = found.get("page_count")
    text = clean(_INLINE_IMAGE.sub(r"\1", result.content))
    name = title or str(found.get("title") or "")
    page_starts: tuple[int, ...] = ()
    if kind == "pptx":
        text, page_starts = take_out_marks(text)
        pages = len(page_starts)
    elif kind == "pdf":
        text, name = text.translate(_RADICALS), name.translate(_RADICALS)
        # Empty pages are left out. The others with the same characters as the text, in which they are looked for.
        contents = {page["page_number"]: page["content"].translate(_RADICALS) for page in result.pages or ()}
        text = _join_lines(text, contents.values())
        page_starts = find_pages(text, [contents.get(number, "") for number in range(1, max(contents, default=0) + 1)])
    return Extracted(
        title=name,
        text=text,
        metadata={"pages": pages} if isinstance(pages, int) else {},
        page_starts=page_starts,
    )


def _library() -> Any:
    """kreuzberg, whose import puts its folder first among those that are searched for libraries.

    A system's loader reads that when a process starts, so it does nothing here, but processes that the app starts would
    get those libraries.
    """
    before = {name: os.environ.get(name) for name in _SEARCHED}
    first = "kreuzberg" not in sys.modules
    import kreuzberg

    if first:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return kreuzberg


def _without_local_links(page: str) -> str:
    """A web page with the texts of links within its site in place of them: where those lead is of no use elsewhere.

    Links to the place where they stand, beside headings, go with their sign.
    """
    kept: list[str] = []
    done = 0
    opened: str | None = None  # where the link leads whose begin was left out
    for match in _ANCHOR.finditer(page):
        if match["end"]:
            if opened is not None:
                text = page[done : match.start()]
                sign = opened.startswith("#") and html.unescape(_TAG.sub("", text)).strip() in _PERMALINKS
                kept.append("" if sign else text)
                done, opened = match.end(), None
            continue
        attributes = match["attributes"]
        href = _HREF.search(attributes)
        to = None if href is None else html.unescape(href[1] or href[2] or href[3] or "")
        whole = not _QUOTE.search(_QUOTED.sub("", attributes))
        opened = None if to is None or not whole or _OUTSIDE.match(to) else to
        if opened is not None:
            kept.append(page[done : match.start()])
            done = match.end()
    return "".join([*kept, page[done:]])


def _join_lines(text: str, pages: Iterable[str]) -> str:
    """The text of a PDF without the spaces and paragraphs that the ends of full lines of Chinese have become in it.

    Pages have the former as line ends. What is in short lines, names say, and what was a space stays apart.
    """
    pages = list(pages)
    ends = {
        _around(page, match.start())
        for page in pages
        for match in _LINE_END.finditer(page)
        if match.start() - page.rfind("\n", 0, match.start()) > _FULL_LINE
    }
    text = _GAP.sub(lambda match: "" if _around(text, match.start()) in ends else " ", text)
    ends = {_around(page, place) for page in pages for place in _false_paragraphs(page)}

    def joined(match: re.Match[str]) -> str:
        if _around(text, match.start()) not in ends:
            return match[0]
        return " " if text[match.end()].isascii() else ""

    return _PARAGRAPH_END.sub(joined, text)


def _false_paragraphs(page: str) -> Iterator[int]:
    """Where a paragraph of one full line is gone on with in the next."""
    widest = max(map(_width, page.split("\n")))
    for match in _PARAGRAPH_END.finditer(page):
        line = page[page.rfind("\n", 0, match.start()) + 1 : match.start()]
        if len(line) > _FULL_LINE and _width(line) >= widest - _SHORTER:
            yield match.start()


def _width(line: str) -> int:
    """In half widths."""
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in line)


def _around(text: str, place: int) -> str:
    return text[max(0, place - _AROUND) : place + _AROUND + 1].replace("\n", " ")


def _join_source_lines(page: str) -> str:
    """A web page without the line ends of its source between two ideographs, and with spaces for those beside tags.

    Before some tags the extractor would lose them. What is in ``pre`` stays.
    """
    kept: list[str] = []
    done = 0
    inside = False
    for match in _SOURCE_LINE_END.finditer(page):
        if match["end"] is not None:
            inside = not match["end"]
        elif not inside:
            kept.append(page[done : match.start()].rstrip())
            kept.append(_for_line_end(page, done + len(kept[-1]), match))
            done = match.end()
    return "".join([*kept, page[done:]])


def _for_line_end(page: str, before: int, match: re.Match[str]) -> str:
    """What stands for a line end between the text up to ``before`` and what follows the match."""
    first, last = before, match.end()
    while page[first - 1 : first] == ">":
        start = page.rfind("<", max(0, first - _LONGEST_TAG), first)
        if start < 0 or not _INLINE_TAG.fullmatch(page, start, first):
            break
        first = start
    while tag := _INLINE_TAG.match(page, last):
        last = tag.end()
    ends, begins = page[first - 1 : first], page[last : last + 1]
    if _IS_CHINESE.match(ends) and _IS_CHINESE.match(begins):
        return ""
    in_line = (ends, begins) != (">", "<") and (first < before or last > match.end())
    return " " if in_line else match[0]


def clean(text: str) -> str:
    """Without NULs, and with the same line ends everywhere."""
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _page(data: bytes) -> tuple[str, bytes]:
    """Title of a web page, and the page in UTF-8."""
    page = _declared(data) or decode(data)
    if page is None:
        raise NoTextError(f"{kinds.binary_kind(data)}, no text")
    match = _TITLE.search(page)
    title = " ".join(html.unescape(match[1]).split()) if match else ""
    body = _HEAD.sub("", page)
    content = content_of(body)
    if not _HEADING.search(content) and (heading := _first_heading(body)):
        if not title:
            title = heading
        elif heading.casefold() not in title.casefold():
            content = f"<h1>{html.escape(heading)}</h1>\n{content}"
    return title, _without_local_links(_join_source_lines(content)).encode("utf-8", "replace")


def _first_heading(page: str) -> str:
    """The text of a page's first main heading; empty where there is none."""
    begin = _HEADING.search(page)
    end = begin and _HEADING_END.search(page, begin.end(), begin.end() + 1000)
    return " ".join(html.unescape(_TAG.sub("", page[begin.end() : end.start()])).split()) if begin and end else ""


def _declared(data: bytes) -> str | None:
    """A page in the encoding that it says it is in, if its bytes fit that; None where they tell it better.

    That is so for UTF-8, and for what Chinese pages are in and often say wrongly. Any bytes fit Latin-1, too.
    """
    match = _DECLARED.search(data[:_DECLARED_WITHIN])
    name = (match[1] or match[2]).decode("ascii", "replace").lower() if match else ""
    codec = codec_of(name) or codec_of(name.removeprefix("x-").replace("windows-", "cp"))
    if not _BELIEVED.match(codec) or codec in ("cp1252", "iso8859-1"):
        return None
    in_ascii = codec.startswith(("iso2022_", "hz"))
    if fits(data, "utf-8") and not (in_ascii and data.isascii()):
        return None
    return next((data.decode(name, "replace") for name in EAST_ASIAN.get(codec, (codec,)) if fits(data, name)), None)


def _why(kind: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if re.search(r"password|encrypt", text, re.IGNORECASE):
        return f"encrypted {kind.upper()}: remove the password first"
    # What a parser in a parser says comes with the names of both, and twice.
    reasons = dict.fromkeys(part for part in text.split(": ") if not re.fullmatch(r"\w+Error", part))
    return f"broken {kind.upper()}: {': '.join(reasons)[:200]}"
