"""One scale for each layer's activations, found on texts when a model is converted.

The engine can also find scales as it runs, for each token anew: that is a bit more exact, and a fifth slower.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.export import large_weights

if TYPE_CHECKING:
    import openvino

# The operation that makes an intermediate result, and which of its outputs it is.
_Name = tuple[str, int]
Extremes = dict[_Name, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""By result: the least and the largest value of each column; see :func:`extremes`."""

# How much of the differences between an input's columns goes into the weights (SmoothQuant: Xiao et al., ICML 2023,
# eq. 4). all-MiniLM-L6-v2's answers change by 10.0 % with 0.8 and by 8.3 % with 0.65; then without the most uneven of
# the layers that narrow by 7.3 %, and without all of them by 5.1 %.
_SMOOTHING = 0.65
_LEVELS = 256
_TINY = 1e-6

QUERIES = (
    "how long does bread dough need to rise",
    "Which treaty ended the war, and who signed it?",
    "error: cannot open shared object file",
    "side effects of ibuprofen in pregnancy",
    "如何重置路由器密码",
    "《红楼梦》的作者是谁，写于哪个朝代？",
)
TEXTS = (
    "Let the dough rest under a damp cloth until it has doubled, which takes about an hour in a warm "
    "kitchen and a whole night in the fridge. Knead it once more, shape two loaves, and bake them at "
    "230 °C for 35 minutes.",
    "The treaty was signed at Utrecht in 1713 by Great Britain, France, Spain and the Dutch "
    "Republic. It ended the War of the Spanish Succession; Gibraltar and Minorca became British, and "
    "the crowns of France and Spain were to stay apart.",
    "ImportError: libGL.so.1: cannot open shared object file: No such file or directory\n  File "
    '"main.py", line 3\nInstall the package with `apt-get install libgl1`, or use the headless build '
    "(version >= 4.5.2).",
    "Non-steroidal anti-inflammatory drugs were associated with a higher risk of miscarriage (HR "
    "1.59, 95% CI 1.13-2.24) in a cohort of 65,457 women; the effect was larger when they were taken "
    "for more than a week (p < 0.001).",
    "| city | 2020 | 2021 |\n|---|---|---|\n| Oslo | 697,010 | 699,827 |\n| Bergen | 283,929 | 285,601 |",
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if "
    "len(ordered) % 2:\n        return ordered[middle]\n    return (ordered[middle - 1] + "
    "ordered[middle]) / 2",
    "“I never said that,” she answered, and closed the window. Outside, the rain had stopped; nobody "
    "was in the street.",
    "ARTICLE 7. The tenant shall pay the rent in advance, on or before the third working day of each "
    "month. If payment is late by more than ten days, the landlord may charge interest at 5% per "
    "annum.",
    "Photosynthesis",
    "1. Open Settings > Network.\n2. Hold the reset button for ten seconds.\n3. Log in as admin; the "
    "password is on the label.",
    "首先长按路由器背面的复位键约十秒，直到指示灯闪烁；然后用电脑连接 192.168.1.1，按照提示设置新的管"
    "理员密码和无线网络名称。",
    "《红楼梦》，又名《石头记》，清代曹雪芹所著的章回体长篇小说，成书于乾隆年间，前八十回为曹雪芹原作"
    "，后四十回一般认为由高鹗等人续补。",
    "根据国家统计局数据，2021年全国粮食总产量68285万吨，比上年增加1336万吨，增长2.0%。其中小麦、玉米产量均有所提高。",
    "執行下列命令即可安裝依賴套件：\n\n```\nnpm install --save-dev typescript\n```\n\n"
    "若出現權限錯誤，請改用系統管理員身分。",
    "患者男，56岁，反复胸闷、气促3年，加重1周入院。查体：血压150/95 mmHg，心率102次/分，双下肢轻度水肿。",
    "光合作用",
)


def extremes(model: openvino.Model, runs: Iterable[Sequence[NDArray[Any]]]) -> Extremes:
    """What each input of a large layer is on some texts, at least and at most, column by column.

    Each of ``runs`` has the model's inputs for a text without padding.
    """
    import openvino
    import openvino.opset15 as ops

    layers = _layers(model)
    if not layers:
        return {}
    watched = openvino.Model([ops.result(source) for source, _ in layers.values()], model.get_parameters(), "watched")
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = openvino.Core().compile_model(watched, "CPU", options)
    found: Extremes = {}
    for inputs in runs:
        output = compiled(dict(enumerate(inputs[: len(model.inputs)])))  # not all models tell the parts apart
        for place, name in enumerate(layers):
            rows = output[place].reshape(-1, output[place].shape[-1])
            least, most = rows.min(axis=0), rows.max(axis=0)
            low, high = found.get(name, (least, most))
            found[name] = np.minimum(low, least), np.maximum(high, most)
    return found


def uneven(model: openvino.Model, seen: Extremes) -> list[_Name]:
    """The inputs of large layers that narrow, those first whose largest column stands out most.

    Behind an activation function a few columns are often far larger than all others, which rounding suffers from.
    """
    found = {}
    for name, (_, nodes) in _layers(model).items():
        if any(weights.shape[1] > weights.shape[0] for _, weights in nodes):
            columns = _largest(seen[name])
            found[name] = float(columns.max() / np.median(columns))
    return sorted(found, key=lambda name: -found[name])


def scale_activations(model: openvino.Model, seen: Extremes, *, without: Collection[_Name] = ()) -> None:
    """Has the inputs of large layers rounded to 256 steps between their :func:`extremes`.

    In place; the weights are still to be compressed (:func:`pipeline.inference.export.compress_weights`). Columns that
    are much larger than others are divided, and their weights multiplied, by what makes both more even: else they alone
    would take most steps. Inputs of these names (:func:`uneven`) are left as they are.
    """
    import openvino.opset15 as ops

    for name, (source, nodes) in _layers(model).items():
        if name in without:
            continue
        least, most = seen[name]
        largest = _largest(seen[name])
        heaviest = np.max([np.abs(weights).max(axis=0) for _, weights in nodes], axis=0).clip(_TINY)
        divisor = largest**_SMOOTHING / heaviest ** (1 - _SMOOTHING)
        divisor /= np.exp(np.log(divisor).mean())
        low, high = _bounds(least / divisor, most / divisor)
        shape = [1] * (len(source.get_partial_shape()) - 1) + [-1]
        even = ops.multiply(source, ops.constant((1 / divisor).astype(np.float32).reshape(shape)))
        bounds = [ops.constant(np.float32(value)) for value in (low, high, low, high)]
        rounded = ops.fake_quantize(even, *bounds, _LEVELS)
        for node, weights in nodes:
            node.input(0).replace_source_output(rounded.output(0))
            node.input(1).replace_source_output(ops.constant(weights * divisor.astype(np.float32)).output(0))
    model.validate_nodes_and_infer_types()


def _largest(seen: tuple[NDArray[np.float32], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The largest absolute value of each column."""
    least, most = seen
    return np.maximum(np.abs(least), np.abs(most)).clip(_TINY)


def _layers(model: openvino.Model) -> dict[_Name, tuple[Any, list[tuple[Any, NDArray[np.float32]]]]]:
    """By its name, each input of large layers, and the layers that it is the input of, with their weights."""
    found: dict[_Name, tuple[Any, list[tuple[Any, NDArray[np.float32]]]]] = {}
    for node in model.get_ordered_ops():
        weights = large_weights(node, 1) if node.get_type_name() == "MatMul" else None
        if weights is not None:
            source = node.input_value(0)
            name = source.get_node().get_friendly_name(), source.get_index()
            found.setdefault(name, (source, []))[1].append((node, weights))
    return found


def _bounds(least: NDArray[np.float32], most: NDArray[np.float32]) -> tuple[float, float]:
    """What covers all columns, with one of the steps at 0."""
    low, high = min(0.0, float(least.min())), max(_TINY, float(most.max()))
    step = (high - low) / (_LEVELS - 1)
    low = -step * round(-low / step)
    return low, low + step * (_LEVELS - 1)
