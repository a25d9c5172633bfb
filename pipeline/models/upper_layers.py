"""The upper layers of the late-interaction model, on the embedder's lower ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Layers that the embedder lends; the others are trained for late interaction.
TRUNK_LAYERS = 10
#: Components of a token vector.
DIMENSION = 128
#: The embedder's operation that ends its lower layers, in its model file.
TRUNK_NODE = f"__module.model.encoder.layer.{TRUNK_LAYERS - 1}.output.LayerNorm/aten::layer_norm/Add"


def upper_layers(bert: Any, trunk_layers: int = TRUNK_LAYERS) -> Any:
    """A torch module from (hidden, attention_mask) to token vectors with a weight, of shape (texts, tokens, 128 + 1).

    ``hidden`` is what the lower layers of ``bert`` gave, of shape (texts, tokens, width). The layers start as those of
    ``bert``, projection and weights at random; the state of a trained one has the same names.
    """
    import copy

    import torch

    class UpperLayers(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            width = bert.config.hidden_size
            self.layers = torch.nn.ModuleList(copy.deepcopy(bert.encoder.layer[trunk_layers:]))
            self.projection = torch.nn.Linear(width, DIMENSION)
            self.weight = torch.nn.Linear(width, 1)

        def forward(self, hidden: Any, attention_mask: Any) -> Any:
            seen = attention_mask.bool()[:, None, None, :]
            for layer in self.layers:
                hidden = layer(hidden, seen)
            return torch.cat([self.projection(hidden), self.weight(hidden)], dim=-1)

    return UpperLayers()


def read_upper_layers(bert: Any, folder: Path) -> Any:
    """Those that were trained: ``model.safetensors`` in ``folder``."""
    from safetensors.torch import load_file

    module = upper_layers(bert)
    module.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return module.eval()
