"""Text that other programs can take, and the characters of Chinese and Japanese."""

from __future__ import annotations

import re
from pathlib import PurePath

HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Ideographs, for the brackets of a pattern."""
UNSPACED = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""What is written without spaces: ideographs, kana and their marks."""
# Names that files have in many folders, without what stands behind a full stop.
_IN_EVERY_FOLDER = re.compile(
    r"(?:index|main|__init__|__main__|mod|lib|readme|licen[cs]e|copying|copyright|notice|authors|changes|changelog|news"
    r"|history|todo|install)(?:[._-].*)?",
    re.IGNORECASE,
)


def well_formed(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD; halves of one character that stand together are joined.

    Python strings may hold surrogates (file names, broken JSON bring them); UTF-8, and so every tokenizer and every
    HTTP body, cannot.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(name: str) -> str:
    """A file name whose bytes are not valid UTF-8 has lone surrogates, which no JSON takes: each becomes ``?``."""
    return name.encode("utf-8", "replace").decode()


def file_name(path: str) -> str:
    """The last part of a path."""
    return printable(PurePath(path).name)


def title_of_path(path: str) -> str:
    """What stands for the title of a file without one: its name, with that of the folder where the name says nothing.

    So that a search for "licence of zlib1g" finds ``zlib1g/copyright``.
    """
    name = PurePath(path).name
    folder = PurePath(path).parent.name
    return printable(f"{folder}/{name}" if folder and _IN_EVERY_FOLDER.fullmatch(name) else name)
