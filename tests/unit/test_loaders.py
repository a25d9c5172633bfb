import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.encoding import decode
from pipeline.ingestion.frontmatter import split_front_matter
from pipeline.ingestion.jsonl import read_jsonl
from pipeline.ingestion.loaders import _time, find_files, load
from pipeline.reports import Failure, NoText
from pipeline.types import Document
from tests.fakes import word_tokenizer

SIMPLIFIED = "向量数据库保存文本的嵌入表示，重排模型再给候选段落打分。备份每天晚上进行一次，并复制到另一台机器。"
TRADITIONAL = "向量資料庫保存文字的嵌入表示，重排模型再給候選段落打分。備份每天晚上進行一次，並複製到另一台機器。"
JAPANESE = "ベクトルデータベースはテキストの埋め込みを保存します。バックアップは毎晩行われます。"
WESTERN = "Le café est fermé à Noël; der Bär frißt Käse. Voilà – c'est “ça”, naïve façade, déjà vu."


def archive(size: int, name: str = "x.bin") -> bytes:
    """A ZIP archive with one file in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(name, bytes(size))
    return buffer.getvalue()


def one(path: Path) -> Document:
    (document,) = load(path)
    assert isinstance(document, Document), document
    return document


def failure(path: Path, **options: int) -> str:
    (found,) = load(path, **options)
    assert isinstance(found, Failure)
    assert Path(os.path.realpath(path)).as_posix() == found.source
    return found.error


@pytest.mark.parametrize("length", [1, 20], ids=["short", "long"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (SIMPLIFIED, "utf-8"),
        (SIMPLIFIED, "utf-8-sig"),
        (SIMPLIFIED, "utf-16"),
        (SIMPLIFIED, "utf-32"),
        (SIMPLIFIED + "\nA line of English, too.\n", "utf-16-le"),
        (SIMPLIFIED + "\nA line of English, too.\n", "utf-16-be"),
        (SIMPLIFIED, "gb18030"),
        (TRADITIONAL, "big5"),
        (TRADITIONAL, "gb18030"),
        (JAPANESE, "shift_jis"),
        (WESTERN, "cp1252"),
        ("déjà vu", "latin-1"),
        ("Plain English.", "ascii"),
    ],
)
def test_the_encoding_is_found_from_the_bytes(text: str, encoding: str, length: int) -> None:
    """Short and long texts, Chinese in each of its encodings, with and without byte order mark."""
    text = text * length
    assert text == decode(text.encode(encoding))


@pytest.mark.parametrize("text", ["备份数据", "如何切换重排器？", "读取JSON文件的方法", "Python教程"])
def test_a_few_chinese_words_are_enough(text: str) -> None:
    """GB18030 is found for titles and notes, too."""
    assert text == decode(text.encode("gb18030"))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Plain English in two bytes a letter.", "utf-16-le"),
        ("Plain English in two bytes a letter.", "utf-16-be"),
        ("向量数据库保存文本的嵌入表示和元数据", "utf-16-le"),
        ("向量数据库保存文本的嵌入表示和元数据", "utf-16-be"),
        ("于1991年由哈菲斯·穆罕默德", "gb18030"),
        ("※ 1月30日《50时间》⑴ ±5°", "gb18030"),
        ("# ASCII\n" * 20_000 + "# 最后一行是中文的注释", "gb18030"),
        ("# ASCII\n" * 20_000 + "# café fermé", "cp1252"),
        ("one long line " * 20_000 + "führt über die Straße zum Gebäude " * 200, "cp1252"),
        ('{"a": "long line"},' * 20_000 + '{"标题": "没有换行的一个文件"}' * 200, "gb18030"),
        ("Привет, как дела? Это русский текст для проверки кодировки.", "cp1251"),
        ("Füße, Größe, Übermaß und Öl", "latin-1"),
    ],
)
def test_encodings_that_are_easily_mistaken(text: str, encoding: str) -> None:
    """UTF-16 without a mark, rare signs among Chinese, and files that are plain ASCII up to their end."""
    assert text == decode(text.encode(encoding))


def test_a_broken_byte_does_not_spoil_a_text() -> None:
    """UTF-8 with a byte lost stays UTF-8; the byte is shown as missing."""
    data = SIMPLIFIED.encode()
    assert SIMPLIFIED.replace("每", "\ufffd", 1) == decode(data.replace("每".encode(), "每".encode()[:2], 1))


@pytest.mark.parametrize("damage", [b"\xff", b"\x80", b"\xa0"])
@pytest.mark.parametrize(
    ("text", "encoding"), [(SIMPLIFIED, "gb18030"), (TRADITIONAL, "gb18030"), (TRADITIONAL, "big5")]
)
def test_a_broken_byte_does_not_change_the_encoding(text: str, encoding: str, damage: bytes) -> None:
    """A line of a file is spoilt by it, the others are read."""
    lines = [f"{text}\n".encode(encoding)] * 20
    lines[2] = lines[2][:10] + damage + lines[2][10:]
    decoded = decode(b"".join(lines))
    assert decoded is not None
    found = decoded.splitlines()
    assert [text] * 19 == found[:2] + found[3:]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("牆裏秋千牆外道", "cp950"),
        ("恒生指數今日上升，裏面有很多說明。", "big5hkscs"),
        ("本產品的資料庫備份功能，由堃峯公司提供。", "big5hkscs"),
        ("我哋喺香港，佢唔知點解冇咗啲嘢。" * 20, "big5hkscs"),
        (TRADITIONAL * 4 + "€", "cp950"),
        (TRADITIONAL * 2000 + "€", "cp950"),
        ("第三〇五醫院", "big5hkscs"),
        ("約翰•羅斯金的《給未來者言》", "big5"),
        ("克猜測這可能", "gb18030"),
        ("光大，臺灣的城隍", "gb18030"),
    ],
)
def test_extensions_of_big5(text: str, encoding: str) -> None:
    """Those of Windows and of Hong Kong, in short texts and beyond the sample; GB18030 is not taken for them."""
    assert text == decode(text.encode(encoding))


def test_bytes_that_are_no_text_are_known() -> None:
    """Neither decoded to rubbish nor an error; numbers of two bytes are no Chinese in UTF-16."""
    assert [None, None] == [decode(bytes(range(256)) * 20), decode(bytes(1000))]
    numbers = [20_000 + i * 7919 % 20_000 for i in range(2000)]
    assert decode(struct.pack("<2000H", *numbers)) is None


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("a.md", "# The title\n\ntext", "The title"),
        ("a.md", "---\ntitle: From above\n---\n# The heading\n\ntext", "From above"),
        ("a.md", "```\n# no heading\n```\ntext", "a.md"),
        ("a.txt", "# no Markdown", "a.txt"),
        ("app.py", "print(1)", "app.py"),
        ("main.py", "print(1)", "zlib1g/main.py"),
        ("copyright", "All rights", "zlib1g/copyright"),
        ("README.md", "No heading", "zlib1g/README.md"),
        ("README_zh.txt", "正文", "zlib1g/README_zh.txt"),
        ("LICENSE-MIT", "Text", "zlib1g/LICENSE-MIT"),
        ("index.html", "<html><p>Text</p></html>", "zlib1g/index.html"),
        ("index.html", "<html><title>T</title><p>Text</p></html>", "T"),
        ("README.md", "# Heading", "Heading"),
        ("indexes.txt", "Text", "indexes.txt"),
        ("中文.md", "# 标题\n\n正文", "标题"),
    ],
)
def test_titles(tmp_path: Path, name: str, content: str, title: str) -> None:
    """Front matter, the first heading, or else the file's name, with the folder's where that alone says nothing."""
    (tmp_path / "zlib1g").mkdir()
    (tmp_path / "zlib1g" / name).write_text(content, encoding="utf-8")
    document = one(tmp_path / "zlib1g" / name)
    assert title == document.title
    (tmp_path / "other").mkdir()
    moved = (tmp_path / "zlib1g" / name).rename(tmp_path / "other" / f"b{Path(name).suffix}")
    assert document.content_hash() == one(moved).content_hash()


def test_front_matter_becomes_metadata(tmp_path: Path) -> None:
    """Flat values and lists, with numbers and booleans as such, and none of it in the text."""
    path = tmp_path / "a.md"
    path.write_text("---\ntags: [a, b]\nyear: 2024\ndraft: false\nid: 007\nauthors:\n  - Li\n  - Wu\n---\nText.\n")
    document = one(path)
    assert "Text.\n" == document.text
    wanted = {"tags": ["a", "b"], "year": 2024, "draft": False, "id": "007", "authors": ["Li", "Wu"]}
    assert wanted | {"file_name": "a.md", "type": "markdown"} == document.metadata


@pytest.mark.parametrize(
    "block",
    [
        "# a comment\nyear: 2024\n",
        "Last updated: 2024-01-01\nyear: 2024\n",
        "year: 2024\ntags: [\n  a,\n  b\n]\n",
        "summary: >\n  several\n\n  lines\nyear: 2024\n",
        "year: 2024\ntags:\n- a\n- b\n",
    ],
)
def test_what_yaml_allows_is_front_matter(block: str) -> None:
    """Comments, keys of several words, lists and texts over several lines."""
    fields, text = split_front_matter(f"---\n{block}---\nText.\n")
    assert (2024, "Text.\n") == (fields["year"], text)


def test_front_matter_is_read_as_yaml_would() -> None:
    """Commas in quotes, comments behind values, and texts that stand below; a "#" in a text stays."""
    lines = [
        'tags: ["New York, NY", b, 2]',
        "year: 2020 # or so",
        "draft: true  # still",
        "title: Issue #7",
        "of: '#1'",
    ]
    block = "\n".join([*lines, "summary: >-", "  folded", "none: # yet", f"n: {'9' * 5000}"])
    fields, text = split_front_matter(f"---\n{block}\n---\nText.")
    assert {"tags": ["New York, NY", "b", 2], "year": 2020, "draft": True, "title": "Issue #7", "of": "#1"} == {
        key: value for key, value in fields.items() if key != "n"
    }
    assert ("9" * 5000, "Text.") == (fields["n"], text)


def test_front_matter_may_have_keys_of_several_words_and_a_level_below() -> None:
    """Which a filter then asks for as ``author.name``; what is deeper, or a text of several lines, is left out."""
    lines = [
        '"title": Quoted',
        "Last updated: 2024-01-02",
        "author:",
        "  name: Alice",
        "  age: 33",
        "  address:",
        "    city: Oslo",
        "summary: >",
        "  one: two",
        "tags:",
        "  - a",
        "year: 2021",
    ]
    block = "\n".join(lines)
    fields, text = split_front_matter(f"---\n{block}\n---\nText.")
    assert "Text." == text
    assert {
        "title": "Quoted",
        "Last updated": "2024-01-02",
        "author": {"name": "Alice", "age": 33},
        "tags": ["a"],
        "year": 2021,
    } == fields


def test_a_rule_at_the_top_is_no_front_matter() -> None:
    """Without a closing line or without fields nothing is taken away, nor where there is anything but fields."""
    minutes = "---\nPresent: Ann, Bob\n\nWe decided to buy the building.\n---\nNext meeting in June.\n"
    assert ({}, minutes) == split_front_matter(minutes)
    assert ({}, "---\nA text\n---\nmore\n") == split_front_matter("---\nA text\n---\nmore\n")
    assert ({}, "---\ntext: more\n") == split_front_matter("---\ntext: more\n")


def test_rows_of_a_table_name_their_columns(tmp_path: Path) -> None:
    """A number in a chunk says what it is the number of."""
    (tmp_path / "t.csv").write_text("city,people\nBerlin,3900000\n北京,21890000\n", encoding="utf-8")
    assert "city: Berlin; people: 3900000\n\ncity: 北京; people: 21890000" == one(tmp_path / "t.csv").text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty file"),
        ("blank.md", b" \n\t\n", "empty file"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG image, no text"),
        ("program", b"\x7fELF" + bytes(range(256)), "executable, no text"),
        ("small.zst", b"\x28\xb5\x2f\xfd" + b"a text that is stored as it is", "zstd archive, no text"),
        ("some.zip", b"PK\x05\x06" + bytes(18), "ZIP archive, no text"),
        ("unknown.bin", bytes(range(256)) * 4, "binary file, no text"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """By its content, whatever its name says, in one line."""
    (tmp_path / name).write_bytes(content)
    assert said == failure(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a,b\n1,2,more\n,3\n", "a: 1; b: 2; more\n\nb: 3"),
        ('a\tb\n"x\ty"\t2\n', "a: x\ty; b: 2"),
        ('"name, first, last";age\nZoe;3\n', "name, first, last: Zoe; age: 3"),
        ("1,2\n3,4\n", "1,2\n3,4\n"),
        ("a,,b\n1,2,3\n", "a,,b\n1,2,3\n"),
        ("only,a,header\n", "only,a,header\n"),
        ('"' * 200_000 + "\n", '"' * 200_000 + "\n"),
    ],
    ids=["uneven", "tabs", "in quotes", "numbers", "unnamed", "header", "quotes"],
)
def test_no_cell_of_a_table_is_lost(tmp_path: Path, content: str, text: str) -> None:
    """Cells beyond the header stay, and what has no header stays as it is."""
    (tmp_path / "t.csv").write_text(content)
    assert text == one(tmp_path / "t.csv").text


@pytest.mark.parametrize("name", ["2023年", "1月", "3D", "5G用户", "1st", "24h", "2024Q1", "-name", ".net"])
def test_a_column_may_be_named_with_a_digit_first(tmp_path: Path, name: str) -> None:
    """A year, a month, a number with its unit."""
    (tmp_path / "t.csv").write_text(f"城市,{name}\n北京,2185\n", encoding="gb18030")
    assert f"城市: 北京; {name}: 2185" == one(tmp_path / "t.csv").text


@pytest.mark.parametrize(
    "value",
    [
        *(
            "2023",
            "-5.2",
            "+3",
            ".5",
            "1e5",
            "-1.5E-3",
            "12%",
            "3.5 %",
            '"1,234.50"',
            "１２",
            "192.168.1.1",
            "010-88886666",
        ),
        *(
            "2024-01-02",
            "2024/1/2",
            "02.01.2024",
            "2024年1月2日",
            "2024-01-02T10:00:00Z",
            "2024-01-02 10:30",
            "10:30 pm",
        ),
    ],
)
def test_a_row_with_a_number_or_a_date_is_no_header(tmp_path: Path, value: str) -> None:
    """Names of columns would be those of one row's values."""
    table = f"北京,{value}\n上海,7\n"
    (tmp_path / "t.csv").write_text(table, encoding="utf-8")
    assert table == one(tmp_path / "t.csv").text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"k": "\\u4e2d\\u6587"}', '{\n "k": "中文"\n}'),
        ('{"k": [' + "1," * 600 + "1]}", '{\n "k": [\n' + "  1,\n" * 600 + "  1\n ]\n}"),
        ('{\n"k":\n1.10\n}\n', '{\n"k":\n1.10\n}\n'),
        ('{"broken": "\\u4e2d', '{"broken": "\\u4e2d'),
    ],
    ids=["escaped", "one line", "as it is", "broken"],
)
def test_json_can_be_searched_and_cut(tmp_path: Path, content: str, text: str) -> None:
    """Letters instead of escapes, and lines instead of one line; what needs neither is not touched."""
    (tmp_path / "a.json").write_text(content)
    assert text == one(tmp_path / "a.json").text


def test_line_ends_are_the_same_everywhere(tmp_path: Path) -> None:
    """A file that comes from Windows is no other document."""
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert "one\ntwo\nthree\n" == one(tmp_path / "a.txt").text


def test_a_text_about_pdf_is_a_text(tmp_path: Path) -> None:
    """The mark alone does not make a PDF."""
    (tmp_path / "a.md").write_text("# Formats\n\nA PDF begins with %PDF-1.4 in its first line.")
    assert "markdown" == one(tmp_path / "a.md").metadata["type"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", ["pipe", "pipe.jsonl"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Opening one without a writer would never return."""
    os.mkfifo(tmp_path / name)
    assert "pipe or device, no text" == failure(tmp_path / name)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """As itself, not as what it led to: else that would count as a file that is there, and would never go."""
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (path,) = find_files([tmp_path])
    said = f"cannot be read: a link to {tmp_path.resolve() / 'gone'}, which is not there"
    assert [Failure((tmp_path / "link").as_posix(), said)] == list(load(path))


def test_whatever_a_reader_does_is_a_failure(tmp_path: Path) -> None:
    """A damaged book, and one whose reader ends with an error of its own."""
    book = tmp_path / "a.epub"
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip" * 20)
    data = bytearray(book.read_bytes())
    at = data.index(b"mimetype") + len("mimetype")
    data[at : at + 4] = b"\xff\xff\xff\xff"
    book.write_bytes(data)
    assert failure(book)


def test_a_time_beyond_the_calendar_is_none() -> None:
    """Some file systems hold such; it shall not keep the text from being read."""
    assert ["", "1970-01-01T00:00:00+00:00"] == [_time(1e15), _time(0)]


def test_links_that_lead_to_each_other_are_named(tmp_path: Path) -> None:
    """In a folder, and given by themselves."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for given in (tmp_path, tmp_path / "a"):
        assert {"cannot be read: Too many levels of symbolic links"} == {failure(path) for path in find_files([given])}


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and no more rights than any user has: root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, _NOBODY, _NOBODY)
            os.seteuid(_NOBODY)
        try:
            yield Path(name)
        finally:
            for path in Path(name).iterdir():
                path.chmod(0o700)
            if root:
                os.seteuid(0)


_NOBODY = 65534


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users of this kind here")
def test_what_may_not_be_read_is_named_and_the_rest_is_read(unprivileged: Path) -> None:
    """A file, a folder that cannot be listed, and one whose files can be listed but not opened."""
    for name in ("fine.txt", "secret.txt", "closed/a.txt", "listed/b.txt"):
        (unprivileged / name).parent.mkdir(exist_ok=True)
        (unprivileged / name).write_text(f"text of {name}")
    for name, mode in (("secret.txt", 0), ("closed", 0), ("listed", 0o400)):
        (unprivileged / name).chmod(mode)
    found = {path.name: next(load(path)) for path in find_files([unprivileged])}
    assert isinstance(found.pop("fine.txt"), Document)
    errors = {name: item.error for name, item in found.items() if isinstance(item, Failure)}
    denied = "cannot be read: Permission denied"
    assert {"secret.txt": denied, "b.txt": denied, "closed": "a folder that cannot be read"} == errors
    # Given by itself it may be there or not: that is found out when it is read.
    assert denied == failure(next(find_files([unprivileged / "closed" / "a.txt"])))


def test_a_name_with_a_nul_is_no_file() -> None:
    """An error about the argument, as for any other wrong name."""
    with pytest.raises(SettingsError, match="no such file"):
        list(find_files([Path("a\0b")]))


def test_one_giant_line_is_cut_like_any_text(tmp_path: Path) -> None:
    """With words and without: no chunk is too long, and nothing of it is lost."""
    for line in ("word " * 12_000, "x" * 60_000, "没有空格的汉字" * 4_000):
        (tmp_path / "a.txt").write_text(line, encoding="utf-8")
        chunks = Chunker(word_tokenizer(), chunk_tokens=256, overlap=0).chunk(one(tmp_path / "a.txt"))
        assert line.replace(" ", "") == "".join(chunk.text for chunk in chunks).replace(" ", "")
        assert max(len(chunk.text) for chunk in chunks) <= 32 * 256


def test_the_time_of_a_file_is_known_and_no_part_of_its_content(tmp_path: Path) -> None:
    """A checkout or copy gives every file a new time; that changes no document."""
    path = tmp_path / "a.txt"
    path.write_text("text")
    os.utime(path, (0, 1_700_000_000))
    before = one(path)
    os.utime(path, (0, 1_800_000_000))
    assert "2023-11-14T22:13:20+00:00" == before.modified
    assert before.content_hash() == one(path).content_hash()


def test_a_file_over_the_limit_is_named(tmp_path: Path) -> None:
    """With its size and the limit."""
    (tmp_path / "big.txt").write_bytes(b"x" * 3_000_000)
    assert "3 MB, more than the limit of 1 MB (RAG_MAX_FILE_MB)" == failure(tmp_path / "big.txt", max_bytes=1_000_000)


def test_nul_bytes_are_taken_out(tmp_path: Path) -> None:
    """A stray NUL in a log is dirt, not a binary."""
    (tmp_path / "log.txt").write_bytes(b"one line of a log\n" * 20 + b"\0\nand more\n")
    assert "\0" not in one(tmp_path / "log.txt").text


def test_lines_of_jsonl(tmp_path: Path) -> None:
    """Good lines are documents, each bad line a failure with its number; further fields are metadata."""
    path = tmp_path / "d.jsonl"
    lines: list[object] = [
        {"id": "a", "text": "one", "title": "T", "metadata": {"k": 1}, "lang": "en"},
        {"_id": 7, "text": "two", "title": 1984},
        {"id": "c"},
        {"text": "no id"},
        ["no object"],
        {"id": "d", "text": " "},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n\n")
    found = list(load(path))
    documents = [item for item in found if isinstance(item, Document)]
    assert [("a", "one", "T", {"lang": "en", "k": 1}), ("7", "two", "1984", {})] == [
        (d.id, d.text, d.title, d.metadata) for d in documents
    ]
    assert {str(path.resolve())} == {d.source for d in documents}
    errors = [item.error for item in found if isinstance(item, Failure)]
    assert ["line 3", "line 4", "line 5", "line 6", "line 7"] == [error.split(":")[0] for error in errors]


def test_jsonl_in_other_encodings(tmp_path: Path) -> None:
    """A line of GB18030 is read like a file of it; UTF-16 has no lines to read one by one."""
    (tmp_path / "g.jsonl").write_bytes('{"id": "a", "text": "中文的一行文字"}\n'.encode("gb18030"))
    (tmp_path / "u.jsonl").write_text('{"id": "a", "text": "中文"}\n', encoding="utf-16")
    assert "中文的一行文字" == one(tmp_path / "g.jsonl").text
    assert failure(tmp_path / "u.jsonl").startswith("UTF-16")


@pytest.mark.parametrize("encoding", ["gb18030", "big5"])
def test_short_lines_of_jsonl_are_in_the_encoding_of_the_others(tmp_path: Path, encoding: str) -> None:
    """Each by itself would be Korean, Japanese or Latin letters; lines in UTF-8 are still read as such."""
    texts = ["赫羅圖是什麼？", "通稱莒光鄉", "面積29.6平方公里", "流行於中國漢地", "plain", TRADITIONAL] * 3
    lines = [json.dumps({"id": i, "text": text}, ensure_ascii=False).encode(encoding) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert texts == [item.text for item in load(tmp_path / "a.jsonl") if isinstance(item, Document)]
    lines.append('{"id": "u", "text": "是什麼？", "title": "état"}'.encode())
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(reversed(lines)))
    assert ["是什麼？", *reversed(texts)] == [
        item.text for item in load(tmp_path / "a.jsonl") if isinstance(item, Document)
    ]


@pytest.mark.parametrize("text", ["模式", "停止 HAProxy", "Balance 状态"])
def test_a_line_of_gb18030_that_is_valid_utf_8_by_chance(tmp_path: Path, text: str) -> None:
    """In a file of GB18030 it is Chinese, in one with Chinese in UTF-8 it is what it says."""
    line = f'{{"id": "a", "text": "{text}"}}\n'.encode("gb18030")
    other = f'{{"id": "b", "text": "{SIMPLIFIED}"}}\n'
    for before, expected in ((other.encode("gb18030"), text), (other.encode(), json.loads(line.decode())["text"])):
        (tmp_path / "a.jsonl").write_bytes(before + line)
        (_, found) = load(tmp_path / "a.jsonl")
        assert isinstance(found, Document)
        assert expected == found.text


def test_lines_of_jsonl_that_do_not_fit_the_others_are_judged_by_themselves(tmp_path: Path) -> None:
    """And so are those beyond the beginning, if all of that is UTF-8."""
    chinese = f'{{"id": "a", "text": "{SIMPLIFIED}"}}\n'.encode("gb18030")
    western = '{"id": "b", "text": "Le café est fermé à Noël"}\n'.encode("latin-1")
    plain = b'{"id": "c", "text": "plain"}\n' * 50_000
    (tmp_path / "a.jsonl").write_bytes(chinese * 3 + western)
    (tmp_path / "b.jsonl").write_bytes(plain + chinese + western)
    for name in ("a.jsonl", "b.jsonl"):
        texts = [item.text for item in load(tmp_path / name) if isinstance(item, Document)]
        assert [SIMPLIFIED, "Le café est fermé à Noël"] == texts[-2:]


def test_jsonl_without_lines_or_with_endless_ones(tmp_path: Path) -> None:
    """An empty file is said to be so, and a line that would fill the memory is passed over."""
    (tmp_path / "e.jsonl").write_bytes(b"\n \n")
    assert "empty file" == failure(tmp_path / "e.jsonl")
    lines = ['{"id": 1, "text": "a"}', '{"id": 2, "text": "' + "x" * 1000 + '"}', '{"id": 3, "text": "c"}']
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    first, second, third = read_jsonl(tmp_path / "l.jsonl", "s", max_line=100)
    assert isinstance(first, Document)
    assert Failure("s", "line 2: longer than 0.0001 MB") == second
    assert isinstance(third, Document)
    assert ("1", "3") == (first.id, third.id)


def test_folders_are_walked_in_order_without_hidden_files(tmp_path: Path) -> None:
    """Hidden files, caches and packages of others are left out, a loop of links ends, and each file is met once."""
    for name in ("b.txt", "a/z.txt", "a/.hidden", "a/~$z.docx", ".git/config", "node_modules/x.js", "__pycache__/y.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "c.txt").symlink_to(tmp_path / "b.txt")
    assert ["a/z.txt", "b.txt"] == [str(path.relative_to(tmp_path)) for path in find_files([tmp_path])]
    assert [tmp_path / "a" / ".hidden"] == list(find_files([tmp_path / "a" / ".hidden"]))


def test_a_link_to_what_it_lies_in_leads_nowhere(tmp_path: Path) -> None:
    """Else a folder would bring all that lies beside it."""
    (tmp_path / "docs" / "a").mkdir(parents=True)
    for name in ("beside.txt", "docs/x.txt", "docs/a/y.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "docs" / "a" / "up").symlink_to("../..")
    (tmp_path / "docs" / "a" / "here").symlink_to(".")
    found = find_files([tmp_path / "docs"])
    assert ["docs/a/y.txt", "docs/x.txt"] == [str(path.relative_to(tmp_path)) for path in found]


def test_a_virtual_environment_is_no_document(tmp_path: Path) -> None:
    """Whatever its name: only if it is asked for."""
    for name in ("main.py", "env/pyvenv.cfg", "env/lib/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [tmp_path / "main.py"] == list(find_files([tmp_path]))
    assert 2 == len(list(find_files([tmp_path / "env"])))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(9000), "PNG image, no text"),
        (b"BM" + bytes(range(256)) * 40, "bitmap image, no text"),
        (bytes(range(256)) * 40, "binary file, no text"),
        (archive(9000), "ZIP archive, no text"),
        ((SIMPLIFIED * 40).encode(), "0 MB, more than the limit of 0.005 MB (RAG_MAX_FILE_MB)"),
        ((SIMPLIFIED + "\n").encode("gb18030") * 90, "0 MB, more than the limit of 0.005 MB (RAG_MAX_FILE_MB)"),
        (b"%PDF-1.4\n" + bytes(9000), "0 MB, more than the limit of 0.005 MB (RAG_MAX_FILE_MB)"),
        (archive(9000, "word/document.xml"), "0 MB, more than the limit of 0.005 MB (RAG_MAX_FILE_MB)"),
    ],
    ids=["picture", "bitmap", "unknown", "archive", "text", "other encoding", "pdf", "docx"],
)
def test_a_large_file_without_text_is_known_as_such(tmp_path: Path, content: bytes, said: str) -> None:
    """A film in a folder is no text that is too long."""
    (tmp_path / "a").write_bytes(content)
    (found,) = load(tmp_path / "a", max_bytes=5000)
    assert isinstance(found, Failure)
    assert (said, said.endswith("no text")) == (found.error, isinstance(found, NoText))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.docx", b"PK\x03\x04" + bytes(50)), ("a.pdf", b""), ("a.PDF", b"\xff\xd8\xff" + bytes(50))],
)
def test_a_damaged_document_is_not_just_a_file_without_text(tmp_path: Path, name: str, content: bytes) -> None:
    """Its name says that there was one."""
    (tmp_path / name).write_bytes(content)
    (found,) = load(tmp_path / name)
    assert isinstance(found, Failure)
    assert not isinstance(found, NoText)
    assert found.error.endswith(f"its name says {name[2:].upper()}: damaged?")


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    """By name."""
    with pytest.raises(SettingsError, match="nowhere"):
        list(find_files([tmp_path / "nowhere"]))
