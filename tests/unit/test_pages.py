import pytest

from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.pages import SLIDE_MARK, find_pages, take_out_marks
from pipeline.types import Document
from tests.fakes import word_tokenizer


def starts(text: str, *pages: str) -> list[str]:
    """The first line of the text where each page begins."""
    return [text[place:].partition("\n")[0] for place in find_pages(text, pages)]


def test_pages_are_found_in_a_text_with_other_white_space_and_marks() -> None:
    """Headings belong to the page that they open."""
    text = "# One\n\nfirst page, its text\n\n## Two\n\n- second\n- page\n\n第三页 的文字"
    assert ["# One", "## Two", "第三页 的文字"] == starts(
        text, "One\nfirst page,\nits text", "Two\nsecond\npage", "第三页的文字"
    )


def test_what_the_text_does_not_have_of_a_page_does_not_matter() -> None:
    """Headers that were left out; the next words of the page are looked for."""
    body = " ".join(f"word{i}" for i in range(200))
    pages = ["start", f"Header that is nowhere else to be found {body}"]
    assert ["start", "Then"] == [line.split()[0] for line in starts(f"start\n\nThen {body}", *pages)]


def test_pages_that_begin_alike_are_told_apart() -> None:
    """A form of several pages with one heading."""
    page = "The same heading and the same first lines on every page of the form, "
    text = "\n\n".join(f"{page}{name}" for name in ("one", "two", "three"))
    places = find_pages(text, [f"{page}{name}" for name in ("one", "two", "three")])
    assert [0, len(page) + 5, 2 * len(page) + 10] == list(places)


@pytest.mark.parametrize("second", ["", "not there at all"])
def test_a_page_without_text_begins_where_the_next_does(second: str) -> None:
    """So the numbers of the others stay right."""
    pages = ["One", second, "Three", "Four", "Five"]
    assert ["One", "Three", "Three", "Four", "Five"] == starts("One\n\nThree\nFour\nFive", *pages)


def test_no_number_is_better_than_a_wrong_one() -> None:
    """Where the text has little of the pages, nothing is said of them."""
    assert () == find_pages("| One | a |\n| Two | b |", ["One Two", "a b", "nothing"])


def test_no_pages() -> None:
    """Nothing to tell apart."""
    assert [(), (), (0,)] == [find_pages("text", []), find_pages("", ["scanned"]), find_pages("", [""])]


def test_marks_of_slides_are_taken_out() -> None:
    """A slide without text has no mark of its own."""
    text = "".join(f"{SLIDE_MARK.format(page_num=n)}slide {n}" for n in (1, 3))
    assert ("slide 1\n\nslide 3", (0, 9, 9)) == take_out_marks(text)


def test_a_chunk_has_the_page_that_it_begins_on_and_the_time_of_its_source() -> None:
    """A new time alone is no change; a new place of a page is."""
    text = "\n\n".join(f"Sentence {i} of this text has ten words in it." for i in range(6))
    third = text.index("Sentence 3")
    document = Document(
        id="a", text=text, metadata={"k": 1}, modified="2026-01-01T00:00:00+00:00", page_starts=(0, third)
    )
    chunks = Chunker(word_tokenizer(), chunk_tokens=24, overlap=0).chunk(document)
    assert [1 if text.index(chunk.text) < third else 2 for chunk in chunks] == [
        chunk.metadata["page"] for chunk in chunks
    ]
    assert {1, 2} == {chunk.metadata["page"] for chunk in chunks}
    assert {("2026-01-01T00:00:00+00:00", 1)} == {(c.metadata["modified"], c.metadata["k"]) for c in chunks}
    same = Document(id="a", text=text, metadata={"k": 1}, modified="later", page_starts=(0, third))
    other = Document(id="a", text=text, metadata={"k": 1}, page_starts=(0, third + 1))
    assert [True, False] == [document.content_hash() == d.content_hash() for d in (same, other)]
    own = Document(id="a", text=text, metadata={"modified": "mine"}, modified="later")
    assert "mine" == Chunker(word_tokenizer()).chunk(own)[0].metadata["modified"]
