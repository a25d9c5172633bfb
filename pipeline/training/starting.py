"""The model that training starts from, and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.build import build_reranker, model_cache
from pipeline.errors import SettingsError
from pipeline.hub import ModelError, identity, load_model
from pipeline.inference.folder import FILES
from pipeline.interfaces import Reranker
from pipeline.models import RERANKER
from pipeline.rerankers.cross_encoder import ORGANIZATION, CrossEncoderReranker
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.settings import Settings
from pipeline.training.folder import HUGGING_FACE
from pipeline.training.weights import to_hugging_face

EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Base:
    """What ``--base`` names."""

    name: str
    """With revision."""
    model: str
    """A Hugging Face folder or name."""
    reranker: Reranker | None
    """As it stands before training; None where it is no reranker yet."""
    card: Path | None
    """Its README, if it has one here."""


def open_base(name: str, settings: Settings, work: Path) -> Base:
    """``embedded``, a model folder of the CPU engine, or a Hugging Face folder or name.

    Of a folder that ``rag train-reranker`` made its Hugging Face model is taken, which the engine's was rounded from.
    Another model folder is turned into a Hugging Face one under ``work``, once.

    Raises:
        SettingsError: there is no such model, or training cannot start from it.
    """
    folder = RERANKER if name == EMBEDDED else Path(name).expanduser()
    trained = folder / HUGGING_FACE
    if _of_the_engine(folder):
        reranker = EmbeddedReranker(folder, cache_dir=model_cache(settings))
        if trained.is_dir():
            return Base(reranker.model, str(trained), reranker, folder / "README.md")
        made = work / "base"
        if not made.is_dir():
            new = work / "base.new"
            to_hugging_face(folder, new)
            new.replace(made)
        return Base(reranker.model, str(made), reranker, folder / "README.md")
    if trained.is_dir():  # the engine could not take it over, so it is all there is
        name = str(trained)
    try:
        model = load_model(
            name,
            revision=None,
            organization=ORGANIZATION,
            instead=f"--base {EMBEDDED}",
            open_model=lambda place, local: _config(place, local),
        )
        known = identity(name, None, ORGANIZATION)
    except ModelError as error:
        raise SettingsError(f"--base {name}: {error}") from error
    ranks = any("SequenceClassification" in one for one in model.architectures or ()) and model.num_labels == 1
    return Base(
        known or name,
        name,
        CrossEncoderReranker(name, device=settings.device) if ranks else None,
        folder / "README.md" if folder.is_dir() else None,
    )


def open_teacher(name: str, settings: Settings) -> Reranker:
    """A model folder, a Hugging Face folder or name (``owner/model``), or a reranker by its name in ``RAG_RERANKER``.

    Raises:
        SettingsError: there is no such reranker, or a setting that it needs is missing.
    """
    folder = Path(name).expanduser()
    if _of_the_engine(folder):
        return EmbeddedReranker(folder, cache_dir=model_cache(settings), name="teacher")
    if folder.is_dir() or "/" in name:
        return CrossEncoderReranker(name, name="teacher", device=settings.device)
    reranker = build_reranker(settings.with_reranker(name))
    if reranker is None:
        raise SettingsError(f"--teacher {name} has no scores to learn from")
    return reranker


def _of_the_engine(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _config(name: str, local: bool) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, local_files_only=local)
