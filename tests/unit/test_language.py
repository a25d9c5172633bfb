import pytest

from pipeline.ingestion.chunking import Chunker
from pipeline.ingestion.language import language
from pipeline.types import Document
from tests.fakes import word_tokenizer

EN = "The steam engine drove the looms of Manchester."
ZH = "重庆市是中国的直辖市，位于长江上游。"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (EN, "en"),
        (ZH, "zh"),
        ("蒸汽機推動了曼徹斯特的織布機。", "zh"),
        ("如何使用 Python 的 json 模块读取 JSON 文件?", "zh"),
        ("你好,世界。", "zh"),
        ("Die Dampfmaschine trieb die Webstühle von Manchester an.", "de"),
        ("蒸気機関がマンチェスターの織機を動かした。", "ja"),
        ("1 2 3 4", ""),
        ("def f(x):\n    return x + 1", ""),
        ("", ""),
        ("\n" * 5_000 + ZH, "zh"),
    ],
)
def test_language_of_a_text(text: str, code: str) -> None:
    """Traditional Chinese is Chinese; where nothing is clear nothing is said."""
    assert code == language(text)


def test_chunks_have_the_language_of_their_document() -> None:
    """Where it is asked for; one that was given stays, and the content hash does not depend on it."""
    chunker = Chunker(word_tokenizer(), chunk_tokens=32, overlap=0)
    asked: dict[str, str] = {}
    given = {"language": "tlh"}
    found = [
        chunker.chunk(Document("a", text, metadata=metadata, find_language=find))[0].metadata
        for text, metadata, find in ((EN, asked, True), (ZH, asked, True), (ZH, given, True), (ZH, asked, False))
    ]
    assert [{"language": "en"}, {"language": "zh"}, {"language": "tlh"}, {}] == found
    assert Document("a", ZH).content_hash() == Document("a", ZH, find_language=True).content_hash()
