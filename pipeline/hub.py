"""Hugging Face models for torch: found in a folder, the local cache or the hub; loaded without noise.

Left to itself, huggingface_hub tries an unreachable hub for three quarters of a minute, with a warning a try.
Here the cache is asked first, then the hub once, and what is missing is said in one sentence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from pipeline.errors import RagError, SettingsError
from pipeline.forking import begin_anew

M = TypeVar("M")
_log = logging.getLogger(__name__)
# Loading changes process-wide switches of transformers, so it is done one model at a time.
_loading = threading.Lock()
# How many blocks want quiet now, and what ends it.
_switching = threading.Lock()
_quieting = 0
_loud = ExitStack()


def _forget_in_child() -> None:
    """After a fork nobody would ever give back a lock that a thread of the parent held."""
    global _loading, _switching, _quieting
    _loading, _switching, _quieting = threading.Lock(), threading.Lock(), 0


begin_anew(_forget_in_child)

_HUB_TIMEOUT_S = 5.0
_NOISY = ("huggingface_hub", "sentence_transformers", "transformers")


class ModelError(Exception):
    """A model could not be found or loaded; the embedder or reranker turns this into its own error."""


def load_model(
    model: str,
    *,
    revision: str | None,
    organization: str,
    instead: str,
    open_model: Callable[[str, bool], M],
) -> M:
    """Opens a folder, a cached model, or one from the hub, in this order.

    ``open_model(name, local_files_only)`` does the opening. Names without an owner belong to ``organization``, as in
    sentence-transformers. ``instead`` says which setting does without this model.

    Raises:
        ModelError: there is no such model, it is out of reach, or it cannot be opened; says what to do.
    """
    with _loading, quiet():
        if Path(model).expanduser().is_dir():
            return _opened(model, open_model, str(Path(model).expanduser()), True)
        name = hub_name(model, organization)
        cached: ModelError | None = None
        if snapshot(name, revision) is not None:
            try:
                return _opened(model, open_model, name, True)
            except ModelError as error:
                cached = error  # perhaps only some of its files were downloaded
        try:
            _ask_hub(name, revision, instead)
        except ModelError as error:
            raise cached or error from error.__cause__
        _log.info("downloading %s from the Hugging Face hub", name)
        return _opened(model, open_model, name, False)


def hub_name(model: str, organization: str) -> str:
    """The model's full name on the hub.

    Raises:
        ModelError: it is the path of a folder that does not exist.
    """
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or not model.strip():
        raise ModelError(f"there is no folder {model!r}; give the folder of a saved model, or a Hugging Face name")
    return model if "/" in model else f"{organization}/{model}"


def snapshot(name: str, revision: str | None) -> Path | None:
    """Folder of the model in the local cache, named by its commit; None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=_cache(), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a Hugging Face name (owner/model)") from error


def identity(model: str, revision: str | None, organization: str) -> str | None:
    """Name and revision: the content of a folder, the commit of a model from the hub; None while it is not cached.

    Raises:
        ModelError: it is the path of a folder that does not exist.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return f"{folder.resolve().name}@{content_hash(folder)}"
    name = hub_name(model, organization)
    cached = snapshot(name, revision)
    # The cache names a snapshot's folder by its commit.
    return f"{name}@{cached.name[:12]}" if cached else None


def counting_tokenizer(tokenizer: object) -> Tokenizer | None:
    """A copy of a transformers tokenizer that neither cuts nor pads; None for one that only Python has."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        return None
    content = json.loads(backend.to_str())
    if getattr(tokenizer, "split_special_tokens", False):
        # Then "</s>" in a text is text to it, and must be so to the copy.
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    copy = Tokenizer.from_str(json.dumps(content))
    copy.no_truncation()
    copy.no_padding()
    return copy


def check_vocabulary(tokenizer: object) -> None:
    """Refuses a tokenizer that knows no words, such as transformers makes up where a model was saved without one.

    Raises:
        ModelError: it has special tokens alone.
    """
    special = getattr(tokenizer, "all_special_ids", None)
    if special is not None and isinstance(tokenizer, Sized) and len(tokenizer) <= len(set(special)):
        raise ModelError(
            "it was saved without its tokenizer: add tokenizer.json and tokenizer_config.json to the folder"
        )


def content_hash(folder: Path) -> str:
    """First 12 hex digits of the SHA-256 over names, sizes and contents of a saved model's weights and JSON files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".bin", ".json"} and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:12]


def pick_device(device: str) -> str:
    """ "auto" as the best device there is; any other name as it is.

    Raises:
        SettingsError: there is no such device here.
    """
    import torch

    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if here[name])
    if not here.get(device.partition(":")[0], True):
        raise SettingsError(f"RAG_DEVICE={device}: PyTorch sees no such device here; use auto or cpu")
    return device


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, which is then twice as fast; elsewhere it is slower."""
    import torch

    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _cache() -> str:
    from huggingface_hub import constants

    return os.environ.get("SENTENCE_TRANSFORMERS_HOME") or constants.HF_HUB_CACHE


def _opened(model: str, open_model: Callable[[str, bool], M], name: str, local: bool) -> M:
    try:
        return open_model(name, local)
    except (ModelError, RagError):
        raise
    except Exception as error:  # loaders raise whatever a broken file makes them raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{model} cannot be loaded: {type(error).__name__}: {reason}") from error


def _ask_hub(name: str, revision: str | None, instead: str) -> None:
    """Makes sure, within seconds and without retries, that a download has a chance."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r} on {constants.ENDPOINT}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{constants.ENDPOINT} has no model {name}, or only for those who are signed in: check the name, or set "
            "HF_TOKEN"
        ) from error
    except OfflineModeIsEnabled as error:
        raise ModelError(_missing(name, "HF_HUB_OFFLINE forbids to download it", instead)) from error
    except Exception as error:  # whatever the hub's HTTP library raises: there is no hub
        raise ModelError(_missing(name, f"{constants.ENDPOINT} cannot be reached ({error})", instead)) from error


def _missing(name: str, why: str, instead: str) -> str:
    return (
        f"{name} is not in the local cache ({_cache()}), and {why}. Run `hf download {name}` on a connected "
        f"machine and copy the cache, give the folder of a saved model, or set {instead}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries on the terminal; everything is as before afterwards.

    Of several at once, as where one model is converted while another is loaded, the last to end puts everything back:
    those that began after the first have found it quiet.
    """
    global _quieting
    with _switching:
        if not _quieting:
            _silence()
        _quieting += 1
    try:
        yield
    finally:
        with _switching:
            _quieting -= 1
            if not _quieting:
                _loud.close()


def _silence() -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    if not are_progress_bars_disabled():
        _loud.callback(enable_progress_bars)
    if transformers_logging.is_progress_bar_enabled():
        _loud.callback(transformers_logging.enable_progress_bar)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    for logger in map(logging.getLogger, _NOISY):
        _loud.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
