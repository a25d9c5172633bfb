"""Real files of each format, made here with the standard library, read by the real extractor."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.extract import _join_lines
from pipeline.ingestion.loaders import load
from pipeline.ingestion.mail import in_utf8
from pipeline.ingestion.markdown import sections
from pipeline.ingestion.rtf import with_numbers
from pipeline.ingestion.web import content_of
from pipeline.reports import Failure
from pipeline.types import Document
from tests.fakes import word_tokenizer, words

ENGLISH = "The snapshot is copied every night"
CHINESE = "每天晚上复制一次快照"
_TYPES = '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">{}</Types>'
_RELS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_MAIN = "application/vnd.openxmlformats-officedocument."
_XML = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'


def office(main: str, kind: str, parts: dict[str, tuple[str, str]], relations: dict[str, str] | None = None) -> bytes:
    """An Office Open XML file: ``parts`` maps a path to its content type and XML; ``main`` is the first to be read."""
    overrides = "".join(f'<Override PartName="/{path}" ContentType="{_MAIN}{t}"/>' for path, (t, _) in parts.items())
    files = {
        "[Content_Types].xml": _TYPES.format(_XML + overrides),
        "_rels/.rels": _RELS.format(f'<Relationship Id="r1" Type="{_OFFICE}/officeDocument" Target="{main}"/>'),
        **{path: xml for path, (_, xml) in parts.items()},
    }
    if relations:
        folder, name = main.split("/")
        links = (
            f'<Relationship Id="{id_}" Type="{_OFFICE}/{kind}" Target="{target}"/>' for id_, target in relations.items()
        )
        files[f"{folder}/_rels/{name}.rels"] = _RELS.format("".join(links))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def docx() -> bytes:
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    paragraphs = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in (ENGLISH, CHINESE))
    body = f"<w:document {w}><w:body>{paragraphs}</w:body></w:document>"
    return office("word/document.xml", "x", {"word/document.xml": ("wordprocessingml.document.main+xml", body)})


def pptx(*slides: tuple[str, ...]) -> bytes:
    """Each slide with its lines; by default one."""
    p = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    a = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
    r = f'xmlns:r="{_OFFICE}"'
    shown = slides or ((ENGLISH, CHINESE),)
    ids = "".join(f'<p:sldId id="{256 + i}" r:id="r{i}"/>' for i in range(2, len(shown) + 2))
    deck = f"<p:presentation {p} {r}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>"
    parts = {"ppt/presentation.xml": ("presentationml.presentation.main+xml", deck)}
    for i, lines in enumerate(shown, 1):
        paragraphs = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in lines)
        shape = (
            "<p:sp><p:nvSpPr><p:cNvPr id='2' name='x'/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/>"
            f"{paragraphs}</p:txBody></p:sp>"
        )
        slide = f"<p:sld {p} {a}><p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/>{shape}</p:spTree></p:cSld></p:sld>"
        parts[f"ppt/slides/slide{i}.xml"] = ("presentationml.slide+xml", slide)
    relations = {f"r{i + 1}": f"slides/slide{i}.xml" for i in range(1, len(shown) + 1)}
    return office("ppt/presentation.xml", "slide", parts, relations)


def xlsx(table: Sequence[Sequence[str]] = ((ENGLISH,), (CHINESE,))) -> bytes:
    s = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    rows = ""
    for i, row in enumerate(table, 1):
        cells = (f'<c r="{"ABC"[k]}{i}" t="inlineStr"><is><t>{t}</t></is></c>' for k, t in enumerate(row))
        rows += f'<row r="{i}">{"".join(cells)}</row>'
    sheet = f"<worksheet {s}><sheetData>{rows}</sheetData></worksheet>"
    book = f'<workbook {s} xmlns:r="{_OFFICE}"><sheets><sheet name="One" sheetId="1" r:id="r2"/></sheets></workbook>'
    parts = {
        "xl/workbook.xml": ("spreadsheetml.sheet.main+xml", book),
        "xl/worksheets/sheet1.xml": ("spreadsheetml.worksheet+xml", sheet),
    }
    return office("xl/workbook.xml", "worksheet", parts, {"r2": "worksheets/sheet1.xml"})


def epub() -> bytes:
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        '<rootfile full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    book = (
        '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Book</dc:title></metadata><manifest>'
        '<item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="c"/></spine>'
        "</package>"
    )
    page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{ENGLISH}</p><p>{CHINESE}</p></body></html>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("mimetype", "application/epub+zip")
        packed.writestr("META-INF/container.xml", container)
        packed.writestr("book.opf", book)
        packed.writestr("c.xhtml", page)
    return buffer.getvalue()


def pdf(*pages: str, extra: bytes = b"") -> bytes:
    """Pages in Helvetica, which has no Chinese; by default one."""
    streams = []
    for page in pages or (ENGLISH,):
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in page.split("\n"))
        streams.append(f"BT /F1 12 Tf 20 180 Td {lines} ET".encode())
    return _pdf(streams, b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>", extra)


def _pdf(streams: list[bytes], font: bytes, extra: bytes = b"") -> bytes:
    numbers = range(4, 4 + 2 * len(streams), 2)
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(streams)),
        font,
    ]
    for number, stream in zip(numbers, streams, strict=True):
        page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 200]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
        objects += [page % (number + 1), b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream)]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, content)
    size = len(objects) + 1
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    out_xref = b"xref\n0 %d\n0000000000 65535 f \n" % size + table
    return out + out_xref + b"trailer<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, extra, len(out))


def chinese_pdf(*pages: str) -> bytes:
    """Pages in a Chinese font of the reader's, in the two-byte encoding that goes with it; by default one."""
    streams = []
    for page in pages or (CHINESE,):
        lines = b" ".join(b"<%s> Tj 0 -16 Td" % line.encode("utf-16-be").hex().encode() for line in page.split("\n"))
        streams.append(b"BT /F1 12 Tf 20 180 Td %s ET" % lines)
    font = (
        b"<</Type/Font/Subtype/Type0/BaseFont/STSong-Light/Encoding/UniGB-UCS2-H/DescendantFonts[<</Type/Font/Subtype"
        b"/CIDFontType0/BaseFont/STSong-Light/CIDSystemInfo<</Registry(Adobe)/Ordering(GB1)/Supplement 2>>/DW 1000>>]>>"
    )
    return _pdf(streams, font)


def html(encoding: str = "utf-8") -> bytes:
    page = (
        f'<!DOCTYPE html><html><head><meta charset="{encoding}"><title>The Page</title><script>var hidden = 1;</script>'
        f"</head><body><h1>Backups</h1><p>{ENGLISH}</p><p>{CHINESE}</p></body></html>"
    )
    return page.encode(encoding)


def one(path: Path) -> Document:
    (found,) = load(path)
    assert isinstance(found, Document), found
    return found


def why(path: Path) -> str:
    (found,) = load(path)
    assert isinstance(found, Failure)
    return found.error


@pytest.mark.parametrize("make", [docx, pptx, xlsx, epub, html], ids=lambda make: make.__name__)
@pytest.mark.parametrize("named", ["right", "wrong"])
def test_text_comes_out_in_both_languages(tmp_path: Path, make: Callable[[], bytes], named: str) -> None:
    """Each format is read by its content, whatever its name says."""
    path = tmp_path / f"file.{make.__name__ if named == 'right' else 'txt'}"
    path.write_bytes(make())
    document = one(path)
    assert ENGLISH in document.text
    assert CHINESE in document.text
    assert make.__name__ == document.metadata["type"]


def test_a_pdf_is_read(tmp_path: Path) -> None:
    """Its text, whatever it is called."""
    (tmp_path / "a.pdf").write_bytes(pdf())
    (tmp_path / "b.txt").write_bytes(pdf())
    assert [True, True] == [ENGLISH in one(tmp_path / name).text for name in ("a.pdf", "b.txt")]


def test_a_chinese_pdf_is_read_with_its_number_of_pages(tmp_path: Path) -> None:
    """In an encoding of two bytes a character."""
    (tmp_path / "a.pdf").write_bytes(chinese_pdf())
    document = one(tmp_path / "a.pdf")
    assert (CHINESE, 1) == (document.text.strip(), document.metadata["pages"])


def test_radicals_in_a_pdf_are_the_characters_that_they_stand_for(tmp_path: Path) -> None:
    """Of both blocks of Unicode; the pages are found as before."""
    pages = ["⻓度与⻚⾯的⻛险", "⺠族⻋辆⻔⼾⻝品", "⽤⼾⾸⻚⼤家"]
    (tmp_path / "a.pdf").write_bytes(chinese_pdf(*pages))
    document = one(tmp_path / "a.pdf")
    starts = [*document.page_starts, len(document.text)]
    assert ["长度与页面的风险", "民族车辆门户食品", "用户首页大家"] == [
        document.text[start:end].strip() for start, end in pairwise(starts)
    ]


def test_full_lines_of_a_pdf_are_joined_between_chinese_characters(tmp_path: Path) -> None:
    """Without a space that parts a word; spaces that were written stay, and the pages are found as before."""
    pages = [
        "他是五次职业碗选手，曾以 136 次擒杀成为职业生涯 中的\n活跃领袖。另外还有在 9 场中拿下 5 次擒杀\n，是端锋。",
        "数据库在 3 点执行一次备份并且复制到另外 2 台机器恢复\n之前请先联系管理员，以便确认最近 7 次的备份\n完整。",
    ]
    (tmp_path / "a.pdf").write_bytes(chinese_pdf(*pages))
    document = one(tmp_path / "a.pdf")
    starts = [*document.page_starts, len(document.text)]
    found = [document.text[start:end].strip() for start, end in pairwise(starts)]
    # The extractor takes the last line for a paragraph of its own.
    assert [page.replace("\n", "") for page in pages] == [page.replace("\n\n", "") for page in found]


def test_full_lines_of_a_chinese_pdf_are_no_paragraphs(tmp_path: Path) -> None:
    """Of a page without any letter or digit the extractor makes each line one; headings, lists and real ones stay."""
    lines = [
        "　　管理员应当每周检查一次备份是否完整",
        "，并在测试环境中恢复一次。系统采用两",
        "阶段检索的方法，因此质量更高。",
    ]
    first = "\n".join(lines)
    items = "一、数据库每天晚上都要做一次完整备份\n二、备份每周都要复制到另外一台机器上"
    pages = [f"第一章　概述\n{first}\n{first}\n{items}", first]
    (tmp_path / "a.pdf").write_bytes(chinese_pdf(*pages))
    document = one(tmp_path / "a.pdf")
    whole = first.replace("\n", "").strip("　")
    expected = ["第一章　概述", whole, whole, *items.split("\n"), whole]
    assert expected == [line.replace(" ", "　") for line in document.text.strip().split("\n\n")]
    assert document.text.rindex(whole) == document.page_starts[1]


def test_a_line_of_a_pdf_before_a_latin_word_is_joined_with_a_space() -> None:
    """And not where it is shorter than the others by more than an indent."""
    page = "备份每天晚上在备用的机器上进行一次由\n\ncron 启动并且检查这一次备份是不是已经完整"
    assert page.replace("\n\n", " ") == _join_lines(page, [page])
    longer = f"{page}了以后才结束"
    assert longer == _join_lines(longer, [longer])


def test_short_lines_of_a_pdf_stay_apart() -> None:
    """A list of names is not one name."""
    assert "张三 李四" == _join_lines("张三 李四", ["张三\n李四"])
    full = "他曾经三次入选职业碗比赛的名单"
    assert f"{full}，后来退役" == _join_lines(f"{full} ，后来退役", [f"{full}\n，后来退役"])


def pages_of(document: Document) -> dict[str, int]:
    """First word of each chunk -> its page."""
    chunks = Chunker(word_tokenizer(), chunk_tokens=16, overlap=0).chunk(document)
    return {word: chunk.metadata["page"] for chunk in reversed(chunks) for word in words(chunk.text)}


def test_chunks_of_a_pdf_know_their_page(tmp_path: Path) -> None:
    """Also where one is empty."""
    (tmp_path / "a.pdf").write_bytes(pdf("One apple a day", "Two pears on a tree", "", "Four plums", "Last of all"))
    document = one(tmp_path / "a.pdf")
    assert 5 == document.metadata["pages"] == len(document.page_starts)
    found = [document.text[start:].split()[0] for start in document.page_starts]
    assert ["One", "Two", "Four", "Four", "Last"] == found
    assert {1, 2, 4, 5} >= set(pages_of(document).values()) >= {1}


def test_chunks_of_slides_know_their_slide(tmp_path: Path) -> None:
    """And nothing of the marks that tell them apart is left in the text."""
    slides = [(f"Slide{i}", "a line of some words and another line of some more words") for i in range(1, 4)]
    (tmp_path / "a.pptx").write_bytes(pptx(*slides))
    document = one(tmp_path / "a.pptx")
    assert {"slide1": 1, "slide2": 2, "slide3": 3}.items() <= pages_of(document).items()
    assert (3, False) == (document.metadata["pages"], "⟦" in document.text)


def test_headings_and_tables_of_word_survive(tmp_path: Path) -> None:
    """As Markdown, so that chunks are cut along them."""
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    heading = '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>第一章</w:t></w:r></w:p>'
    row = "<w:tr>" + "".join(f"<w:tc><w:p><w:r><w:t>{t}</w:t></w:r></w:p></w:tc>" for t in ("城市", "City")) + "</w:tr>"
    body = f"<w:document {w}><w:body>{heading}<w:tbl>{row}{row}</w:tbl></w:body></w:document>"
    parts = {"word/document.xml": ("wordprocessingml.document.main+xml", body)}
    (tmp_path / "a.docx").write_bytes(office("word/document.xml", "x", parts))
    document = one(tmp_path / "a.docx")
    assert document.markdown
    assert ["第一章"] == [section.path[-1] for section in sections(document.text) if section.path]
    assert "| 城市 | City |" in document.text


def test_a_text_named_pdf_is_read_as_text(tmp_path: Path) -> None:
    """The name lies; the content decides."""
    (tmp_path / "a.pdf").write_text(ENGLISH)
    assert ENGLISH == one(tmp_path / "a.pdf").text


def test_a_page_in_gb18030_with_its_headings_and_without_its_scripts(tmp_path: Path) -> None:
    """The declared encoding is the real one, headings survive as Markdown, scripts do not."""
    (tmp_path / "a.html").write_bytes(html("gb18030"))
    document = one(tmp_path / "a.html")
    assert CHINESE in document.text
    assert "# Backups" in document.text
    assert "hidden" not in document.text
    assert document.markdown


def rtf(*runs: tuple[str, str], page: int = 1252, half: bool = False) -> bytes:
    """Runs of (text, encoding), each in a font of its own; with ``half`` letters among the bytes stand as letters."""
    charsets = {"cp1252": 0, "cp1251": 204, "gbk": 134, "big5": 136, "cp932": 128, "cp949": 129}
    fonts = b"".join(b"{\\f%d\\fnil\\fcharset%d Font %d;}" % (i, charsets[name], i) for i, (_, name) in enumerate(runs))

    def written(byte: int) -> bytes:
        letter = bytes([byte])
        if byte > 127 or not half:
            return b"\\'%02x" % byte
        return b"\\" + letter if letter in b"\\{}" else letter

    bodies = (
        b"\\f%d\\fs24 %s\\par\n" % (i, b"".join(map(written, text.encode(name)))) for i, (text, name) in enumerate(runs)
    )
    return b"{\\rtf1\\ansi\\ansicpg%d\\deff0{\\fonttbl%s}\n%s}" % (page, fonts, b"".join(bodies))


def test_each_font_of_rtf_may_have_its_own_code_page(tmp_path: Path) -> None:
    """As in what TextEdit and WordPad write; also where the second byte of a character looks like a sign of RTF."""
    runs = [
        ("Le café", "cp1252"),
        ("Резервная копия", "cp1251"),
        (CHINESE, "gbk"),
        ("備份功能許蓋成", "big5"),
        ("毎晩のバックアップ", "cp932"),
        ("백업은 매일", "cp949"),
    ]
    for half in (False, True):
        (tmp_path / "a.rtf").write_bytes(rtf(*runs, half=half))
        assert [text for text, _ in runs] == one(tmp_path / "a.rtf").text.strip().split("\n\n")
    for page, run in ((1251, runs[1]), (936, runs[2])):
        (tmp_path / "a.rtf").write_bytes(rtf(run, page=page).replace(b"fcharset", b"xcharset"))
        assert run[0] == one(tmp_path / "a.rtf").text.strip()


def test_numbers_and_pictures_of_rtf_stay_as_they_are(tmp_path: Path) -> None:
    """What stands behind a number is for readers that know none, and raw bytes are no words."""
    fonts = rb"{\fonttbl{\f0\fnil\fcharset134 SimSun;}{\f1\fnil\fcharset0 Arial;}}"
    body = (
        rb"\f0\uc2\u22791\'b1\'b8\u20221 \'b7\'dd{\f1\uc1\u233?\'e9 }\'b1\'b8"
        rb"{\*\x\bin3 {\f}\uc0\u25968 \u25454 }\plain\'b7\'dd end"
    )
    (tmp_path / "a.rtf").write_bytes(rb"{\rtf1\ansi\ansicpg1252\deff0" + fonts + body + b"}")
    assert "备份éé 备份end" == one(tmp_path / "a.rtf").text.strip()


def test_damaged_rtf_never_raises() -> None:
    """Whatever is lost."""
    random_ = random.Random(8)
    whole = rtf(("备份", "gbk"), ("Копия", "cp1251"))
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(random_.choice([0, 1, 5])):
            data[random_.randrange(len(data))] = random_.choice(b"\\{}'uf0 \xb1")
        assert isinstance(with_numbers(bytes(data[: random_.randrange(len(data))])), bytes)


@pytest.mark.parametrize(
    ("name", "code", "kind"),
    [
        ("a.php", "<?php foreach ($items as $item) { echo price($item); } ?>", "php"),
        ("a.php", "<?= $total ?>", "php"),
        ("a.jsp", "<% int total = 1; %>", "jsp"),
        ("a.php", "", "html"),
        ("a.html", "<?php echo $total ?>", "html"),
    ],
)
def test_a_program_that_begins_as_a_page_is_a_program(tmp_path: Path, name: str, code: str, kind: str) -> None:
    """What it does stands in its code; a page that was saved under such a name is a page."""
    (tmp_path / name).write_text(f"<!DOCTYPE html>\n<html><body><h1>Shop</h1>{code}</body></html>")
    document = one(tmp_path / name)
    assert (kind, kind != "html") == (document.metadata["type"], "<h1>" in document.text)
    assert kind == "html" or code in document.text


RUSSIAN = "Резервная копия делается каждую ночь."
JAPANESE = "バックアップは毎晩行われます。"


@pytest.mark.parametrize(
    ("text", "declared", "encoding"),
    [
        (RUSSIAN, "windows-1251", "cp1251"),
        (RUSSIAN, "KOI8-R", "koi8-r"),
        (JAPANESE, "Shift_JIS", "cp932"),
        (JAPANESE, "x-euc-jp", "euc-jp"),
        (JAPANESE, "iso-2022-jp", "iso-2022-jp"),
        ("백업은 매일 밤 수행됩니다.", "euc-kr", "cp949"),
        ("การสำรองข้อมูลทำทุกคืน", "windows-874", "cp874"),
        ("Zażółć gęślą jaźń.", "iso-8859-2", "iso-8859-2"),
        ("Yedekleme her gece yapılır, ışık ve ağaç. " * 30, "iso-8859-9", "iso-8859-9"),
        # What the bytes tell better: here the pages are wrong.
        (RUSSIAN, "windows-1251", "utf-8"),
        (CHINESE, "iso-8859-1", "gb18030"),
        ("備份每天晚上進行一次", "gb2312", "big5"),
        ("Le café est fermé à Noël.", "no-such-charset", "latin-1"),
    ],
)
@pytest.mark.parametrize("where", ["meta", "http-equiv", "xml"])
def test_a_page_is_read_in_the_encoding_that_it_says(
    tmp_path: Path, text: str, declared: str, encoding: str, where: str
) -> None:
    """In either kind of meta tag or an XML declaration, if the bytes fit it."""
    begin = {
        "meta": f'<!DOCTYPE html><html><head><meta charset="{declared}">',
        "http-equiv": f"<html><head><meta http-equiv=Content-Type content='text/html; charset={declared}'>",
        "xml": f'<?xml version="1.0" encoding="{declared}"?><html><head>',
    }[where]
    page = f"{begin}<title>{text[:20]}</title></head><body><p>{text}</p></body></html>"
    (tmp_path / "a.html").write_bytes(page.encode(encoding))
    document = one(tmp_path / "a.html")
    assert (" ".join(text.split()), text[:20].strip()) == (" ".join(document.text.split()), document.title)


def test_the_head_of_a_page_is_not_part_of_its_text(tmp_path: Path) -> None:
    """Its title is the document's, its tags and inline pictures are nothing to search for."""
    head = '<title>T &amp; 标题</title><meta name="author" content="Someone"><link rel="canonical" href="http://x/">'
    body = '<h1>One</h1><p>Text <img alt="a cat" src="data:image/png;base64,AAAABBBB"></p>'
    (tmp_path / "a.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>", encoding="utf-8")
    document = one(tmp_path / "a.html")
    assert ("T & 标题", "# One\n\nText a cat\n") == (document.title, document.text)


def test_links_within_a_site_are_their_text(tmp_path: Path) -> None:
    """Their targets mean nothing elsewhere and would fill the chunks; headings are without marks of permalinks."""
    body = (
        '<h1><a href="#m" title="m: (x).">mod</a> - things<a class="headerlink" href="#h" title="Permalink">¶</a></h1>'
        '<p>Body with <a href="../x.html" title="X (y).">a link</a>, <a href="#F"><code>F</code></a>, '
        '<a href="https://example.org/a">another</a> and <a href="mailto:a@example.org">mail</a>.</p>'
        "<p>Use <code>d[k](v)</code>, or:</p><pre><code>handlers[name](argument)\n</code></pre>"
        '<p>Map[T](xs), Cu[NH3](SO4), C<a href="/sharp">#</a>, '
        '<a href="/b[1]" title="it\'s &quot;q&quot;">a[0](<b>b</b>)</a>, '
        '<a class="x" href="ms-settings:a">settings</a>.</p><ul><li>Do: <pre>callbacks[event](data);</pre></li></ul>'
    )
    (tmp_path / "a.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    document = one(tmp_path / "a.html")
    assert document.text.strip().split("\n\n") == [
        "# mod - things",
        "Body with a link, `F`, [another](https://example.org/a) and [mail](mailto:a@example.org).",
        "Use `d[k](v)`, or:",
        "```\nhandlers[name](argument)\n```",
        "Map[T](xs), Cu[NH3](SO4), C#, a[0](**b**), [settings](ms-settings:a).",
        "- Do:",
        "  ```\n  callbacks[event](data);\n  ```",
    ]


@pytest.mark.parametrize(
    "link",
    [
        '<a href="/x" title="a > b">text</a>',  # not understood to its end
        '<a name="x">text</a>',
        '<a href="/x">text',
        "text</a>",
        "<a>text</a>",
        '<a data-href="/x">text</a>',
    ],
)
def test_a_link_that_is_odd_loses_no_text(tmp_path: Path, link: str) -> None:
    """What is not understood is left to the extractor, with what stands around it."""
    (tmp_path / "a.html").write_text(f"<html><body><p>Before {link} after.</p></body></html>", encoding="utf-8")
    text = one(tmp_path / "a.html").text
    assert re.search(r"Before .*text.*after\.", text)
    assert "href" not in text


def test_line_ends_of_a_page_between_chinese_characters_are_no_spaces(tmp_path: Path) -> None:
    """Those of its source; what the page shows as lines stays in lines, and spaces that were written stay."""
    body = (
        "<p>数据\n库每天\r\n    备份 一次\nTiDB\n集群</p><p>张三<br>李四</p><p>张三<br>\n李四</p>"
        "<pre>数据\n库</pre><p>之后，\n的文字</p>"
    )
    (tmp_path / "a.html").write_bytes(f"<html><body>{body}</body></html>".encode())
    text = one(tmp_path / "a.html").text
    assert text.startswith(
        "数据库每天备份 一次\nTiDB\n集群\n\n张三\n李四\n\n张三\n李四\n\n```\n数据\n库\n```\n\n之后，的文字"
    )


@pytest.mark.parametrize("tag", ["span", "label", "font", "b", 'a href="/x"', "custom-x", "ruby"])
def test_line_ends_of_a_page_beside_tags_are_spaces(tmp_path: Path, tag: str) -> None:
    """As in a browser, but between Chinese characters; what stands in ``pre`` stays as it is."""
    begin, end = f"<{tag}>", f"</{tag.split()[0]}>"
    body = (
        f"<p>example with\n{begin}magic{end}\n{begin}\r\nmethods{end}\nand <i>{begin}more{end}\n</i>words</p>"
        f"<p>数据\n{begin}库{end}\n备份</p><p>一<br>\n{begin}二{end}</p><pre>a\n<i>b</i>\n\n<i>  c</i></pre>"
    )
    (tmp_path / "a.html").write_bytes(f"<html><body>{body}</body></html>".encode())
    text = one(tmp_path / "a.html").text
    assert "example with magic methods and more words" == " ".join(
        re.sub(r"[*_]", "", text[: text.index("数")]).split()
    )
    assert "数据库备份一二" == re.sub(r"[*\s]", "", text[text.index("数") : text.index("`")])
    assert " " not in text[text.index("数") : text.index("`")]
    assert text.endswith("```\na\nb\n\n  c\n```\n")


WORDS = "<p>The snapshot is copied every night to another machine, and is kept there for a year.</p>"
FURNITURE = [
    '<div role="navigation"><h3>Contents</h3><ul><li><a href="/b">Restore</a></li></ul></div>',
    "<aside><p>Related <a href=/a>articles</a> <a href=/b>more</a></p></aside>",
    '<div id="cookie-banner" class="x"><p>We use cookies</p></div>',
    "<div class='page_Sidebar'>Related articles</div>",
    "<div class=breadcrumbs><a href=/>Home</a> &gt; <a href=/d>Docs</a></div>",
    '<ul class="toc"><li><a href="#a">One</a><li><a href="#b">Two</a></ul>',
    "<footer><p>© 2024 Acme</p></footer>",
    "<div role='contentinfo'>© 2024 <div>Acme</div></div>",
    '<form class="search"><label>Search</label></form>',
    "<nav>Menu</nav>",
]


@pytest.mark.parametrize("furniture", FURNITURE)
def test_a_page_is_read_without_what_stands_on_every_page_of_a_site(tmp_path: Path, furniture: str) -> None:
    """Whether it has a main part that stands apart or not."""
    for body in (
        f"{furniture}{WORDS}",
        f"{WORDS}{furniture}",
        f"<div>{furniture}<h1>备份</h1>{WORDS}</div>{furniture}",
    ):
        (tmp_path / "a.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
        assert re.fullmatch(r"(# 备份\s+)?The snapshot .* for a year\.\s*", one(tmp_path / "a.html").text)


@pytest.mark.parametrize("tag", ["main", 'div role="main"', "article"])
def test_of_a_page_its_main_part_is_read(tmp_path: Path, tag: str) -> None:
    """With what stands in it, but for menus; its title may stand outside."""
    inside = "<aside>A note.</aside><div class='sidebar'>A box.</div><footer>Li Na</footer>"
    main = f"<{tag}><nav>Menu</nav>{WORDS}<div>{inside}</div></{tag.split()[0]}>"
    page = (
        f"<body><header><h1>The <i>Title</i></h1></header><div>News</div>{main}<!-- </main> --><div>More</div></body>"
    )
    (tmp_path / "a.html").write_text(f"<html>{page}</html>")
    document = one(tmp_path / "a.html")
    assert "The Title" == document.title
    assert ["A note.", "A box.", "Li Na"] == document.text.strip().split("\n\n")[1:]
    assert document.text.startswith("The snapshot")


def test_a_heading_above_the_main_part_stays(tmp_path: Path) -> None:
    """Where the title does not say it."""
    body = f"<header><h1>Resetting the pump</h1></header><main>{WORDS}</main>"
    for title, text in (("ACME", "# Resetting the pump\n\nThe"), ("Resetting the pump | ACME", "The")):
        (tmp_path / "a.html").write_text(f"<html><title>{title}</title><body>{body}</body></html>")
        document = one(tmp_path / "a.html")
        assert (title, True) == (document.title, document.text.startswith(text))


@pytest.mark.parametrize(
    "body",
    [
        "<main></main>{}",  # filled by a script
        "<main><p>Loading</p></main>{}",
        "<article>{}</article><article>{}</article>",
        "<main>{}</main><main>{}</main>",
        "<article>{}</article><section>{}</section>",
        "<main>{}</main><p>More of it:</p>{} {}",
        '<div class="with-sidebar"><h1>T</h1>{}</div><p>x</p>',
        '<div class="with-sidebar">{}{}</div>{}<p>x</p>',
        '<div class="has-toc">{}</div>{}{}<p>x</p>',
        '<main><section id="cookie"><h2>Cookie</h2>{}</section></main>',
        '<div class="section" id="consent"><h2>Consent</h2>{}</div>{}{}',
        '<body class="right-sidebar toc">{}</body>',
        "<blockquote>{}<footer>{}</footer></blockquote>{}{}",
        "<section>{}<aside>{}</aside></section>{}{}",
        "<div>{}<aside>never closed {}</div>{}{}{}",
        '<div title="<aside>">{}</div></aside>{}',
        '<a title="<!--">x</a>{}<script>"<aside>"</script>{}</aside>{}',
        '<form id="aspnetForm"><div>{}</div></form>',
        "<nav>{}</nav>",
        '<div role="navigation">{}</div>',
        '<div class="sidebar">{}</div>',
        '<h2>API</h2><div id="get-cookie"><h3>get</h3>{}</div><div id="write">{}{}{}</div>',
        '<div id="informed-consent"><h2>Consent</h2>{}</div>{}{}{}',
        '<div class="layout with-sidebar no-footer"><h2>Post</h2>{}</div><div id="comments">{}{}</div>',
        '<div class="card"><p>Chair</p><div class="card-footer">{}</div></div>{}{}{}',
        '<div class="content">{}<aside class="admonition">{}</aside>{}</div>',
        "<form>{}</form><form>{}</form><div>Hi</div>",
    ],
)
def test_content_of_a_page_is_never_left_out(tmp_path: Path, body: str) -> None:
    """Whatever it is called: where most of the text is, where it has headings, and where nothing else is."""
    count = body.count("{}")
    (tmp_path / "a.html").write_text(f"<html>{body.format(*[WORDS] * count)}</html>")
    assert count == one(tmp_path / "a.html").text.count("The snapshot is copied")


def test_pages_of_nothing_but_beginnings_are_soon_through() -> None:
    """In a time that grows with their length, not with its square; all of them stays."""
    for piece in ('<a x="', "<!--", "<!", "<div>", "<h1>", "<script>", ">x\n", '<ul class="toc ', "<nav><p>"):
        assert piece * 30_000 == content_of(piece * 30_000)
    ends = "<script>" + "</script " * 100_000
    assert ends == content_of(ends)


def test_a_picture_named_html_is_a_picture(tmp_path: Path) -> None:
    """The extractor would make letters of any bytes."""
    (tmp_path / "a.html").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    assert "PNG image, no text" == why(tmp_path / "a.html")


def test_a_notebook_and_a_mail(tmp_path: Path) -> None:
    """Their texts, not the JSON and the base64 that carry them."""
    cells: list[dict[str, object]] = [{"cell_type": "markdown", "metadata": {}, "source": ["# Title\n", CHINESE]}]
    cells += [
        {"cell_type": "code", "metadata": {}, "source": "f()", "outputs": [{"text": ["printed\n"]}, {"data": {}}]},
        {
            "cell_type": "code",
            "source": "g()",
            "outputs": [
                {"text": "a\n"},
                {"data": {"text/plain": ["4", "2"], "text/html": "<b>42</b>"}},
                {"data": {"text/plain": "<Figure size 640x480>", "image/png": "aGk="}},
            ],
        },
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}))
    mail = EmailMessage()
    mail["Subject"] = "备份"
    mail.set_content(CHINESE, cte="base64")
    (tmp_path / "m.eml").write_bytes(mail.as_bytes())
    notebook, message = one(tmp_path / "n.ipynb"), one(tmp_path / "m.eml")
    expected = f"# Title\n{CHINESE}\n\n```\nf()\n```\n\n```\nprinted\n```\n\n```\ng()\n```\n\n```\na\n42\n```\n"
    assert ("Title", True, expected) == (notebook.title, notebook.markdown, notebook.text)
    assert [True, True] == ["备份" in message.text, CHINESE in message.text]


def a_mail(text: str, charset: str) -> EmailMessage:
    """Plain and as a page, with the same text attached."""
    mail = EmailMessage()
    mail["From"], mail["Subject"] = "a@b.example", "s"
    mail.set_content(text, charset=charset)
    mail.add_alternative(f'<html><meta charset="{charset}"><p>{text}</p></html>', subtype="html", charset=charset)
    mail.add_attachment(text, filename="a.txt", charset=charset)
    mail.add_attachment(bytes(range(256)), maintype="application", subtype="octet-stream", filename="附件.bin")
    return mail


@pytest.mark.parametrize(
    ("text", "charset"),
    [
        ("数据库备份需要每天执行一次。", "gb2312"),
        ("数据库备份需要每天执行一次。", "gbk"),
        ("資料庫備份需要每天執行一次。", "gb18030"),
        ("資料庫備份功能說明，恒生100～200元", "cp950"),
        ("佢哋喺香港", "big5hkscs"),
        ("データベースのバックアップ", "shift_jis"),
        ("データベースのバックアップ", "iso-2022-jp"),
        ("데이터베이스 백업", "euc-kr"),
    ],
)
def test_a_mail_in_an_east_asian_charset_reads_like_one_in_utf_8(tmp_path: Path, text: str, charset: str) -> None:
    """In several parts, in a mail within a mail, and where only the inner one has such a charset."""
    for outer in (charset, "latin-1"):
        texts = []
        for inner in (charset, "utf-8"):
            mail = EmailMessage()
            mail["Subject"] = "outer"
            mail.set_content("Größe" if outer == "latin-1" else text, charset=outer)
            mail.add_attachment(a_mail(text, inner))
            (tmp_path / "m.eml").write_bytes(mail.as_bytes())
            (tmp_path / "i.eml").write_bytes(a_mail(text, inner).as_bytes())
            texts.append((one(tmp_path / "m.eml").text, one(tmp_path / "i.eml").text))
        assert texts[0] == texts[1]
        assert [True, True] == [text in found for found in texts[0]]


@pytest.mark.parametrize("charset", ["gb2312", "us-ascii", "x-gbk", "unknown-8bit", ""])
@pytest.mark.parametrize("kind", ["plain", "html"])
def test_a_mail_of_raw_bytes_is_read(tmp_path: Path, charset: str, kind: str) -> None:
    """In its headers, too, whatever it says of its charset."""
    says = f"Content-Type: text/{kind}; charset={charset}\r\n" if charset else f"Content-Type: text/{kind}\r\n"
    mail = f"Subject: 备份通知\r\nFrom: 张三 <a@b.example>\r\n{says}\r\n数据库备份需要每天执行一次。\r\n"
    (tmp_path / "m.eml").write_bytes(mail.encode("gbk"))
    expected = '**Subject**: 备份通知\n\n**From**: "张三" \\<a@b.example\\>\n\n数据库备份需要每天执行一次。\n'
    assert expected == one(tmp_path / "m.eml").text


def test_encoded_headers_of_a_mail_are_read(tmp_path: Path) -> None:
    """With a character cut in two by the end of a word, a comma in a name, and words of another charset beside."""

    def word(data: bytes, charset: str = "gb2312") -> str:
        return f"=?{charset}?B?{base64.b64encode(data).decode()}?="

    subject = "数据库备份通知".encode("gbk")
    mail = (
        f"Subject: {word(subject[:5])}\r\n {word(subject[5:])}\r\n"
        f"From: {word('张, 三'.encode('gbk'))} <a@b.example>\r\n"
        f"To: {word('Zoë'.encode(), 'utf-8')} <c@d.example>, {word('李四'.encode('gbk'))} <e@f.example>\r\n\r\nText\r\n"
    )
    (tmp_path / "m.eml").write_bytes(mail.encode())
    assert [
        "**Subject**: 数据库备份通知",
        '**From**: "张, 三" \\<a@b.example\\>',
        '**To**: "Zoë" \\<c@d.example\\>, "李四" \\<e@f.example\\>',
        "Text",
    ] == one(tmp_path / "m.eml").text.strip().split("\n\n")


@pytest.mark.parametrize(
    ("text", "charset"),
    [("向量数据库", "utf-8"), ("Größe", "latin-1"), ("“It’s”", "cp1252"), ("Привет", "koi8-r"), ("plain", "us-ascii")],
)
def test_a_mail_that_the_extractor_reads_is_given_to_it_as_it_is(text: str, charset: str) -> None:
    """Byte for byte, so that its text stays what it was."""
    data = a_mail(text, charset).as_bytes()
    assert data == in_utf8(data)


def test_damaged_mails_never_raise() -> None:
    """Whatever bytes of headers, boundaries and texts are changed or lost."""
    random_ = random.Random(1)
    whole = a_mail("数据库备份需要每天执行一次。", "gb2312").as_bytes()
    for _ in range(300):
        data = bytearray(whole[: random_.randrange(len(whole))] or b"x")
        for _ in range(random_.choice([1, 3, 30])):
            data[random_.randrange(len(data))] = random_.randrange(256)
        assert in_utf8(bytes(data))


def test_encrypted_files_say_so(tmp_path: Path) -> None:
    """A PDF that asks for a password, and the container that Office makes of an encrypted file."""
    standard = b"/Encrypt<</Filter/Standard/V 1/R 2/O(%s)/U(%s)/P -4>>/ID[(a)(a)]" % (b"x" * 32, b"y" * 32)
    (tmp_path / "a.pdf").write_bytes(pdf(extra=standard))
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000) + "EncryptedPackage".encode("utf-16-le") + bytes(100)
    (tmp_path / "a.docx").write_bytes(ole)
    assert "encrypted PDF: remove the password first" == why(tmp_path / "a.pdf")
    assert "encrypted Office file: remove the password first" == why(tmp_path / "a.docx")


def test_an_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    """Its own directory says how much it would be."""
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w") as packed:
        packed.writestr("word/document.xml", "<x/>")
        packed.infolist()[0].file_size = 3_000_000_000
    assert "unpacks to more than 1 GB" == why(tmp_path / "bomb.docx")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            [("Host", "RAM GB", "备注"), ("node-1", "1024", "a|b"), ("node-2", "512", "")],
            "Host: node-1; RAM GB: 1024; 备注: a|b\n\nHost: node-2; RAM GB: 512\n",
        ),
        (
            [("Sales of 2024", "", ""), ("Name", "Q1", "Q2")],
            "| Sales of 2024 |  |  |\n| --- | --- | --- |\n| Name | Q1 | Q2 |\n",
        ),
        (
            [("Item", "Cost"), ("Rent", "100"), ("", ""), ("Contact", "Phone"), ("Alice", "555")],
            "| Item | Cost |\n| --- | --- |\n| Rent | 100 |\n|  |  |\n| Contact | Phone |\n| Alice | 555 |\n",
        ),
    ],
    ids=["header", "no header", "two tables"],
)
def test_a_row_of_a_sheet_says_what_its_cells_are(table: list[tuple[str, ...]], text: str, tmp_path: Path) -> None:
    """As a row of a CSV file does; where the first row does not name the columns they stay in a table."""
    (tmp_path / "t.xlsx").write_bytes(xlsx(table))
    assert f"## One\n\n{text}" == one(tmp_path / "t.xlsx").text


@pytest.mark.parametrize("make", [docx, pptx, xlsx, epub, html, pdf], ids=lambda make: make.__name__)
def test_damaged_files_never_raise(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """A document or one line, whatever bytes are lost or changed."""
    random_ = random.Random(make.__name__)
    path = tmp_path / "a"
    for _ in range(60):
        data = bytearray(make())
        for _ in range(random_.choice([1, 3, 30])):
            data[random_.randrange(len(data))] = random_.randrange(256)
        path.write_bytes(data[: random_.randrange(len(data) // 2, 2 * len(data))])
        (found,) = load(path)
        assert isinstance(found, Document) or 1 == len(found.error.splitlines())


def test_the_extractor_says_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """No line on the terminal, no cache in the working directory or at home, no variable for an app's own children."""
    (tmp_path / "docs").mkdir()
    for make in (docx, pptx, xlsx, epub, html, pdf):
        (tmp_path / "docs" / make.__name__).write_bytes(make())
    (tmp_path / "docs" / "broken").write_bytes(b"%PDF-1.4\nnothing")
    script = (
        "import os; from pathlib import Path; from pipeline.ingestion.loaders import find_files, load; "
        "before = dict(os.environ); "
        "[list(load(path)) for path in find_files([Path('docs')])]; "
        "assert dict(os.environ) == before, os.environ"
    )
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert ("", "") == (done.stdout, done.stderr)
    assert ["docs"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize("make", [docx, xlsx, epub], ids=lambda make: make.__name__)
def test_a_broken_archive_is_one_line(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """Cut off in the middle: named, and no exception."""
    path = tmp_path / f"broken.{make.__name__}"
    path.write_bytes(make()[:200])
    assert 1 == len(why(path).splitlines())


def test_a_broken_and_an_empty_pdf_are_one_line_each(tmp_path: Path) -> None:
    """A scan without text says what it needs."""
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing more")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    assert why(tmp_path / "broken.pdf").startswith("broken PDF")
    assert "OCR" in why(tmp_path / "scan.pdf")


def test_a_folder_of_text_does_not_load_the_extractor(tmp_path: Path) -> None:
    """It costs a quarter of a second and 100 MB."""
    (tmp_path / "a.md").write_text("# A\n\ntext")
    script = (
        "import sys; from pathlib import Path; from pipeline.ingestion.loaders import load; "
        f"print(len(list(load(Path({str(tmp_path / 'a.md')!r})))), 'kreuzberg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "1 False" == done.stdout.strip()
