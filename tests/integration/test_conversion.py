"""Hugging Face models on the CPU engine: the answers of PyTorch, converted once, or PyTorch where that cannot be."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
from pipeline.errors import EmbedderError, RerankerError
from pipeline.inference import activations, conversion
from pipeline.inference.activations import extremes, scale_activations
from pipeline.inference.choice import EngineChoice
from pipeline.inference.conversion import deviation
from pipeline.inference.engine import Engine, has_bf16, shared_engine
from pipeline.inference.export import compress_weights
from pipeline.inference.folder import ModelFolder
from pipeline.models import EMBEDDER, RERANKER
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from tests.hub import serve_model
from tests.loopback import Loopback
from tests.tiny_models import ARCHITECTURES, save_cross_encoder, save_embedder

QUERIES = ["How do I read JSON in Python?", "北京", "json " * 50, " the quick [SEP] fox \n", ""]
TEXTS = [
    "Use the json module.",
    "如何读取 JSON 文件？",
    "The lazy dog " * 40,
    "dog",
    "[CLS] a [SEP] b",
    " été \ud83d",
    "",
    "x",
]
# Shares of the differences between texts: what float32 on another engine may change, or bfloat16 where the CPU has it.
CLOSE = conversion.ROUNDED if has_bf16() else 0.03


@pytest.fixture(autouse=True)
def float32_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch, too, would compute in bfloat16 where the CPU has it."""
    monkeypatch.setattr("pipeline.inference.torch_cross_encoder.cpu_has_bf16", lambda: False)


def reranker(folder: Path, cache: Path, engine: EngineChoice = "auto", **more: Any) -> CrossEncoderReranker:
    return CrossEncoderReranker(str(folder), device="cpu", engine=engine, cache_dir=cache, **more)


def embedder(folder: Path, cache: Path, engine: EngineChoice = "auto") -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(str(folder), device="cpu", engine=engine, cache_dir=cache)


def raws(model: CrossEncoderReranker, query: str = QUERIES[0]) -> np.ndarray:
    return np.array([[score.raw] for score in model.score(query, TEXTS)], dtype=np.float32)


def conversions(cache: Path) -> list[Path]:
    return sorted((cache / "converted").iterdir())


# --------------------------------------------------------- the same answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cross_encoder_answers_as_under_pytorch(tmp_path: Path, architecture: str) -> None:
    """Whatever the lengths of query and text, in both languages, with special tokens written out in them."""
    folder = save_cross_encoder(tmp_path / "model", architecture=architecture)
    engine, torch = reranker(folder, tmp_path, "openvino"), reranker(folder, tmp_path, "torch")
    assert isinstance(engine._loaded(), ModelFolder)
    assert not isinstance(torch._loaded(), ModelFolder)
    asked = [np.concatenate([raws(model, query) for query in QUERIES]) for model in (engine, torch)]
    assert deviation(*asked) < CLOSE
    assert (torch.max_tokens, torch.identity) == (engine.max_tokens, engine.identity)
    assert torch.tokenizer is not None
    assert engine.tokenizer is not None
    assert torch.tokenizer.to_str() == engine.tokenizer.to_str()


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [("bert", "mean_tokens"), ("xlm-roberta", "cls_token"), ("modernbert", "mean_tokens"), ("mpnet", "mean_tokens")],
)
def test_an_embedder_answers_as_under_pytorch(tmp_path: Path, architecture: str, pooling: str) -> None:
    """With its own prompts and pooling; name, dimension and length are the same, so a collection serves both."""
    prompts = {"query": "read: ", "passage": "json: "}
    folder = save_embedder(tmp_path / "model", architecture=architecture, pooling=pooling, prompts=prompts)
    engine, torch = embedder(folder, tmp_path, "openvino"), embedder(folder, tmp_path, "torch")
    assert isinstance(engine._model, ModelFolder)
    assert not isinstance(torch._model, ModelFolder)
    assert deviation(engine.embed_documents(TEXTS), torch.embed_documents(TEXTS)) < CLOSE
    asked = [np.stack([model.embed_query(query) for query in QUERIES]) for model in (engine, torch)]
    assert deviation(*asked) < CLOSE
    assert (torch.name, torch.dimension, torch.max_tokens) == (engine.name, engine.dimension, engine.max_tokens)


def test_a_shorter_length_is_another_conversion(tmp_path: Path) -> None:
    """``max_length`` cuts on the engine as under PyTorch, and does not meet the model without it."""
    folder = save_cross_encoder(tmp_path / "model")
    short = reranker(folder, tmp_path, max_length=12)
    assert deviation(raws(short), raws(reranker(folder, tmp_path, "torch", max_length=12))) < CLOSE
    assert deviation(raws(short), raws(reranker(folder, tmp_path))) > CLOSE
    assert len(conversions(tmp_path)) == 2


# ------------------------------------------------------------ small weights


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that its weights are worth int8."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return save_cross_encoder(folder, hidden_size=128, intermediate_size=256, initializer_range=0.05)


def test_large_weights_become_int8(tmp_path: Path, wide: Path) -> None:
    """A quarter of the size, nearly the same answers."""
    engine = reranker(wide, tmp_path)
    # These are not the texts that the conversion was checked with.
    assert deviation(raws(engine), raws(reranker(wide, tmp_path, "torch"))) < 2 * conversion.ROUNDED
    small = (conversions(tmp_path)[0] / "model.bin").stat().st_size
    assert small < 0.4 * (wide / "model.safetensors").stat().st_size


def test_activations_are_quantised_in_the_largest_group_that_keeps_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder says which, and the engine follows it."""
    monkeypatch.setattr(conversion, "gains_by_scales", lambda: True)
    model = save_cross_encoder(tmp_path / "model", hidden_size=384, intermediate_size=768)
    scaled = [0.0, 1.0, 1.0, 1.0]  # in float32; with all activations scaled beforehand, with all but one, but two
    far = iter([*scaled, 0.0, *scaled, 1.0, 0.0])  # in groups of 384; of another conversion, and in groups of 128
    monkeypatch.setattr(conversion, "deviation", lambda *_: next(far))
    raws(reranker(model, tmp_path / "both"))
    (folder,) = conversions(tmp_path / "both")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["activation_group"] == 384
    texts = [TEXTS[0]]
    sequences, second = ModelFolder(folder, "cross-encoder").pairs(QUERIES[0], texts)
    large, small = (Engine(folder / "model.xml", group=group).run(sequences, second) for group in (384, 128))
    assert not np.array_equal(large, small)
    assert np.array_equal(ModelFolder(folder, "cross-encoder").logits(QUERIES[0], texts), large[:, 0])
    checked = [ModelFolder(folder, "cross-encoder").logits(query, conversion.TEXTS) for query in conversion.QUERIES]
    assert np.array_equal(conversion._answers(folder)[:, 0], np.concatenate(checked))  # as it runs, so it is checked

    raws(reranker(model, tmp_path / "one"))
    (folder,) = conversions(tmp_path / "one")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["activation_group"] == 128


def test_activations_that_are_scaled_beforehand_are_preferred(
    tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, or all but some of layers that narrow: the file has a rounding for each."""
    monkeypatch.setattr(conversion, "gains_by_scales", lambda: True)
    rounded = []
    for refused in range(3):
        way = iter([0.0] + [1.0] * refused + [0.0])
        cache = tmp_path / str(refused)
        with monkeypatch.context() as patched:
            patched.setattr(conversion, "deviation", lambda *_, way=way: next(way))
            answers = raws(reranker(wide, cache))
        assert deviation(answers, raws(reranker(wide, cache, "torch"))) < 3 * conversion.ROUNDED
        (folder,) = conversions(cache)
        rounded.append((folder / "model.xml").read_text(encoding="utf-8").count('type="FakeQuantize"'))
    assert rounded == [rounded[0], rounded[0] - 1, rounded[0] - 2]  # of two layers
    assert rounded[-1] > 0


@pytest.fixture
def layer() -> tuple[Any, np.ndarray, np.ndarray]:
    """A model of one layer, its weights, and inputs of which some columns are far larger than others."""
    import openvino
    import openvino.opset15 as ops

    random = np.random.default_rng(0)
    weights = random.standard_normal((256, 384)).astype(np.float32)
    inputs = random.standard_normal((4, 50, 384)).astype(np.float32)
    inputs[..., ::50] *= 40
    given = ops.parameter([-1, -1, 384], np.float32)
    return openvino.Model([ops.matmul(given, ops.constant(weights), False, True)], [given]), weights, inputs


def of_layer(model: Any, inputs: np.ndarray) -> tuple[np.ndarray, str]:
    """What it gives, and in what precision the engine multiplies."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    network = openvino.Core().compile_model(model, "CPU", options)
    (precision,) = {
        node.get_rt_info()["runtimePrecision"]
        for node in network.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"] == "FullyConnected"
    }
    return network(inputs)[0], precision


def test_a_scaled_layer_is_multiplied_in_int8(
    layer: tuple[Any, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nearly the same result, on inputs that it was not scaled on, as large columns do not take all steps."""
    model, weights, inputs = layer
    expected = (inputs[-1:] @ weights.T)[0]
    far = []
    for smoothing in (activations._SMOOTHING, 0.0):
        monkeypatch.setattr(activations, "_SMOOTHING", smoothing)
        scaled = model.clone()
        scale_activations(scaled, extremes(scaled, [[one[None]] for one in inputs[:-1]]))
        compress_weights(scaled)
        found, precision = of_layer(scaled, inputs[-1:])
        assert precision in ("u8", "i8")
        far.append(deviation(found[0], expected))
    assert far[0] < 0.05
    assert far[0] < 0.5 * far[1]


def test_a_layer_that_narrows_can_be_left_alone(layer: tuple[Any, np.ndarray, np.ndarray]) -> None:
    """Its activations stay in floating point, or are scaled as the engine runs."""
    model, _, inputs = layer
    seen = extremes(model, [[inputs[:1]]])
    scale_activations(model, seen, without=activations.uneven(model, seen))
    assert "FakeQuantize" not in {node.get_type_name() for node in model.get_ordered_ops()}


def test_the_most_uneven_layer_that_narrows_comes_first() -> None:
    """By how far its largest column is above the others; layers that do not narrow are not among them."""
    import openvino
    import openvino.opset15 as ops

    widths = {"even": 128, "uneven": 128, "widens": 384}
    given = [ops.parameter([-1, 256], np.float32, name=name) for name in widths]
    weights = [ops.constant(np.ones((width, 256), dtype=np.float32)) for width in widths.values()]
    products = [ops.matmul(one, two, False, True) for one, two in zip(given, weights, strict=True)]
    low = np.full(256, -1, dtype=np.float32)
    high = {"even": np.full(256, 9.0), "uneven": np.where(np.arange(256) == 7, 5.0, 0.5), "widens": np.arange(256.0)}
    seen = {(name, 0): (low, values.astype(np.float32)) for name, values in high.items()}
    assert activations.uneven(openvino.Model(products, given), seen) == [("uneven", 0), ("even", 0)]


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ({384, 1536}, [384, 128]),
        ({768, 3072}, [384, 128]),
        ({1024, 4096}, [512, 128]),
        ({384, 512}, [128]),
        ({312, 1200}, [128]),
    ],
)
def test_groups_divide_all_layers(widths: set[int], expected: list[int]) -> None:
    """What is not a whole number of groups wide would stay in floating point."""
    assert conversion.groups(widths) == expected


def test_weights_that_int8_spoils_stay_floating(tmp_path: Path, wide: Path) -> None:
    """One large weight in each row leaves the others few steps: the model is kept in float32, and right."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(wide, folder)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if values.ndim == 2 and "layer" in name:
            values[:, 0] *= 30.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    engine = reranker(folder, tmp_path, "openvino")
    assert deviation(raws(engine), raws(reranker(folder, tmp_path, "torch"))) < CLOSE
    kept = (conversions(tmp_path)[0] / "model.bin").stat().st_size
    assert kept > 0.9 * (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("error", [RuntimeError("bad allocation"), ValueError("cannot convert float NaN to integer")])
def test_what_fails_in_int8_stays_floating(
    tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It has passed the check in float32, so there is a model to use."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(conversion, "extremes", fail)
    assert deviation(raws(reranker(wide, tmp_path, "openvino")), raws(reranker(wide, tmp_path, "torch"))) < CLOSE


def test_what_bfloat16_spoils_is_computed_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder says so, and the engine answers as PyTorch does up to the last digits."""
    monkeypatch.setattr(conversion, "ROUNDED", -1.0)
    folder = save_cross_encoder(tmp_path / "model")
    engine = reranker(folder, tmp_path, "openvino")
    assert deviation(raws(engine), raws(reranker(folder, tmp_path, "torch"))) < conversion.EXACT
    (folder,) = conversions(tmp_path)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["exact"] is True
    assert shared_engine(folder / "model.xml").exact
    assert not shared_engine(EMBEDDER / "model.xml").exact


def test_without_avx512_activations_stay_unrounded(tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take longer in int8: what is converted has no roundings, and those of the embedded model go."""
    monkeypatch.setattr(conversion, "gains_by_scales", lambda: False)
    raws(reranker(wide, tmp_path))
    (folder,) = conversions(tmp_path)
    assert 'type="FakeQuantize"' not in (folder / "model.xml").read_text(encoding="utf-8")

    assert 'type="FakeQuantize"' in (RERANKER / "model.xml").read_text(encoding="utf-8")
    sequences, second = ModelFolder(RERANKER, "cross-encoder").pairs(QUERIES[0], TEXTS)
    rounded = Engine(RERANKER / "model.xml", pad_id=1).run(sequences, second)
    monkeypatch.setattr("pipeline.inference.engine.gains_by_scales", lambda: False)
    unrounded = Engine(RERANKER / "model.xml", pad_id=1).run(sequences, second)
    assert not np.array_equal(rounded, unrounded)
    assert deviation(rounded, unrounded) < conversion.ROUNDED


# ------------------------------------------------- once, and without PyTorch

_SECOND = """
import sys
from pathlib import Path
from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
cache = Path(sys.argv[3])
scores = CrossEncoderReranker(sys.argv[1], cache_dir=cache).score("read json", ["json", "dog"])
vector = SentenceTransformersEmbedder(sys.argv[2], cache_dir=cache).embed_query("json")
loaded = [name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]
print([score.raw for score in scores], vector.tolist()[:3], loaded)
"""


def in_a_new_process(*arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", _SECOND, *arguments],
        env=inherited | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_next_process_needs_no_pytorch(tmp_path: Path) -> None:
    """Folders: the answers of the process that converted them, with neither torch nor transformers loaded."""
    folders = save_cross_encoder(tmp_path / "c"), save_embedder(tmp_path / "e")
    arguments = [*map(str, folders), str(tmp_path / "cache")]
    first, second = in_a_new_process(*arguments), in_a_new_process(*arguments)
    assert first.endswith("['torch', 'transformers', 'sentence_transformers']\n")
    assert first.replace("['torch', 'transformers', 'sentence_transformers']", "[]") == second


def test_a_model_from_the_hub_is_found_again_offline(tmp_path: Path) -> None:
    """Its commit names the conversion, and the hub's cache knows the commit."""
    home = str(tmp_path / "home")
    arguments = ["org/tiny", str(save_embedder(tmp_path / "e")), str(tmp_path / "cache")]
    with Loopback(serve_model("org/tiny", save_cross_encoder(tmp_path / "c"))) as hub:
        first = in_a_new_process(*arguments, HF_HOME=home, HF_ENDPOINT=hub.url)
    second = in_a_new_process(*arguments, HF_HOME=home, HF_HUB_OFFLINE="1")
    assert first.split("['torch'")[0] == second.split("[]")[0]


def test_a_changed_model_is_converted_anew(tmp_path: Path) -> None:
    """The folder's content names the conversion: other weights at the same place never meet the old one."""
    folder, cache = save_embedder(tmp_path / "model"), tmp_path / "cache"
    before = embedder(folder, cache).embed_documents(TEXTS)
    shutil.rmtree(folder)
    after = embedder(save_embedder(folder, seed=1), cache).embed_documents(TEXTS)
    assert deviation(after, embedder(folder, cache, "torch").embed_documents(TEXTS)) < CLOSE
    assert deviation(after, before) > CLOSE
    assert len(conversions(cache)) == 2


def test_a_damaged_conversion_is_made_anew(tmp_path: Path) -> None:
    """A file that somebody removed is no reason to fail."""
    folder = save_embedder(tmp_path / "model")
    before = embedder(folder, tmp_path).embed_documents(TEXTS)
    (conversions(tmp_path)[0] / "model.bin").unlink()
    assert np.array_equal(before, embedder(folder, tmp_path).embed_documents(TEXTS))
    assert (conversions(tmp_path)[0] / "model.bin").is_file()


def test_conversions_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    """Each is made aside and moved into place whole; the one that comes second takes the first one's."""
    folder = save_embedder(tmp_path / "model")
    with ThreadPoolExecutor(2) as pool:
        vectors = list(pool.map(lambda _: embedder(folder, tmp_path).embed_documents(TEXTS), range(2)))
    assert np.array_equal(vectors[0], vectors[1])
    assert len(list((tmp_path / "converted").iterdir())) == 1


def test_pytorch_leaves_no_trace(tmp_path: Path) -> None:
    """Where it is asked for, or where there is no place for a conversion."""
    folder = save_cross_encoder(tmp_path / "model")
    assert not isinstance(reranker(folder, tmp_path, "torch")._loaded(), ModelFolder)
    assert not isinstance(CrossEncoderReranker(str(folder), device="cpu")._loaded(), ModelFolder)
    assert not (tmp_path / "converted").exists()


def test_converting_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No warnings of the tracer and no hints of libraries on the terminal of a program that uses us."""
    folders = save_cross_encoder(tmp_path / "c", seed=3), save_embedder(tmp_path / "e", seed=3)
    capfd.readouterr()
    raws(reranker(folders[0], tmp_path, "openvino"))
    embedder(folders[1], tmp_path, "openvino").embed_documents(TEXTS)
    assert tuple(capfd.readouterr()) == ("", "")


# ------------------------------------------------------------------ refused


def without_prompt(folder: Path) -> Path:
    """An embedder that leaves the prompt's tokens out of its mean, as Instructor models do."""
    save_embedder(folder, prompts={"query": "read: ", "passage": "json: "})
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    return folder


def test_a_model_that_one_graph_cannot_hold_stays_on_pytorch(tmp_path: Path) -> None:
    """Quietly with "auto"; with "openvino" the error says why and what to set."""
    folder = without_prompt(tmp_path / "model")
    auto = embedder(folder, tmp_path)
    assert not isinstance(auto._model, ModelFolder)
    assert np.array_equal(auto.embed_documents(TEXTS), embedder(folder, tmp_path, "torch").embed_documents(TEXTS))
    with pytest.raises(EmbedderError, match="leaves the prompt out of its pooling; set RAG_ENGINE=auto"):
        embedder(folder, tmp_path, "openvino")


def test_wrong_answers_are_refused_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine must answer as PyTorch does; a model for which it does not is converted once, not at each start."""
    folder = save_embedder(tmp_path / "model", architecture="modernbert")
    # Without this step padded tokens of ModernBERT become no number: a real way to go wrong.
    monkeypatch.setattr(conversion, "finite_masks", lambda model: None)
    with caplog.at_level(logging.WARNING):
        assert not isinstance(embedder(folder, tmp_path)._model, ModelFolder)
    assert "stays on PyTorch: the engine's answers differ from PyTorch's by nan% of their spread" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    assert not isinstance(embedder(folder, tmp_path)._model, ModelFolder)
    assert not caplog.records
    (conversions(tmp_path)[0] / "refused.json").write_text(json.dumps({"reason": "x", "engine": "of last year"}))
    assert isinstance(embedder(folder, tmp_path)._model, ModelFolder)


def test_openvino_needs_a_place(tmp_path: Path) -> None:
    """A conversion is too dear to throw away."""
    folder = save_cross_encoder(tmp_path / "model")
    with pytest.raises(RerankerError, match="needs a folder to keep converted models in"):
        CrossEncoderReranker(str(folder), device="cpu", engine="openvino").score("q", ["t"])


def test_damaged_weights_are_an_error_on_every_engine(tmp_path: Path) -> None:
    """NaN is not a score."""
    from safetensors.numpy import load_file, save_file

    folder = save_cross_encoder(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], np.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RerankerError, match="gave no number for 2 of 2 texts"):
        reranker(folder, tmp_path).score("q", ["a", "b"])
