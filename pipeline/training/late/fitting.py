"""Trains the upper layers: the relevant passage is to be nearer than all others of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from pipeline.inference.engine import batches, padded
from pipeline.models.upper_layers import DIMENSION
from pipeline.training.late.questions import Question, Questions
from pipeline.training.late.states import States

# Questions of a batch, all of one dataset, so that the others' passages are no give-away.
_BATCH = 32
# Negatives drawn for each question, and how far down its list they come from, in the mean.
_NEGATIVES = 2
_MEAN_RANK = 8
# Of BM25's candidates and of the nearest embeddings, so many are looked at.
_SPARSE, _DENSE = 25, 30
# A passage that the embedder finds at least so near as the relevant one may be relevant, too: 0 is the mean of all
# passages, 1 the relevant one. (After TopK-PercPos in Moreira et al., "NV-Retriever", 2024.)
_LIKELY_RELEVANT = 0.95
# Learning rates: a trained layer, the projection, the weights of query tokens, the sharpness of the softmax.
_RATES = (8e-5, 3e-4, 3e-3, 1e-2)
_WARM_UP, _LAST_RATE = 30, 0.03
_SHARPNESS = 40.0
_TOKENS = 3072


@dataclass
class Model:
    """The upper layers on the states below them; sequences are numbers of ``states``."""

    upper: Any
    states: States

    def vectors(self, numbers: Sequence[int]) -> list[tuple[Any, Any]]:
        """For each sequence its token vectors, of length 1, and their weights; a batch at a time, sorted by length."""
        import torch

        found: dict[int, tuple[Any, Any]] = {}
        ordered = sorted(set(numbers), key=lambda number: -len(self.states[number]))
        for rows in batches([len(self.states[number]) for number in ordered], _TOKENS):
            batch = [torch.from_numpy(np.array(self.states[number], dtype=np.float32)) for number in ordered[rows]]
            hidden = batch[0].new_zeros(len(batch), padded(len(batch[0])), batch[0].shape[1])
            seen = torch.zeros(hidden.shape[:2], dtype=torch.bool)
            for row, states in enumerate(batch):
                hidden[row, : len(states)], seen[row, : len(states)] = states, True
            output = self.upper(hidden, seen)
            units = torch.nn.functional.normalize(output[..., :DIMENSION], dim=-1)
            weights = torch.nn.functional.softplus(output[..., DIMENSION])
            for row, number in enumerate(ordered[rows]):
                size = len(batch[row])
                found[number] = units[row, :size], weights[row, :size]
        return [found[number] for number in numbers]

    def scores(self, queries: Sequence[int], passages: Sequence[int]) -> Any:
        """Of each query with each passage; shape (queries, passages)."""
        return max_sim(self.vectors(queries), self.vectors(passages))


def max_sim(queries: Sequence[tuple[Any, Any]], passages: Sequence[tuple[Any, Any]]) -> Any:
    """The weighted mean over a query's tokens of the largest cosine with a passage's; shape (queries, passages)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    asked, weights = pad_sequence([v for v, _ in queries], True), pad_sequence([w for _, w in queries], True)
    texts = pad_sequence([v for v, _ in passages], True)
    seen = pad_sequence([torch.ones(len(v), dtype=torch.bool) for v, _ in passages], True)
    cosines = torch.einsum("qid,pjd->qipj", asked, texts).masked_fill(~seen, -2)
    best = cosines.max(dim=-1).values
    return (best * weights.unsqueeze(-1)).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def start(upper: Any, states: States, sample: Sequence[int]) -> None:
    """The projection starts as the main components of the token vectors of a sample, weights as equal ones."""
    import torch

    with torch.inference_mode():
        hidden = []
        for number in sample:
            row = torch.from_numpy(np.array(states[number], dtype=np.float32)).unsqueeze(0)
            for layer in upper.layers:
                row = layer(row, None)
            hidden.append(row[0])
        tokens = torch.cat(hidden)
        mean = tokens.mean(dim=0)
        main = torch.linalg.svd(tokens - mean, full_matrices=False).Vh[:DIMENSION]
    upper.projection.weight.data.copy_(main)
    upper.projection.bias.data.copy_(-0.5 * (main @ mean))  # what all tokens share is halved, not lost
    torch.nn.init.zeros_(upper.weight.weight)
    torch.nn.init.constant_(upper.weight.bias, math.log(math.e - 1))  # softplus of it is 1


def hard_negatives(questions: Questions, states: States, of_question: Sequence[int]) -> dict[int, list[int]]:
    """For each question that is trained on, passages that look relevant and likely are not, likeliest first.

    ``of_question`` are the numbers of the questions' sequences; passages have their own.
    """
    found = {}
    for place, question in enumerate(questions.all):
        if question.held_back:
            continue
        passages = questions.by_dataset[question.dataset]
        cosines = states.embeddings[passages.start : passages.stop] @ states.embeddings[of_question[place]]
        relevant = {number - passages.start for number in question.relevant}
        mean, best = cosines.mean(), max(cosines[number] for number in relevant)
        near = np.argsort(-cosines, kind="stable")[:_DENSE].tolist()
        listed = [number - passages.start for number, _ in question.candidates[:_SPARSE]] + near
        cut = mean + _LIKELY_RELEVANT * (best - mean)
        found[place] = [
            number + passages.start
            for number in dict.fromkeys(listed)
            if number not in relevant and cosines[number] < cut
        ]
    return found


def fit(
    model: Model, questions: Questions, of_question: Sequence[int], *, steps: int, seed: int, say: Callable[[str], None]
) -> None:
    """Trains so many batches, as often through the questions as that takes."""
    import torch

    sharpness = torch.nn.Parameter(torch.tensor(math.log(_SHARPNESS)))
    groups = [model.upper.layers.parameters(), model.upper.projection.parameters(), model.upper.weight.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": list(group), "lr": rate} for group, rate in zip([*groups, [sharpness]], _RATES, strict=True)],
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    negatives = hard_negatives(questions, model.states, of_question)
    random = Random(seed)
    parts = _batches(questions, random)
    losses = []
    for step in range(steps):
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        share = min(1.0, (step + 1) / _WARM_UP) * (cosine * (1 - _LAST_RATE) + _LAST_RATE)
        for group, rate in zip(optimizer.param_groups, _RATES, strict=True):
            group["lr"] = share * rate
        batch = parts[step % len(parts)]
        loss = _loss(model, sharpness.exp(), questions.all, batch, of_question, negatives, random)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.upper.parameters(), sharpness], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            say(f"step {step + 1} of {steps}: loss {np.mean(losses[-50:]):.3f}")


def _batches(questions: Questions, random: Random) -> list[list[int]]:
    by_dataset: dict[str, list[int]] = {}
    for place, question in enumerate(questions.all):
        if not question.held_back:
            by_dataset.setdefault(question.dataset, []).append(place)
    found: list[list[int]] = []
    for places in by_dataset.values():
        random.shuffle(places)
        found.extend(_parts(places))
    random.shuffle(found)
    return found


def _parts(places: list[int]) -> Iterator[list[int]]:
    for first in range(0, max(1, len(places) - _BATCH // 2), _BATCH):
        yield places[first : first + _BATCH]


def _loss(
    model: Model,
    sharpness: Any,
    questions: Sequence[Question],
    batch: Sequence[int],
    of_question: Sequence[int],
    negatives: dict[int, list[int]],
    random: Random,
) -> Any:
    """Cross-entropy of each question's relevant passage among those of all questions, and of all their negatives."""
    import torch

    relevant = [random.choice(questions[place].relevant) for place in batch]
    drawn = [
        listed[min(int(random.expovariate(1 / _MEAN_RANK)), len(listed) - 1)]
        for place in batch
        if (listed := negatives[place])
        for _ in range(_NEGATIVES)
    ]
    passages = list(dict.fromkeys([*relevant, *drawn]))
    column = {number: place for place, number in enumerate(passages)}
    scores = model.scores([of_question[place] for place in batch], passages) * sharpness
    also_relevant = torch.zeros(scores.shape, dtype=torch.bool)
    for row, place in enumerate(batch):
        for number in questions[place].relevant:
            if number in column and number != relevant[row]:
                also_relevant[row, column[number]] = True
    target = torch.tensor([column[number] for number in relevant])
    return torch.nn.functional.cross_entropy(scores.masked_fill(also_relevant, -1e4), target)
