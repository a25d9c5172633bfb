"""Cross-encoders and embedders loaded by sentence-transformers: from folders, a hub on loopback, and its cache."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
from pipeline.errors import EmbedderError, RerankerError, SettingsError
from pipeline.hub import quiet
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
from tests.hub import COMMIT, serve_model
from tests.loopback import Loopback
from tests.tiny_models import save_cross_encoder, save_embedder

QUERY = "How do I read JSON in Python?"
TEXTS = ["Use the json module.", "如何读取 JSON 文件？", "Vitamin D in older people.", "The lazy dog " * 40, "dog"]
# In bf16 (CPUs that have it) a logit of size 1 is known to a hundredth or two.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross-encoder") / "model")


def reference_logits(folder: Path, query: str, texts: list[str]) -> list[float]:
    """One pair at a time through transformers alone, in float32, without any activation."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = []
    with torch.inference_mode():
        for text in texts:
            features = tokenizer(query, text, truncation="only_second", return_tensors="pt")
            logits.append(model(**features).logits.item())
    return logits


def raws(reranker: CrossEncoderReranker, query: str = QUERY, texts: list[str] = TEXTS) -> list[float]:
    return [score.raw for score in reranker.score(query, texts)]


def configure(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | values))


# ----------------------------------------------------------- cross-encoders


@pytest.mark.parametrize("activation", [None, "Sigmoid", "Identity", "Tanh", "old Sigmoid", "old Identity"])
def test_raw_is_the_logit_whatever_activation_the_model_names(tmp_path: Path, activation: str | None) -> None:
    """sentence-transformers applies by default what the configuration says; the sigmoid here is ours, once."""
    folder = save_cross_encoder(tmp_path / "model", seed=1)
    path = f"torch.nn.modules.activation.{activation.split()[-1]}" if activation else None
    if activation in {"Identity", "old Identity"}:
        path = "torch.nn.modules.linear.Identity"
    if activation and activation.startswith("old"):
        configure(folder, "config.json", sbert_ce_default_activation_function=path)
    elif activation:
        configure(folder, "config.json", sentence_transformers={"activation_fn": path, "version": "4.0.1"})
    assert reference_logits(folder, QUERY, TEXTS) == pytest.approx(
        raws(CrossEncoderReranker(str(folder), device="cpu")), abs=TOLERANCE
    )


def test_a_sigmoid_among_the_model_s_modules_is_taken_out(tmp_path: Path) -> None:
    """A head saved as a Dense module may bring its own sigmoid; the raw score is the logit all the same."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch.nn import Identity, Sigmoid

    base = Transformer(str(save_embedder(tmp_path / "base")))
    pooling = Pooling(32, pooling_mode="mean")
    outputs = {}
    for activation in (Identity(), Sigmoid()):
        head = Dense(32, 1, activation_function=activation, module_output_name="scores")
        head.linear.weight.data.fill_(0.3)
        head.linear.bias.data.fill_(-5.0)
        folder = tmp_path / type(activation).__name__
        CrossEncoder(modules=[base, pooling, head], device="cpu").save_pretrained(str(folder), create_model_card=False)
        outputs[type(activation).__name__] = raws(CrossEncoderReranker(str(folder), device="cpu"))
    assert outputs["Identity"] == pytest.approx(outputs["Sigmoid"], abs=1e-6)
    assert all(raw < 0.0 for raw in outputs["Sigmoid"])


def test_the_size_of_batches_changes_nothing(folder: Path) -> None:
    """One text a batch or all in one: the same scores within the precision of bf16."""
    one = CrossEncoderReranker(str(folder), device="cpu", batch_tokens=1)
    all_ = CrossEncoderReranker(str(folder), device="cpu", batch_tokens=100_000)
    assert raws(one) == pytest.approx(raws(all_), abs=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_holds_no_more_padding_than_its_longest_text_needs(tmp_path: Path, side: str) -> None:
    """All pairs are tokenized, and padded, together; positions are counted from where a row begins."""
    folder = save_cross_encoder(tmp_path / "model", seed=1)
    configure(folder, "tokenizer_config.json", padding_side=side)
    alone = CrossEncoderReranker(str(folder), device="cpu", engine="torch", batch_tokens=1)
    assert reference_logits(folder, QUERY, TEXTS) == pytest.approx(raws(alone), abs=TOLERANCE)


def test_the_model_s_own_prompt_is_put_before_what_it_reads(tmp_path: Path) -> None:
    """As CrossEncoder.predict does; the CPU engine knows no prompt, and leaves such a model to PyTorch."""
    from sentence_transformers import CrossEncoder
    from torch.nn import Identity

    bare = save_cross_encoder(tmp_path / "bare", seed=1)
    model = CrossEncoder(str(bare), device="cpu", prompts={"any": "json python "}, default_prompt_name="any")
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    without = raws(CrossEncoderReranker(str(bare), device="cpu"))
    expected = [float(model.predict([(QUERY, text)], activation_fn=Identity())[0]) for text in TEXTS]
    reranker = CrossEncoderReranker(str(tmp_path / "model"), device="cpu")
    assert expected == pytest.approx(raws(reranker), abs=TOLERANCE)
    assert np.abs(np.subtract(expected, without)).max() > 4 * TOLERANCE
    assert reranker.runs_on == "PyTorch"


def test_a_long_query_leaves_room_for_the_text(folder: Path) -> None:
    """And a long text for the query: what is cut is the end of the longer one."""
    reranker = CrossEncoderReranker(str(folder), device="cpu")
    scores = raws(reranker, "read json " * 500, ["python", "vitamin"])
    assert abs(scores[0] - scores[1]) > 1e-3
    long_text = "the lazy dog " * 500
    assert abs(raws(reranker, "json", [long_text])[0] - raws(reranker, "vitamin", [long_text])[0]) > 1e-3


def test_max_length_can_be_set(folder: Path) -> None:
    """With a shorter input the end of a text no longer counts."""
    texts = ["json module of the standard library dog", "json module of the standard library vitamin"]
    whole = raws(CrossEncoderReranker(str(folder), device="cpu"), "read", texts)
    cut = raws(CrossEncoderReranker(str(folder), device="cpu", max_length=8), "read", texts)
    assert whole[0] != whole[1]
    assert cut[0] == pytest.approx(cut[1], abs=1e-6)


def test_logits_do_not_tie(folder: Path) -> None:
    """The last layer is computed in float32: 100 different texts have 100 different logits."""
    texts = [f"json {i} {'word ' * (i % 9)}" for i in range(100)]
    assert len(set(raws(CrossEncoderReranker(str(folder), device="cpu"), QUERY, texts))) == 100


def test_two_loads_at_once_leave_the_libraries_as_they_were() -> None:
    """As one model is converted while another one is loaded: the one that began later ends later."""

    def state() -> list[object]:
        levels = [
            logging.getLogger(name).level for name in ("huggingface_hub", "sentence_transformers", "transformers")
        ]
        return [*levels, are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()]

    before = state()
    one, other = quiet(), quiet()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    silent = state()
    assert [logging.ERROR] * 3 + [True, False] == silent != before
    other.__exit__(None, None, None)
    assert before == state()


def test_a_model_is_loaded_once_a_process(folder: Path) -> None:
    """Any number of rerankers share it, however its folder is written; another length is another model."""
    first = CrossEncoderReranker(str(folder), device="cpu")._loaded()
    assert CrossEncoderReranker(f"{folder}/../{folder.name}", device="cpu")._loaded() is first
    assert CrossEncoderReranker(str(folder), device="cpu", max_length=16)._loaded() is not first


def test_a_classifier_is_no_reranker(tmp_path: Path) -> None:
    """More than one output: which of them would be relevance is not guessed."""
    reranker = CrossEncoderReranker(str(save_cross_encoder(tmp_path / "m", labels=3)), name="bge", device="cpu")
    with pytest.raises(RerankerError, match="has 3 outputs, a reranker needs exactly one") as caught:
        reranker.score("q", ["t"])
    assert (caught.value.provider, caught.value.retryable) == ("bge", False)


def test_a_model_without_its_tokenizer_is_an_error(tmp_path: Path) -> None:
    """transformers makes one up that knows no word: all texts would be equal to the model."""
    for save, use in (
        (save_cross_encoder, lambda model: CrossEncoderReranker(model, device="cpu").score("q", ["a", "b"])),
        (save_embedder, SentenceTransformersEmbedder),
    ):
        folder = save(tmp_path / save.__name__)
        for file in folder.glob("*token*"):
            file.unlink()
        with pytest.raises((RerankerError, EmbedderError), match="was saved without its tokenizer"):
            use(str(folder))


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    """NaN is not a score, and half a file is not a model."""
    from safetensors.numpy import load_file, save_file

    folder = save_cross_encoder(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], np.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RerankerError, match="gave no number for 2 of 2 texts"):
        CrossEncoderReranker(str(folder), device="cpu").score("q", ["a", "b"])

    folder = save_cross_encoder(tmp_path / "half")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RerankerError, match="cannot be loaded"):
        CrossEncoderReranker(str(folder), device="cpu").score("q", ["a"])


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere-at-all", " "])
def test_a_folder_that_is_not_there_is_said_so(model: str) -> None:
    """A path is not looked for on the hub."""
    with pytest.raises(RerankerError, match="there is no folder"):
        CrossEncoderReranker(model).score("q", ["t"])
    with pytest.raises(EmbedderError, match="there is no folder"):
        SentenceTransformersEmbedder(model)


def test_a_device_that_is_not_there_is_said_so(folder: Path) -> None:
    """The message names the variable."""
    import torch

    device = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(SettingsError, match=f"RAG_DEVICE={device}"):
        CrossEncoderReranker(str(folder), device=device).score("q", ["t"])


def test_loading_and_scoring_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bars and no warnings on the terminal of a program that uses us."""
    folders = save_cross_encoder(tmp_path / "c"), save_embedder(tmp_path / "e")
    capfd.readouterr()
    CrossEncoderReranker(str(folders[0]), device="cpu").score("q", [*TEXTS, "long " * 1000])
    SentenceTransformersEmbedder(str(folders[1]), device="cpu").embed_documents([*TEXTS, "long " * 1000])
    assert tuple(capfd.readouterr()) == ("", "")


# ---------------------------------------------------------------- embedders


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({"query": "query: ", "passage": "passage: "}, "query: ", "passage: "),
        ({"query": "query: ", "document": "text: "}, "query: ", "text: "),
        ({"query": "find: "}, "find: ", ""),
        ({"corpus": "corpus: "}, "", "corpus: "),
        ({"search_query": "q ", "search_document": "d "}, "q ", "d "),
        ({}, "", ""),
        (None, "", ""),
    ],
)
def test_prompts_are_the_model_s_own(tmp_path: Path, prompts: dict[str, str] | None, query: str, document: str) -> None:
    """A query and a document are different inputs, whatever names the model gives to its prompts."""
    from sentence_transformers import SentenceTransformer

    folder = save_embedder(tmp_path / "model", prompts=prompts)
    plain = SentenceTransformer(str(folder), device="cpu")
    embedder = SentenceTransformersEmbedder(str(folder), device="cpu")
    for prompt, actual in [
        (query, embedder.embed_query("read json")),
        (document, embedder.embed_documents(["read json"])[0]),
    ]:
        expected = plain.encode(prompt + "read json", prompt="", normalize_embeddings=True)
        assert expected.tolist() == pytest.approx(actual.tolist(), abs=1e-5)


def test_a_default_prompt_holds_for_both_sides(tmp_path: Path) -> None:
    """Where the model has no prompts of its own for queries and documents."""
    folder = save_embedder(tmp_path / "model", prompts={"any": "json "})
    configure(folder, "config_sentence_transformers.json", default_prompt_name="any")
    embedder = SentenceTransformersEmbedder(str(folder), device="cpu")
    bare = SentenceTransformersEmbedder(str(save_embedder(tmp_path / "bare")), device="cpu")
    assert bare.embed_query("json read").tolist() == pytest.approx(embedder.embed_query("read").tolist(), abs=1e-5)


def test_the_name_follows_the_weights_not_the_path(tmp_path: Path) -> None:
    """A moved folder needs no new index; other weights or other prompts do."""
    folders = [
        save_embedder(tmp_path / "here" / "model"),
        save_embedder(tmp_path / "moved" / "model"),
        save_embedder(tmp_path / "trained" / "model", seed=1),
        save_embedder(tmp_path / "prompted" / "model", prompts={"query": "q: "}),
    ]
    names = [SentenceTransformersEmbedder(str(folder), device="cpu").name for folder in folders]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert names[0].startswith("model@")


def test_length_and_tokenizer_are_the_model_s(tmp_path: Path) -> None:
    """The tokenizer is a copy: using it leaves the model's own as it was."""
    embedder = SentenceTransformersEmbedder(str(save_embedder(tmp_path / "model", max_length=48)), device="cpu")
    assert embedder.max_tokens == 48
    before = embedder.embed_query("json " * 100)
    assert len(embedder.tokenizer.encode("json " * 100, add_special_tokens=False).ids) == 100
    embedder.tokenizer.enable_truncation(4)
    assert np.array_equal(before, embedder.embed_query("json " * 100))


# -------------------------------------------------------------- hub and cache

_RERANK = """
import sys
from pipeline.rerankers.cross_encoder import CrossEncoderReranker
try:
    print([score.raw for score in CrossEncoderReranker(sys.argv[1], device="cpu").score("read json", ["json", "dog"])])
except Exception as error:
    print(type(error).__name__, getattr(error, "retryable", None), error)
"""
_EMBED = """
import sys
from pipeline.embedders.sentence_transformers import SentenceTransformersEmbedder
try:
    print(SentenceTransformersEmbedder(sys.argv[1], device="cpu").name)
except Exception as error:
    print(type(error).__name__, error)
"""


def run(code: str, model: str, home: Path, **environment: str) -> str:
    """stdout of the code in a new process: huggingface_hub reads its settings at import. stderr must stay empty."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, model],
        env=inherited | {"HF_HOME": str(home)} | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_model_comes_from_the_hub_once_and_from_the_cache_then(tmp_path: Path, folder: Path) -> None:
    """Downloaded in silence at first use; afterwards no network is needed, and the scores are the same."""
    with Loopback(serve_model("cross-encoder/tiny", folder)) as hub:
        # A name without an owner belongs to sentence-transformers' own organization.
        first = run(_RERANK, "tiny", tmp_path, HF_ENDPOINT=hub.url)
    second = run(_RERANK, "cross-encoder/tiny", tmp_path, HF_HUB_OFFLINE="1")
    assert first.startswith("[")
    assert first == second


_MEANWHILE = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.hub import serve_model
from tests.loopback import Loopback

asked, answered, in_time = threading.Event(), threading.Event(), []
serve = serve_model("org/tiny", Path(sys.argv[1]))

def respond(request):
    asked.set()
    in_time.append(answered.wait(60))
    return serve(request)

with Loopback(respond) as hub, ThreadPoolExecutor() as pool:
    os.environ["HF_ENDPOINT"] = hub.url
    from pipeline.rerankers.cross_encoder import CrossEncoderReranker

    loaded, other = (CrossEncoderReranker(model, device="cpu") for model in (sys.argv[1], "org/tiny"))
    before = loaded.score("read json", ["json"])
    loading = pool.submit(other.load)
    asked.wait()
    meanwhile = loaded.score("read json", ["json"])
    answered.set()
    loading.result()
    print(all(in_time), before == meanwhile == other.score("read json", ["json"]))
"""


def test_a_loaded_model_answers_while_another_one_is_downloaded(tmp_path: Path, folder: Path) -> None:
    """The hub answers only when the loaded one has."""
    assert "True True" == run(_MEANWHILE, str(folder), tmp_path)


def test_an_embedder_from_the_hub_is_named_by_its_commit(tmp_path: Path) -> None:
    """So that a collection knows when the model behind the name changed."""
    folder = save_embedder(tmp_path / "model")
    with Loopback(serve_model("org/tiny", folder)) as hub:
        assert run(_EMBED, "org/tiny", tmp_path / "home", HF_ENDPOINT=hub.url) == f"org/tiny@{COMMIT[:12]}"


def test_a_model_the_hub_does_not_have(tmp_path: Path, folder: Path) -> None:
    """The message says that the name may be wrong, or a token be missing."""
    with Loopback(serve_model("org/tiny", folder)) as hub:
        said = run(_RERANK, "org/other", tmp_path, HF_ENDPOINT=hub.url)
    assert said.startswith(f"RerankerError False {hub.url} has no model org/other")
    assert "HF_TOKEN" in said


@pytest.mark.parametrize(("code", "error"), [(_RERANK, "RerankerError False"), (_EMBED, "EmbedderError")])
@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_a_network_the_error_comes_at_once(tmp_path: Path, code: str, error: str, how: str) -> None:
    """It says which model, where it was looked for and what to do; the library alone would try for 45 seconds."""
    with Loopback([]) as hub:
        closed = hub.url
    started = time.monotonic()
    settings = {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_ENDPOINT": closed}
    said = run(code, "org/tiny", tmp_path, **settings)
    assert time.monotonic() - started < 30
    assert said.startswith(f"{error} org/tiny is not in the local cache ({tmp_path / 'hub'})")
    assert ("HF_HUB_OFFLINE" if how == "offline" else closed) in said
    assert "hf download org/tiny" in said
    assert "=embedded" in said
