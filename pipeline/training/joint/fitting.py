"""The training: the relevant passage of a list is to score highest, by a model that reads it with the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.models.build import MAX_TOKENS
from pipeline.training.joint.lists import Lists, Ranked

# Lists of a batch, and passages of a list.
_BATCH, _SIZE = 32, 16
# Lists that go through the model at once, their gradients added up.
_AT_ONCE = 16
# Pairs of like length that are one batch of the model's.
_PAIRS = 128
# How far down the candidates a negative comes from, in the mean.
_MEAN_RANK = 10
# Share of the lists whose questions are made up; and how often an epoch sees the few questions of a kind of its own.
_MADE_UP = 0.35
_REPEATED = {"scifact": 3}
# Each layer learns so much less than the one above it.
_LAYER_DECAY = 0.9
_WARM_UP, _LAST_RATE = 150, 0.02
_WEIGHT_DECAY = 0.01
_AVERAGED = 0.999
# Weights in the loss: agreeing with what is known, scoring well together with it, and (of a student) labels and logits.
_AGREE, _TOGETHER, _LABELS, _LOGITS = 0.75, 0.75, 0.3, 0.05
# Sharpness of what is known as a distribution over a list, and its weight beside the model's logit.
_SHARPNESS, _BESIDE = 2.5, 0.5
# Below the worst candidate, for a passage that the first stage has not found.
_FARTHER = 0.3
_SAY_EVERY = 100
# The student's layers start as these of the teacher's twelve, the lowest and the highest among them.
KEPT_LAYERS = (0, 2, 5, 7, 9, 11)


@dataclass(frozen=True, slots=True)
class Around:
    """Special tokens."""

    start: int
    end: int
    pad: int


def pair(question: NDArray[np.uint32], passage: NDArray[np.uint32], around: Around) -> list[int]:
    """Token ids in the engine's order, ``<s> question </s> </s> passage </s>``; a passage is cut at its end."""
    room = MAX_TOKENS - 4 - len(question)
    end = around.end
    return [around.start, *question.tolist(), end, end, *passage[:room].tolist(), end]


def logits(model: Any, pairs: Sequence[list[int]], around: Around) -> Any:
    """Of pairs, in float32; shape (pairs,). Those of like length go through the model together, so little is padded."""
    import torch

    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place]))
    parts = [order[start : start + _PAIRS] for start in range(0, len(order), _PAIRS)]
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.device.type == "cuda"):
        found = [_forward(model, [pairs[place] for place in part], around) for part in parts]
    return torch.cat(found)[torch.tensor(order).argsort().to(model.device)].float()


def _forward(model: Any, pairs: Sequence[list[int]], around: Around) -> Any:
    import torch

    ids = np.full((len(pairs), max(map(len, pairs))), around.pad)
    seen = np.zeros_like(ids)
    for row, one in enumerate(pairs):
        ids[row, : len(one)], seen[row, : len(one)] = one, 1
    device = model.device
    # One transfer that the GPU does not wait for.
    both = torch.from_numpy(np.stack([ids, seen]))
    both = (both.pin_memory() if device.type == "cuda" else both).to(device, non_blocking=True)
    return model(input_ids=both[0], attention_mask=both[1]).logits[:, 0]


@dataclass(slots=True)
class Drawn:
    """A list to learn from, the relevant passage first."""

    pairs: list[list[int]]
    known: list[float]
    made_up: bool


class Drawer:
    """Draws lists: the relevant passage, candidates that look relevant, and one or more of other questions."""

    def __init__(self, lists: Lists, around: Around, random: Random) -> None:
        self._lists, self._around, self._random = lists, around, random
        trained = [one for one in lists.ranked if not one.held_back and one.relevant.any()]
        self._asked = [one for one in trained if not one.made_up for _ in range(_REPEATED.get(one.dataset, 1))]
        self._made_up = [one for one in trained if one.made_up]
        if not self._asked:
            raise SettingsError("no question that people asked has a relevant passage to train on")
        relevant: dict[str, set[int]] = {}
        for one in self._asked:
            relevant.setdefault(one.dataset, set()).update(one.candidates[one.relevant].tolist())
        self._of_dataset = {dataset: sorted(numbers) for dataset, numbers in relevant.items()}

    def batches(self) -> Iterator[list[Drawn]]:
        """Without an end."""
        while True:
            count = min(len(self._made_up), round(len(self._asked) * _MADE_UP / (1 - _MADE_UP)))
            epoch = self._asked + self._random.sample(self._made_up, count)
            self._random.shuffle(epoch)
            size = min(_BATCH, len(epoch))
            for start in range(0, len(epoch) - size + 1, size):
                # Lists of like length go through the model together.
                drawn = [self._draw(one) for one in epoch[start : start + size]]
                yield sorted(drawn, key=lambda one: max(map(len, one.pairs)))

    def _draw(self, ranked: Ranked) -> Drawn:
        places = [self._random.choice(np.flatnonzero(ranked.relevant).tolist())]
        pool = np.flatnonzero(~ranked.relevant & ~ranked.likely).tolist()
        while pool and len(places) < _SIZE - 1:
            places.append(pool.pop(min(int(self._random.expovariate(1 / _MEAN_RANK)), len(pool) - 1)))
        numbers, known = ranked.candidates[places].tolist(), ranked.known[places].tolist()
        pool, own = self._of_dataset.get(ranked.dataset, []), {*ranked.candidates.tolist(), ranked.source}
        drawn = self._random.sample(pool, min(len(pool), _SIZE - len(numbers) + len(own)))
        others = [number for number in drawn if number not in own][: _SIZE - len(numbers)]
        numbers += others
        known += [float(ranked.known.min()) - _FARTHER] * len(others)
        if len(numbers) == 1:
            raise SettingsError(f"{ranked.dataset}: a question needs another passage than the relevant one")
        while len(numbers) < _SIZE:  # of a small dataset some come twice
            place = self._random.randrange(1, len(numbers))
            numbers.append(numbers[place])
            known.append(known[place])
        question = self._lists.questions[ranked.question]
        return Drawn(
            [pair(question, self._lists.passages[number], self._around) for number in numbers], known, ranked.made_up
        )


def fit(
    model: Any,
    lists: Lists,
    around: Around,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    teacher: Any = None,
    say: Callable[[str], None],
) -> None:
    """Trains ``model``, a ``BertForSequenceClassification``, in place; its weights are then the average of the way.

    Without a ``teacher`` the loss of a list is the cross entropy of its softmax (ListNet's, Cao et al., ICML 2007, with
    one relevant passage) plus, for questions that people asked, two parts: the divergence from the softmax of what the
    first stage and late interaction make of the list, and the cross entropy of the sum of both, as scores are added in
    the end. With a teacher it is the divergence from the teacher's softmax, with some of its logits and of the labels.
    """
    import torch

    random = Random(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(_groups(model, learning_rate), betas=(0.9, 0.98), fused=model.device.type == "cuda")
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    total = torch.zeros((), device=model.device)
    for step, drawn in enumerate(Drawer(lists, around, random).batches(), 1):
        shape = min(1, step / _WARM_UP) * (
            _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        )
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * shape
        for start in range(0, len(drawn), _AT_ONCE):
            part = drawn[start : start + _AT_ONCE]
            loss = _loss(model, part, around, teacher).sum() / len(drawn)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for mean, parameter in zip(average, trained, strict=True):
                mean.lerp_(parameter, 1 - min(_AVERAGED, (step + 1) / (step + 50)))
        if step % _SAY_EVERY == 0:
            say(f"step {step} of {steps}, loss {total.item() / _SAY_EVERY:.4f}")
            total.zero_()
        if step == steps:
            break
    with torch.no_grad():
        for mean, parameter in zip(average, trained, strict=True):
            parameter.copy_(mean)
    model.eval()


def _loss(model: Any, drawn: Sequence[Drawn], around: Around, teacher: Any) -> Any:
    """Of each list; shape (lists,)."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    pairs = [one for each in drawn for one in each.pairs]
    found = logits(model, pairs, around).view(len(drawn), -1)
    first = torch.zeros(len(drawn), dtype=torch.long, device=found.device)
    labels = cross_entropy(found, first, reduction="none")
    if teacher is not None:
        with torch.no_grad():
            wanted = logits(teacher, pairs, around).view(len(drawn), -1)
        apart = kl_div(log_softmax(found, 1), log_softmax(wanted, 1), log_target=True, reduction="none").sum(1)
        centred = (found - found.mean(1, keepdim=True)) - (wanted - wanted.mean(1, keepdim=True))
        return _LABELS * labels + apart + _LOGITS * centred.square().mean(1)
    known = _SHARPNESS * torch.tensor([each.known for each in drawn], device=found.device)
    asked = torch.tensor([not each.made_up for each in drawn], device=found.device)
    apart = kl_div(log_softmax(found, 1), log_softmax(known, 1), log_target=True, reduction="none").sum(1)
    together = cross_entropy(found + _BESIDE * known, first, reduction="none")
    return labels + asked * (_AGREE * apart + _TOGETHER * together)


def _groups(model: Any, learning_rate: float) -> list[dict[str, Any]]:
    layers = model.config.num_hidden_layers
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            height = int(parts[3]) + 1 if parts[1] == "encoder" else 0 if parts[1] == "embeddings" else layers + 1
            rate = learning_rate * _LAYER_DECAY ** (layers + 1 - height)
            decay = _WEIGHT_DECAY if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
    return groups


def start_student(student: Any, teacher: Any) -> None:
    """Embeddings, head, and :data:`KEPT_LAYERS` of the teacher's."""
    state = teacher.state_dict()
    kept = {}
    for name, tensor in student.state_dict().items():
        parts = name.split(".")
        if parts[1] == "encoder":
            parts[3] = str(KEPT_LAYERS[int(parts[3])])
        kept[name] = state[".".join(parts)].to(tensor.device)
    student.load_state_dict(kept)
