"""Manual pages as a test set."""

from pathlib import Path

import pytest

from pipeline.evaluation.dataset import read_dataset
from pipeline.evaluation.manual_pages import Page, read_page, write_dataset

LS = """LS(1)                     User Commands                     LS(1)

NAME
       ls - list directory
       contents -- of any kind

SYNOPSIS
       ls [OPTION]...

DESCRIPTION
       List information about the FILEs.

GNU coreutils 9.1          September 2022                   LS(1)
"""


def test_a_page_is_its_line_and_all_after_it() -> None:
    """Header and footer, which name the page, are left out."""
    text = "SYNOPSIS\n       ls [OPTION]...\n\nDESCRIPTION\n       List information about the FILEs."
    assert Page("ls.1", "list directory contents -- of any kind", text) == read_page("ls.1", LS)
    chinese = LS.replace("NAME", "名称").replace("ls - list directory\n       contents -- of any kind", "ls — 列出目录")
    assert Page("ls.1", "列出目录", text) == read_page("ls.1", chinese)


@pytest.mark.parametrize(
    "rendered", ["", "LS(1)\n", LS.replace(" - ", " ").replace(" -- ", " "), LS[: LS.index("SYNOPSIS")] + "LS(1)\n"]
)
def test_a_page_that_asks_or_answers_nothing_is_left_out(rendered: str) -> None:
    """As those that are empty, or say what they are about and no more."""
    assert None is read_page("ls.1", rendered)


def test_a_line_that_two_pages_have_is_no_query(tmp_path: Path) -> None:
    """Nobody could say which of the two is meant."""
    pages = [Page("a.1", "does this", "text of a"), Page("b.1", "same", "text of b"), Page("c.1", "same", "text of c")]
    assert 1 == write_dataset(pages, tmp_path / "set")
    dataset = read_dataset(tmp_path / "set")
    assert {"a.1": "does this"} == dataset.queries
    assert {"a.1": {"a.1": 1}} == dataset.qrels
    assert {"a.1": "text of a", "b.1": "text of b", "c.1": "text of c"} == {
        document.id: document.text for document in dataset.documents()
    }
