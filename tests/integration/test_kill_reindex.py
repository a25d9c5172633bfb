"""``kill -9`` at any moment of a reindex on the real engine: one of the two collections answers, and it can go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FingerprintError
from pipeline.ingestion.reindexing import collect_garbage, generations_of
from pipeline.types import Document
from tests import killing
from tests.integration.test_kill_ingest import copy, points, versions, words

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

ROOT = Path(__file__).parents[2]
MOMENTS = 16
# Lines around the switch, which a random choice would seldom meet.
SWITCH = ("switch", "_point", "write_atomically")


@dataclass(frozen=True)
class Rig:
    """The process that is killed again and again, the store that it begins with, and how it ends undisturbed."""

    host: subprocess.Popen[str]
    folder: Path

    def run(self, store: Path, line: str | None = None, occurrence: int = 0) -> dict[str, Any]:
        job = {"store": str(store), "line": line, "occurrence": occurrence, "kill": line is not None}
        assert self.host.stdin is not None
        assert self.host.stdout is not None
        self.host.stdin.write(json.dumps(job) + "\n")
        self.host.stdin.flush()
        told: dict[str, Any] = {}
        while "exit" not in told:
            told |= json.loads(self.host.stdout.readline())
        return told


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(dir=killing.in_memory()) as folder:
        host = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        yield Rig(host, Path(folder).resolve())
        host.communicate()


@dataclass(frozen=True)
class Undisturbed:
    start: Path
    seen: dict[str, int]
    before: dict[str, dict[str, bool]]
    points: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(rig: Rig) -> Undisturbed:
    start, store = rig.folder / "start", rig.folder / "undisturbed"
    with killing.open_pipeline(start / "documents") as rag:
        rag.ingest(Document(f"d{i}", words(i, 5 + 11 * (i % 9))) for i in range(40))
        before = versions(rag)
    copy(start, store)
    told = rig.run(store / "documents")
    assert 0 == told["exit"]
    return Undisturbed(start, told["seen"], before, points(store / "documents.2"))


def moments(seen: dict[str, int]) -> list[tuple[str, int]]:
    """Seeded: half anywhere, half in the lines that switch."""
    random_ = random.Random(1)
    switching = [line for line in sorted(seen) if function(line) in SWITCH]
    anywhere = random_.sample(sorted(seen), MOMENTS // 2)
    chosen = [*anywhere, *random_.sample(switching, MOMENTS // 2)]
    return [(line, random_.randint(1, seen[line])) for line in chosen]


def function(line: str) -> str:
    """Name of the function that a line is in: the last one that begins above it."""
    above = reversed(killing.source_until(line))
    return next(text.split("def ")[1].split("(")[0] for text in above if text.lstrip().startswith("def "))


@pytest.mark.parametrize("number", range(MOMENTS))
def test_killed_at_any_moment(rig: Rig, undisturbed: Undisturbed, number: int) -> None:
    """In between one collection is in use and whole; a rerun ends as an undisturbed run; gc leaves that one alone."""
    line, occurrence = moments(undisturbed.seen)[number]
    print(f"{line} in {function(line)}, time {occurrence} of {undisturbed.seen[line]}")
    store = rig.folder / f"killed {number}" / "documents"
    copy(undisturbed.start, store.parent)
    assert -signal.SIGKILL == rig.run(store, line, occurrence)["exit"]

    with killing.open_other(store) as new, killing.open_pipeline(store) as old:
        (current,) = [one for one in generations_of(new.store).all() if one.state == "current"]
        fits, other = (new, old) if current.fingerprint == new.fingerprint else (old, new)
        assert fits.query("apple pear 3", top_n=5).hits
        with pytest.raises(FingerprintError):
            other.query("apple pear 3")
        assert undisturbed.before == versions(fits)

    assert 0 == rig.run(store)["exit"]
    with killing.open_other(store) as rag:
        assert undisturbed.before == versions(rag)
        collect_garbage(rag.store)
        (left,) = [one.name for one in generations_of(rag.store).all()]
    assert [left] == [entry.name for entry in store.parent.iterdir() if entry.is_dir()]
    assert undisturbed.points == points(store.parent / left)
