"""What a file is, by its content first and by its name where the content leaves it open."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import BinaryIO

MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx"})
HTML = frozenset({".html", ".htm", ".xhtml"})
LINES = frozenset({".jsonl", ".ndjson"})
TABLES = frozenset({".csv", ".tsv"})
SHEETS = frozenset({"xlsx", "xls", "ods"})
#: Texts that are written for programs and have to be extracted: known by their names alone.
BY_NAME = {**dict.fromkeys(HTML, "html"), ".eml": "eml"}

#: Kind -> media type, for what an extractor has to read.
EXTRACTED = {
    "pdf": "application/pdf",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "epub": "application/epub+zip",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "doc": "application/msword",
    "ppt": "application/vnd.ms-powerpoint",
    "xls": "application/vnd.ms-excel",
    "msg": "application/vnd.ms-outlook",
    "rtf": "application/rtf",
    "html": "text/html",
    "eml": "message/rfc822",
}
#: Kinds of which a file always has a content: without any it is damaged.
PROMISING = frozenset(EXTRACTED) - {"html", "eml"}
UNKNOWN = "binary file"
"""What is called so may be anything, a damaged text, too."""
# What no text begins with.
_MAGIC = (
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"II*\0", "TIFF image"),
    (b"MM\0*", "TIFF image"),
    (b"\x7fELF", "executable"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\xfd7zXZ\0", "xz archive"),
    (b"\x28\xb5\x2f\xfd", "zstd archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!\x1a", "RAR archive"),
    (b"SQLite format 3\0", "SQLite database"),
    (b"OggS\0", "audio or video file"),
    (b"\x1aE\xdf\xa3", "video file"),
    (b"\0asm", "WebAssembly"),
    (b"\xca\xfe\xba\xbe", "executable"),
)
# And what one might begin with.
_LETTERS = (
    (b"GIF8", "GIF image"),
    (b"RIFF", "audio, video or image file"),
    (b"BM", "bitmap image"),
    (b"MZ", "executable"),
    (b"BZh", "bzip2 archive"),
    (b"ID3", "audio file"),
    (b"wOF", "font"),
)
# Of PHP, and of templates of Java, Ruby and ASP.
_CODE = re.compile(rb"<\?(?:php\b|=)|<%")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Names in the directory of an OLE file (MS-CFB), by which Office formats before 2007 are told apart.
_OLE_STREAMS = {
    "doc": "WordDocument",
    "ppt": "PowerPoint Document",
    "msg": "__properties_version1.0",
    "xls": "Workbook",
    "docx": "EncryptedPackage",
}


def kind_of(data: bytes, suffix: str) -> str | None:
    """A key of ``EXTRACTED``, or None for what is text, code too: a page made by a program is read as that."""
    kind = by_content(data)
    if kind == "html" and suffix not in HTML and _CODE.search(data):
        return None
    return kind or BY_NAME.get(suffix)


def by_content(data: bytes) -> str | None:
    """A key of ``EXTRACTED``, or None if the content is text or unknown."""
    head = data[:1024]
    # Some writers put a few bytes before the mark; a text about PDF has no trailer.
    if head.startswith(b"%PDF-") or (b"%PDF-" in head and b"%%EOF" in data[-1024:]):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(io.BytesIO(data))
    if head.startswith(_OLE):
        return next((kind for kind, stream in _OLE_STREAMS.items() if stream.encode("utf-16-le") in data), None)
    if head.startswith(b"{\\rtf"):
        return "rtf"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    return None


def never_text(data: bytes) -> str | None:
    """What some bytes are that begin as no text does; None for others."""
    if data[4:8] == b"ftyp" and b"\0" in data[:4]:
        return "video or image file"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def binary_kind(data: bytes) -> str:
    """Words for what some bytes that are no text may be."""
    if data.startswith(b"PK"):
        return "ZIP archive"
    letters = (name for magic, name in _LETTERS if data.startswith(magic))
    return never_text(data) or next(letters, UNKNOWN)


def may_be_document(head: bytes) -> bool:
    """Whether a file that begins so may be one of ``EXTRACTED``."""
    return head.startswith((b"PK\x03\x04", _OLE)) or by_content(head) is not None


def is_archive(file: BinaryIO) -> bool:
    """Whether an open file is a ZIP archive that is no document; reads only its directory."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04" and _zip_kind(file) is None


def _zip_kind(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            if "mimetype" in names:
                declared = archive.read("mimetype")[:100].decode("ascii", "replace").strip()
                return next((kind for kind, media in EXTRACTED.items() if media == declared), None)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError):
        return None
    folders = {"word/": "docx", "ppt/": "pptx", "xl/": "xlsx"}
    return next((kind for folder, kind in folders.items() if any(name.startswith(folder) for name in names)), None)


def is_encrypted_office(data: bytes) -> bool:
    """Office files with a password are an OLE file around the encrypted package (MS-OFFCRYPTO)."""
    return data.startswith(_OLE) and _OLE_STREAMS["docx"].encode("utf-16-le") in data


def unpacked_size(data: bytes) -> int:
    """Bytes that a ZIP-based file says it unpacks to; 0 for others."""
    if not data.startswith(b"PK\x03\x04"):
        return 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return 0
