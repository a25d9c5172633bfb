"""Hugging Face models on the CPU engine: converted once, checked against PyTorch, kept on disk.

A converted model stands in the cache as a model folder (see :mod:`pipeline.inference.folder`), under a name made of its
kind and identity, so that another process finds it without loading PyTorch, and a changed model never meets its old
conversion. A model whose answers the engine does not give is remembered as refused, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipeline.forking import begin_anew
from pipeline.inference import activations
from pipeline.inference.activations import extremes, scale_activations, uneven
from pipeline.inference.engine import ACTIVATION_GROUP, gains_by_scales, has_bf16
from pipeline.inference.export import compress_weights, finite_masks, traced, write_folder
from pipeline.inference.folder import FILES, Kind, ModelFolder

_log = logging.getLogger(__name__)
# Counted up when the form of what is written, or the check before it, changes.
_FORM = 4
_REFUSED = "refused.json"
_one_at_a_time = threading.Lock()


def _forget_in_child() -> None:
    """After a fork nobody would ever give back a lock that a thread of the parent held."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


begin_anew(_forget_in_child)

# In float32, what PyTorch and the engine make of one model differs in the last digits alone.
EXACT = 0.01
# int8 weights and activations, with bfloat16 between them where the CPU has it. MiniLM embedders and cross-encoders are
# at 2-7 %, which costs them at most 0.001 nDCG. Past this weights stay in floating point, and where bfloat16 alone goes
# past it all is computed in float32. (See `deviation`.)
ROUNDED = 0.08

# Shares of the layers that narrow, the most uneven ones, whose activations are not scaled beforehand: the least of
# these with which the answers hold. What is left out is a bit slower.
_LEFT_OUT = (0, 1 / 6, 1 / 2, 1)

# Groups of activations that are tried before `ACTIVATION_GROUP`, the largest first; see `groups`.
_LARGER_GROUPS = (512, 384)

QUERIES = ("How do I read a JSON file in Python?", "谁提出了相对论？", " Which vitamins help older people?\n")
TEXTS = (
    "The json module of the standard library reads JSON: json.load takes an open file, json.loads a string.",
    "阿尔伯特·爱因斯坦在1905年发表了狭义相对论，并于1915年完成了广义相对论。",
    "Vitamin D with calcium reduced falls in a randomised trial of 5,292 people aged 70 or older; vitamin C did not.",
    "维生素D和钙可以帮助老年人保持骨骼健康，减少骨折的风险。",
    "Relativity: the special theory was published by Albert Einstein in 1905.",
    "Paris",
    " 北京是中国的首都。\n",
    "The bridge was closed after the flood; the council expects repairs to last until spring. " * 60,
    "如何用 Python 读取 JSON 文件？使用 json.load 函数，它返回字典或列表。" * 40,
    "def load(path):\n    with open(path, encoding='utf-8') as file:\n        return json.load(file)\n",
)


class ConversionError(Exception):
    """This model cannot be converted; says why."""


@dataclass(frozen=True)
class Source:
    """A loaded PyTorch model, and what has to be known of it."""

    module: Any
    """Maps the inputs, each of shape (texts, tokens), to rows of output."""
    inputs: Sequence[str]
    """``input_ids`` and ``attention_mask``, and maybe ``token_type_ids``."""
    tokenizer: Tokenizer
    """Of whole texts: it neither cuts nor pads."""
    config: dict[str, Any]
    """``kind``, ``name``, ``max_tokens``, ``pad_id``, and what else a folder of that kind needs, but ``around``."""
    answers: NDArray[np.float32]
    """The rows that its library gives in float32 for :func:`samples`, in that order."""


@dataclass(frozen=True)
class Refused:
    """The engine does not answer as PyTorch does, or cannot hold the model."""

    reason: str


def samples(kind: Kind) -> list[tuple[str, str]]:
    """What the check asks a model: (query, text), or for an embedder ("query" or "document", text)."""
    if kind == "cross-encoder":
        return [(query, text) for query in QUERIES for text in TEXTS]
    return [*(("query", query) for query in QUERIES), *(("document", text) for text in TEXTS)]


def place(cache: Path, kind: Kind, identity: str, variant: str = "") -> Path:
    """The folder of a model's conversion. ``variant`` is what else changes its answers, such as another length.

    CPUs that compute otherwise have one of their own, as the check is one of what they compute.
    """
    computes = [has_bf16(), gains_by_scales()]
    key = hashlib.sha256(json.dumps([_FORM, kind, identity, variant, *computes]).encode()).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in identity.partition("@")[0])
    return cache / "converted" / f"{name[-60:]}-{key}"


def find(folder: Path, kind: Kind, cache: Path) -> ModelFolder | Refused | None:
    """The conversion that stands there, why there is none, or None if nobody tried yet."""
    import openvino

    if (folder / _REFUSED).is_file():
        refusal = json.loads((folder / _REFUSED).read_text(encoding="utf-8"))
        # A newer engine may manage it.
        return Refused(refusal["reason"]) if refusal["engine"] == openvino.__version__ else None
    return ModelFolder(folder, kind, cache) if all((folder / name).is_file() for name in FILES) else None


def convert(source: Source, folder: Path, cache: Path) -> ModelFolder | Refused:
    """Writes the conversion, in int8 where that keeps its answers, else in float32; or remembers why it cannot be."""
    import openvino

    kind: Kind = source.config["kind"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Tracing changes switches of PyTorch for the whole process.
    with _one_at_a_time, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as name:
        found = find(folder, kind, cache)
        if found is not None:  # another thread was faster
            return found
        _log.info("converting %s for the CPU engine; this is done once", source.config["name"])
        new = Path(name) / folder.name
        try:
            write(source, new)
        except ConversionError as error:
            _log.warning("%s stays on PyTorch: %s", source.config["name"], error)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            refusal = {"reason": str(error), "engine": openvino.__version__}
            (new / _REFUSED).write_text(json.dumps(refusal), encoding="utf-8")
        try:
            new.rename(folder)
        except OSError:  # something is there: what another process made meanwhile, or is damaged, or of an older engine
            if find(folder, kind, cache) is None:
                shutil.rmtree(folder)
                new.rename(folder)
    return find(folder, kind, cache) or Refused("its conversion was removed")


def deviation(answers: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """How far rows are from the reference's, as a share of how far those are from their mean (root mean squares).

    What all answers have in common does not rank anything, so the differences between texts are the measure.
    """
    wide = reference.astype(np.float64)
    spread = np.sqrt(np.mean((wide - wide.mean(axis=0)) ** 2))
    return float(np.sqrt(np.mean((answers - wide) ** 2)) / max(float(spread), 1e-9))


def write(source: Source, folder: Path) -> None:
    """Writes a model folder, in int8 where that keeps the model's answers, else in float32.

    ``exact`` in its configuration says that it is also computed in float32, where the CPU's bfloat16 would spoil it.

    Raises:
        ConversionError: the engine cannot run it, or answers otherwise; the folder is in any state.
    """
    config = source.config | {"around": _around(source.tokenizer, source.config["kind"])}
    if source.config["pad_id"] is None:
        raise ConversionError("its tokenizer has no padding token")
    model = _traced(source)
    write_folder(model, source.tokenizer, config, folder)
    far = deviation(_answers(folder, exact=True), source.answers)
    if not far <= EXACT:  # also where it is no number
        raise ConversionError(f"the engine's answers differ from PyTorch's by {far:.1%} of their spread")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        small = Path(name)
        try:
            for way, quantized, more in _quantized(model, folder):
                write_folder(quantized, source.tokenizer, config | more, small)
                far = deviation(_answers(small), source.answers)
                _log.debug("%s in int8, %s: its answers change by %.2f %%", config["name"], way, 100 * far)
                if far <= ROUNDED:
                    for file in FILES:
                        (small / file).replace(folder / file)
                    return
            why = f"int8 changes its answers by {far:.1%}"
        except (RuntimeError, ValueError, ConversionError) as error:  # the engine's, or extremes are no numbers
            why = " ".join(str(error).split())[:200]
    _log.info("%s stays in floating point: %s", config["name"], why)
    far = deviation(_answers(folder), source.answers)
    if not far <= ROUNDED:  # also where it is no number
        _log.info("%s is computed in float32: bfloat16 changes its answers by %.1f %%", config["name"], 100 * far)
        described = folder / "config.json"
        kept = json.loads(described.read_text(encoding="utf-8"))
        described.write_text(json.dumps(kept | {"exact": True}, ensure_ascii=False), encoding="utf-8")


def _quantized(model: Any, folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The model in int8, the fastest way first: how, the model, and what its configuration has to say.

    ``folder`` has it in float32. The model itself is changed in the end.
    """
    if gains_by_scales():
        seen = extremes(model, runs(folder))
        left_out = uneven(model, seen)
        for count in sorted({math.ceil(share * len(left_out)) for share in _LEFT_OUT}):
            even = model.clone()
            scale_activations(even, seen, without=left_out[:count])
            group = groups(compress_weights(even))[0]
            yield f"activations scaled beforehand, but for {count} inputs", even, {"activation_group": group}
    widths = compress_weights(model)
    for group in groups(widths):
        yield f"activations in groups of {group}", model, {"activation_group": group}


def runs(folder: Path) -> Iterator[list[NDArray[np.int64]]]:
    """The inputs of a folder's model for texts that its activations are scaled on."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = ModelFolder(folder, config["kind"])
    if config["kind"] == "cross-encoder":
        found = [model.pairs(query, activations.TEXTS) for query in activations.QUERIES]
        sequences, second = (list(chain.from_iterable(parts)) for parts in zip(*found, strict=True))
    else:
        sequences = model.sequences(activations.QUERIES, query=True) + model.sequences(activations.TEXTS, query=False)
        second = [0] * len(sequences)
    for ids, begin in zip(sequences, second, strict=True):
        tokens = np.array([ids], dtype=np.int64)
        yield [tokens, np.ones_like(tokens), (np.arange(len(ids)) >= (begin or len(ids))).astype(np.int64)[None]]


def groups(widths: Set[int]) -> list[int]:
    """In what groups the activations of layers may be quantised, the fastest first; ``widths`` are of their inputs.

    The engine multiplies in int8 what is a whole number of groups wide, and the rest in floating point: with layers of
    384 values groups of 384 are 5 % faster than those of 128, and groups of 768 are 30 % slower.
    """
    return [*(group for group in _LARGER_GROUPS if not any(width % group for width in widths)), ACTIVATION_GROUP]


def _traced(source: Source) -> Any:
    try:
        model = traced(source.module, source.inputs)
    except Exception as error:  # whatever a model's code raises when it is traced
        reason = " ".join(str(error).split())[:200]
        raise ConversionError(f"it cannot be traced: {type(error).__name__}: {reason}") from error
    if len(model.inputs) < 2:  # token types that change nothing drop out
        raise ConversionError(f"of its inputs {', '.join(source.inputs)} only {len(model.inputs)} are in use")
    finite_masks(model)
    return model


def _answers(folder: Path, *, exact: bool = False) -> NDArray[np.float32]:
    """What the folder's model makes of the samples."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind: Kind = config["kind"]
    model = ModelFolder(folder, kind, shared=False)  # this file is about to move
    if exact:
        model.config["exact"] = True
    try:
        if kind == "cross-encoder":
            return np.concatenate([model.logits(query, TEXTS) for query in QUERIES])[:, None]
        return np.concatenate([model.embed(QUERIES, query=True), model.embed(TEXTS, query=False)])
    except RuntimeError as error:
        raise ConversionError(f"the engine cannot run it: {' '.join(str(error).split())[:200]}") from error


def _around(tokenizer: Tokenizer, kind: Kind) -> list[list[int]]:
    """The special tokens before, between and after the parts of an input, as the tokenizer puts them."""
    parts = ("a", "b") if kind == "cross-encoder" else ("a",)
    encoding = tokenizer.encode(*parts)
    around: list[list[int]] = [[]]
    before: int | None = None
    for token, part in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if part is None:
            around[-1].append(token)
        elif part != before:
            around.append([])
            before = part
    if len(around) != len(parts) + 1:
        raise ConversionError(f"its tokenizer makes {len(around) - 1} parts of {len(parts)}")
    return around
