"""Documents put together again from their chunks, and cut anew."""

from __future__ import annotations

import pytest

from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.recutting import fits, put_together, recut
from pipeline.types import Chunk, Document
from tests.fakes import word_tokenizer

PROSE = " ".join(
    f"Sentence {n} tells of {['apples', 'pears', 'plums'][n % 3]}, and then of something else." for n in range(60)
)
CHINESE = "".join(f"第{n}句话讲的是{['苹果', '梨', '李子'][n % 3]}，然后讲别的。" for n in range(60))


def chunker(tokens: int, overlap: int) -> Chunker:
    return Chunker(word_tokenizer(), chunk_tokens=tokens, overlap=overlap)


@pytest.mark.parametrize("text", [PROSE, CHINESE], ids=["English", "Chinese"])
def test_text_whose_chunks_all_overlap_comes_back_exactly(text: str) -> None:
    """What neighbours share is where they are put together."""
    chunks = chunker(48, 20).chunk(Document("d", text))
    assert len(chunks) > 10
    whole, starts = put_together([chunk.text for chunk in chunks], overlapping=True)
    assert text == whole
    assert [text.index(chunk.text) for chunk in chunks] == starts


def test_without_overlap_only_white_space_is_lost() -> None:
    """Chunks that share nothing stand on lines of their own, and nothing of them is missing or there twice."""
    chunks = chunker(48, 0).chunk(Document("d", PROSE))
    whole, _ = put_together([chunk.text for chunk in chunks], overlapping=False)
    assert PROSE.split() == whole.split()


def test_chunks_that_share_nothing_are_paragraphs_or_rows() -> None:
    """Mostly they were cut at an empty line; one between rows would end their table."""
    records = "\n\n".join(f"id: {n}; name: a name of several words; price: {n}0" for n in range(40))
    chunks = chunker(48, 8).chunk(Document("d", records))
    assert (records, True) == (put_together([chunk.text for chunk in chunks], overlapping=True)[0], len(chunks) > 5)
    for text in (PROSE, CHINESE):
        assert (
            text
            == put_together([chunk.text for chunk in chunker(48, 0).chunk(Document("d", text))], overlapping=False)[0]
        )
    assert "a\n| 1 |\n| 2 |\n| 3 |\n\nb" == put_together(["a\n| 1 |", "| 2 |\n| 3 |", "b"], overlapping=False)[0]


def test_lines_and_paragraphs_stay_what_they_are() -> None:
    """Between chunks that share nothing there is an empty line only where they have one themselves."""
    log = "\n".join(f"2024-05-01 10:30:{n:02} worker {n} took {n}0 jobs and then went on to sleep" for n in range(60))
    prose = "\n\n".join(f"Paragraph {n} has some words.\n\nAnd so has the one behind it, {n}." for n in range(30))
    for text in (log, prose):
        chunks = [chunk.text for chunk in chunker(48, 0).chunk(Document("d", text))]
        assert (text, True) == (put_together(chunks, overlapping=False)[0], len(chunks) > 5)


HEAD = "| name | value |\n|---|---|\n"


def test_the_head_of_a_table_comes_back_once() -> None:
    """Also where a row was cut, so that one chunk does not begin with it."""
    chunks = [HEAD + "| a | 1 |", HEAD + "| b | a long", "value |", HEAD + "| c | 3 |"]
    assert 1 == put_together(chunks, overlapping=False)[0].count(HEAD)


def test_a_table_that_is_cut_anew_keeps_its_head() -> None:
    """As one that is ingested: a document that is put together is no Markdown any more."""
    document = Document("d", HEAD + "".join(f"| node-{n} | 10.1.5.{n} |\n" for n in range(60)), markdown=True)
    stored = chunker(256, 0).chunk(document)
    again = recut(stored, chunker(128, 0), overlapping=False)
    assert len(again) > len(stored) > 1
    assert all(chunk.text.startswith(HEAD) for chunk in (*stored, *again))


def test_an_end_that_is_no_overlap_is_kept() -> None:
    """An overlap begins where a word does: the same letters inside one are chance."""
    assert ("a banana\nanana split", [0, 9]) == put_together(["a banana", "anana split"], overlapping=True)


def test_every_stored_chunk_is_in_the_whole() -> None:
    """Also where a text repeats itself, so that the overlap cannot be told for certain."""
    text = "la la la. " * 80 + PROSE
    chunks = chunker(32, 10).chunk(Document("d", text))
    whole, starts = put_together([chunk.text for chunk in chunks], overlapping=True)
    assert all(whole.startswith(chunk.text, start) for chunk, start in zip(chunks, starts, strict=True))


def test_cut_anew_as_an_ingest_would_have_cut_it() -> None:
    """With overlap and one title the chunks are those of the source under the new settings."""
    document = Document("d", PROSE, title="Fruit", metadata={"lang": "en"})
    again = recut(chunker(48, 20).chunk(document), chunker(96, 10), overlapping=True)
    assert chunker(96, 10).chunk(document) == again


def test_sections_stay_apart_and_pages_known() -> None:
    """Chunks of different titles are not put together; a chunk has the metadata of the one that it begins in."""
    parts = [("A", 1, "one two. three four."), ("A", 2, "five six. seven eight."), ("B", 2, "nine ten.")]
    stored = [
        Chunk("d", "hash", index, 3, text, title, "source", {"page": page, "lang": "en"})
        for index, (title, page, text) in enumerate(parts)
    ]
    again = recut(stored, chunker(64, 0), overlapping=False)
    assert [("A", 1, 0, 2), ("B", 2, 1, 2)] == [(c.title, c.metadata["page"], c.index, c.count) for c in again]
    assert {("d", "hash", "source", "en")} == {
        (c.document_id, c.content_hash, c.source, c.metadata["lang"]) for c in again
    }
    small = recut([stored[0], stored[1]], chunker(16, 0), overlapping=False)
    assert [1] == sorted({c.metadata["page"] for c in small if "one" in c.text})


def test_chunks_too_long_for_another_tokenizer_are_found() -> None:
    """Whether chunks can stay depends on the new model's own tokens."""
    chunks = chunker(48, 0).chunk(Document("d", PROSE))
    assert fits(chunks, word_tokenizer(), 48)
    assert not fits(chunks, word_tokenizer(), 20)
