import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# Needs a browser, which a plain machine does not have.
collect_ignore = [] if os.environ.get("RAG_TEST_BROWSER") else ["test_report_in_a_browser.py"]


@dataclass
class Rag:
    """Runs ``rag`` in a process of its own, in a working directory of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *arguments: str, code: int = 0, **variables: str) -> dict[str, Any]:
        done = self(*arguments, "--json", **variables)
        assert code == done.returncode, done.stderr
        value: dict[str, Any] = json.loads(done.stdout)
        return value


@pytest.fixture
def rag(tmp_path: Path) -> Rag:
    """The command line with an empty data directory and none of the machine's settings."""
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAG_", "COHERE_", "CO_API", "JINA_", "QDRANT_"))
    }
    return Rag(tmp_path, keep | {"PYTHONPATH": str(ROOT), "RAG_DATA_DIR": str(tmp_path / "data")})


@pytest.fixture
def points(tmp_path: Path) -> Callable[[], dict[str, tuple[str, str]]]:
    """Reads the collection point by point: chunk id -> (document id, text)."""

    def read() -> dict[str, tuple[str, str]]:
        from pipeline.stores.edge import EdgeStore

        store = EdgeStore(tmp_path / "data" / "collections" / "documents")
        try:
            return {chunk.id: (chunk.document_id, chunk.text) for chunk in store.chunks()}
        finally:
            store.close()

    return read
