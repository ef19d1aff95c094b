import math
import random

import pytest

from lightning_minillm.metrics import (
    ExactMatch,
    RougeL,
    choose_words,
    count_unseen,
    distinct_ngrams,
    exact_match,
    normalize,
    repeated_ngrams,
    rouge_l,
    split_words,
)

SENTENCES = {
    "Latin": "The weather is nice today",
    "Latin with accents": "Où est la gare à Besançon",
    "Chinese": "今天天气很好我们一起去公园散步吧",
    "Japanese": "東京タワーでラーメンを食べました。",
    "Russian": "Сегодня хорошая погода, пойдём гулять",
    "Greek": "Καλημέρα κόσμε, τι κάνεις σήμερα",
    "Thai": "สวัสดีชาวโลกวันนี้อากาศดี",
    "Hindi": "नमस्ते दुनिया आज मौसम अच्छा है",
    "Arabic": "مرحبا بالعالم كيف حالك اليوم",
    "Hebrew": "שלום עולם מה שלומך היום",
    "Korean": "안녕하세요 세계 오늘 날씨가 좋네요",
    "Burmese": "မင်္ဂလာပါကမ္ဘာကြီး",
    "numbers": "٤٢ ٤٣ ٤٤ ٤٥",
    "symbols": "👍 🎉 👍🏽 🐍",
}


@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES)
def test_a_perfect_answer_scores_full_marks_and_a_wrong_one_does_not(text):
    half = text[: len(text) // 2]
    wrong = "Q" if text.isascii() else "xyz"
    assert rouge_l(text, [text]) == 100
    assert 30 < rouge_l(half, [text]) < 100
    assert rouge_l(wrong, [text]) == 0
    assert rouge_l("", [text]) == rouge_l("?!", [text]) == 0
    assert exact_match(f"  {text} ", ["...", text])
    assert not exact_match(half, [text])
    assert len(split_words(text, choose_words([text]))) > 3
    assert distinct_ngrams([text], 2) == 100 or text == SENTENCES["symbols"]
    assert repeated_ngrams([f"{text} {text} {text}"], 2) > 50
    assert count_unseen([[text]]) == 0


@pytest.mark.parametrize("words", ["unicode", "characters"])
@pytest.mark.parametrize("text", SENTENCES.values(), ids=SENTENCES)
def test_chosen_words_see_every_script(text, words):
    assert rouge_l(text, [text], words) == 100
    assert exact_match(text, [text], words)
    assert rouge_l(text[::-1], [text], words) < 100
    assert count_unseen([[text]], words) == 0


def test_scores_by_hand():
    assert rouge_l("今天天气", ["今天下雨"]) == pytest.approx(50)  # 2 of 4 characters
    assert rouge_l("Привет мир", ["привет, друг"]) == pytest.approx(50)
    assert rouge_l("ab cd", ["ab ce"], "characters") == pytest.approx(75)
    assert rouge_l("ab cd", ["ab ce"], "unicode") == pytest.approx(50)
    assert rouge_l("天气 很好", ["雨", "天气很好吗"]) == pytest.approx(100 * 8 / 9, abs=1e-4)  # the best counts


def test_combining_marks_belong_to_their_letter():
    assert split_words("नमस्ते दुनिया", "unicode") == ["नमस्ते", "दुनिया"]
    assert split_words("ดี", "characters") == ["ดี"]
    assert split_words("e\u0301t\u00e9", "characters") == ["é", "t", "é"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("“你好”，世界。", "你好世界"),
        ("你好 世界", "你好世界"),
        ("Ｐｙｔｈｏｎ 言語", "python言語"),
        ("«Привет, мир!»", "привет мир"),
        ("가", "\u1100\u1161"),  # one syllable, in one code point and in two
        ("\u200fمرحبا\u200f", "مرحبا"),  # marks of direction cannot be seen
        ("СТРАСSE ИЗ", "страсse из"),
    ],
)
def test_forms_that_readers_cannot_tell_apart_match(one, other):
    assert exact_match(one, [other])
    assert rouge_l(one, [other]) == 100


def test_what_differs_does_not_match():
    assert not exact_match("你 坏", ["你好"])
    assert not exact_match("при вет", ["привет"])
    assert not exact_match("4 2 個", ["42個"])
    assert not exact_match("👍", ["👎"])
    assert not exact_match("", ["👍"])


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["plain words"], "latin"),
        (["Où est la gare ?"], "latin"),
        (["42"], "latin"),
        ([""], "latin"),
        (["!!!"], "latin"),
        (["the radius α of Ω"], "latin"),
        (["the radius α", "今天天气很好"], "unicode"),
        (["使用 PyTorch Lightning 训练模型"], "unicode"),
        (["Hi 👍 👍 👍"], "latin"),
        (["👍"], "unicode"),
        (["Привет"], "unicode"),
    ],
)
def test_the_references_choose(references, expected):
    assert choose_words(references) == choose_words(references[::-1]) == expected
    assert choose_words(references, "characters") == "characters"


def test_latin_text_is_divided_as_before():
    """Whatever the response is: only the references count."""
    chooser = random.Random(0)
    alphabet = "abc é ß Ñ 12 .,-' \t x好"
    for _ in range(200):
        response = "".join(chooser.choices(alphabet, k=30))
        reference = "".join(chooser.choices(alphabet.replace("好", ""), k=30)) + "a"
        assert rouge_l(response, [reference]) == rouge_l(response, [reference], "latin")
        assert exact_match(response, [reference]) == (normalize(response) == normalize(reference))
        assert distinct_ngrams([reference], 2) == distinct_ngrams([reference], 2, "latin")


def test_ngrams_go_by_the_given_words():
    texts = ["今天今天", "a b a b"]
    assert repeated_ngrams(texts, 2) == pytest.approx((100 / 3 + 100 / 3) / 2)
    assert repeated_ngrams(texts, 2, ["latin", "latin"]) == pytest.approx(100 / 3)
    assert math.isnan(distinct_ngrams(texts[:1], 2, "latin"))
    assert distinct_ngrams(texts, 2, ["unicode", "latin"]) == pytest.approx(100 * 4 / 6)


def test_references_without_a_word_are_counted():
    rows = [["今天"], ["today"], ["!!!", "?"], ["..", "今天"]]
    assert count_unseen(rows) == 1
    assert count_unseen(rows, "latin") == 3


def test_metrics_take_the_same_option():
    rows = ["今天天气", "the cats"], [["今天下雨"], ["the cat"]]
    for words, rouge in (("auto", 75), ("latin", 50), ("unicode", 50), ("characters", (50 + 100 * 12 / 13) / 2)):
        metric = RougeL(words)
        metric.update(*rows)
        assert metric.compute().item() == pytest.approx(rouge, abs=1e-4)
    metric = ExactMatch()
    metric.update(["你好！"], [["你好"]])
    assert metric.compute() == 100


@pytest.mark.parametrize("call", [lambda: RougeL("words"), lambda: rouge_l("a", ["a"], "words")])
def test_mistakes_are_named(call):
    with pytest.raises(ValueError, match="words must be auto, latin, unicode or characters, got 'words'"):
        call()


def test_a_row_without_references_is_refused():
    with pytest.raises(ValueError, match="a row has no reference"):
        rouge_l("a", [])
