"""Text that other programs can take, and the characters of Chinese and Japanese."""

from __future__ import annotations

HAN = r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Ideographs, for the brackets of a pattern."""
UNSPACED = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""What is written without spaces: ideographs, kana and their marks."""


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
