"""Small Hugging Face models with random weights, saved to a folder as their authors would save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_TEXTS = [
    "How do I read JSON in Python? Use the json module of the standard library.",
    "Vitamin D and calcium in older people; a randomised trial with 5292 patients.",
    "如何用 Python 读取 JSON 文件？使用标准库的 json 模块。北京是中国的首都。",
    "The quick brown fox jumps over the lazy dog, 0123456789 times.",
]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


ARCHITECTURES = ("bert", "xlm-roberta", "modernbert", "distilbert", "electra", "mpnet", "deberta-v2")
# These tell the two parts of a pair apart by token types; a real tokenizer of theirs gives them, too.
_TYPED = ("bert", "electra")


def save_cross_encoder(
    folder: Path,
    *,
    labels: int = 1,
    seed: int = 0,
    max_length: int = 64,
    architecture: str = "bert",
    **sizes: Any,
) -> Path:
    """A transformer with a classification head, as ``cross-encoder/...`` models are saved."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = _config(architecture, tokenizer, max_length, num_labels=labels, **sizes)
    _save(folder, AutoModelForSequenceClassification.from_config(config), tokenizer, max_length, architecture)
    return folder


def save_embedder(
    folder: Path,
    *,
    seed: int = 0,
    max_length: int = 64,
    prompts: dict[str, str] | None = None,
    architecture: str = "bert",
    pooling: str = "mean_tokens",
    **sizes: Any,
) -> Path:
    """A transformer with pooling ("mean_tokens", "cls_token"), as ``sentence-transformers/...`` models are saved."""
    import torch
    from transformers import AutoModel

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = _config(architecture, tokenizer, max_length, **sizes)
    _save(folder, AutoModel.from_config(config), tokenizer, max_length, architecture)
    (folder / "1_Pooling").mkdir()
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size, f"pooling_mode_{pooling}": True},
    )
    package = "sentence_transformers.models"
    _write(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
        ],
    )
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    if prompts is not None:
        _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return folder


def _config(architecture: str, tokenizer: Tokenizer, max_length: int, **more: Any) -> Any:
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": max_length,
        "initializer_range": 0.2,  # with the usual 0.02 an untrained model hardly tells texts apart
        "pad_token_id": 0,
    }
    own: dict[str, dict[str, Any]] = {
        # Their positions are counted from after the padding token's id.
        "xlm-roberta": {"max_position_embeddings": max_length + 2, "type_vocab_size": 1},
        "mpnet": {"max_position_embeddings": max_length + 2},
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        # Sliding windows shorter than the texts, so that padded tokens see nothing at all.
        "modernbert": {"local_attention": 16, "num_hidden_layers": 3, "cls_token_id": 2, "sep_token_id": 3},
        "electra": {"embedding_size": 16},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    }
    return AutoConfig.for_model(architecture, **(sizes | own.get(architecture, {}) | more))


def _tokenizer() -> Tokenizer:
    """Whole words of the texts, and single characters for all others: trained ones differ from run to run."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = [word for text in _TEXTS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789"))
    pieces = dict.fromkeys([*_SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # places in _SPECIAL
    return tokenizer


def _save(folder: Path, model: Any, tokenizer: Tokenizer, max_length: int, architecture: str) -> None:
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], _SPECIAL, strict=True))
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if architecture in _TYPED else [])]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, model_input_names=inputs, **names
    )
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
