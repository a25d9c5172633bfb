import io
import math
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline import display
from pipeline.cli import COMMANDS, app, as_typed, how_read, parse_where
from pipeline.console import print_json, stdout
from pipeline.display import ingest_progress, print_pairs, print_result, query_terms, snippet
from pipeline.errors import SettingsError
from pipeline.ingestion.run import Progress
from pipeline.settings import Settings
from pipeline.types import Chunk, FirstStage, Hit, QueryResult
from pipeline.where import Where


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], {}),
        (["lang=en"], {"lang": "en"}),
        (["lang=en", "lang=zh"], {"lang": ["en", "zh"]}),
        (["year=2020"], {"year": 2020}),
        (['year="2020"'], {"year": "2020"}),
        (["year>=2020", "year<2024"], {"year": {"gte": 2020, "lt": 2024}}),
        (["a.b=true"], {"a.b": True}),
        (["title=a=b"], {"title": "a=b"}),
        (["类别==手册", "类别 == 指南"], {"类别": ["手册", "指南"]}),
        (["when>2024-01-01"], {"when": {"gt": "2024-01-01"}}),
        (["语言=中文"], {"语言": "中文"}),
        (['{"year": {"gte": 2020}}'], {"year": {"gte": 2020}}),
        (['[{"lang": "en"}, {"year": 2020}]'], [{"lang": "en"}, {"year": 2020}]),
        (["[a]=1"], {"[a]": 1}),
    ],
)
def test_where_conditions(conditions: list[str], expected: Where) -> None:
    """A command-line condition becomes the filter of the Python interface."""
    assert expected == parse_where(conditions)


@pytest.mark.parametrize("condition", ["lang", "=en", "", "year!3", "!=3"])
def test_a_malformed_condition_is_refused(condition: str) -> None:
    """The message shows the form."""
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_where([condition])


def test_equality_and_range_on_one_key_are_refused() -> None:
    """They contradict or repeat each other."""
    with pytest.raises(SettingsError, match="both"):
        parse_where(["year=2020", "year>2019"])


def test_a_filter_in_json_stands_alone() -> None:
    """What joined it with the others would have to be guessed."""
    with pytest.raises(SettingsError, match="stands alone"):
        parse_where(["lang=en", '[{"year": 2020}]'])


def test_a_negation_is_of_all_that_is_asked_so() -> None:
    """And goes with nothing else on one key."""
    assert {"lang": {"not": "en"}} == parse_where(["lang!=en"])
    assert {"year": {"not": [2020, "x"]}, "draft": False} == parse_where(["year != 2020", "draft=false", "year!=x"])
    with pytest.raises(SettingsError, match="lang has both != and ="):
        parse_where(["lang=en", "lang!=zh"])


def test_an_unquoted_condition_is_said_to_need_quotes() -> None:
    """The shell has made a file called "=2020" of the rest."""
    with pytest.raises(SettingsError, match=r"in quotes.* --where 'year>=2020'"):
        parse_where(["year"])


def test_a_source_is_any_path_that_leads_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was given to ingest; and any text that a document of Python has as its source."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "文档").mkdir()
    (tmp_path / "文档" / "a.md").touch()
    (tmp_path / "link.md").symlink_to(tmp_path / "文档" / "a.md")
    real = (tmp_path.resolve() / "文档" / "a.md").as_posix()
    assert {"source": ["文档/a.md", real]} == parse_where(["source=文档/a.md"])
    assert {"document_id": ["link.md", real]} == parse_where(["document_id=link.md"])
    assert {"source": real} == parse_where([f"source={real}"])
    assert {"source": ["./文档/a.md", real, "b", (tmp_path.resolve() / "b").as_posix()]} == parse_where(
        ["source=./文档/a.md", 'source="b"']
    )


def mapping(condition: str) -> Mapping[str, Any]:
    """What becomes of one condition."""
    where = parse_where([condition])
    assert isinstance(where, Mapping)
    return where


def test_an_id_is_a_text_though_it_looks_like_a_number() -> None:
    """As many ids in JSONL do."""
    assert "42" in mapping("document_id=42")["document_id"]
    assert "true" in mapping("source==true")["source"]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("yearstr=2020", "2020 was read as a number; a text is written in quotes: --where 'yearstr=\"2020\"'"),
        ("version==1.10", "1.10 was read as a number; a text is written in quotes: --where 'version=\"1.10\"'"),
        ("开放=true", "true was read as a truth value; a text is written in quotes: --where '开放=\"true\"'"),
        ("day>=2024", "2024 was read as a number; a date is written 2024-01-01: --where 'day>=2024-01-01'"),
    ],
)
def test_what_a_value_was_read_as_is_said(condition: str, said: str) -> None:
    """The way of writing it otherwise does what it says."""
    assert [said] == how_read([condition])
    (value,) = mapping(said.split("'")[1]).values()
    assert isinstance(value if isinstance(value, str) else value["gte"], str)


def test_of_a_text_there_is_nothing_to_say() -> None:
    assert [] == how_read(["lang=en", 'year="2020"', "day>=2024-01-01", "document_id=42"])


def test_an_argument_is_read_as_it_was_typed() -> None:
    """In a locale of ASCII Python makes a lone surrogate of each byte of it. Bytes that are no UTF-8 stay."""
    assert "加州 city" == as_typed("加州 city".encode().decode("ascii", "surrogateescape"))
    latin = os.fsdecode(b"caf\xe9")
    assert latin == as_typed(latin)
    found = CliRunner().invoke(app, ["query", latin])
    assert isinstance(found.exception, SettingsError)
    assert "UTF-8" in str(found.exception)


@pytest.mark.usefixtures("plain_settings")
@pytest.mark.parametrize(
    "command",
    [["ingest"], ["ingest", "--prune"], ["ingest", "notes.md"], ["verify"], ["watch"], ["eval", "--make-questions"]],
    ids=" ".join,
)
def test_an_empty_path_is_refused(command: list[str]) -> None:
    """As of a shell's variable that is not set. ``Path`` makes the working directory of it."""
    found = CliRunner().invoke(app, [*command, ""])
    assert isinstance(found.exception, SettingsError)
    assert "a path is empty" in str(found.exception)


@pytest.mark.parametrize("words", [["two", "words"], ["两个", "词"]])
def test_a_question_without_quotes_is_told_to_have_some(words: list[str]) -> None:
    found = CliRunner().invoke(app, ["query", *words])
    assert isinstance(found.exception, SettingsError)
    assert str(found.exception).endswith(f"put the question in quotes, as in rag query '{' '.join(words)}'")


def test_the_help_has_each_command_on_a_line_of_80_columns() -> None:
    """What is cut ends in dots, and what was not thought of is not in the order."""
    shown = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    lines = shown.partition("Commands:")[2].strip("\n").splitlines()
    assert list(COMMANDS) == [line.split()[0] for line in lines]
    assert [] == [line for line in lines if not re.search(r"[^.]\.$", line) or len(line) > 80]


def test_the_help_of_eval_has_no_command_that_nobody_types() -> None:
    shown = CliRunner().invoke(app, ["eval", "--help"]).output
    assert shown.splitlines()[0].endswith(" eval [OPTIONS] DATASET")
    assert " eval --help'" in CliRunner().invoke(app, ["eval", "--nothing"]).output


@pytest.mark.usefixtures("plain_settings")
def test_the_help_of_query_names_variables_defaults_and_signs() -> None:
    shown = " ".join(CliRunner().invoke(app, ["query", "--help"], terminal_width=80).output.split())
    settings = Settings()
    for field in ("top_n", "top_k", "reranker", "threshold"):
        default = getattr(settings, field)
        assert f"RAG_{field.upper()} ({'none' if default is None else default} unless set)" in shown
    assert (None, True) == (settings.alpha, "RAG_ALPHA (unless set, each reranker's own)" in shown)
    assert all(sign in shown for sign in ("'year>=2020'", '"first stage #5 ↑1"', '"↓1"', '"="'))


def test_the_script_and_the_module_are_one_entry_point() -> None:
    """That imports nothing that takes time before Ctrl-C is taken care of."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "pipeline.__main__:main" == project["project"]["scripts"]["rag"]


def a_hit(document_id: str, source: str, title: str = "", copies: tuple[str, ...] = ()) -> Hit:
    chunk = Chunk(document_id, "hash", 0, 1, "Berlin 是首都。", title, source, copies=copies)
    return Hit(1, chunk, 0.5, FirstStage(2, 1.0), None)


@pytest.mark.parametrize(
    ("hit", "heading"),
    [
        (a_hit("a1", "/docs/z.jsonl"), "1. a1"),
        (a_hit("a1", "/docs/z.jsonl", "Berlin"), "1. Berlin"),
        (a_hit("/docs/a.md", "/docs/a.md"), "1. /docs/a.md"),
        (a_hit("/docs/b.md", "/docs/a.md", copies=("/docs/b.md",)), "1. /docs/a.md"),
    ],
)
def test_a_hit_is_headed_by_what_tells_it_from_others(
    hit: Hit, heading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All hits from one file of JSON lines have its path. And no line ends in blanks, nor one of a table."""
    print_result(stdout(), QueryResult("x", [hit] * 2, "none", 2, {"embed": 1, "search": 1, "rerank": 1}))
    print_pairs(stdout(), [("name", "value"), ("longer", "a longer value")])
    stdout().print("ends in one ", end="")
    stdout().print("[bold]word[/] " * 30)
    lines = capsys.readouterr().out.split("\n")
    assert heading == lines[0]
    assert "   Berlin 是首都。" in lines
    assert "name    value" in lines
    assert [] == [line for line in lines if line != line.rstrip()]
    assert any(line.startswith("ends in one word word") for line in lines)


def test_the_last_line_of_progress_is_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one every few seconds; what was written since is not left out. A short ingest has none."""

    def shown(*every: float) -> list[str]:
        stream = io.StringIO()
        with ingest_progress(Console(file=stream)) as progress:
            for chunks, seconds in enumerate(every, 1):
                monkeypatch.setattr(display, "_PLAIN_EVERY_S", seconds)
                progress(Progress(1, 1, 1, chunks))
            progress(Progress(1, 1, 1, len(every), "building the index"))
        return re.findall(r"\d+ chunks written", stream.getvalue())

    assert ["1 chunks written", "3 chunks written"] == shown(-1, math.inf, math.inf)
    assert ["1 chunks written", "2 chunks written"] == shown(-1, -1)
    assert [] == shown(math.inf, math.inf)


def test_the_version_is_that_of_the_package() -> None:
    assert f"{version('two-stage-rag')}\n" == CliRunner().invoke(app, ["--version"]).output


def test_terms_are_words_and_pairs_of_chinese_characters() -> None:
    """Common words are left out; Chinese has no spaces to split at."""
    assert ["read", "JSON", "Python"] == query_terms("How do I read JSON in Python?")
    assert ["读取", "取文", "文件"] == query_terms("读取文件")
    assert ["TiKV", "4000", "カタ", "タナ"] == query_terms("ＴｉＫＶ 4000 カタナ")


def test_the_snippet_shows_the_part_that_matches() -> None:
    """A hit's matching sentence is often not its first."""
    text = "Filler words here. " * 60 + "The needle is in this sentence. " + "More filler words. " * 60
    shown = snippet(text, "where is the needle").plain
    assert "needle" in shown
    assert len(shown) < 340


def test_what_would_steer_the_terminal_is_not_shown() -> None:
    """A stored text may clear the screen or colour what follows."""
    shown = snippet("before \x1b[2J\x1b[31mred\x07 \x9b1mapple", "apple").plain
    assert "before [2J [31mred 1mapple" == shown


def test_a_word_is_not_marked_inside_another() -> None:
    """ "art" is not part of "start", but "index" is the stem of "indexes"."""
    shown = snippet("start the art; indexes", "art index")
    assert ["art", "indexes"] == [shown.plain[span.start : span.end] for span in shown.spans]


def test_a_word_is_marked_beside_chinese() -> None:
    """Which has no spaces around it."""
    shown = snippet("如果使用TiKV作为存储，端口号是4000。" + "其他的文字。" * 100, "TiKV 4000")
    assert ["TiKV", "4000"] == [shown.plain[span.start : span.end] for span in shown.spans]


@pytest.mark.parametrize("command", ["eval", "calibrate"])
@pytest.mark.parametrize("folder", ["nowhere", "file.txt"])
@pytest.mark.usefixtures("plain_settings")
def test_a_report_that_cannot_be_written_is_refused_before_the_work(command: str, folder: str) -> None:
    """That takes minutes: not even the dataset is looked for, and nothing is made."""
    Path("file.txt").touch()
    found = CliRunner().invoke(app, [command, "no-dataset", "--report", f"{folder}/page.html"])
    assert isinstance(found.exception, SettingsError)
    assert f"--report {Path(folder, 'page.html')}: there is no folder {folder}" == str(found.exception)
    assert ["file.txt"] == [path.name for path in Path().iterdir()]


@pytest.mark.parametrize("below", ["", "more/runs"])
@pytest.mark.usefixtures("plain_settings")
def test_runs_that_cannot_be_saved_are_found_out_before_the_work(tmp_path: Path, below: str) -> None:
    """Not after it: a file stands where the folder should."""
    file = tmp_path / "file"
    file.write_text("")
    found = CliRunner().invoke(app, ["eval", "no-dataset", "--runs", str(file / below)])
    assert isinstance(found.exception, SettingsError)
    assert f"runs cannot be saved in {file / below}: {file} is no folder" == str(found.exception)


@pytest.mark.usefixtures("plain_settings")
def test_a_folder_for_runs_that_is_locked_is_found_out_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of somebody else; what is still to be made is no hindrance."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    found = CliRunner().invoke(app, ["eval", "no-dataset", "--runs", str(tmp_path / "runs")])
    assert f"{tmp_path} cannot be written to" in str(found.exception)
    monkeypatch.undo()
    found = CliRunner().invoke(app, ["eval", "no-dataset", "--runs", str(tmp_path / "a" / "runs")])
    assert "no such dataset" in str(found.exception)


def test_a_long_value_is_shown_whole() -> None:
    """As a file's path, which people copy."""
    stream = io.StringIO()
    print_pairs(Console(file=stream, width=60), [("kept in", "folder/" + "x" * 100)])
    assert "x" * 100 in "".join(stream.getvalue().split())


@pytest.mark.parametrize(("encoding", "written"), [("ascii", b'"Caf\\u00e9"'), ("utf-8", '"Café"'.encode())])
def test_json_is_json_in_any_encoding(encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stdout cannot show a character, its escape is one that JSON knows."""
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding=encoding, errors="backslashreplace"))
    print_json("Café")
    sys.stdout.flush()
    assert written == out.getvalue().strip()


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """Metadata may hold them, and only Python reads the NaN that it would write."""
    print_json({"hits": [{"metadata": {"x": math.nan, "y": [1.5, -math.inf], "z": (2, "语")}}], "count": 1})
    shown = capsys.readouterr().out
    assert '{"hits": [{"metadata": {"x": null, "y": [1.5, null], "z": [2, "语"]}}], "count": 1}\n' == shown
