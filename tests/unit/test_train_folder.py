from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import SettingsError
from pipeline.training.card import licence_of
from pipeline.training.fitting import last_checkpoint
from pipeline.training.folder import data_hash, training_folder

ARGUMENTS = {"base": "embedded", "epochs": 2.0, "data": [{"path": "/a", "sha256": "1"}]}


def test_the_same_arguments_go_on(tmp_path: Path) -> None:
    """What was made stays, and a finished training is not done again."""
    out = tmp_path / "deep" / "out"
    with training_folder(out, ARGUMENTS) as folder:
        (folder.work / "examples.jsonl").write_text("")
        (folder.work / "split.json").write_text("[]")
        (folder.work / "scores.sqlite").write_text("")
        (folder.work / "checkpoints").mkdir()
    with training_folder(out, ARGUMENTS) as folder:
        assert folder.outcome is None
        assert (folder.work / "scores.sqlite").exists()
        folder.finish({"alpha": 0.5})
    with training_folder(out, ARGUMENTS) as folder:
        assert {"alpha": 0.5} == folder.outcome
        assert ["examples.jsonl", "split.json"] == sorted(path.name for path in folder.work.iterdir())


def test_other_arguments_are_refused_by_name(tmp_path: Path) -> None:
    """A half of one training and a half of another would be neither."""
    with training_folder(tmp_path, ARGUMENTS):
        pass
    with (
        pytest.raises(SettingsError, match=r"other arguments or data \(epochs: there 2.0, now 3.0\)"),
        training_folder(tmp_path, {**ARGUMENTS, "epochs": 3.0}),
    ):
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """It may be somebody's documents."""
    (tmp_path / "thesis.md").write_text("mine")
    with (
        pytest.raises(SettingsError, match=r"holds something else \(thesis.md\)"),
        training_folder(tmp_path, ARGUMENTS),
    ):
        pass
    assert "mine" == (tmp_path / "thesis.md").read_text()


def test_a_damaged_state_is_said(tmp_path: Path) -> None:
    """Not taken for a new folder."""
    (tmp_path / "training.json").write_text('{"arguments": ')
    with pytest.raises(SettingsError, match="is damaged"), training_folder(tmp_path, ARGUMENTS):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Of --out."""
    (tmp_path / "out").write_text("")
    with pytest.raises(SettingsError, match="cannot be made"), training_folder(tmp_path / "out", ARGUMENTS):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two would overwrite each other's checkpoints."""
    with (
        training_folder(tmp_path, ARGUMENTS),
        pytest.raises(SettingsError, match="another process trains in"),
        training_folder(tmp_path, ARGUMENTS),
    ):
        pass


def test_a_change_of_the_data_is_seen(tmp_path: Path) -> None:
    """In any of the files that are read of a folder."""
    (tmp_path / "qrels").mkdir()
    seen = set()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "queries.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write("x")
        seen.add(data_hash(tmp_path))
    assert 4 == len(seen)
    assert data_hash(tmp_path / "corpus.jsonl") != data_hash(tmp_path / "qrels" / "train.tsv")


def test_an_unfinished_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    """The newest whole one is, by number and not by name; a kill while one is written leaves half of it."""
    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 11:
            (folder / "trainer_state.json").write_text("{}")
    assert tmp_path / "checkpoint-10" == last_checkpoint(tmp_path)
    assert not (tmp_path / "checkpoint-11").exists()
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_licences_are_quoted_where_they_are_stated(tmp_path: Path) -> None:
    """And said to be unknown where not."""
    assert "not stated" in licence_of(tmp_path)
    (tmp_path / "README.md").write_text("# Set\n\nLicence: CC BY 4.0\n", encoding="utf-8")
    assert 'README.md: "Licence: CC BY 4.0"' == licence_of(tmp_path)
    (tmp_path / "LICENSE").write_text("MIT License\n\nCopyright\n", encoding="utf-8")
    assert 'LICENSE: "MIT License"' == licence_of(tmp_path)
    (tmp_path / "LICENSE").unlink()
    (tmp_path / "LICENSES").mkdir()  # as https://reuse.software has it
    assert 'README.md: "Licence: CC BY 4.0"' == licence_of(tmp_path)


def test_the_state_is_readable_json(tmp_path: Path) -> None:
    """People look into it."""
    with training_folder(tmp_path, ARGUMENTS):
        pass
    assert {"arguments": ARGUMENTS, "outcome": None} == json.loads((tmp_path / "training.json").read_text())
