"""The training itself: sentence-transformers' CrossEncoderTrainer with a listwise loss, resumable."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from pipeline.errors import MissingExtraError, SettingsError
from pipeline.evaluation.collection import Say
from pipeline.hub import ModelError, cpu_has_bf16, load_model, pick_device, quiet
from pipeline.rerankers.cross_encoder import ORGANIZATION
from pipeline.training.mining import Example

_WARM_UP = 0.1
_WEIGHT_DECAY = 0.01
# Lists that go through the model at once, their gradients added up to a batch's. What a small model keeps of one pair
# for its gradient is some 100 MB; and on CPUs few passages at once are faster.
_AT_ONCE = {"cpu": 1}
_AT_ONCE_ON_GPU = 8
_CHECKPOINTS = 20
_SAY_EVERY_S = 10.0
# log(0) for the target: far below what float32's softmax keeps.
_NEVER = -100.0
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train; the batch is of lists, not of pairs."""

    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    device: str


def require_extra() -> None:
    """Refuses early what would fail late.

    Raises:
        MissingExtraError: the packages of the extra ``train`` are not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("accelerate", "datasets") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"training needs {' and '.join(missing)}: pip install 'two-stage-rag[train]' (or {' '.join(missing)})"
        )


def fit(base: str, examples: Sequence[Example], work: Path, out: Path, plan: Plan, say: Say) -> list[dict[str, float]]:
    """Trains ``base`` and saves it as a Hugging Face folder; returns the course of the loss, {"step", "loss"} each.

    ListNet's loss is the cross entropy between the softmax of the logits of a list and a target distribution (Cao et
    al., ICML 2007). With one relevant passage that is the softmax loss over a list, as in a query one passage is
    wanted before many; and a teacher's opinion of a whole list goes into the same target. LambdaLoss and its like know
    grades, but no distributions.

    The word embeddings stay as they are: a few thousand questions use too few words to move the others along, and the
    engine keeps frozen ones in 4 bits.

    Checkpoints are kept under ``work``; the last whole one is gone on from.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback

    class Trainer(CrossEncoderTrainer):  # type: ignore[misc]
        """Takes the rows in their order, so that one that goes on sees those that the other would have seen."""

        def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> Any:
            return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    device = pick_device(plan.device)
    model = _open(base, device, plan.seed)
    model.transformers_model.get_input_embeddings().weight.requires_grad_(False)
    steps = math.ceil(len(examples) * plan.epochs / plan.batch_size)
    most = _AT_ONCE.get(device, _AT_ONCE_ON_GPU)
    at_once = next(n for n in range(most, 0, -1) if plan.batch_size % n == 0)
    often = max(1, math.ceil(steps / _CHECKPOINTS))
    lists = {
        "query": [example.query for example in examples],
        "passages": [example.passages for example in examples],
        "labels": [[math.log(share) if share > 0 else _NEVER for share in example.target] for example in examples],
    }
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=plan.batch_size // at_once,
        learning_rate=plan.learning_rate,
        warmup_steps=math.ceil(_WARM_UP * steps),
        weight_decay=_WEIGHT_DECAY,
        bf16=_bf16(device),
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        save_steps=often,
        save_total_limit=2,
        logging_steps=often,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=True,
    )
    with quiet():
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(lists).select(shuffled(len(examples), steps * plan.batch_size, plan.seed)),
            loss=ListNetLoss(model, mini_batch_size=-1),
            callbacks=[_progress(say, steps)],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results go
        done = last_checkpoint(work)
        if done is not None:
            say(f"going on from {done.name}")
        try:
            trainer.train(resume_from_checkpoint=None if done is None else str(done))
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"the memory of {device} does not hold {at_once} lists at once: try fewer --negatives, or "
                "--batch-size 1"
            ) from error
        if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
            raise SettingsError(
                f"the weights are no numbers any more: try a lower --learning-rate than {plan.learning_rate:g}, in a "
                "new folder"
            )
        new = out.with_name(out.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        model.save_pretrained(str(new), create_model_card=False)
    shutil.rmtree(out, ignore_errors=True)
    new.replace(out)
    return [{"step": line["step"], "loss": line["loss"]} for line in trainer.state.log_history if "loss" in line]


def shuffled(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` numbers below ``count``: all of them in a random order, then in another one, and so on."""
    random = Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += random.sample(range(count), count)
    return order[:wanted]


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the unfinished ones are removed."""
    found = []
    for folder in work.glob("checkpoint-*"):
        # The trainer writes this file last.
        match = _CHECKPOINT.fullmatch(folder.name)
        if match and (folder / "trainer_state.json").is_file():
            found.append((int(match[1]), folder))
        else:
            shutil.rmtree(folder)
    return max(found)[1] if found else None


def _open(base: str, device: str, seed: int) -> Any:
    import torch
    from sentence_transformers import CrossEncoder

    torch.manual_seed(seed)  # a model that is no reranker yet gets a head of random weights
    try:
        return load_model(
            base,
            revision=None,
            organization=ORGANIZATION,
            instead="--base embedded",
            open_model=lambda name, local: CrossEncoder(name, num_labels=1, device=device, local_files_only=local),
        )
    except ModelError as error:
        raise SettingsError(f"--base {base}: {error}") from error


def _bf16(device: str) -> bool:
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    return device == "cpu" and cpu_has_bf16()


def _progress(say: Say, steps: int) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        """A line now and then: how far, how long still, and the loss."""

        def __init__(self) -> None:
            self._start = self._said = time.monotonic()
            self._first = 0
            self._loss = ""

        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            self._first = state.global_step
            self._start = self._said = time.monotonic()
            say(f"training: {steps} steps")

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self._loss = f", loss {float(logs['loss']):.4f}"

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            now = time.monotonic()
            if now - self._said > _SAY_EVERY_S or state.global_step == steps:
                self._said = now
                pace = (now - self._start) / max(1, state.global_step - self._first)
                left = (steps - state.global_step) * pace
                rest = f"{left / 60:.0f} min" if left > 100 else f"{left:.0f} s"
                say(f"step {state.global_step} of {steps}{self._loss}, about {rest} left")

    return Progress()
