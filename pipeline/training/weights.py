"""A model folder of the CPU engine back as a Hugging Face folder, so that training can start from what is embedded.

The engine's int8 weights are integers with a scale a row, which OpenVINO itself multiplies out here; the names of the
operations are those of the torch modules that :mod:`pipeline.inference.export` traced. Where activations are scaled
beforehand (:mod:`pipeline.inference.activations`), what made their columns more even is taken out of the weights again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.hub import quiet
from pipeline.inference.conversion import QUERIES, TEXTS
from pipeline.inference.folder import ModelFolder
from pipeline.inference.torch_cross_encoder import open_cross_encoder
from pipeline.training.exporting import LEAST_AGREEMENT, correlation

# Operation that a parameter goes into -> the parameter, and which input it is.
_PARAMETERS = {
    "aten::linear/MatMul": ("weight", 1),
    "aten::linear/Add": ("bias", 1),
    "aten::layer_norm/Multiply_1": ("weight", 1),
    "aten::layer_norm/Add": ("bias", 1),
    "aten::embedding/Gather": ("weight", 0),
}
_NAME = re.compile(r"__module\.model\.(?P<module>[\w.]+)/(?P<operation>aten::\w+/\w+)")
_VECTORS = ("bias", "LayerNorm.weight")


def to_hugging_face(source: Path, folder: Path) -> None:
    """Writes the cross-encoder of a model folder as a ``BertForSequenceClassification`` with its tokenizer.

    Raises:
        SettingsError: it is no model folder of a cross-encoder, or not one of a BERT that can be brought back.
    """
    import openvino
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    model = ModelFolder(source, "cross-encoder")
    graph = openvino.Core().read_model(str(source / "model.xml"))
    reason = _cannot_come_back(model, graph)
    if reason is not None:
        raise SettingsError(_message(source, reason))
    state, heads = _read(graph)
    try:
        words = state["bert.embeddings.word_embeddings.weight"]
        layers = {name.split(".")[3] for name in state if name.startswith("bert.encoder.layer.")}
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=words.shape[1],
            num_hidden_layers=len(layers),
            num_attention_heads=heads,
            intermediate_size=len(state["bert.encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=len(state["bert.embeddings.position_embeddings.weight"]),
            type_vocab_size=len(state["bert.embeddings.token_type_embeddings.weight"]),
            layer_norm_eps=1e-12,
            hidden_act="gelu",
            pad_token_id=int(model.config["pad_id"]),
            num_labels=1,
        )
        torch_model = BertForSequenceClassification(config)
        torch_model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    except (KeyError, RuntimeError) as error:
        raise SettingsError(_message(source, "it holds no BERT")) from error
    with quiet():
        torch_model.save_pretrained(folder)
        _tokenizer(model).save_pretrained(folder)
        found = _agreement(model, folder)
    if not found >= LEAST_AGREEMENT:  # also where it is no number
        raise SettingsError(
            _message(source, f"brought back into torch it answers otherwise (correlation of the logits {found:.3f})")
        )


def _message(source: Path, reason: str) -> str:
    return (
        f"no training can start from {source.absolute()}: {reason}. Give --base the Hugging Face folder that it was "
        "made from"
    )


def _cannot_come_back(model: ModelFolder, graph: Any) -> str | None:
    """What in a folder's form the weights do not say; None if nothing."""
    rounded = [node for node in graph.get_ops() if node.get_type_name() == "FakeQuantize"]
    if any(_factors(node) is None for node in rounded):
        return "its activations were scaled when it was converted, and its weights with them"
    if len(graph.inputs) != 2:
        return "it tells query and text apart by token types"
    start, between, end = model.config["around"]
    if not len(start) == len(end) == 1 or between != end * 2:
        return "it has other special tokens around query and text than RoBERTa's"
    return None


def _agreement(model: ModelFolder, folder: Path) -> float:
    """Correlation of the folder's logits under torch with the engine's: what no form shows, answers do."""
    torch_model = open_cross_encoder(
        str(folder), revision=None, device="cpu", max_length=None, batch_tokens=None, local=True
    )
    exact, quick = (
        np.concatenate([one.logits(query, TEXTS) for query in QUERIES]).astype(np.float64)
        for one in (torch_model, model)
    )
    return correlation(exact, quick)


def _factors(rounding: Any) -> NDArray[np.float32] | None:
    """What a rounding's columns are multiplied by before it, one value each; None if nothing here does that."""
    even = rounding.input_value(0).get_node()
    if even.get_type_name() != "Multiply" or even.input_value(1).get_node().get_type_name() != "Constant":
        return None
    return np.asarray(even.input_value(1).get_node().data, dtype=np.float32).reshape(-1)


def _read(graph: Any) -> tuple[dict[str, NDArray[np.float32]], int]:
    """All parameters by their name in torch, in float32, and the number of attention heads."""
    import openvino

    parts: dict[str, Any] = {}
    factors: dict[str, NDArray[np.float32]] = {}
    heads = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            heads = node.get_output_partial_shape(0)[1].get_length()
        match = _NAME.fullmatch(node.get_friendly_name())
        if match and match["operation"] in _PARAMETERS:
            parameter, place = _PARAMETERS[match["operation"]]
            name = f"{match['module']}.{parameter}"
            parts[name] = node.input_value(place)
            before = node.input_value(0).get_node()
            if before.get_type_name() == "FakeQuantize" and (found := _factors(before)) is not None:
                factors[name] = found
    constants = openvino.Model(list(parts.values()), [], "parameters")
    values = openvino.Core().compile_model(constants, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})
    state = {}
    for place, name in enumerate(parts):
        value = np.asarray(values[place], dtype=np.float32)
        state[name] = value.reshape(-1) if name.endswith(_VECTORS) else value * factors.get(name, np.float32(1))
    return state, heads


def _tokenizer(model: ModelFolder) -> Any:
    """The folder's tokenizer with the special tokens that the engine puts around a pair."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(model.tokenizer.to_str())
    (first,), _, (last,) = model.config["around"]
    ids = {"bos": first, "eos": last, "pad": int(model.config["pad_id"])}
    token = {name: tokenizer.id_to_token(id_) for name, id_ in ids.items()}
    bos, eos = token["bos"], token["eos"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, ids["bos"]), (eos, ids["eos"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model.max_tokens,
        bos_token=bos,
        cls_token=bos,
        eos_token=eos,
        sep_token=eos,
        pad_token=token["pad"],
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "</s>" in a text is text
    )
