"""A Hugging Face BERT as a model folder: OpenVINO IR with small weights, tokenizer, configuration and hash."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Weights of at least this many values are worth int8; biases and norms stay as they are.
_SMALLEST = 16_384
# Values with a common scale in the 4-bit form.
_BLOCK = 32


def export(module: Any, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Writes a torch module that maps (input_ids, attention_mask) to rows of output as a model folder.

    The same weights give the same bytes. ``config`` gets the revision (sha256 of ``model.bin``).
    """
    model = traced(module, ("input_ids", "attention_mask"))
    compress_weights(model)
    write_folder(model, tokenizer, config, folder)


def traced(module: Any, inputs: Sequence[str], *, width: int = 0) -> Any:
    """A torch module as an OpenVINO model; ``inputs`` names the module's arguments, each of shape (texts, tokens).

    But ``hidden`` is of shape (texts, tokens, width): the upper layers alone have it.
    """
    import openvino
    import torch

    example = {
        name: torch.zeros(2, 16, width) if name == "hidden" else torch.ones(2, 16, dtype=torch.long) for name in inputs
    }
    shapes = [
        (name, [-1, -1, width], openvino.Type.f32) if name == "hidden" else (name, [-1, -1], openvino.Type.i64)
        for name in example
    ]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about branches on shapes that are fixed here
        return openvino.convert_model(module.eval(), example_input=example, input=shapes)


def write_folder(model: Any, tokenizer: Tokenizer | None, config: dict[str, Any], folder: Path) -> None:
    """Writes an OpenVINO model, its tokenizer (None: that of its trunk) and its configuration as a model folder."""
    import openvino

    folder.mkdir(parents=True, exist_ok=True)
    # A process may have the old files mapped into its memory: they are replaced, never written over.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        new = Path(name)
        openvino.save_model(model, str(new / "model.xml"), compress_to_fp16=False)
        if tokenizer is not None:
            tokenizer.save(str(new / "tokenizer.json"), pretty=False)
        revision = hashlib.sha256((new / "model.bin").read_bytes()).hexdigest()
        text = json.dumps({**config, "revision": revision}, indent=2, ensure_ascii=False)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        for file in sorted(new.iterdir()):
            file.replace(folder / file.name)


def finite_masks(model: Any) -> None:
    """Makes the masks of attention, in place, add -1e9 where nothing is to be seen.

    With -inf a padded token that sees nothing at all, as in ModernBERT's sliding windows, becomes no number, and spoils
    the tokens that see it.
    """
    import openvino.opset15 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention" and node.get_input_size() > 3:
            mask = node.input_value(3)
            if mask.get_element_type().get_type_name() == "boolean":
                added = ops.select(mask, ops.constant(np.float32(0)), ops.constant(np.float32(-1e9)))
                node.input(3).replace_source_output(added.output(0))
    model.validate_nodes_and_infer_types()


def compress_weights(model: Any) -> set[int]:
    """Replaces each weight matrix, in place, by integers and their scales; returns the widths of what they multiply.

    int8 with a float32 scale a row, symmetric, the largest absolute value of a row at 127: the engine multiplies such
    weights in int8 directly. An embedding table that is exact in 4 bits becomes 4 bits: half the size, nothing lost.
    """
    widths = set()
    for node in model.get_ordered_ops():
        port = {"MatMul": 1, "Gather": 0}.get(node.get_type_name())
        if port is None:
            continue
        weights = large_weights(node, port)
        if weights is None:
            continue
        if node.get_type_name() == "MatMul":
            widths.add(weights.shape[1])
        restored = _four_bit(weights) if node.get_type_name() == "Gather" else None
        node.input(port).replace_source_output((restored or _eight_bit(weights)).output(0))
    model.validate_nodes_and_infer_types()
    return widths


def large_weights(node: Any, port: int) -> NDArray[np.float32] | None:
    """The matrix that is this input of an operation; None where it is no constant one, or too small to matter."""
    constant = node.input_value(port).get_node()
    if constant.get_type_name() == "Convert":
        constant = constant.input_value(0).get_node()
    if constant.get_type_name() != "Constant":
        return None
    weights = np.asarray(constant.data, dtype=np.float32)
    return weights if weights.ndim == 2 and weights.size >= _SMALLEST else None


def _eight_bit(weights: NDArray[np.float32]) -> Any:
    import openvino.opset15 as ops

    scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    values = np.round(weights / scales).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales))


def _four_bit(weights: NDArray[np.float32]) -> Any:
    """Blocks of 32 values with one fp16 scale; None where that would change a value.

    The form that the source file has: the value furthest from 0 is -8, so it tells the scale.
    """
    import openvino
    import openvino.opset15 as ops

    rows, width = weights.shape
    if width % _BLOCK:
        return None
    blocks = weights.reshape(rows, width // _BLOCK, _BLOCK)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scales = (furthest / np.float32(-8)).astype(np.float16)
    scales[scales == 0] = 1
    values = np.round(blocks / scales.astype(np.float32)).astype(np.int8)
    if not np.array_equal(values * scales.astype(np.float32), blocks):
        return None
    nibbles = values.reshape(-1).view(np.uint8) & 15
    packed = openvino.Tensor(nibbles[0::2] | nibbles[1::2] << 4, list(values.shape), openvino.Type.i4)
    constant = openvino.op.Constant(packed, shared_memory=False)
    restored = ops.multiply(ops.convert(constant, "f16"), ops.constant(scales))
    return ops.convert(ops.reshape(restored, ops.constant(np.array([rows, width])), special_zero=False), "f32")
