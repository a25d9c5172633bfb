"""A trained cross-encoder for the CPU engine, in int8."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import SettingsError
from pipeline.evaluation.collection import Say
from pipeline.hub import counting_tokenizer
from pipeline.inference.export import export
from pipeline.reranking import Scorer
from pipeline.training.measuring import Case
from pipeline.windows import Passage

# Correlation of the engine's logits with torch's below which the order of candidates can no longer be trusted.
_LEAST_AGREEMENT = 0.98
_COMPARED = 20
_COMPARED_CANDIDATES = 10


def to_engine(model: Path, folder: Path, name: str) -> None:
    """Writes a Hugging Face cross-encoder as a model folder of the engine; ``default_alpha`` is still 1.

    Raises:
        SettingsError: its pairs have another form than the engine's (one token, the query, tokens between, the text,
            one token), or its tokenizer is one that only Python has.
    """
    from sentence_transformers import CrossEncoder

    loaded = CrossEncoder(str(model), device="cpu", local_files_only=True)
    tokenizer = counting_tokenizer(loaded.tokenizer)
    if tokenizer is None:
        raise SettingsError(f"{model} has a tokenizer that only Python has")
    first, between, last, typed = _pair(loaded.tokenizer)
    pad = loaded.tokenizer.pad_token_id
    config = {
        "kind": "cross-encoder",
        "name": name,
        "max_tokens": int(loaded.max_seq_length),
        "default_alpha": 1.0,
        "pad_id": 0 if pad is None else int(pad),
        "around": [[first], between, [last]],
    }
    logits = _logits(loaded.transformers_model.float(), between[0] if typed else None)
    export(logits, _plain(tokenizer), config, folder)


def agreement(torch_model: Scorer, engine: Scorer, cases: Sequence[Case], say: Say) -> dict[str, float]:
    """How far the two are apart on some pairs: {"pairs", "largest", "mean", "correlation"} of the logits."""
    rows = []
    for case in cases[:_COMPARED]:
        passages = [Passage(one.chunk.title, one.chunk.text) for one in case.candidates[:_COMPARED_CANDIDATES]]
        both = (one.score(case.query, passages) for one in (torch_model, engine))
        rows += [(a.raw, b.raw) for a, b in zip(*both, strict=True) if a is not None and b is not None]
    exact, quick = np.array(rows, dtype=np.float64).T
    apart = np.abs(exact - quick)
    # Constant logits have no correlation; then being equal is all there is.
    varies = exact.std() > 0 and quick.std() > 0
    found = {
        "pairs": len(rows),
        "largest": round(float(apart.max()), 5),
        "mean": round(float(apart.mean()), 5),
        "correlation": round(float(np.corrcoef(exact, quick)[0, 1]) if varies else float(apart.max() < 1e-3), 5),
    }
    say(
        f"int8 against torch on {found['pairs']} pairs: correlation {found['correlation']:.4f}, logits apart by "
        f"{found['mean']:.4f} in the mean and {found['largest']:.4f} at most"
    )
    return found


def agrees(found: dict[str, float]) -> bool:
    """Whether the engine's model can stand for torch's."""
    return found["correlation"] >= _LEAST_AGREEMENT


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Without special tokens, which the engine adds by their ids: "</s>" in a text is text."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    content["post_processor"] = None
    return Tokenizer.from_str(json.dumps(content))


def _pair(tokenizer: Any) -> tuple[int, list[int], int, bool]:
    """What the tokenizer puts before, between and after a pair, and whether it numbers the two segments."""
    query, text = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in ("a", "b"))
    encoded = tokenizer("a", "b")
    ids = list(encoded["input_ids"])
    between = ids[1 + len(query) : len(ids) - 1 - len(text)]
    if not between or ids != [ids[0], *query, *between, *text, ids[-1]]:
        raise SettingsError("its tokenizer joins query and text in a way that the CPU engine does not")
    types = list(encoded.get("token_type_ids", ()))  # only of a tokenizer whose model reads them
    numbered = [0] * (2 + len(query)) + [1] * (len(ids) - 2 - len(query))
    if any(types) and (types != numbered or len(between) > 1):
        raise SettingsError("its tokenizer numbers the two segments in a way that the CPU engine does not")
    return ids[0], between, ids[-1], any(types)


def _logits(model: Any, separator: int | None) -> Any:
    """The model with its logits as the only output; the segments' numbers, where it has them, are made inside."""
    import torch

    if separator is None and model.config.model_type == "bert":
        from pipeline.models.build import logits_of

        return logits_of(model)

    class Logits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            more = {}
            if separator is not None:
                separators = (input_ids == separator).to(torch.long)
                # 1 for all that follows the first separator, but for padding.
                more["token_type_ids"] = (separators.cumsum(1) > separators).to(torch.long) * attention_mask
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).logits

    return Logits()
