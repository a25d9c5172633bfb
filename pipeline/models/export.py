"""A Hugging Face BERT as a model folder: OpenVINO IR with int8 weights, tokenizer, configuration and hash."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# Weights of at least this many values are worth int8; biases and norms stay as they are.
_SMALLEST = 16_384


def export(module: Any, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Writes a torch module that maps (input_ids, attention_mask) to rows of output as a model folder.

    The same weights give the same bytes. ``config`` gets the revision (sha256 of ``model.bin``).
    """
    import openvino
    import torch

    example = {name: torch.ones(2, 16, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    shapes = [(name, [-1, -1], openvino.Type.i64) for name in example]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about branches on shapes that are fixed here
        model = openvino.convert_model(module.eval(), example_input=example, input=shapes)
    compress_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    # A process may have the old files mapped into its memory: they are replaced, never written over.
    with tempfile.TemporaryDirectory(dir=folder) as name:
        new = Path(name)
        openvino.save_model(model, str(new / "model.xml"), compress_to_fp16=False)
        tokenizer.save(str(new / "tokenizer.json"), pretty=False)
        revision = hashlib.sha256((new / "model.bin").read_bytes()).hexdigest()
        text = json.dumps({**config, "revision": revision}, indent=2, ensure_ascii=False)
        (new / "config.json").write_text(text + "\n", encoding="utf-8")
        for file in sorted(new.iterdir()):
            file.replace(folder / file.name)


def compress_weights(model: Any) -> None:
    """Replaces each weight matrix, in place, by int8 values and a float32 scale a row.

    Symmetric, with the largest absolute value of a row at 127. The engine multiplies such weights in int8 directly.
    """
    import openvino.opset15 as ops

    for node in model.get_ordered_ops():
        port = {"MatMul": 1, "Gather": 0}.get(node.get_type_name())
        if port is None:
            continue
        constant = node.input_value(port).get_node()
        if constant.get_type_name() == "Convert":
            constant = constant.input_value(0).get_node()
        if constant.get_type_name() != "Constant":
            continue
        weights = np.asarray(constant.data, dtype=np.float32)
        if weights.ndim != 2 or weights.size < _SMALLEST:
            continue
        scales = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
        scales[scales == 0] = 1
        values = np.round(weights / scales).astype(np.int8)
        restored = ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scales.astype(np.float32)))
        node.input(port).replace_source_output(restored.output(0))
    model.validate_nodes_and_infer_types()
