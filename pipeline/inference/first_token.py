"""Cross-encoders whose score depends on the first token alone: the last layer is computed for that one token.

With six layers that is a sixth of the work less, with twelve a twelfth, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ROBERTA = ("roberta", "xlm-roberta")


def first_token_scores(model: Any) -> Any:
    """A transformers model for sequence classification as a module with its scores, (texts, labels), as only output.

    Its arguments are ``input_ids``, ``attention_mask`` and, where it tells the parts of a pair apart,
    ``token_type_ids``, each of shape (texts, tokens). None for an architecture whose layers are not known here.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    kind = type(model).__name__
    head: Callable[[Any], Any]
    if kind == "BertForSequenceClassification":
        base = model.bert

        def head(first: Any) -> Any:
            return model.classifier(base.pooler(first))

    elif kind.endswith("RobertaForSequenceClassification") and model.config.model_type in _ROBERTA:
        base, head = model.roberta, model.classifier
    else:
        return None

    class Scores(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            *layers, last = base.encoder.layer
            mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -1e9
            hidden = base.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
            for layer in layers:
                hidden = self._layer(layer, hidden, hidden, mask)
            return head(self._layer(last, hidden[:, :1], hidden, mask))

        def _layer(self, layer: Any, of: Any, hidden: Any, mask: Any) -> Any:
            own = layer.attention.self

            def heads(values: Any) -> Any:
                return values.unflatten(-1, (own.num_attention_heads, own.attention_head_size)).transpose(1, 2)

            query, key, value = heads(own.query(of)), heads(own.key(hidden)), heads(own.value(hidden))
            mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
            attended = layer.attention.output(mixed, of)
            return layer.output(layer.intermediate(attended), attended)

    return Scores()
