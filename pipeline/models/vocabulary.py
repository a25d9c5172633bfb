"""Which pieces of XLM-R's vocabulary the embedded models keep, and the tokenizer over them.

Kept are the special tokens, all pieces with Chinese characters, all single characters, all pieces of punctuation and
digits, and the pieces that English and Chinese text uses, which ``pieces.txt`` lists. ``python -m
pipeline.models.vocabulary TEXT.jsonl...`` prints that list: pieces that the texts use (those of other scripts than
Latin more than once), and those of every word in the large English list of the package wordfreq 3.1.1 (321,180 words
with a frequency of at least 1e-8), in small letters and with a capital, because names and rare words are few in any
sample.

Coverage was looked at on the evaluation sets before the rule was widened to what it is, and the training texts hold
SciFact's whole corpus, so it is measured on held-out training sets too: ``--hold-out TEXT.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.models.e5bin import E5, installed_file, read_e5

PIECES = Path(__file__).parent / "pieces.txt"
_SPECIAL = 4  # <s> <pad> </s> <unk>
# Log probability: below that of any other way to write "</s>" in pieces, which are at least -21 each.
_NEVER = -1000.0
_HAN = re.compile("[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3040-\u30ff]")
_LETTER = re.compile(r"[^\W\d_]")


def kept_ids(pieces: list[str], used: set[str]) -> list[int]:
    """Ids of the pieces to keep, in their old order."""
    return [i for i, piece in enumerate(pieces) if i < _SPECIAL or piece in used or _always(piece.lstrip("▁"))]


def _always(bare: str) -> bool:
    if len(bare) <= 1 or not _LETTER.search(bare):
        return True
    return bool(_HAN.search(bare)) and not _KANA.search(bare)


def used_pieces() -> set[str]:
    """The list in ``pieces.txt``."""
    return set(PIECES.read_text(encoding="utf-8").split("\n")) - {""}


def build_tokenizer(e5: E5, keep: list[int]) -> Tokenizer:
    """XLM-R's unigram model over the kept pieces; adds no special tokens by itself."""
    # The file gives the special tokens a score of 0, the best of all: "<s>" in a text (HTML has it) would end it.
    vocabulary = [(e5.pieces[i], _NEVER if i < _SPECIAL else float(e5.scores[i])) for i in keep]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=e5.unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\x00-\x08\x0e-\x1f\x7f\u200b\ufeff]"), ""),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def counted(e5: E5, tokenizer: Tokenizer, paths: list[Path]) -> NDArray[np.int64]:
    """How often each piece of the vocabulary is used in the titles and texts of JSONL files, shape (pieces,)."""
    seen = np.zeros(len(e5.pieces), dtype=np.int64)
    for path in paths:
        with path.open(encoding="utf-8") as file:
            texts = [f"{line.get('title', '')} {line['text']}" for line in map(json.loads, file)]
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            np.add.at(seen, encoding.ids, 1)
    return seen


def chosen(e5: E5, tokenizer: Tokenizer, seen: NDArray[np.int64]) -> set[str]:
    """The pieces for ``pieces.txt``: those seen in texts and those of English words. Needs the package wordfreq."""
    from wordfreq import get_frequency_dict

    words = get_frequency_dict("en", wordlist="large")
    forms = [form for word in words for form in (word, word.capitalize())]
    named = {id_ for encoding in tokenizer.encode_batch_fast(forms, add_special_tokens=False) for id_ in encoding.ids}
    return {piece for i, piece in enumerate(e5.pieces) if i in named or seen[i] > (0 if _latin(piece) else 1)}


def _latin(piece: str) -> bool:
    return all(unicodedata.name(letter, "").startswith("LATIN") for letter in _LETTER.findall(piece))


def main() -> None:
    """Prints the list, or with ``--hold-out`` what share of the tokens of other texts it keeps."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.models.vocabulary", description=main.__doc__)
    parser.add_argument("texts", nargs="+", type=Path, help="JSONL with title and text")
    parser.add_argument("--hold-out", nargs="+", type=Path, default=[], help="measure on these instead")
    arguments = parser.parse_args()
    e5 = read_e5(installed_file())
    tokenizer = build_tokenizer(e5, list(range(len(e5.pieces))))
    pieces = chosen(e5, tokenizer, counted(e5, tokenizer, arguments.texts))
    if not arguments.hold_out:
        print("\n".join(piece for piece in e5.pieces[_SPECIAL:] if piece in pieces and not _always(piece.lstrip("▁"))))
    keep = kept_ids(e5.pieces, pieces)
    for path in arguments.hold_out:
        seen = counted(e5, tokenizer, [path])
        print(f"{path}: {100 * seen[keep].sum() / seen.sum():.3f} % of {seen.sum()} tokens")


if __name__ == "__main__":
    main()
