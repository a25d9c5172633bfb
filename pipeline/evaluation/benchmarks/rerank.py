"""Reranking beside ``CrossEncoder.predict``: the same model, query and texts, in one process, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.hub import pick_device
from pipeline.rerankers.cross_encoder import CrossEncoderReranker

if TYPE_CHECKING:
    from rich.console import Console

PAIR_TOKENS = 165
"""Length of each pair of query and text, special tokens included."""


def pairs_of(query: str, texts: Sequence[str], tokenizer: Tokenizer, count: int) -> list[str]:
    """``count`` texts that make pairs of :data:`PAIR_TOKENS` with the query, out of longer ones, as near as cutting
    at a token's end comes."""
    room = PAIR_TOKENS - len(tokenizer.encode(query, "").ids)
    if room < 1:
        raise SettingsError(f"a query of this length leaves no room for a text in {PAIR_TOKENS} tokens: {query}")
    cut = []
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) >= room:
            cut.append(text[: encoding.offsets[room - 1][1]])
        if len(cut) == count:
            break
    return cut


def measure_rerank(
    query: str, texts: Sequence[str], reranker: str, work: Path, *, device: str, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Milliseconds for all texts, of each way, the median of all rounds, and how much the order differs.

    Loading the models, and a first call each, are not counted.
    """
    from scipy.stats import spearmanr
    from sentence_transformers import CrossEncoder

    ours = CrossEncoderReranker(reranker, device=device, cache_dir=work / "models")
    plain = CrossEncoder(reranker, device=pick_device(device))
    pairs = [(query, text) for text in texts]
    ways: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: [score.raw for score in ours.score(query, texts)],
        "CrossEncoder.predict": lambda: list(map(float, plain.predict(pairs, show_progress_bar=False))),
    }
    answers = {name: run() for name, run in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        say(f"rerank: round {number} of {rounds}")
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in taken.items()}
    ratios = [theirs / mine for mine, theirs in zip(taken["ours"], taken["CrossEncoder.predict"], strict=True)]
    return {
        "texts": len(texts),
        "pair_tokens": PAIR_TOKENS,
        "rounds": rounds,
        "engine": ours.runs_on,
        "device": device_name(device),
        "ms": {name: round(value, 1) for name, value in medians.items()},
        "pairs_per_second": {name: round(1e3 * len(texts) / value, 1) for name, value in medians.items()},
        "times_as_fast": round(float(np.median(ratios)), 2),
        "rank_correlation": round(float(spearmanr(*answers.values()).statistic), 4),
    }


def device_name(device: str) -> str:
    """The GPU's own name; "CPU" for that, whose name is the machine's."""
    import torch

    device = pick_device(device)
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return device.upper()


def print_rerank(result: dict[str, Any], console: Console) -> None:
    """The times, a line each."""
    lines = [
        f"{result['texts']} pairs of {result['pair_tokens']} tokens, median of {result['rounds']} rounds",
        *(
            f"  {name}: {ms:.0f} ms, {result['pairs_per_second'][name]:.0f} pairs/s"
            for name, ms in result["ms"].items()
        ),
        f"  ours, on {result['engine']} and {result['device']}, is {result['times_as_fast']} times as fast; "
        f"rank correlation of the scores {result['rank_correlation']}",
    ]
    console.print("\n".join(lines), highlight=False)
