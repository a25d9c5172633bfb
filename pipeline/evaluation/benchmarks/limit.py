"""How near the engine comes to the CPU's limit: its rate of useful arithmetic over that of one large matrix product.

The product runs through the same OpenVINO settings as the models (:mod:`pipeline.inference.engine`): as many streams
as cores, all of them busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inference import engine
from pipeline.inference.folder import ModelFolder

SIZE = 2048
"""Rows, depth and columns of the product: 17 GFLOP, larger than any cache."""


def measure_limit(
    embedder: Path, reranker: Path, query: str, texts: Sequence[str], *, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Products and models by turns, three times, the median of each; rates in GFLOP/s (int8 ones too)."""
    steps: dict[str, Callable[[], float]] = {}
    for kind in product_kinds():
        steps[f"product {kind}"] = _product(kind)
    embedding, reranking = ModelFolder(embedder, "embedder"), ModelFolder(reranker, "cross-encoder")
    models: dict[str, tuple[ModelFolder, Callable[[], Any]]] = {
        "embedding": (embedding, partial(embedding.embed, texts, query=False)),
        "reranking": (reranking, partial(reranking.logits, query, texts)),
    }
    for name, (folder, run) in models.items():
        lengths = _lengths(folder, query if name == "reranking" else None, texts)
        steps[name] = _rate(run, sum(model_flops(folder.folder / "model.xml", lengths)))
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3):
        for name, step in steps.items():
            say(f"limit: {name}")
            rates[name].append(_repeat(step, seconds))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    best = max(value for name, value in medians.items() if name.startswith("product"))
    return {
        "gflops": {name: round(value, 1) for name, value in medians.items()},
        "share": {
            name: {
                "of_best": round(medians[name] / best, 3),
                **{f"of_{kind}": round(medians[name] / medians[f"product {kind}"], 3) for kind in product_kinds()},
            }
            for name in models
        },
        "texts": len(texts),
        "size": SIZE,
    }


def product_kinds() -> list[str]:
    """Kinds of products that this CPU computes in their own arithmetic."""
    return ["f32", "int8", *(["bf16"] if engine.has_bf16() else [])]


def model_flops(model: Path, lengths: Sequence[int]) -> list[float]:
    """Floating-point operations of one forward pass for each length in tokens: two for each multiply-add of a product.

    Read off the model's own matrix products. They grow with the square of the length (attention), so that three
    lengths give the whole curve.
    """
    import openvino

    # One model a length: shapes that were made fixed cannot be changed again in all of them.
    points = [16, 64, 256]
    counts = []
    for length in points:
        graph = openvino.Core().read_model(str(model))
        graph.reshape({port: [1, length] for port in graph.inputs})
        total = 0
        for op in graph.get_ops():
            if op.get_type_name() == "MatMul":
                left = list(op.input_value(0).shape)
                depth = left[-2] if op.get_attributes().get("transpose_a") else left[-1]
                total += 2 * depth * int(np.prod(list(op.output(0).shape)))
            elif op.get_type_name() == "ScaledDotProductAttention":  # two products, fused
                keys = list(op.input_value(1).shape)[-2]
                total += 4 * keys * int(np.prod(list(op.input_value(0).shape)))
        counts.append(total)
    curve = np.polyfit(points, counts, 2)
    return [float(np.polyval(curve, length)) for length in lengths]


def _lengths(folder: ModelFolder, query: str | None, texts: Sequence[str]) -> list[int]:
    """Tokens of each sequence, special ones included, as the folder makes them."""
    sequences = folder.sequences(texts, query=False) if query is None else folder.pairs(query, texts)[0]
    return [len(sequence) for sequence in sequences]


def _rate(run: Callable[[], Any], flops: float) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run()
        return flops / (time.perf_counter() - start) / 1e9

    run()  # compiles
    return once


def _repeat(step: Callable[[], float], seconds: float) -> float:
    until = time.perf_counter() + seconds
    rates = [step()]
    while time.perf_counter() < until:
        rates.append(step())
    return float(np.median(rates))


def _product(kind: str) -> Callable[[], float]:
    """A step that runs one product on each stream at once."""
    import openvino
    from openvino import opset13 as ops

    data = ops.parameter([SIZE, SIZE], np.float32)
    random = np.random.default_rng(0)
    if kind == "int8":
        # Weights as the embedded models have them: int8 and a scale a row; activations are quantised as they come.
        weights = ops.constant(random.integers(-127, 128, (SIZE, SIZE)).astype(np.int8))
        scales = ops.constant(np.full((SIZE, 1), 0.01, dtype=np.float32))
        weight = ops.multiply(ops.convert(weights, np.float32), scales)
    else:
        weight = ops.constant(random.standard_normal((SIZE, SIZE)).astype(np.float32))
    model = openvino.Model([ops.matmul(data, weight, False, True)], [data])
    core = openvino.Core()
    cores = engine._cores()
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32",
        "NUM_STREAMS": str(cores),
        "INFERENCE_NUM_THREADS": str(cores),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(engine.ACTIVATION_GROUP) if kind == "int8" else "0",
    }
    compiled = core.compile_model(model, "CPU", options)
    requests = [compiled.create_infer_request() for _ in range(cores)]
    for request in requests:
        request.set_input_tensor(openvino.Tensor(random.standard_normal((SIZE, SIZE)).astype(np.float32)))

    def run() -> None:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()

    return _rate(run, 2.0 * SIZE**3 * cores)
