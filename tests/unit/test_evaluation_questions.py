import json
import os
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from pipeline.core import Pipeline
from pipeline.errors import MissingExtraError, SettingsError
from pipeline.evaluation.irds import from_ir_dataset, read_ir_dataset
from pipeline.evaluation.known_items import CAVEAT, make_questions
from pipeline.evaluation.questions import read_questions, resolve
from pipeline.evaluation.terminal import print_questions
from pipeline.types import Document
from tests.fakes import FakeEmbedder, FakeStore


@pytest.fixture
def store() -> FakeStore:
    """Three documents: two from files, one with an id of its own."""
    found = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=found).ingest(
        [
            Document(id="/data/docs/ports.md", text="HTTP is on port 6333,\n  gRPC on port 6334."),
            Document(id="/data/docs/zh/备份.md", text="每晚做一\n次快照，端口４０００。"),
            Document(id="note-1", text="Port 6333 is for HTTP.", source="/data/notes.jsonl"),
        ]
    )
    return found


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def qrels(path: Path, store: FakeStore) -> dict[str, dict[str, int]]:
    return resolve(path, read_questions(path), store).qrels


@pytest.mark.parametrize(
    ("relevant", "documents"),
    [
        (["note-1"], {"note-1"}),
        (["/data/docs/ports.md"], {"/data/docs/ports.md"}),
        (["docs/ports.md"], {"/data/docs/ports.md"}),
        (["./docs/ports.md"], {"/data/docs/ports.md"}),
        (["docs\\ports.md"], {"/data/docs/ports.md"}),
        (["备份.md"], {"/data/docs/zh/备份.md"}),
        (["notes.jsonl"], {"note-1"}),
        (["PORT 6333"], {"note-1", "/data/docs/ports.md"}),
        (["6333, gRPC on"], {"/data/docs/ports.md"}),
        (["一次快照"], {"/data/docs/zh/备份.md"}),
        (["端口4000"], {"/data/docs/zh/备份.md"}),
        (["note-1", "一次快照"], {"note-1", "/data/docs/zh/备份.md"}),
        ("note-1", {"note-1"}),
    ],
)
def test_what_is_relevant_is_an_id_a_path_or_an_answer(
    tmp_path: Path, store: FakeStore, relevant: Any, documents: set[str]
) -> None:
    """Looked up in this order; a path by its end, an answer whatever its case and white space."""
    path = write(tmp_path / "mine.jsonl", {"question": "Which?", "relevant": relevant})
    dataset = resolve(path, read_questions(path), store)
    assert {"1": dict.fromkeys(documents, 1)} == dataset.qrels
    assert ("mine", {"1": "Which?"}, None) == (dataset.name, dataset.queries, dataset.corpus)


def test_what_is_nowhere_is_an_error_with_its_line(tmp_path: Path, store: FakeStore) -> None:
    """A question that can never be answered would only lower the figures."""
    path = write(
        tmp_path / "q.jsonl", {"question": "a", "relevant": ["note-1"]}, {"question": "b", "relevant": ["port 1"]}
    )
    with pytest.raises(
        SettingsError, match=r"line 2: 'port 1' is no document id, no source and in no text .*within one chunk"
    ):
        qrels(path, store)


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ("docs/network.md", False),
        ("docs\\network.md", False),
        ("network.MD", False),
        ("文档/网络.md", False),
        ("/etc/app.conf", False),
        ("a network.md", True),
        ("TCP/IP", True),
        ("km/h", True),
        ("和/或", True),
        ("1/2.5", True),
        ("Node.js", True),
        ("settings.json", True),
        ("https://example.org/a.html", True),
        ("www.example.org/a.html", True),
        ("编辑conf/tidb.toml文件", True),
    ],
)
def test_a_path_that_is_not_there_is_no_answer(tmp_path: Path, store: FakeStore, wanted: str, answer: bool) -> None:
    """Though other documents mention it: they would count as relevant. What may be an answer is one."""
    Pipeline(embedder=FakeEmbedder(), store=store).ingest([Document(id="other", text=f"See a {wanted}.")])
    path = write(tmp_path / "q.jsonl", {"question": "Which?", "relevant": [wanted]})
    if answer:
        assert {"1": {"other": 1}} == qrels(path, store)
    else:
        with pytest.raises(SettingsError, match=r"line 1: .* looks like a path, and is no source"):
            qrels(path, store)


def test_it_is_said_how_things_were_found(tmp_path: Path) -> None:
    """And which answer tells documents apart so little that a wrong hit hardly counts."""
    store = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=store).ingest(
        [Document(id=f"n{i}", text=f"The port is {i} 号") for i in range(33)]
    )
    path = write(
        tmp_path / "q.jsonl",
        {"question": "a", "relevant": ["n1", "n2"]},
        {"question": "b", "relevant": ["port is 7"]},
        {"question": "c", "relevant": ["the", "号"]},
    )
    said: list[str] = []
    resolve(path, read_questions(path), store, say=said.append)
    assert [
        "q.jsonl: 2 documents by id or path, 3 answers found in texts",
        "'the' is in 33 of 33 documents, and all of them count as relevant",
        "'号' is in 33 of 33 documents, and all of them count as relevant",
    ] == said


def test_the_end_of_a_name_is_no_path(tmp_path: Path, store: FakeStore) -> None:
    """Paths are compared by whole names."""
    with pytest.raises(SettingsError, match=r"orts\.md"):
        qrels(write(tmp_path / "q.jsonl", {"question": "a", "relevant": ["orts.md"]}), store)


def test_an_empty_collection_is_an_error(tmp_path: Path) -> None:
    """With what to do first."""
    with pytest.raises(SettingsError, match="ingest the documents"):
        qrels(write(tmp_path / "q.jsonl", {"question": "a", "relevant": ["b"]}), FakeStore())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"relevant": ["a"]}', 'no "question"'),
        ('{"question": " ", "relevant": ["a"]}', 'no "question"'),
        ('{"question": "a"}', '"relevant" must be a list'),
        ('{"question": "a", "relevant": []}', '"relevant" must be a list'),
        ('{"question": "a", "relevant": [1]}', '"relevant" must be a list'),
        ("not json", "not JSON"),
        ("", "no questions in it"),
    ],
)
def test_a_malformed_file_of_questions_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """By line, with what is expected."""
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        read_questions(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents with titles, headings and questions."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "guide.md").write_text(
        "# The Backup Guide\n\nText.\n\n## Usage\n\nShort heading.\n\n## Restore a snapshot\n\nText.\n\n"
        "## How long are copies kept?\n\nA month.\n\n## 1. 安装\n\n文。\n\n## 一、概述\n\n文。\n",
        encoding="utf-8",
    )
    (docs / "faq.txt").write_text(
        "Q: Which port does gRPC use?\nA: 6334.\n\n问：集合多久备份一次？\n答：每晚。\n"
        "问：如何重置密码？答：点击忘记密码链接。\n\n**问：** 端口在哪里设置？\n"
        "Q1. Where is the log kept? A: In /var.\n",
        encoding="utf-8",
    )
    write(
        docs / "notes.jsonl", {"id": "n1", "title": "网络端口的设置", "text": "6333"}, {"id": "n2", "text": "no title"}
    )
    for i in range(5):
        (docs / f"r{i}.md").write_text(f"# Release notes {i}\n\n## Known limitations here\n\nNone.\n")
    return docs


def test_questions_are_made_of_titles_headings_and_faqs(folder: Path, tmp_path: Path) -> None:
    """Each with the document it stands in; single words and headings of many documents are left out."""
    out = tmp_path / "made.jsonl"
    found = make_questions([folder], out)
    lines = {
        line["question"]: (line["kind"], line["relevant"]) for line in map(json.loads, out.read_text().splitlines())
    }
    guide, faq = str(folder / "guide.md"), str(folder / "faq.txt")
    assert {
        "The Backup Guide": ("title", [guide]),
        "Restore a snapshot": ("heading", [guide]),
        "How long are copies kept?": ("faq", [guide]),
        "Which port does gRPC use?": ("faq", [faq]),
        "集合多久备份一次？": ("faq", [faq]),
        "如何重置密码？": ("faq", [faq]),
        "端口在哪里设置？": ("faq", [faq]),
        "Where is the log kept?": ("faq", [faq]),
        "网络端口的设置": ("title", ["n1"]),
        **{f"Release notes {i}": ("title", [str(folder / f"r{i}.md")]) for i in range(5)},
    } == lines
    assert (14, 9, 1) == (found["questions"], found["documents"], found["left_out"])
    assert {"title": 7, "heading": 1, "faq": 6} == found["kinds"]
    assert found["note"] == CAVEAT
    assert "cannot show" in CAVEAT


def test_made_questions_can_be_read_and_resolved(folder: Path, tmp_path: Path) -> None:
    """The ids are those under which the documents are ingested."""
    store = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=store).ingest(folder)
    make_questions([folder], tmp_path / "made.jsonl")
    assert 14 == len(qrels(tmp_path / "made.jsonl", store))


def test_of_documents_with_one_id_the_last_is_asked_about(tmp_path: Path) -> None:
    """As it alone is ingested; what cannot be read is counted, and people are told."""
    line = {"id": "n1", "title": "An older title", "text": "6333"}
    file = write(tmp_path / "notes.jsonl", line, line | {"title": "A newer title"}, {"id": "broken"})
    found = make_questions([file], tmp_path / "made.jsonl")
    assert (1, 1, 1) == (found["questions"], found["documents"], found["unreadable"])
    assert "A newer title" in (tmp_path / "made.jsonl").read_text()
    said = Console(file=StringIO(), width=200)
    print_questions(said, found)
    assert "1 files or lines could not be read" in said.file.getvalue()  # type: ignore[attr-defined]


def test_questions_of_ones_own_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    """Somebody may have added to them."""
    mine = write(tmp_path / "questions.jsonl", {"question": "mine", "relevant": ["a"]})
    with pytest.raises(SettingsError, match="exists already"):
        make_questions([folder], mine)
    assert "mine" in mine.read_text()


def test_a_file_name_that_is_not_utf_8_is_asked_about(tmp_path: Path) -> None:
    """As under any other name: the question finds its document."""
    docs = tmp_path / "docs"
    docs.mkdir()
    name = docs / os.fsdecode(b"caf\xe9\\.md")
    try:
        name.write_text("# The menu of today\n\nSoup.\n")
    except OSError:
        pytest.skip("this file system takes no such name")
    store = FakeStore()
    Pipeline(embedder=FakeEmbedder(), store=store).ingest(docs)
    out = tmp_path / "made.jsonl"
    assert 1 == make_questions([docs], out)["questions"]
    assert [out] == list(tmp_path.glob("made*"))
    assert [str(name)] == [wanted for question in read_questions(out) for wanted in question.relevant]
    assert {"1": {str(name): 1}} == qrels(out, store)


def test_a_missing_folder_is_found_out_before_any_document_is_read(tmp_path: Path) -> None:
    """Reading may take long: here a path that does not exist would be complained of first."""
    with pytest.raises(SettingsError, match=r"--out .*there is no folder .*nowhere"):
        make_questions([tmp_path / "missing"], tmp_path / "nowhere" / "made.jsonl")


@pytest.mark.parametrize("length", [252, 400])
def test_a_file_that_cannot_be_written_is_named(folder: Path, tmp_path: Path, length: int) -> None:
    """And nothing is left of it, whether that is found out before the work or after it."""
    out = tmp_path / ("x" * length)
    with pytest.raises(SettingsError, match=r"cannot write .*xxx: File name too long"):
        make_questions([folder], out)
    assert [folder] == list(tmp_path.iterdir())


def test_documents_without_anything_to_ask_are_an_error(tmp_path: Path) -> None:
    """An empty test set would look like success."""
    (tmp_path / "a.txt").write_text("plain text")
    with pytest.raises(SettingsError, match="no titles, headings or questions in the 1 documents"):
        make_questions([tmp_path / "a.txt"], tmp_path / "out.jsonl")


class _Doc(NamedTuple):
    doc_id: str
    text: str
    title: str


class _Query(NamedTuple):
    query_id: str
    text: str


class _Qrel(NamedTuple):
    query_id: str
    doc_id: str
    relevance: int


class _Set:
    """What ir_datasets gives for a name, with nothing to download."""

    def __init__(self, parts: tuple[str, ...] = ("docs", "queries", "qrels")) -> None:
        self.parts = parts

    def has_docs(self) -> bool:
        return "docs" in self.parts

    def has_queries(self) -> bool:
        return "queries" in self.parts

    def has_qrels(self) -> bool:
        return "qrels" in self.parts

    def docs_iter(self) -> Iterator[_Doc]:
        return iter([_Doc("d1", "one", "T"), _Doc("d2", "two", "")])

    def queries_iter(self) -> Iterator[_Query]:
        return iter([_Query("q1", "eins"), _Query("q2", "zwei")])

    def qrels_iter(self) -> Iterator[_Qrel]:
        return iter([_Qrel("q1", "d1", 2), _Qrel("q2", "d2", 0), _Qrel("gone", "d1", 1)])


def test_a_dataset_of_ir_datasets_becomes_ours() -> None:
    """Queries with a relevant document, judgements as they are, documents as a stream."""
    found = from_ir_dataset("some/set/test", _Set())
    assert ("some-set-test", {"q1": "eins"}, {"q1": {"d1": 2}}) == (found.name, found.queries, found.qrels)
    assert [("d1", "one", "T"), ("d2", "two", "")] == [(d.id, d.text, d.title) for d in found.documents()]


def test_a_dataset_without_judgements_is_refused() -> None:
    """Many names of ir_datasets stand for a corpus alone."""
    with pytest.raises(SettingsError, match="has no qrels"):
        from_ir_dataset("some/set", _Set(("docs", "queries")))


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is optional."""
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtraError, match="ir-datasets"):
        read_ir_dataset("beir/scifact/test")
