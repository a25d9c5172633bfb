import os
from pathlib import Path

import pytest


@pytest.fixture
def plain_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine and no .env of the checkout reaches the test."""
    for name in list(os.environ):
        if name.startswith(("RAG_", "COHERE_", "CO_API", "JINA_", "QDRANT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
