"""What of a web page is its content: without menus, banners and what else stands on every page of a site."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Tags as browsers see them: quotes mean something after a "=" only. What is never closed runs to the end of the page.
_TOKEN = re.compile(
    r"<!--.*?(?:-->|\Z)|<[!?][^>]*+(?:>|\Z)"
    r"|<(?P<raw>script|style|textarea|noscript)\b.*?(?:</(?P=raw)\b[^>]*+(?:>|\Z)|\Z)"
    r"|<(?P<end>/?)(?P<name>[a-z][a-z0-9-]*+)"
    r"(?P<attributes>(?:[^>=]++|=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|))*+)(?:>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_ATTRIBUTE = re.compile(r"([^\s=/]+)(?:\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+)))?")
_TELLING = re.compile(r"\brole\b|cookie|consent|breadcrumb|sidebar|footer|toc", re.IGNORECASE)
_SEPARATOR = re.compile(r"[\s_-]+")

# Elements that are told apart; all of them must be closed, so that their ends are known. Some are never left out.
_KEPT = frozenset({"main", "article", "blockquote", "figure", "details"})
_KNOWN = _KEPT | frozenset({"nav", "aside", "footer", "header", "form", "div", "section", "ul", "ol", "dialog"})
# Within these an aside or a footer belongs to the text, as a note or the author's name.
_SCOPES = _KEPT | {"section"}
_MENU_ROLES = frozenset({"navigation", "search"})
_AROUND = frozenset({"aside", "footer"})
_AROUND_ROLES = frozenset({"banner", "contentinfo", "complementary"})
# Words of ids and classes: of what consists of links, and of what stands beside the text.
_LINKS = frozenset({"breadcrumb", "breadcrumbs", "toc"})
_BESIDE = re.compile(
    r"(?:(?:site|page|main|global|left|right|primary|secondary|app|docs?)[_-])*(?:sidebar|footer)"
    r"|cookies?[_-](?:banner|bar|consent|message|notice|popup)|(?:cookie|gdpr)[_-]?consent",
)

# Characters of the shortest text that may stand for a whole page.
_LEAST = 60
# How much of it may stand beside an article that is taken for all of a page.
_ARTICLE_SHARE = 4


@dataclass(slots=True)
class _Element:
    """An element with what is in it, counted in characters; while it is open, with what was before it."""

    name: str
    start: int
    end: int = 0
    text: int = 0
    linked: int = 0
    marks: int = 0
    """Main headings and contents in it."""
    main: bool = False
    content: bool = False
    """Whether it is a main or article, or in one."""
    scoped: bool = False
    menu: bool = False
    """A menu or form."""
    role: bool = False
    """Around the content, as its name or role says."""
    links: bool = False
    """A list of links, as its id or class says."""
    beside: bool = False
    """Beside the content, as its id or class says."""

    @property
    def unlinked(self) -> int:
        return self.text - self.linked


def content_of(page: str) -> str:
    """The main part of a page, without what its tags, roles, ids and classes say to be no content.

    What holds most of the text of a page is its content, whatever it is called. Where too little were left, it is the
    page without menus and forms, and where that is nothing, all of it.
    """
    elements, whole = _read(page)
    menus = [element for element in elements if _is_menu(element, whole)]
    beside = [element for element in elements if _is_beside(element)]
    forms = _outermost(element for element in menus if element.name == "form")
    if 2 * sum(element.unlinked for element in forms) >= whole.unlinked:
        menus = [element for element in menus if element.name != "form"]
    left_out = _outermost([*menus, *(element for element in beside if not _is_most(element, whole))])
    for candidates, share in (
        ([element for element in elements if element.main], 1),
        ([element for element in elements if element.name == "article"], _ARTICLE_SHARE),
    ):
        found = _outermost(candidates)
        if len(found) == 1:
            chosen = found[0]
            within = [element for element in left_out if chosen.start < element.start < chosen.end]
            others = _outermost([chosen, *menus, *beside])
            inside = chosen.text - sum(element.text for element in within)
            outside = whole.unlinked - sum(element.unlinked for element in others)
            if inside >= _LEAST and inside >= share * outside:
                return _without(page, within, chosen.start, chosen.end)
        if found:
            break
    if whole.text - sum(element.text for element in left_out) >= _LEAST:
        return _without(page, left_out, 0, len(page))
    menus = _outermost(menus)
    if whole.text > sum(element.text for element in menus):
        return _without(page, menus, 0, len(page))
    return page


def _is_menu(element: _Element, whole: _Element) -> bool:
    return element.menu and (element.name != "form" or not (element.marks or _is_most(element, whole)))


def _is_beside(element: _Element) -> bool:
    named = element.beside or (element.links and 2 * element.linked >= element.text)
    around = element.role and (element.name != "aside" or 2 * element.linked >= element.text)
    return around or (named and not element.marks)


def _is_most(element: _Element, whole: _Element) -> bool:
    return 2 * element.unlinked > whole.unlinked


def _read(page: str) -> tuple[list[_Element], _Element]:
    """The elements that are closed, and the page as one."""
    found: list[_Element] = []
    stack: list[_Element] = []
    opened: Counter[str] = Counter()
    text = linked = marks = done = 0
    in_link = False
    for token in _TOKEN.finditer(page):
        size = len(page[done : token.start()].strip())
        text += size
        linked += size if in_link else 0
        done = token.end()
        name = (token["name"] or "").lower()
        if name == "a":
            in_link = not token["end"] and "href" in token["attributes"].lower()
        elif name == "h1" and not token["end"]:
            marks += 1
        elif name not in _KNOWN:
            continue
        elif not token["end"]:
            if token["attributes"].endswith("/"):
                continue
            element = _opened(name, token, stack[-1] if stack else None)
            marks += element.main or name == "article"
            element.text, element.linked, element.marks = text, linked, marks
            stack.append(element)
            opened[name] += 1
        elif opened[name]:
            while (element := stack.pop()).name != name:
                opened[element.name] -= 1
            opened[name] -= 1
            element.end = done
            element.text, element.linked = text - element.text, linked - element.linked
            element.marks = marks - element.marks
            found.append(element)
    text += len(page[done:].strip())
    return found, _Element("", 0, len(page), text, linked, marks)


def _opened(name: str, token: re.Match[str], above: _Element | None) -> _Element:
    role, words = "", frozenset[str]()
    if _TELLING.search(token["attributes"]):
        role, words = _said(name, token["attributes"])
    content, scoped = (above.content, above.scoped) if above else (False, False)
    element = _Element(name, token.start())
    element.main = name == "main" or role == "main"
    element.content = content or element.main or name == "article"
    element.scoped = scoped or element.main or name in _SCOPES
    if name in _KEPT or element.main:
        return element
    element.menu = name in ("nav", "form") or role in _MENU_ROLES
    element.role = not (content or scoped) and (name in _AROUND or role in _AROUND_ROLES)
    element.links = any(not _LINKS.isdisjoint(_SEPARATOR.split(word)) for word in words)
    element.beside = not content and any(map(_BESIDE.fullmatch, words))
    return element


def _said(name: str, attributes: str) -> tuple[str, frozenset[str]]:
    """Role, and the words of class and id; the id of a section is made from its heading."""
    said = {match[1].lower(): match[2] or match[3] or match[4] or "" for match in _ATTRIBUTE.finditer(attributes)}
    words = said.get("class", "").lower().split()
    if name != "section" and "section" not in words:
        words += said.get("id", "").lower().split()
    return next(iter(said.get("role", "").lower().split()), ""), frozenset(words)


def _outermost(elements: Iterable[_Element]) -> list[_Element]:
    """In order, without those within others."""
    found: list[_Element] = []
    for element in sorted(elements, key=lambda element: (element.start, -element.end)):
        if not found or element.start >= found[-1].end:
            found.append(element)
    return found


def _without(page: str, elements: Iterable[_Element], start: int, end: int) -> str:
    def kept() -> Iterator[str]:
        at = start
        for element in elements:
            yield page[at : element.start]
            at = element.end
        yield page[at:end]

    return "\n".join(kept())
