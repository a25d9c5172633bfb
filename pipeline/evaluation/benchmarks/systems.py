"""What is measured: ours and the peers, with the versions that each environment gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError

# Newer torch releases bring several GB of CUDA packages on Linux.
_COMMON = ("torch<=2.13.0", "sentence-transformers==6.2.0")
_PACKAGES = ("torch", "transformers", "sentence-transformers", "qdrant-client", "openvino", "qdrant-edge-py")
_WORKERS = Path(__file__).parent / "workers"
_ROOT = Path(__file__).parents[3]

LEFT_OUT = {
    "FlashRank": "loads ONNX files only, and only for models whose names are in its own list (flashrank 0.2.10)",
    "fastembed TextCrossEncoder": "loads ONNX files only: Hugging Face weights would run after an export that is not "
    "part of it, as other weights",
}
"""Peers that cannot load the given weights, and why."""


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """A system under test. ``requirements`` empty: it runs in this environment."""

    name: str
    script: str
    store: str
    """Where its vectors are, for the table."""
    requirements: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    same_weights: bool = True

    @property
    def packages(self) -> list[str]:
        """Distributions whose versions are reported."""
        return [*_PACKAGES, *(requirement.partition("==")[0] for requirement in self.requirements)]


def systems(embedder: str, reranker: str) -> list[SystemSpec]:
    """All of them; ``embedder`` and ``reranker`` are folders or Hugging Face names."""
    ours = {
        "embedder": "sentence-transformers",
        "embedding_model": embedder,
        "reranker": "cross-encoder",
        "reranker_model": reranker,
        "search": "dense",
    }
    return [
        SystemSpec("ours", "ours.py", "Qdrant Edge", settings=ours),
        SystemSpec(
            "ours, embedded models",
            "ours.py",
            "Qdrant Edge",
            settings={"embedder": "embedded", "reranker": "embedded"},
            same_weights=False,
        ),
        SystemSpec("sentence-transformers", "plain.py", "NumPy, brute force", _COMMON),
        SystemSpec(
            "LangChain",
            "peer_langchain.py",
            "qdrant-client, local mode",
            (
                *_COMMON,
                "langchain-qdrant==1.1.0",
                "langchain-huggingface==1.2.3",
                "langchain-classic==1.0.8",
                "langchain-community==0.4.2",
            ),
        ),
        SystemSpec(
            "LlamaIndex",
            "peer_llamaindex.py",
            "qdrant-client, local mode",
            (
                *_COMMON,
                "llama-index-core==0.14.25",
                "llama-index-vector-stores-qdrant==0.10.4",
                "llama-index-embeddings-huggingface==0.8.0",
                "llama-index-postprocessor-sbert-rerank==0.6.0",
            ),
        ),
        SystemSpec(
            "Haystack",
            "peer_haystack.py",
            "qdrant-client, local mode",
            (*_COMMON, "haystack-ai==3.4.0", "qdrant-haystack==13.1.0", "sentence-transformers-haystack==2.0.0"),
        ),
    ]


def chosen(all_systems: list[SystemSpec], names: list[str] | None) -> list[SystemSpec]:
    """The named ones, all for None.

    Raises:
        SettingsError: there is no such system.
    """
    known = {spec.name: spec for spec in all_systems}
    for name in names or []:
        if name not in known:
            raise SettingsError(f"--system {name!r}: there are {', '.join(known)}")
    return [known[name] for name in names] if names else all_systems


def python_of(spec: SystemSpec, environments: Path, say: Callable[[str], None]) -> Path:
    """The interpreter that runs a system; makes its virtual environment where it is missing.

    Raises:
        SettingsError: its packages could not be installed.
    """
    if not spec.requirements:
        return Path(sys.executable)
    folder = environments / spec.script.removesuffix(".py").removeprefix("peer_")
    python = folder / "bin" / "python"
    wanted, stamp = "\n".join(spec.requirements), folder / "requirements.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    say(f"{spec.name}: installing into {folder}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *spec.requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SettingsError(f"{spec.name}: pip failed in {folder}: {done.stderr.strip()[-500:]}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def command(spec: SystemSpec, python: Path) -> list[str]:
    """How its process is started."""
    return [str(python), str(_WORKERS / spec.script)]


def environment(spec: SystemSpec) -> dict[str, str]:
    """This process's variables without settings of ours, which would change what is measured."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    clean.pop("PYTHONPATH", None)
    clean |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "ANONYMIZED_TELEMETRY": "False", "TOKENIZERS_PARALLELISM": "true"}
    if not spec.requirements:
        clean["PYTHONPATH"] = str(_ROOT)
    return clean
