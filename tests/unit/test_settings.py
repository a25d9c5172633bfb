import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import Settings, markdown_table, variable

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine and no .env of the checkout reaches these tests."""
    import os

    for name in list(os.environ):
        if name.startswith(("RAG_", "COHERE_", "CO_API", "QDRANT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_those_of_the_interface() -> None:
    """Without any variable everything runs embedded."""
    settings = Settings()
    assert ("embedded", "embedded", "hybrid", "convex") == (
        settings.embedder,
        settings.reranker,
        settings.search,
        settings.hybrid_fusion,
    )
    assert (50, 5, None, None) == (settings.top_n, settings.top_k, settings.threshold, settings.alpha)


def test_arguments_win_over_environment_over_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer source wins."""
    Path(".env").write_text("RAG_TOP_K=3\nRAG_TOP_N=30\nRAG_SEARCH=dense\n")
    monkeypatch.setenv("RAG_TOP_N", "40")
    settings = Settings(search="sparse")
    assert (3, 40, "sparse") == (settings.top_k, settings.top_n, settings.search)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line like RAG_THRESHOLD= in a .env file keeps the default."""
    monkeypatch.setenv("RAG_THRESHOLD", "")
    monkeypatch.setenv("RAG_TOP_N", "")
    assert (None, 50) == (Settings().threshold, Settings().top_n)


def test_other_programs_variables_are_ignored() -> None:
    """A .env file is shared with the app around us."""
    Path(".env").write_text("OPENAI_API_KEY=x\nDATABASE_URL=y\n")
    assert "documents" == Settings().collection


@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_mistyped_variable_is_an_error_with_a_suggestion(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """RAG_RERANKR does not silently leave the default in place."""
    if place == "file":
        Path(".env").write_text("RAG_RERANKR=cohere\n")
    else:
        monkeypatch.setenv("RAG_RERANKR", "cohere")
    with pytest.raises(SettingsError, match=r"RAG_RERANKR .*Did you mean RAG_RERANKER\?"):
        Settings()


@pytest.mark.parametrize("service", ["RAG", "RAG_QDRANT"])
def test_variables_of_kubernetes_are_passed_over(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    """It sets some in every container for a Service that is called rag, or rag-qdrant. Others are mistyped still."""
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "6333",
        "SERVICE_PORT_HTTP": "6333",
        "PORT": "tcp://10.0.0.1:6333",
        "PORT_6333_TCP": "tcp://10.0.0.1:6333",
        "PORT_6333_TCP_PROTO": "tcp",
        "PORT_6333_TCP_PORT": "6333",
        "PORT_6333_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert 50 == Settings().top_n
    monkeypatch.setenv("RAG_QDRANT_PORT", "6333")
    with pytest.raises(SettingsError, match="unknown variable RAG_QDRANT_PORT"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RAG_TOP_K", "0", "RAG_TOP_K: .*greater than or equal to 1"),
        ("RAG_TOP_N", "many", "RAG_TOP_N: .*integer"),
        ("RAG_SEARCH", "fuzzy", "RAG_SEARCH: .*'hybrid', 'dense' or 'sparse'"),
        ("RAG_ALPHA", "1.5", "RAG_ALPHA: .*less than or equal to 1"),
        ("RAG_TOP_K", "60", r"RAG_TOP_K \(60\) must not be larger than RAG_TOP_N \(50\)"),
        ("RAG_CHUNK_OVERLAP", "128", "RAG_CHUNK_OVERLAP .* less than half"),
        ("RAG_COLLECTION", "../x", "RAG_COLLECTION: "),
        ("RAG_CASCADE", "true", "RAG_CASCADE: .*'auto', 'on' or 'off'"),
        ("RAG_QUANTIZATION", "int4", "RAG_QUANTIZATION: .*'none' or 'int8'"),
        ("RAG_OVERSAMPLING", "0.5", "RAG_OVERSAMPLING: .*greater than or equal to 1"),
        ("RAG_ON_DISK", "perhaps", "RAG_ON_DISK: .*boolean"),
        ("RAG_QDRANT_SHARDS", "0", "RAG_QDRANT_SHARDS: .*greater than or equal to 1"),
        ("RAG_QDRANT_REPLICATION", "100", "RAG_QDRANT_REPLICATION: .*less than or equal to 64"),
    ],
)
def test_a_value_out_of_range_names_the_variable_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """The message is enough to mend it."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        Settings()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RAG_TOP_K", "abc", "RAG_TOP_K: 'abc' should be a valid integer (allowed: at least 1, at most 1000)"),
        ("RAG_DEADLINE_MS", "0", "RAG_DEADLINE_MS: '0' should be greater than 0 (allowed: over 0)"),
        ("RAG_SEARCH", "模糊", "RAG_SEARCH: '模糊' should be 'hybrid', 'dense' or 'sparse'"),
        (
            "RAG_COLLECTION",
            "中文",
            "RAG_COLLECTION: '中文' is no name for a collection, which has 1 to 100 of A-Z, a-z, 0-9, _ and -",
        ),
    ],
)
def test_the_value_is_shown_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """In words; it may come from a file that one does not think of."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert said == str(caught.value)


@pytest.mark.parametrize("name", ["a" * 101, "", "a.b", "a\n", "文"])
def test_a_name_of_a_collection_that_no_store_takes(name: str) -> None:
    with pytest.raises(SettingsError, match=r"collection: .* is no name for a collection"):
        Settings(collection=name)


def test_arguments_are_called_what_they_are_in_python() -> None:
    """Also where a message is about two variables, or somebody writes the variable itself."""
    with pytest.raises(SettingsError, match=r"RAG_TOP_K .*; in Python these are top_k and top_n$"):
        Settings(top_k=100)
    with pytest.raises(SettingsError, match=r"'RAG_TOP_K': in Python write top_k$"):
        Settings(RAG_TOP_K=3)


def test_no_more_copies_must_have_a_write_than_there_are() -> None:
    """Else no write would ever count; alone, the number of copies is the server's."""
    assert (2, 2) == (
        Settings(qdrant_replication=2, qdrant_write_consistency=2).qdrant_write_consistency,
        Settings(qdrant_write_consistency=2).qdrant_write_consistency,
    )
    with pytest.raises(SettingsError, match=r"RAG_QDRANT_WRITE_CONSISTENCY \(3\) .* RAG_QDRANT_REPLICATION \(2\)"):
        Settings(qdrant_replication=2, qdrant_write_consistency=3)


def test_an_unknown_argument_is_an_error_with_a_suggestion() -> None:
    """Settings(rerankr=...) is as wrong as the variable."""
    with pytest.raises(SettingsError, match=r"rerankr.*Did you mean reranker"):
        Settings(rerankr="cohere")


@pytest.mark.parametrize(
    "name",
    [
        "RAG_DEADLINE_MS",
        "RAG_MAX_FILE_MB",
        "RAG_QDRANT_DEADLINE",
        "RAG_RERANK_DEADLINE",
        "RAG_RERANK_PRICE",
        "RAG_RERANK_RPM",
        "RAG_RERANK_TIMEOUT",
        "RAG_RERANK_TOKEN_PRICE",
    ],
)
def test_a_time_or_size_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nothing can be counted with it; no limit is to leave it empty, or a large number."""
    monkeypatch.setenv(name, "inf")
    with pytest.raises(SettingsError, match=name):
        Settings()


@pytest.mark.parametrize("name", ["RAG_COHERE_API_KEY", "COHERE_API_KEY", "CO_API_KEY"])
def test_the_cohere_key_is_read_under_its_known_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The names that Cohere's own tools use work too."""
    monkeypatch.setenv(name, "the-key")
    key = Settings().cohere_api_key
    assert key is not None
    assert "the-key" == key.get_secret_value()


def test_a_key_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the settings' text nor in the error about another field."""
    monkeypatch.setenv("RAG_COHERE_API_KEY", "sk-very-secret")
    assert "sk-very-secret" not in repr(Settings())
    shown = repr(Settings(rerank_url="http://me:sk-very-secret@host:8080/rerank?key=sk-very-secret"))
    assert "rerank_url='http://***@host:8080/rerank?***'" in shown
    assert "sk-very-secret" not in shown
    monkeypatch.setenv("RAG_TOP_K", "-1")
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert "sk-very-secret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    with pytest.raises(SettingsError) as caught:
        Settings(cohere_api_key=["sk-very-secret"], top_k=3)
    assert "cohere_api_key: input should be a valid string" == str(caught.value)


def test_updated_checks_again() -> None:
    """A changed copy is as valid as a new one, and the original stays."""
    settings = Settings(cohere_api_key="k")
    assert (9, 5) == (settings.updated(top_k=9).top_k, settings.top_k)
    with pytest.raises(SettingsError, match="RAG_TOP_K"):
        settings.updated(top_k=51)


def test_the_readme_has_the_current_table() -> None:
    """README's table of settings is the one that ``python -m pipeline.settings`` prints."""
    assert markdown_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_file_names_every_variable() -> None:
    """.env.example lists all variables and none that does not exist."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert {variable(name) for name in Settings.model_fields} == set(re.findall(r"^#?\s?(RAG_[A-Z_]+)=", text, re.M))


def test_the_example_file_marks_what_is_not_the_default() -> None:
    """Whoever uncomments a line sees whether it changes anything; each of them alone is allowed."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    known = Settings()
    for line in re.findall(r"^# (RAG_[A-Z_]+=\S.*)$", text, re.M):
        Path(".env").write_text(line)
        name = line.partition("=")[0]
        field = name.removeprefix("RAG_").lower()
        assert ("# example" in line) == (getattr(Settings(), field) != getattr(known, field)), line


def test_the_table_names_every_value_that_can_be_chosen() -> None:
    """A row without them leaves the reader to guess, and to read the error."""
    for name, field in Settings.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if get_origin(kind) is Literal:
                missing = {
                    value for value in get_args(kind) if f"`{value}`" not in f"{field.description} `{field.default}`"
                }
                assert not missing, variable(name)


def test_a_home_directory_is_not_a_folder_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No shell expands a line of .env."""
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(".env").write_text("RAG_DATA_DIR=~/data\n")
    assert tmp_path / "data" == Settings().data_dir


def test_a_line_of_env_that_cannot_be_read_is_an_error() -> None:
    """Its setting would silently not be made."""
    Path(".env").write_text('RAG_TOP_K=3\nRAG_RERANKER="none\n')
    with pytest.raises(SettingsError, match=r"\.env, line 2: not NAME=VALUE"):
        Settings()
