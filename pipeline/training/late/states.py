"""What the lower layers make of each text, computed once: they are not trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.engine import Engine, Trunk

# Texts that are sorted by length together: enough for little padding.
_BLOCK = 1024


def lower_layers(embedder: Path, node: str, width: int) -> Engine:
    """The embedder in that model folder, which gives the hidden states after ``node`` beside its own vectors.

    In int8, as it runs beneath the upper layers when they are in use, and several times as fast as under PyTorch.
    """
    import openvino
    import openvino.opset15 as ops

    hidden = ops.parameter([-1, -1, width], np.float32, name="hidden")
    hidden.output(0).set_names({"hidden"})
    with tempfile.TemporaryDirectory() as name:
        nothing_above = Path(name) / "model.xml"
        openvino.save_model(openvino.Model([ops.result(hidden)], [hidden], "states"), str(nothing_above))
        return Engine(nothing_above, trunk=Trunk(embedder / "model.xml", node, whole=True))


class States:
    """Hidden states after the lower layers, in float16, and the whole model's embeddings, for numbered sequences."""

    def __init__(self, lower: Engine, sequences: Sequence[Sequence[int]], width: int, file: IO[bytes]) -> None:
        self._lower = lower
        self._sequences = sequences
        self._ends = np.cumsum([len(ids) for ids in sequences])
        self._hidden: NDArray[np.float16] = np.memmap(
            file, np.float16, "w+", shape=(int(self._ends[-1]) if len(sequences) else 1, width)
        )
        self.embeddings = np.zeros((len(sequences), width), dtype=np.float32)
        """Mean of the last layer's hidden states, of length 1; shape (sequences, width)."""

    def __getitem__(self, number: int) -> NDArray[np.float16]:
        """Of one sequence; shape (its tokens, width)."""
        return self._hidden[self._ends[number] - len(self._sequences[number]) : self._ends[number]]

    def compute(self, say: Callable[[str], None]) -> None:
        """Fills them, a block of texts after the other."""
        for start in range(0, len(self._sequences), _BLOCK):
            block = range(start, min(start + _BLOCK, len(self._sequences)))
            rows = self._lower.both_rows([self._sequences[number] for number in block])
            for number, (hidden, vector) in zip(block, rows, strict=True):
                self[number][:] = hidden
                self.embeddings[number] = vector / np.linalg.norm(vector)
            say(f"lower layers: {block.stop} of {len(self._sequences)} texts")
