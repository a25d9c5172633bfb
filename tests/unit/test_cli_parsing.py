import io
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipeline.cli import app, parse_where
from pipeline.console import print_json
from pipeline.display import print_pairs, query_terms, snippet
from pipeline.errors import SettingsError


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
    ],
)
def test_where_conditions(conditions: list[str], expected: dict[str, Any]) -> None:
    """A command-line condition becomes the filter of the Python interface."""
    assert expected == parse_where(conditions)


@pytest.mark.parametrize("condition", ["lang", "=en", "", "year!=3", "year != 3"])
def test_a_malformed_condition_is_refused(condition: str) -> None:
    """The message shows the form."""
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_where([condition])


def test_equality_and_range_on_one_key_are_refused() -> None:
    """They contradict or repeat each other."""
    with pytest.raises(SettingsError, match="both"):
        parse_where(["year=2020", "year>2019"])


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
