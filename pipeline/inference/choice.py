"""Which engine runs a Hugging Face model: ours on the CPU, or PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from pipeline.hub import ModelError, pick_device, quiet
from pipeline.inference.conversion import ConversionError, Refused, Source, convert, find, place
from pipeline.inference.folder import Kind, ModelFolder

EngineChoice = Literal["auto", "openvino", "torch"]


class Convertible(Protocol):
    """A model opened under PyTorch."""

    def source(self, name: str) -> Source:
        """What the engine needs to take over; raises ConversionError."""
        ...


M = TypeVar("M", bound=Convertible)

# One of them is there where Linux has a driver for a GPU (NVIDIA, AMD, WSL).
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


def open_model(
    kind: Kind,
    open_torch: Callable[[], M],
    *,
    identity: Callable[[], str | None],
    variant: str,
    device: str,
    engine: EngineChoice,
    cache_dir: Path | None,
) -> ModelFolder | M:
    """The model on the CPU engine, converted if that was not done yet, or under PyTorch.

    "auto" takes the engine for models that run on a CPU and that it answers for as PyTorch does. "openvino" insists on
    it. Without ``cache_dir`` there is no place for a converted model, and "auto" means PyTorch.

    ``identity`` is the model's name and revision, or None before it was downloaded; ``variant`` what else changes its
    answers.

    Raises:
        ModelError: "openvino" was asked for, and the engine cannot run this model.
    """
    if engine == "torch" or (engine == "auto" and (cache_dir is None or not on_cpu(device))):
        return open_torch()
    if cache_dir is None:
        raise ModelError("RAG_ENGINE=openvino needs a folder to keep converted models in")
    name = identity()
    found = find(place(cache_dir, kind, name, variant), kind, cache_dir) if name else None
    if isinstance(found, ModelFolder):
        return found
    model = open_torch()
    name = name or identity()  # known once it was downloaded
    if found is None and name is not None:
        try:
            with quiet():
                found = convert(model.source(name), place(cache_dir, kind, name, variant), cache_dir)
        except ConversionError as error:
            found = Refused(str(error))
    if isinstance(found, ModelFolder):
        return found
    if engine == "openvino":
        reason = found.reason if found else "its revision is not known"
        raise ModelError(f"{name} cannot run on RAG_ENGINE=openvino: {reason}; set RAG_ENGINE=auto")
    return model


def runs_on(model: ModelFolder | Convertible) -> str:
    """What a model that :func:`open_model` opened runs on, in words."""
    return "OpenVINO" if isinstance(model, ModelFolder) else "PyTorch"


def on_cpu(device: str) -> bool:
    """Whether a model will run on the CPU. PyTorch, which takes seconds to load, is asked only where it may not."""
    if device != "auto":
        return device == "cpu"
    if sys.platform == "linux" and not any(Path(driver).exists() for driver in _DRIVERS):
        return True
    return pick_device("auto") == "cpu"
