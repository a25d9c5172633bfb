"""BM25 sparse vectors of English and Chinese text."""

from __future__ import annotations

import pytest

from pipeline.stores.bm25 import chunk_vector, document_vector, query_vector


def words(text: str) -> set[int]:
    return set(query_vector(text).indices)


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("engines", "The steam engine."),
        ("数据库", "这个数据库很快。"),
        ("光合作用", "光合作用把阳光变成糖"),
        ("蒸汽機", "蒸汽機推動了織布機"),
        ("Python", "用Python读取JSON"),
        ("1648", "signed in 1648."),
        ("1648年", "该条约于1648年签订"),
        ("２０２４", "in 2024"),
        ("3.11", "Python 3.11 is out"),
        ("ＡＢＣ", "abc"),
        ("x86", "an x86 processor"),
        ("\udce9 engine", "engine \0"),
        ("timeout", "set timeout=30 here"),
        ("HOME", "PATH=$HOME"),
        ("vector", "std::vector<int>"),
        ("useSSL", "…?useSSL=false&rewriteBatchedStatements=true"),
        ("settings", "File→Settings"),
        ("database", "a data\u00adbase"),
        ("TiDB", "Ti\u200bDB"),
        ("数据库备份", "國立臺灣大學資料庫與數據庫備份功能"),
        ("裡面", "里面"),
        ("os.path.realpath", "Call os.path.realpath() first."),
        ("--no-name", "tar --no-name"),
        ("no-name", "tar --no-name"),
        ("std::vector", "a std::vector<int>"),
        ("user_data", "USER_DATA=1"),
        ("１９８４年10月1日", "在1984年10月1日开始"),
    ],
)
def test_query_words_are_in_the_document(query: str, document: str) -> None:
    """All words of the query are among those of the document, as the two are cut and written alike."""
    assert set() < words(query) <= set(document_vector(document).indices)


def test_chinese_is_split_into_words() -> None:
    """A Chinese sentence, simplified or traditional, is several words; two sentences share the ones they share."""
    assert len(words("重庆市是中国的直辖市")) > 3
    assert words("重庆市是中国的直辖市") == words("重慶市是中國的直轄市")
    assert words("长江") <= words("重庆在长江上游")


@pytest.mark.parametrize("text", ["", " \n", "the of and", "!?。，", "😀"])
def test_text_without_words(text: str) -> None:
    """Stop words, signs and nothing at all give no entries."""
    assert [] == query_vector(text).indices
    assert [] == document_vector(text).indices


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("os.path", "path os"),
        ("--no-name", "name"),
        ("key_file", "file key"),
        ("1.2.3", "3 2 1"),
        ("2024-01-31", "31 01 2024"),
        ("1984年10月1日", "1984年1月10日"),
    ],
)
def test_what_signs_join_is_a_term_of_its_own(whole: str, parts: str) -> None:
    """So the text with just that is found before those with its parts, and these are still found."""
    query = query_vector(whole)
    weights = dict(zip(query.indices, query.values, strict=True))
    (joined,) = words(whole) - set(document_vector(parts).indices)
    assert {0.5} == {weights.pop(joined)}
    assert {1.0} == set(weights.values())
    assert joined in document_vector(f"before {whole}, after").indices


@pytest.mark.parametrize("piece", ["a", "1", "a1", "a.", "年1"])
def test_a_long_word_is_soon_through(piece: str) -> None:
    """As pasted keys and pictures are: in a time that grows with their length, not with its square."""
    assert len(words(piece * 200_000)) < 10


def test_a_long_address_is_no_term() -> None:
    """Only its parts are."""
    address = "/".join(f"part{i}" for i in range(20))
    assert words(address) == words(address.replace("/", " "))


@pytest.mark.parametrize(
    ("query", "terms"),
    [("怎么排除目录?", "排除目录"), ("什麼是長江", "长江"), ("请问如何备份数据库呢", "备份数据库"), ("为什么", "")],
)
def test_question_words_are_no_terms(query: str, terms: str) -> None:
    """Of Chinese, as the engine leaves out those of English; in texts they stay."""
    assert words(terms) == words(query)
    assert set(document_vector("如何").indices).isdisjoint(words(query))
    assert [] != document_vector("如何").indices


def test_numbers_differ() -> None:
    """Two numbers are two words, and neither is a word that is not a number."""
    assert 2 == len(words("1998 1999"))
    assert set() == words("1998") & words("version a b qn")


def test_weights() -> None:
    """A query's words weigh 1; a document's more often used words weigh more, and less in a longer text."""
    assert {1.0} == set(query_vector("steam steam engine").values)
    short = document_vector("steam steam engine")
    by_word = dict(zip(short.indices, short.values, strict=True))
    (steam,), (engine,) = words("steam"), words("engine")
    assert by_word[steam] > by_word[engine]
    long = document_vector("steam steam engine " + "loom " * 500)
    assert dict(zip(long.indices, long.values, strict=True))[steam] < by_word[steam]


def test_words_of_a_title_count_twice() -> None:
    """So much as if the title stood there twice; without one it is the text's own vector."""
    (word,) = query_vector("steam").indices
    weights = [
        dict(zip(vector.indices, vector.values, strict=True))[word]
        for vector in (chunk_vector("", "steam engine"), chunk_vector("Steam", "An engine"))
    ]
    assert weights[1] > 1.1 * weights[0]
    assert document_vector("steam steam an engine").values == chunk_vector("steam", "an engine").values
    assert document_vector("steam engine").values == chunk_vector("", "steam engine").values
