"""What the lower layers make of each text, computed once: they are not trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.engine import batches

# Padded tokens in a batch; more are no faster on a CPU.
_TOKENS = 2048
# Texts that are sorted by length together: enough for little padding.
_BLOCK = 1024


class States:
    """Hidden states after the lower layers, in float16, and the whole model's embeddings, for numbered sequences."""

    def __init__(self, bert: Any, sequences: Sequence[Sequence[int]], trunk_layers: int, file: IO[bytes]) -> None:
        self._bert = bert
        self._sequences = sequences
        self._trunk_layers = trunk_layers
        self._ends = np.cumsum([len(ids) for ids in sequences])
        width = bert.config.hidden_size
        self._hidden: NDArray[np.float16] = np.memmap(
            file, np.float16, "w+", shape=(int(self._ends[-1]) if len(sequences) else 1, width)
        )
        self.embeddings = np.zeros((len(sequences), width), dtype=np.float32)
        """Mean of the last layer's hidden states, of length 1; shape (sequences, width)."""

    def __getitem__(self, number: int) -> NDArray[np.float16]:
        """Of one sequence; shape (its tokens, width)."""
        return self._hidden[self._ends[number] - len(self._sequences[number]) : self._ends[number]]

    def compute(self, say: Callable[[str], None]) -> None:
        """All of them."""
        import torch

        with torch.inference_mode():
            for start in range(0, len(self._sequences), _BLOCK):
                block = range(start, min(start + _BLOCK, len(self._sequences)))
                ordered = sorted(block, key=lambda number: -len(self._sequences[number]))
                for rows in batches([len(self._sequences[number]) for number in ordered], _TOKENS):
                    self._compute(ordered[rows])
                say(f"lower layers: {block.stop} of {len(self._sequences)} texts")

    def _compute(self, numbers: Sequence[int]) -> None:
        import torch

        longest = max(len(self._sequences[number]) for number in numbers)
        ids = torch.full((len(numbers), longest), self._bert.config.pad_token_id)
        seen = torch.zeros(len(numbers), longest, dtype=torch.bool)
        for row, number in enumerate(numbers):
            sequence = self._sequences[number]
            ids[row, : len(sequence)] = torch.tensor(sequence)
            seen[row, : len(sequence)] = True
        output = self._bert(input_ids=ids, attention_mask=seen.long(), output_hidden_states=True)
        below, above = output.hidden_states[self._trunk_layers], output.last_hidden_state * seen.unsqueeze(-1)
        pooled = torch.nn.functional.normalize(above.sum(dim=1), dim=1)
        for row, number in enumerate(numbers):
            self[number][:] = below[row, : len(self._sequences[number])].numpy()
            self.embeddings[number] = pooled[row].numpy()
