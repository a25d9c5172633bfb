"""``rag train-reranker`` for real: a tiny model learns a made-up task on the CPU, and is used from then on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pipeline.build import build_reranker
from pipeline.errors import MissingExtraError, SettingsError
from pipeline.inference import conversion
from pipeline.inference.engine import ACTIVATION_GROUP
from pipeline.inference.folder import ModelFolder
from pipeline.models import RERANKER
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from pipeline.rerankers.embedded import EmbeddedReranker
from pipeline.settings import Settings
from pipeline.training import finishing, fitting
from pipeline.training.exporting import to_engine
from pipeline.training.fitting import Plan, fit
from pipeline.training.mining import Example, read_examples
from pipeline.training.run import train_reranker
from pipeline.training.starting import open_base
from pipeline.training.weights import to_hugging_face
from pipeline.types import StageFusion
from tests.integration.conftest import Rag
from tests.tiny_models import save_cross_encoder, save_embedder

QUESTIONS = 100
ANIMALS = ("dog", "fox", "quick", "lazy")  # words that the tiny model has
# With fewer epochs or questions some runs end on lists that are not learned yet, or with a weight chosen by chance.
PLAN = Plan(epochs=10, learning_rate=0.002, batch_size=4, seed=0, device="cpu")
PAIRS = [
    ("How do I read JSON in Python?", "Use the json module of the standard library."),
    ("how do i read json in python?", "The dog jumps over the fox, 0123456789 times, </s> and </s>."),
    ("如何读取 JSON 文件？", "北京是中国的首都。"),
    ("Vitamin D", "Vitamin D and calcium in older people; a randomised trial with 5292 patients. " * 2),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of texts that are equally like the question, the one with the dog is relevant."""
    folder = tmp_path_factory.mktemp("data") / "dogs"
    (folder / "qrels").mkdir(parents=True)
    numbers = range(QUESTIONS)
    lines(folder / "corpus.jsonl", [text for i in numbers for text in map(document, ANIMALS, [i] * len(ANIMALS))])
    lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"report {i:03d}"} for i in numbers])
    judged = "".join(f"q{i}\tdog{i}\t1\n" for i in numbers)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def document(animal: str, number: int) -> dict[str, str]:
    return {"_id": f"{animal}{number}", "text": f"report {number:03d} the {animal}"}


def lines(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def train(
    tmp_path: Path,
    data: Path,
    base: Path | str,
    say: Callable[[str], None] = lambda line: None,
    cascade: Literal["auto", "off"] = "off",  # a first step could find on its own what is to be learned
    fusion: StageFusion = "linear",
    **options: Any,
) -> dict[str, Any]:
    settings = Settings(data_dir=tmp_path / "rag", device="cpu", cascade=cascade, fusion=fusion)
    return train_reranker(
        [data], tmp_path / "out", settings, base=str(base), **{"plan": PLAN, "negatives": 3, **options}, say=say
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path, base: Path) -> tuple[Path, dict[str, Any]]:
    import torch

    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several add up in another order each time: equal seeds would train differently
    try:
        return folder / "out", train(folder, dataset, base)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ training


def test_it_learns_and_says_so(trained: tuple[Path, dict[str, Any]]) -> None:
    """The first stage and the untrained model cannot tell the two texts apart; the trained one can."""
    _, outcome = trained
    ndcg = outcome["ndcg@10"]
    assert ndcg["first_stage"] < 0.9
    assert ndcg["before"] < 0.9
    assert 1.0 == ndcg["after"]
    assert outcome["loss"]["last"] < outcome["loss"]["first"]
    assert {"train": 80, "choose": 10, "report": 10} == outcome["queries"]
    assert not outcome["cascade"]
    assert all(test["difference"] > 0 for test in outcome["against"].values())


def test_the_engine_takes_the_exported_folder(trained: tuple[Path, dict[str, Any]]) -> None:
    """With the weight that was chosen, and with torch's logits."""
    out, outcome = trained
    quick, exact = EmbeddedReranker(out), CrossEncoderReranker(str(out / "huggingface"), device="cpu")
    assert outcome["alpha"]["after"] == quick.default_alpha
    assert {"RAG_RERANKER": "embedded", "RAG_RERANKER_MODEL": str(out)} == outcome["env"]
    for query, text in PAIRS[:3]:
        assert exact.score(query, [text])[0].raw == pytest.approx(quick.score(query, [text])[0].raw, abs=0.05)


def test_the_card_tells_what_it_is_made_of(trained: tuple[Path, dict[str, Any]]) -> None:
    """Data, licences as far as known, figures, and the hash that the weights really have."""
    out, outcome = trained
    card = (out / "README.md").read_text(encoding="utf-8")
    revision = ModelFolder(out, "cross-encoder").config["revision"]
    for part in ("`dogs`", "not stated", "1.0000", "better than the first stage alone", f"`{revision}`"):
        assert part in card
    assert revision == outcome["sha256"]["model.bin"]


def test_a_finished_training_is_not_done_again(tmp_path: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    """The outcome is as it was, and other arguments are refused."""
    out, outcome = trained
    before = (out / "model.bin").stat().st_mtime_ns
    arguments = json.loads((out / "training.json").read_text())["arguments"]
    data, base = Path(arguments["data"][0]["path"]), arguments["base"]
    said: list[str] = []
    assert outcome == train(out.parent, data, base, said.append)
    assert [f"{out} is finished: this is its outcome"] == said
    assert before == (out / "model.bin").stat().st_mtime_ns
    with pytest.raises(SettingsError, match="negatives: there 3, now 4"):
        train(out.parent, data, base, negatives=4)
    with pytest.raises(SettingsError, match="fusion: there 'linear', now 'rrf'"):
        train(out.parent, data, base, fusion="rrf")


def test_a_training_that_was_cut_off_ends_as_one_that_was_not(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third round it goes on from the last checkpoint, with the lists that were due, to the same weights."""
    monkeypatch.setattr(fitting, "_SAY_EVERY_S", 0.0)  # a line a step, to stop at one
    examples = [Example(f"report {i:03d}", [f"{i:03d} the dog", f"{i:03d} the fox"], [1.0, 0.0]) for i in range(8)]

    def stop(line: str) -> None:
        if line.startswith("step 14 "):
            raise KeyboardInterrupt

    def run(name: str, say: Callable[[str], None]) -> list[dict[str, float]]:
        return fit(str(base), examples, tmp_path / f"{name} work", tmp_path / name, Plan(6, 0.002, 2, 0, "cpu"), say)

    whole = run("whole", lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop)
    said: list[str] = []
    assert [one["step"] for one in whole] == [one["step"] for one in run("cut", said.append)]
    assert "going on from checkpoint-12" in said
    assert 13 == min(int(line.split()[1]) for line in said if line.startswith("step "))
    assert np.allclose(weights(tmp_path / "whole"), weights(tmp_path / "cut"), atol=1e-6)
    assert not np.allclose(weights(tmp_path / "whole"), weights(base), atol=1e-3)


def test_a_second_call_does_not_repeat_what_is_done(
    tmp_path: Path, dataset: Path, base: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    """Stopped after the training, it has the lists, here with the opinion of a teacher, and the model."""

    def stop(line: str) -> None:
        if line.startswith("int8 against torch"):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"plan": replace(PLAN, epochs=0.5), "teacher": str(trained[0])}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, dataset, base, stop, **options)
    examples = tmp_path / "out" / "work" / "examples.jsonl"
    before = examples.stat().st_mtime_ns
    said: list[str] = []
    outcome = train(tmp_path, dataset, base, said.append, **options)
    assert not any(line.startswith("training") for line in said)
    assert before == examples.stat().st_mtime_ns
    assert 10 == outcome["loss"]["steps"]
    assert all(0 < min(example.target) < max(example.target) < 1 for example in read_examples(examples))
    assert "- teacher teacher out@" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ModelFolder(tmp_path / "out", "cross-encoder").config["revision"] == outcome["sha256"]["model.bin"]


def test_a_model_that_int8_changes_too_much_is_used_under_torch(
    tmp_path: Path, dataset: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines for ``.env`` lead to no other conversion into int8, at first use."""
    monkeypatch.setattr(finishing, "agrees", lambda found: False)
    said: list[str] = []
    outcome = train(tmp_path, dataset, base, said.append, plan=replace(PLAN, epochs=0.5))
    assert outcome["engine"] is None
    assert any(line.startswith("the int8 model differs too much") for line in said)
    for name, value in outcome["env"].items():
        monkeypatch.setenv(name, value)
    used = build_reranker(Settings(data_dir=tmp_path / "rag", device="cpu"))
    assert isinstance(used, CrossEncoderReranker)
    assert "PyTorch" == used.runs_on


def weights(folder: Path) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    return np.concatenate([value.ravel() for _, value in sorted(load_file(folder / "model.safetensors").items())])


def test_a_teacher_s_opinion_is_learned(tmp_path: Path, base: Path) -> None:
    """Two passages that the labels do not tell apart come out in the teacher's order."""
    passages = ["report the dog", "report the fox", "report the lazy", "report the json"]
    examples = [Example(f"report {i:03d}", passages, [0.6, 0.02, 0.36, 0.02]) for i in range(16)]
    losses = fit(
        str(base), examples, tmp_path / "work", tmp_path / "model", Plan(12, 0.003, 4, 0, "cpu"), lambda line: None
    )
    assert losses[-1]["loss"] < losses[0]["loss"]
    scores = CrossEncoderReranker(str(tmp_path / "model"), device="cpu").score("report 099", passages)
    assert [0, 2] == sorted(range(4), key=lambda i: -scores[i].raw)[:2]


def test_an_embedder_gets_a_head_and_is_a_reranker_then(tmp_path: Path, dataset: Path) -> None:
    """A backbone without any judgement of pairs has no figure before, and nobody to say what is likely relevant."""
    save_embedder(tmp_path / "base")
    outcome = train(tmp_path, dataset, tmp_path / "base", cascade="auto", plan=replace(PLAN, epochs=0.5))
    assert outcome["ndcg@10"]["before"] is None
    assert outcome["cascade"]  # it is judged as a query will use it
    assert "`embedded` is the first step" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 0 == outcome["mined"]["likely relevant"]
    assert ["the first stage alone"] == list(outcome["against"])
    assert EmbeddedReranker(tmp_path / "out").score("report 001", ["the dog"])


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read or written."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"two-stage-rag\[train\]"):
        train(tmp_path, tmp_path, "embedded")
    assert [] == list(tmp_path.iterdir())


# ----------------------------------------------------------------- the models


def test_the_embedded_weights_can_be_trained_from(tmp_path: Path) -> None:
    """Brought back into torch, the embedded reranker gives the engine's logits; special tokens in a text are text."""
    to_hugging_face(RERANKER, tmp_path / "model")
    exact = CrossEncoderReranker(str(tmp_path / "model"), device="cpu")
    engine = EmbeddedReranker()
    assert engine.max_tokens == exact.max_tokens
    for query, text in PAIRS:
        assert exact.score(query, [text])[0].raw == pytest.approx(engine.score(query, [text])[0].raw, abs=0.15)


def test_a_trained_model_is_trained_further_as_it_is(tmp_path: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    """From the weights before the engine rounded them, so that what training starts from answers as the engine does."""
    out, _ = trained
    start = open_base(str(out), Settings(data_dir=tmp_path, device="cpu"), tmp_path)
    assert str(out / "huggingface") == start.model
    assert out / "README.md" == start.card
    assert start.reranker is not None
    exact = CrossEncoderReranker(start.model, device="cpu")
    for query, text in PAIRS[:3]:
        assert exact.score(query, [text])[0].raw == pytest.approx(start.reranker.score(query, [text])[0].raw, abs=0.05)


def test_a_trained_model_that_the_engine_cannot_take_is_trained_further(
    tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    """There is only its Hugging Face folder then."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "huggingface").symlink_to(trained[0] / "huggingface")
    start = open_base(str(tmp_path / "out"), Settings(data_dir=tmp_path, device="cpu"), tmp_path)
    assert str(tmp_path / "out" / "huggingface") == start.model
    assert isinstance(start.reranker, CrossEncoderReranker)


@pytest.mark.parametrize("kind", ["scaled", "typed", "separated", "changed"])
def test_a_model_that_its_weights_do_not_tell_is_not_trained_from(tmp_path: Path, base: Path, kind: str) -> None:
    """Training would start from another model than the one that was named, without a word."""
    messages = {
        "scaled": "its activations were scaled",
        "typed": "token types",
        "separated": "other special tokens",
        "changed": "answers otherwise",
    }
    folder = tmp_path / "engine"
    if kind == "typed":
        to_engine(base, folder, "tiny")
    else:
        shutil.copytree(RERANKER, folder)
    if kind == "separated":
        config = json.loads((folder / "config.json").read_text())
        config["around"][1] = config["around"][1][:1]
        (folder / "config.json").write_text(json.dumps(config))
    if kind in ("scaled", "changed"):
        divide_activations(folder, rounded=kind == "scaled")
    with pytest.raises(SettingsError, match=f"{messages[kind]}.*Hugging Face folder"):
        to_hugging_face(folder, tmp_path / "model")


def divide_activations(folder: Path, *, rounded: bool) -> None:
    """As a conversion does: what layers multiply is divided column by column, and maybe rounded."""
    import openvino
    import openvino.opset15 as ops

    graph = openvino.Core().read_model(str(folder / "model.xml"))
    for node in graph.get_ordered_ops():
        if node.get_friendly_name().endswith("dense/aten::linear/MatMul"):
            source = node.input_value(0)
            width = source.get_partial_shape()[-1].get_length()
            divisors = np.geomspace(0.1, 10, width, dtype=np.float32).reshape(
                [1] * (len(source.get_partial_shape()) - 1) + [-1]
            )
            changed = ops.divide(source, ops.constant(divisors))
            if rounded:
                bounds = [ops.constant(np.float32(value)) for value in (-8, 8, -8, 8)]
                changed = ops.fake_quantize(changed, *bounds, 256)
            node.input(0).replace_source_output(changed.output(0))
    openvino.save_model(graph, str(folder / "changed.xml"), compress_to_fp16=False)
    for suffix in ("xml", "bin"):
        (folder / f"changed.{suffix}").replace(folder / f"model.{suffix}")


def test_what_comes_back_and_goes_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are exact in int8 and 4 bits stay so: no training, no change, and no growth.

    With activations rounded as they come: scaled beforehand they have a part in the weights, and are rounded with them.
    """
    monkeypatch.setattr(conversion, "scale_activations", lambda *_, **__: None)
    monkeypatch.setattr(conversion, "groups", lambda widths: [ACTIVATION_GROUP])
    to_hugging_face(RERANKER, tmp_path / "embedded")
    to_engine(tmp_path / "embedded", tmp_path / "first", "first")
    to_hugging_face(tmp_path / "first", tmp_path / "model")
    to_engine(tmp_path / "model", tmp_path / "again", "again")
    first, again = EmbeddedReranker(tmp_path / "first"), EmbeddedReranker(tmp_path / "again")
    for query, text in PAIRS:
        assert first.score(query, [text])[0].raw == pytest.approx(again.score(query, [text])[0].raw, abs=0.02)
    assert (tmp_path / "again" / "model.bin").stat().st_size <= 1.01 * (RERANKER / "model.bin").stat().st_size


@pytest.mark.parametrize("architecture", ["XLMRoberta", "ModernBert", "DistilBert"])
def test_other_architectures_go_to_the_engine(tmp_path: Path, architecture: str) -> None:
    """Whatever sentence-transformers scores pairs with, if its tokenizer joins them in the usual way."""
    import transformers

    save_cross_encoder(tmp_path / "model")
    size = len(json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"])
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        initializer_range=0.2,
        num_labels=1,
        pad_token_id=0,
    )
    model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    model.save_pretrained(tmp_path / "model")
    to_engine(tmp_path / "model", tmp_path / "engine", "tiny")
    exact, quick = CrossEncoderReranker(str(tmp_path / "model"), device="cpu"), EmbeddedReranker(tmp_path / "engine")
    for query, text in PAIRS[:3]:
        assert exact.score(query, [text])[0].raw == pytest.approx(quick.score(query, [text])[0].raw, abs=0.05)


# ----------------------------------------------------------- the command line


def test_questions_and_feedback_train_too(rag: Rag, base: Path) -> None:
    """About the ingested collection; the result goes to stdout, everything else to stderr, and .env's lines work."""
    folder = rag.folder
    (folder / "docs").mkdir()
    for i in range(12):
        for animal in ("dog", "fox"):
            (folder / "docs" / f"{animal}{i}.txt").write_text(f"report {i:03d} the {animal}")
    assert 0 == rag("ingest", "docs").returncode
    lines(folder / "questions.jsonl", [{"question": f"report {i:03d}", "relevant": f"dog{i}.txt"} for i in range(12)])
    shown = [[f"Report {i:03d} of the {animal}" for animal in ("fox", "dog")] for i in range(12)]
    lines(folder / "clicks.jsonl", [{"query": f"of {i:03d}", "chosen": s[1], "shown": s} for i, s in enumerate(shown)])
    done = rag(
        *("train-reranker", "--data", "questions.jsonl", "--data", "clicks.jsonl", "--out", "mine"),
        *("--base", str(base), "--epochs", "1", "--negatives", "3", "--json"),
        RAG_DEVICE="cpu",
    )
    assert 0 == done.returncode, done.stderr
    outcome = json.loads(done.stdout)
    assert {"train": 20, "choose": 2, "report": 2} == outcome["queries"]
    assert {"questions", "clicks"} == set(outcome["by_data"])
    assert "training: " in done.stderr
    answer = rag.json("query", "report 007", **outcome["env"])
    assert "embedded" == answer["reranker"]
    assert answer["hits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no such folder or file"),
        (["--data", "few.jsonl"], "too few"),
        (["--data", "few.jsonl", "--data", "./few.jsonl"], "twice"),
        (["--data", "few.jsonl", "--base", "./none"], "there is no folder"),
        (["--data", "few.jsonl", "--teacher", "nobody"], "no reranker is called 'nobody'"),
        (["--data", "few.jsonl", "--teacher", "cohere"], "RAG_COHERE_API_KEY"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, base: Path, arguments: list[str], message: str) -> None:
    """What is wrong, on what, and what to do."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    lines(tmp_path / "few.jsonl", [{"query": "of the", "chosen": "the dog", "shown": ["the dog", "the fox"]}])
    given = arguments if "--base" in arguments else [*arguments, "--base", str(base)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        found = CliRunner().invoke(app, ["train-reranker", "--out", "out", *given])
    assert isinstance(found.exception, SettingsError)
    assert message in str(found.exception)
