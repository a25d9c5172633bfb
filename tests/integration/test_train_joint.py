"""The embedded cross-encoder's own training, for real: tiny models learn a made-up task."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pipeline.inference.folder import ModelFolder
from pipeline.models import EMBEDDER, LATE_INTERACTION
from pipeline.rerankers.late_interaction import LateInteractionReranker
from pipeline.scoring import standardise
from pipeline.training.joint import fitting, lists
from pipeline.training.joint.__main__ import choose, save, without_map
from pipeline.training.joint.fitting import KEPT_LAYERS, Around, Drawer, fit, logits, pair, start_student
from pipeline.training.joint.lists import Lists, load, make_lists
from pipeline.training.joint.made_up import made_up
from pipeline.training.late.questions import SHARES, Questions, Share, read_questions
from tests.datasets import save_dataset

ANIMALS = ("dog", "fox", "cat", "bird")
TOWNS = ("Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Athens", "Oslo")
AROUND = Around(start=0, end=2, pad=1)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Questions:
    """Of texts that share the question's number, the one with the dog is relevant."""
    folder = tmp_path_factory.mktemp("data")
    texts = {
        f"{animal}{i}": f"Report {i:03d} is about the {animal} of the house. "
        f"{TOWNS[i % 8]} and {TOWNS[i // 8]} have nothing to say about a {animal} like it. Its number is {i:03d}."
        for i in range(40)
        for animal in ANIMALS
    }
    queries = {f"q{i}": f"report {i:03d}" for i in range(40)}
    save_dataset(folder / "dogs", texts, queries, {f"q{i}": f"dog{i}" for i in range(40)})
    return read_questions(folder, {"dogs": Share(held_back=10)}, words_of_all=True)


@pytest.fixture(scope="module")
def found(questions: Questions, tmp_path_factory: pytest.TempPathFactory) -> Lists:
    """Saved and read again."""
    folder = tmp_path_factory.mktemp("lists")
    model = ModelFolder(LATE_INTERACTION, "late-interaction", trunk=EMBEDDER, whole_trunk=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "SENTENCES", {"dogs": 1})
        made = make_lists(questions, model, 1, print)
    made.save(folder / "lists.npz")
    return load(folder / "lists.npz")


def tiny(layers: int) -> Any:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": layers}
    vocabulary = ModelFolder(EMBEDDER, "embedder").tokenizer.get_vocab_size()
    config = BertConfig(vocab_size=vocabulary, pad_token_id=AROUND.pad, num_labels=1, initializer_range=0.2, **sizes)
    return BertForSequenceClassification(config)


def test_lists_have_the_first_stage_s_candidates(found: Lists) -> None:
    """Asked questions with what is known of each candidate; made-up ones with the passage that lacks their sentence."""
    asked = [one for one in found.ranked if not one.made_up]
    invented = [one for one in found.ranked if one.made_up]
    assert 40 == len(asked)
    assert 150 == len(invented)  # of the passages that no question held back is about
    about_held = {number for one in asked if one.held_back for number in one.candidates[one.relevant].tolist()}
    assert about_held.isdisjoint(one.source for one in invented)
    assert 10 == sum(one.held_back for one in found.ranked)
    for one in found.ranked:
        assert len(one.candidates) == len(set(one.candidates.tolist())) == len(one.known)
        assert not (one.likely & one.relevant).any()
    assert all(one.relevant.sum() + one.unfound == 1 for one in asked)
    assert all(abs(one.first.mean()) < 1e-3 and one.known.std() > 0.1 for one in asked)
    tokenizer = ModelFolder(EMBEDDER, "embedder").tokenizer
    for one in invented[:20]:
        sentence = tokenizer.decode(found.questions[one.question].tolist())
        own, *others = (tokenizer.decode(found.passages[number].tolist()) for number in one.candidates)
        assert one.relevant.tolist() == [True] + [False] * len(others)
        assert sentence not in own
        assert not any(sentence in other for other in others)  # the whole passage is no candidate


def test_what_is_known_is_what_a_query_takes(questions: Questions, found: Lists) -> None:
    """The package's own reranker, whose graph rounds otherwise, with its weight in the fusion."""
    reranker = LateInteractionReranker()
    for place in (0, 11, 25):
        one = found.ranked[place]
        texts = [questions.passages[number] for number in one.candidates]
        late = standardise([score.raw for score in reranker.score(questions.all[place].text, texts)])[0]
        expected = (1 - reranker.default_alpha) * one.first + reranker.default_alpha * np.array(late)
        assert expected.tolist() == pytest.approx(one.known.tolist(), abs=0.15)


def test_both_trainings_have_the_same_passages_and_hold_back_the_same_questions() -> None:
    """What ``late.unseen`` writes is new to both models, and their figures are of the same questions."""
    assert list(SHARES) == list(lists.SHARES)
    for name, share in SHARES.items():
        assert (share.passages, share.held_back) == (lists.SHARES[name].passages, lists.SHARES[name].held_back)
    assert lists.SENTENCES.keys() | lists.TITLED <= SHARES.keys()


def test_made_up_questions_are_not_in_their_passages() -> None:
    """Title first; Chinese sentences need no space between them; what has too few sentences gives none."""
    english = (
        "The title\nOne sentence that is long enough to ask for it. Short. And the third one of them, as long again!"
    )
    chinese = "北京是中国的首都和政治中心。上海是中国最大的城市之一。广州在南方，气候温暖湿润。"
    (title, body), *rest = made_up(english, 2, Random(0), titled=True)
    assert ("The title", english.partition("\n")[2]) == (title, body)
    assert 2 == len(rest)
    assert all(sentence not in without and sentence in english for sentence, without in rest)
    ((sentence, without),) = made_up(chinese, 1, Random(0), titled=False)
    assert sorted(chinese) == sorted(sentence + without)
    assert [] == list(made_up("One. Two.", 2, Random(0), titled=False))


def test_a_list_is_drawn_without_what_may_be_relevant(found: Lists) -> None:
    """The relevant passage first, then others, none twice, and nothing of a question held back."""
    by_pair = {
        tuple(pair(found.questions[one.question], found.passages[number], AROUND)): (one, place)
        for one in found.ranked
        for place, number in enumerate(one.candidates)
    }
    batch = next(Drawer(found, AROUND, Random(0)).batches())
    assert 32 == len(batch)
    hard = 0
    for drawn in batch:
        assert 16 == len(drawn.pairs) == len(drawn.known) == len(set(map(tuple, drawn.pairs)))
        one, place = by_pair[tuple(drawn.pairs[0])]
        assert one.relevant[place]
        assert not one.held_back
        others = [by_pair[tuple(ids)] for ids in drawn.pairs[1:] if tuple(ids) in by_pair]
        hard += len(others)
        assert not any(ranked.relevant[at] or ranked.likely[at] for ranked, at in others)
    assert hard > 3 * len(batch)


def test_logits_come_in_the_order_of_the_pairs(found: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their lengths, which decide what goes through the model together."""
    import torch

    monkeypatch.setattr(fitting, "_PAIRS", 4)
    model = tiny(2).eval()
    sizes = [9, 3, 17, 5, 12, 3, 8, 15, 1, 6]
    pairs = [pair(found.questions[n], found.passages[n][:size], AROUND) for n, size in enumerate(sizes)]
    with torch.inference_mode():
        together = logits(model, pairs, AROUND).tolist()
        alone = [logits(model, [one], AROUND).item() for one in pairs]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(value, 3) for value in alone}) == len(sizes)


def test_it_learns_what_the_first_stage_cannot_know(
    found: Lists, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For numbers that were held back. The logits that are saved are those of probabilities."""
    import torch
    from safetensors.torch import load_file

    for name, value in {"_WARM_UP": 5, "_BATCH": 16, "_SIZE": 8}.items():
        monkeypatch.setattr(fitting, name, value)
    model = tiny(2)
    before = choose(model.eval(), found, AROUND, print)["measured"]["dogs"]
    said: list[str] = []
    fit(model, found, AROUND, steps=100, learning_rate=3e-3, seed=0, say=said.append)
    chosen = choose(model, found, AROUND, print)
    assert max(chosen["measured"]["dogs"].values()) > 0.95
    assert max(before.values()) < 0.8
    assert chosen["default_alpha"] > 0
    assert said[-1].startswith("step 100 of 100, loss ")
    pairs = [pair(found.questions[0], found.passages[number], AROUND) for number in (0, 1, 2)]
    with torch.inference_mode():
        raw = logits(model, pairs, AROUND)
        save(model, chosen, tmp_path)
        saved = tiny(2).eval()
        state = {name: tensor.float() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
        missing = saved.load_state_dict(state, strict=False).missing_keys
        assert ["bert.embeddings.word_embeddings.weight"] == missing
        saved.bert.embeddings.word_embeddings = model.bert.embeddings.word_embeddings
        assert torch.allclose(chosen["scale"] * raw + chosen["bias"], logits(saved, pairs, AROUND), atol=0.05)
        assert torch.allclose(raw, logits(without_map(saved, tmp_path), pairs, AROUND), atol=0.05)
    assert chosen == json.loads((tmp_path / "measured.json").read_text())


def test_a_student_starts_from_its_teacher_and_comes_nearer(found: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are the teacher's; a training makes its logits more like those."""
    import torch

    for name, value in {"_WARM_UP": 5, "_BATCH": 8, "_SIZE": 8}.items():
        monkeypatch.setattr(fitting, name, value)
    teacher, student = tiny(12).eval(), tiny(len(KEPT_LAYERS))
    start_student(student, teacher)
    for place, kept in enumerate(KEPT_LAYERS):
        ours, theirs = (
            model.bert.encoder.layer[n].output.dense.weight for model, n in ((student, place), (teacher, kept))
        )
        assert torch.equal(ours, theirs)
    pairs = [pair(found.questions[0], ids, AROUND) for ids in found.passages[:60]]
    with torch.inference_mode():
        wanted = logits(teacher, pairs, AROUND)
        apart = [float((wanted - logits(student.eval(), pairs, AROUND)).std())]
    fit(student, found, AROUND, steps=30, learning_rate=1e-3, seed=0, teacher=teacher, say=print)
    with torch.inference_mode():
        apart.append(float((wanted - logits(student, pairs, AROUND)).std()))
    assert apart[1] < 0.8 * apart[0]
