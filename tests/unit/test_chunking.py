import random
import threading
from collections.abc import Sequence
from itertools import pairwise
from textwrap import indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pipeline.errors import SettingsError
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.recutting import put_together
from pipeline.types import Chunk, Document
from tests.fakes import word_tokenizer

TOKENIZER = word_tokenizer()


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False))


def cut(text: str, *, chunk_tokens: int = 32, overlap: int = 0, title: str = "", markdown: bool = False) -> list[Chunk]:
    chunker = Chunker(TOKENIZER, chunk_tokens=chunk_tokens, overlap=overlap)
    return chunker.chunk(Document(id="d", text=text, title=title, markdown=markdown))


def texts(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def squeezed(text: str) -> str:
    return "".join(text.split())


def sentences(count: int, word: str = "word") -> str:
    return " ".join(f"Sentence {i} about a {word} is here." for i in range(count))


# ---------------------------------------------------------------- what always holds

PIECES = st.sampled_from(
    [
        "word",
        "Two words. ",
        "中文句子。",
        "，",
        "\n",
        "\n\n",
        " ",
        "# Heading\n",
        "## 标题\n",
        "```\n",
        "- item\n",
        "a" * 700,
        "中" * 80,
        "x = f(y, z)\n",
        "Heading\n===\n",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "\t",
        "| a | b |\n",
        "\u3000",
        "\r\n",
        "<!-- ",
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=60).map("".join),
    st.text(max_size=300),
    st.lists(PIECES, max_size=12).map(lambda pieces: "".join(pieces) * 20),
)


@settings(max_examples=120, deadline=None)
@given(
    text=TEXTS,
    title=st.sampled_from(["", "A title", "标题", "long " * 100, "w" * 3000]),
    size=st.integers(16, 64),
    part=st.floats(0, 0.49),
    markdown=st.booleans(),
)
def test_chunks_keep_their_promises(text: str, title: str, size: int, part: float, markdown: bool) -> None:
    """Any text: all of it is covered in order, no chunk is empty or over the limit, and a second run gives the same."""
    overlap = int(size * part)
    chunks = cut(text, chunk_tokens=size, overlap=overlap, title=title, markdown=markdown)
    assert chunks == cut(text, chunk_tokens=size, overlap=overlap, title=title, markdown=markdown)
    assert [] == [chunk for chunk in chunks if not chunk.text.strip()]
    assert [] == [chunk for chunk in chunks if tokens(chunk.full_text) > size]
    assert [] == [chunk for chunk in chunks if len(chunk.text) > 32 * size]
    assert [(i, len(chunks)) for i in range(len(chunks))] == [(chunk.index, chunk.count) for chunk in chunks]
    covered = 0
    for chunk in chunks:
        following = covered + len(text[covered:]) - len(text[covered:].lstrip())
        start = text.rfind(chunk.text, 0, following + len(chunk.text))
        assert start >= 0
        covered = max(covered, start + len(chunk.text))
    assert "" == text[covered:].strip()


@settings(max_examples=50, deadline=None)
@given(text=TEXTS, markdown=st.booleans())
def test_without_overlap_no_text_is_doubled(text: str, markdown: bool) -> None:
    """The chunks one after the other are the text."""
    assert squeezed(text) == squeezed("".join(texts(cut(text, markdown=markdown))))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), overlap=st.integers(0, 15))
def test_words_are_never_cut(seed: int, overlap: int) -> None:
    """Chunks consist of the text's words, whatever the overlap."""
    random_ = random.Random(seed)
    words = [f"{random_.choice('abc')}{i}" for i in range(300)]
    text = "".join(word + random_.choice([" ", " ", ", ", ". ", "\n", "\n\n"]) for word in words)
    for chunk in cut(text, overlap=overlap):
        assert set() == {word.strip(".,") for word in chunk.text.split()} - set(words)


def test_a_document_without_text_has_no_chunks() -> None:
    """Nothing but white space is nothing."""
    assert [[], [], []] == [cut(""), cut(" \n\t\u3000"), cut("\n\n", title="Title", markdown=True)]


def test_a_short_text_is_one_chunk_as_it_is() -> None:
    """The quick way, for what is surely short, comes to the same as the long one."""
    texts = ["  two words \n", "苹果是一种水果。" * 5, "a\n\n\nb", "x" * 60, "word " * 40, sentences(3), " \n "]
    chunker = Chunker(TOKENIZER, chunk_tokens=48, overlap=4)
    quick = {}
    for text in texts:
        for title in ("", "A title"):
            document = Document(id="d", text=text, title=title)
            quick[text, title] = chunker._short(document, text) != []
            chunks = chunker.chunk(document)
            chunker_ = Chunker(TOKENIZER, chunk_tokens=48, overlap=4)
            chunker_._short = lambda *_: []  # type: ignore[method-assign]
            assert chunker_.chunk(document) == chunks
    assert {True, False} == {*quick.values()}


def test_chunks_carry_their_document() -> None:
    """Hash of the whole document, its source, and its metadata, which are one object and not the caller's."""
    metadata = {"lang": "en", "tags": ["a"], "of": {"n": 1}}
    document = Document(id="d", text=sentences(20), title="T", source="/s", metadata=metadata)
    assert metadata == document.metadata
    metadata["lang"], metadata["of"]["n"] = "zh", 2  # type: ignore[index]
    metadata["tags"].append("b")  # type: ignore[attr-defined]
    chunks = Chunker(TOKENIZER, chunk_tokens=32, overlap=4).chunk(document)
    assert len(chunks) > 3
    assert {("d", document.content_hash(), "/s", "T")} == {
        (chunk.document_id, chunk.content_hash, chunk.source, chunk.title) for chunk in chunks
    }
    assert {"lang": "en", "tags": ["a"], "of": {"n": 1}} == document.metadata
    assert all(chunk.metadata is document.metadata for chunk in chunks)


def test_lone_surrogates_are_replaced() -> None:
    """Broken JSON brings them, and no tokenizer takes them."""
    assert ["a\ufffdb"] == texts(cut("a\ud800b", title="\udfff"))


@pytest.mark.parametrize(("chunk_tokens", "overlap"), [(15, 0), (0, 0), (32, 16), (32, -1)])
def test_impossible_sizes_are_refused(chunk_tokens: int, overlap: int) -> None:
    """A chunk that is mostly overlap would never end."""
    with pytest.raises(SettingsError, match=str(overlap if chunk_tokens == 32 else chunk_tokens)):
        Chunker(TOKENIZER, chunk_tokens=chunk_tokens, overlap=overlap)


def test_a_truncating_tokenizer_counts_all_the_same_and_stays_as_it_is() -> None:
    """The embedder's own tokenizer may cut and pad; chunks are counted without that."""
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    document = Document(id="d", text=sentences(30))
    chunker = Chunker(tokenizer, chunk_tokens=32, overlap=0)
    assert texts(Chunker(TOKENIZER, chunk_tokens=32, overlap=0).chunk(document)) == texts(chunker.chunk(document))
    assert 64 == len(tokenizer.encode("word"))
    assert 8 == len([token for token in tokenizer.encode(sentences(30)).attention_mask if token])


def test_threads_share_a_chunker() -> None:
    """The same document cut by several threads at once gives the same chunks."""
    chunker = Chunker(TOKENIZER, chunk_tokens=32, overlap=8)
    document = Document(id="d", text="# A\n\n" + sentences(200), markdown=True)
    expected = chunker.chunk(document)
    found: list[list[Chunk]] = []
    threads = [threading.Thread(target=lambda: found.append(chunker.chunk(document))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [expected] * 4 == found


# ---------------------------------------------------------------- where it cuts


def test_paragraphs_stay_whole() -> None:
    """A cut at a paragraph's end is better than a fuller chunk."""
    paragraphs = [" ".join(["word"] * 20) + f" {i}" for i in range(4)]
    assert paragraphs == texts(cut("\n\n".join(paragraphs), chunk_tokens=32))


def test_english_is_cut_after_sentences() -> None:
    """Each chunk ends with a full stop that ends a sentence, not an abbreviation."""
    text = " ".join(f"Mr. Smith met J. Jones of Fig. {i} again, as e.g. friends do." for i in range(12))
    chunks = texts(cut(text, chunk_tokens=48))
    assert len(chunks) > 3
    assert [] == [chunk for chunk in chunks if not chunk.endswith("do.")]


@pytest.mark.parametrize("end", ["。", "！", "？", "；", "。”", "……", "。〉", "！］", "？!", ".", "!", "?", "!)"])
def test_chinese_is_cut_after_sentences(end: str) -> None:
    """Chinese sentences have no space between them."""
    text = "".join(f"这是第{i}个句子，它说了一些事情{end}" for i in range(12))
    chunks = texts(cut(text, chunk_tokens=40))
    assert len(chunks) > 3
    assert [] == [chunk for chunk in chunks if not chunk.endswith(end)]


def test_a_long_sentence_is_cut_after_clauses() -> None:
    """Below the sentence comes the clause, in both languages."""
    english = ", ".join(["some words of a clause"] * 20)
    chinese = "，".join(["没有句号的一段话"] * 20)
    assert {"clause,", "clause"} == {chunk.split()[-1] for chunk in texts(cut(english))}
    assert {"段话，", "一段话"} == {chunk[-3:] for chunk in texts(cut(chinese))}


def test_wrapped_prose_is_cut_at_sentences_and_code_at_lines() -> None:
    """A newline ends a statement, but only wraps a sentence."""
    prose = "\n".join(["The quick fox. It jumps over", "a lazy dog. Then it sleeps for"] * 8)
    code = "\n".join(f"    value_{i} = call({i}, a. B)" for i in range(12))
    assert [] == [chunk for chunk in texts(cut(prose))[:-1] if not chunk.endswith(".")]
    assert [] == [chunk for chunk in texts(cut(code)) if not chunk.startswith("    ") or not chunk.endswith(")")]


def test_only_a_word_longer_than_a_chunk_is_broken() -> None:
    """Words beside it stay whole, and no piece of it is longer than a chunk may be."""
    text = "before it " + "x" * 5_000 + " and after it"
    chunks = texts(cut(text, chunk_tokens=16))
    assert squeezed(text) == squeezed("".join(chunks))
    assert ("before it", "and after it") == (chunks[0][:9], chunks[-1][-12:])
    assert max(map(len, chunks)) <= 16 * 32


def test_what_a_reader_sees_as_one_character_is_not_broken() -> None:
    """Accents and joined emoji stay with their letter."""
    family = "👨‍👩‍👧"
    chunks = texts(cut(family * 100, chunk_tokens=16)) + texts(cut("e\u0301" * 400, chunk_tokens=16))
    assert len(chunks) > 10
    assert [] == [chunk for chunk in chunks if chunk[0] in "\u200d\u0301👩👧" or chunk[-1] in "\u200d👨👩"]


def test_no_overlap_begins_inside_a_word() -> None:
    """The pieces of a broken word share nothing."""
    text = "é" * 400
    assert text == "".join(texts(cut(text, overlap=8)))


def test_chinese_without_sentences_is_not_cut_before_closing_marks() -> None:
    """A closing bracket at the start of a chunk belongs to the text before it."""
    chunks = [chunk for size in range(16, 24) for chunk in texts(cut("中中中中中）" * 60, chunk_tokens=size))]
    assert len(chunks) > 80
    assert [] == [chunk for chunk in chunks if chunk[0] == "）"]


def test_chinese_is_not_cut_after_opening_marks() -> None:
    """Nor inside the flag of England, which is seven characters."""
    chunks = [chunk for size in range(16, 24) for chunk in texts(cut("中中中中中「" * 60 + "中", chunk_tokens=size))]
    assert len(chunks) > 80
    assert [] == [chunk for chunk in chunks if chunk[-1] == "「"]
    england = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
    flags = texts(cut(england * 40, chunk_tokens=16))
    assert len(flags) > 10
    assert [] == [flag for flag in flags if len(flag) % len(england)]


def test_chinese_with_marks_of_half_width_is_cut_after_clauses() -> None:
    """But a file name or a number is no clause."""
    text = "这是一段没有句号的话,它说了一些事情,版本是3.11,文件是main.py:" * 12
    chunks = texts(cut(text, chunk_tokens=24))
    assert len(chunks) > 8
    assert [] == [chunk for chunk in chunks if chunk[-1] not in ",:"]


def test_the_last_chunk_is_no_crumb() -> None:
    """The remainder is shared out instead of left over."""
    sizes = [tokens(text) for text in texts(cut(" ".join(f"w{i}" for i in range(66)), chunk_tokens=32))]
    assert (66, 3) == (sum(sizes), len(sizes))
    assert min(sizes) >= 7


def test_neighbours_overlap_in_whole_sentences() -> None:
    """The overlap begins behind a sentence, and is no longer than asked for."""
    chunks = texts(cut(sentences(30), chunk_tokens=40, overlap=10))
    for before, after in pairwise(chunks):
        shared = next(n for n in range(len(after), -1, -1) if before.endswith(after[:n]))
        assert 1 <= tokens(after[:shared]) <= 10
        assert after.startswith("Sentence")


@pytest.mark.parametrize(
    "unit",
    [
        "id: {i}; name: a name, 或者名字; note: One thing. Another thing; price: {i}0\n\n",
        "| row {i} | a name, 或者名字 | One thing. Another thing | {i}0 |\n",
        "    call_{i}(name, other, *those, One. Two, number={i}, more, and, more, of, them)\n",
        "句子{i}，分句，另一个分句，以及许多别的分句，还有更多的分句，一直到最后一个分句。",
    ],
    ids=["record", "row", "code", "Chinese"],
)
def test_no_overlap_begins_inside_what_belongs_together(unit: str) -> None:
    """The rest of a record would be taken for the beginning of the next one: rather share nothing."""
    units = [unit.format(i=i).strip() for i in range(10, 40)]
    size = tokens(units[0])
    for overlap in (size - 1, size + 1):
        chunks = texts(cut("".join(unit.format(i=i) for i in range(10, 40)), chunk_tokens=3 * size, overlap=overlap))
        assert len(chunks) > 9
        assert [] == [chunk for chunk in chunks if not any(chunk.lstrip().startswith(unit) for unit in units)]
        assert (overlap > size) == (sum(map(tokens, chunks)) > sum(map(tokens, units)))


def test_code_is_cut_where_it_is_indented_least() -> None:
    """A function stays whole beside an empty line within the next one, and a class beside one between its methods."""
    body = "\n".join(f"    call_{i}()" for i in range(5))
    text = f"def first():\n{body}\n{body}\n\ndef second():\n{body}\n\n{body}\n"
    assert "def second():" == texts(cut(text, chunk_tokens=96))[1].split("\n")[0]
    assert "\tdef second():" == texts(cut(indent(text, "\t"), chunk_tokens=96))[1].split("\n")[0]
    text = f"one\n{body}\n{body}\n\n\ntwo\n{body}\n\nthree\n{body}\n"
    assert "two" == texts(cut(text, chunk_tokens=96))[1].split("\n")[0]


@pytest.mark.parametrize(
    "line", ["It looks like this:", "如下所示：", "**Note:**", "See also", "第二章", "**Warning**"], ids=str
)
def test_what_introduces_goes_with_what_it_introduces(line: str) -> None:
    """Both may stand at the end of a full chunk: another end of a paragraph is better."""
    some = " ".join(["word"] * 14) + "."
    chunks = texts(cut(f"{some}\n\n{some}\n\n{line}\n\n{some}", chunk_tokens=46))
    assert [f"{some}\n\n{some}", f"{line}\n\n{some}"] == chunks


def test_lines_of_code_below_a_paragraph_that_introduces_them_stay_together() -> None:
    """The worst place for a cut is inside the block, where there are paragraphs beside it."""
    some = " ".join(["word"] * 12) + "."
    block = "```\n" + "one()\n\n\ntwo()\n" * 2 + "```"
    chunks = texts(cut(f"{some}\n\n{some}\n\n{block}\n\n{some}", chunk_tokens=40, markdown=True))
    assert [f"{some}\n\n{some}", f"{block}\n\n{some}"] == chunks
    chunks = texts(cut(f"{some} {some}\nSo:\n\n{block}\n\n{some}", chunk_tokens=42, markdown=True))
    assert [f"{some} {some}\nSo:", f"{block}\n\n{some}"] == chunks


def test_an_indent_stays() -> None:
    """The first line of a chunk of code is indented as in the file."""
    text = "def f():\n" + "\n".join(f"    line_{i} = {i}" for i in range(40))
    assert [] == [chunk for chunk in texts(cut(text))[1:] if not chunk.startswith("    line")]


# ---------------------------------------------------------------- tables

HEAD = "| Host | RAM GB | 备注 |\n| --- | --- | --- |\n"


@pytest.mark.parametrize("overlap", [0, 12])
def test_every_chunk_of_a_table_begins_with_its_header(overlap: int) -> None:
    """Nothing else tells what is in its columns; rows are whole, and only those in the table have it."""
    rows = [f"| node-{i} | 10{i} | 第{i}个 |" for i in range(40)]
    text = "Some hosts.\n\n" + HEAD + "\n".join(rows) + "\n\n" + sentences(20)
    chunks = texts(cut(text, chunk_tokens=96, overlap=overlap, markdown=True))
    inside = [chunk for chunk in chunks if "node-" in chunk]
    assert len(inside) > 5
    assert [] == [chunk for chunk in inside[1:] if not chunk.startswith(HEAD)]
    assert [] == [chunk for chunk in chunks if max(tokens(chunk), chunk.count(HEAD) * 96) > 96]
    assert [] == [row for chunk in inside for row in chunk.split("\n") if "node-" in row and row not in rows]
    assert [True] * 40 == [any(row in chunk.split("\n") for chunk in inside) for row in rows]
    assert text.split() == put_together(chunks, overlapping=overlap > 0)[0].split()
    assert all(HEAD in chunk for chunk in texts(cut(text, chunk_tokens=96)) if "node-" in chunk)


def test_a_tables_head_is_not_cut_and_not_repeated_where_it_is_long() -> None:
    """A chunk of nothing but headers says nothing, and one that ends with a header says it in vain."""
    rows = "".join(f"| {i} | {i} | {i} |\n" for i in range(40))
    for words in range(40, 90):
        for chunk in texts(cut(" ".join(["word"] * words) + ".\n" + HEAD + rows, chunk_tokens=96, markdown=True)):
            assert (HEAD.strip() in chunk, False) == ("|" in chunk, chunk.endswith(HEAD.strip()))
    long = "| " + " | ".join(["column"] * 12) + " |\n| --- |\n"
    assert 1 == sum("column" in chunk for chunk in texts(cut(long + rows, chunk_tokens=64, markdown=True)))


# ---------------------------------------------------------------- headings


def titles(text: str, **kwargs: object) -> list[str]:
    return [chunk.title for chunk in cut(text, markdown=True, **kwargs)]  # type: ignore[arg-type]


def test_each_section_is_its_own_chunk_under_its_headings() -> None:
    """Title of the document, then the headings above; the first is not repeated."""
    body = sentences(3)
    text = f"# Guide\n\n{body}\n\n## Install\n\n{body}\n\n### Linux\n\n{body}\n\n## 使用\n\n{body}\n"
    expected = ["Guide", "Guide > Install", "Guide > Install > Linux", "Guide > 使用"]
    assert expected == titles(text, title="Guide", chunk_tokens=40)
    assert [f"Doc > {title}" for title in expected] == titles(text, title="Doc", chunk_tokens=48)
    assert expected == titles(text, chunk_tokens=40)


@pytest.mark.parametrize(
    ("title", "heading", "expected"),
    [
        ("os.path — Common names — Python 3.11", "`os.path` — Common names", "os.path — Common names — Python 3.11"),
        ("Billing FAQ | Acme", "Billing FAQ", "Billing FAQ | Acme"),
        ("Billing - Help - Acme", "billing", "Billing - Help - Acme"),
        ("Billing · Acme", "Billing", "Billing · Acme"),
        ("Billing»Acme", "Billing", "Billing»Acme"),
        ("Billing_ Acme", "Billing", "Billing_ Acme"),
        ("深度学习_某百科", "深度学习", "深度学习_某百科"),
        ("备份－知乎", "备份", "备份－知乎"),
        ("备份｜某站", "备份", "备份｜某站"),
        ("Acme | Billing", "Billing", "Acme | Billing"),
        ("某站 - 备份", "备份", "某站 - 备份"),
        ("Install: Linux", "Install", "Install: Linux"),
        ("备份：恢复", "备份", "备份：恢复"),
        ("GPU-bound work", "GPU", "GPU-bound work > GPU"),
        ("Foo_bar", "Foo", "Foo_bar > Foo"),
        ("Installer | Acme", "Install", "Installer | Acme > Install"),
        ("Uninstall", "install", "Uninstall > install"),
    ],
)
def test_a_heading_that_the_title_says_is_not_said_again(title: str, heading: str, expected: str) -> None:
    """Also beside the name of a site, as titles of web pages have it; on all chunks."""
    body = sentences(3)
    found = titles(f"# {heading}\n\n{body}\n\n## Next\n\n{body}\n", title=title, chunk_tokens=48)
    assert [expected, f"{expected} > Next"] == found


def test_a_heading_without_text_goes_with_the_next() -> None:
    """No chunk consists of a heading that the next one repeats in its title."""
    chunks = cut("# A\n\n## B\n\n" + sentences(3) + "\n\n# C\n\n" + sentences(3), markdown=True, chunk_tokens=40)
    assert ["A > B", "C"] == [chunk.title for chunk in chunks]
    assert chunks[0].text.startswith("# A\n\n## B\n\nSentence 0")


def test_small_neighbours_share_a_chunk_under_their_common_headings() -> None:
    """Three short answers are one chunk; its title is true of all of them."""
    text = "# FAQ\n\n" + sentences(5) + "\n\n" + "\n\n".join(f"## Q{i}\n\nYes {i}." for i in range(3))
    chunks = cut(text, markdown=True, chunk_tokens=64)
    assert ["FAQ", "FAQ"] == [chunk.title for chunk in chunks]
    assert "## Q0\n\nYes 0.\n\n## Q1\n\nYes 1.\n\n## Q2\n\nYes 2." == chunks[1].text


def test_a_small_section_never_swallows_a_higher_one() -> None:
    """The tail of one chapter and the next chapter have no title in common."""
    text = "# One\n\n" + sentences(3) + "\n\n## Note\n\nTiny.\n\n# Two\n\n" + sentences(3)
    assert ["One", "One > Note", "Two"] == titles(text, chunk_tokens=48)


def test_all_chunks_of_a_long_section_have_its_title() -> None:
    """Also those that do not begin with the heading."""
    text = "# A\n\n## B\n\n" + sentences(30) + "\n\n## C\n\n" + sentences(3)
    found = titles(text, chunk_tokens=40, overlap=8)
    assert len(found) > 6
    assert ({"A > B"}, "A > C") == (set(found[:-1]), found[-1])


@pytest.mark.parametrize(
    "block",
    [
        "```\n# not one\n```",
        "~~~ sh\n# not one\n```\n# nor this\n~~~",
        "    # not one",
        "<!--\n# not one\n-->",
        "<pre>\n# not one\n</pre>",
        "#not-one",
        "####### not one",
        "- item\n---",
        "a paragraph\nof two lines\n---",
        "| a |\n---",
        "```\nnever closed\n# not one",
    ],
)
def test_what_only_looks_like_a_heading(block: str) -> None:
    """Code, comments, lists, rules and tags."""
    assert ["Top"] == titles(f"# Top\n\n{block}\n\nText below.", chunk_tokens=64)


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# Plain", "Plain"),
        ("   ## Closed ##", "Closed"),
        ("Underlined\n==========", "Underlined"),
        ("下划线标题\n---", "下划线标题"),
        ("# **Bold** and `code`", "Bold and code"),
        ("# [Link](http://x.y) here {#anchor}", "Link here"),
        ("# snake_case_name and 2 * 3", "snake_case_name and 2 * 3"),
        (r"# 1\. Escaped \#", "1. Escaped #"),
        ("# C#", "C#"),
        ("# 中文标题\r", "中文标题"),
    ],
)
def test_headings_are_read(line: str, title: str) -> None:
    """In both forms, without their markup."""
    assert [title] == titles(f"{line}\n\nText below.")


def test_front_matter_is_no_underlined_heading() -> None:
    """Its last line stands above three dashes."""
    assert ["Real"] == titles("---\ntitle: Not this\n---\n# Real\n\nText below.")


def test_headings_count_in_markdown_only() -> None:
    """A comment in a shell script is no heading."""
    assert [""] == [chunk.title for chunk in cut("# comment\nls -l\n")]


def test_a_long_title_leaves_half_of_the_chunk_to_the_text() -> None:
    """It loses what is between its first and last heading first, then its end."""
    text = "# First\n\n## " + "middle " * 12 + "\n\n### Last\n\n" + sentences(10)
    assert {"First > Last"} == set(titles(text, chunk_tokens=32))
    chunks = cut(sentences(10), title="word " * 40, chunk_tokens=32)
    assert {"word " * 13 + "word"} == {chunk.title for chunk in chunks}
    assert 16 <= tokens(chunks[0].text)


# ---------------------------------------------------------------- other tokenizers


def test_a_tokenizer_whose_counts_do_not_add_up_stays_within_the_limit() -> None:
    """Here a clause begins inside a token of the one before, and alone takes eight more; the too long is halved."""
    pieces = [("<unk>", 0.0), (", beginning", -1.0), *((c, -9.0) for c in "abcdefghijklmnopqrstuvwxyz, ")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    text = ", ".join(["beginning of"] * 40)
    chunks = Chunker(tokenizer, chunk_tokens=16, overlap=0).chunk(Document(id="d", text=text))
    assert squeezed(text) == squeezed("".join(chunk.text for chunk in chunks))
    assert max(len(tokenizer.encode(chunk.text)) for chunk in chunks) <= 16


def test_hostile_texts_take_time_in_line_with_their_length() -> None:
    """Any of these in square time would take minutes, which the test's own time limit does not allow."""
    blocks = ("#\n", "```\n", "-\n", "<!--\n", "a\n-\n", "\n", " ", "a", "|a|\n|-|\n", "```x\n", "a:\n\n")
    for text in ("." * 300_000, *(block * 20_000 + "x" for block in blocks)):
        chunks = texts(cut(text, chunk_tokens=256, markdown=True))
        assert squeezed(text) == squeezed(put_together(chunks, overlapping=False)[0])
