"""The words of a text in any script: what Rouge-L, exact match and n-grams compare."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import regex

Words = Literal["auto", "latin", "unicode", "characters"]
"""How a text is divided into words:

- ``"latin"``: as the usual Rouge does, runs of the letters a to z and digits, other characters separate them; n-grams
  are of everything between white space. The paper's numbers, and all numbers of text in Latin script, are of this kind.
- ``"unicode"``: runs of letters with their combining marks, and of digits, of any script; in scripts without spaces
  between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) each character is a word, and so is a symbol
  such as an emoji. Compatibility forms such as full-width letters, case and invisible characters make no difference.
- ``"characters"``: as ``"unicode"``, but each character of every script is a word.
- ``"auto"``: ``"unicode"`` where most words of the references are in a script other than Latin, else ``"latin"``. It is
  decided for each row, by its references alone, so that all models are measured in the same way.
"""

_UNSPACED = "".join(
    rf"\p{{scx={script}}}"
    for script in ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
_CHARACTER = r"[\p{L}\p{N}\p{So}]\p{M}*"
_ALONE = rf"(?=[{_UNSPACED}\p{{So}}]){_CHARACTER}"
_PATTERNS = {
    "latin": regex.compile("[a-z0-9]+"),
    "unicode": regex.compile(rf"{_ALONE}|(?:(?![{_UNSPACED}\p{{So}}]){_CHARACTER})+"),
    "characters": regex.compile(_CHARACTER),
}
_INVISIBLE = regex.compile(r"\p{Cf}+")
_PUNCTUATION = regex.compile(rf"[\p{{P}}{re.escape(string.punctuation)}]+")
_LATIN_LETTER = regex.compile(r"\p{Script=Latin}")
_OTHER = regex.compile(r"(?!\p{Script=Latin})\p{L}|(?![0-9])\p{N}")


def check_words(words: str) -> None:
    """Check an option.

    Raises:
        ValueError: it is not one of :data:`Words`.
    """
    if words not in get_args(Words):
        raise ValueError(f"words must be {', '.join(get_args(Words)[:-1])} or {get_args(Words)[-1]}, got {words!r}")


def choose_words(references: Iterable[str], words: Words = "auto") -> Words:
    """Return how texts that are compared with references are divided into words: never ``"auto"``.

    Example:
        >>> choose_words(["今天"]), choose_words(["Où est la gare ?", "Ça va"]), choose_words(["a b"], "unicode")
        ('unicode', 'latin', 'unicode')
    """
    check_words(words)
    if words != "auto":
        return words
    references = list(references)
    if all(map(str.isascii, references)):
        return "latin"
    found = [word for text in references for word in split_words(text, "unicode")]
    in_latin = sum(bool(_LATIN_LETTER.search(word)) for word in found)
    in_others = sum(bool(_OTHER.search(word)) for word in found if not _LATIN_LETTER.search(word))
    only_symbols = found and not in_latin and not any(split_words(text, "latin") for text in references)
    return "unicode" if in_others > in_latin or only_symbols else "latin"


def split_words(text: str, words: Words) -> list[str]:
    """Return the words of a text, in lower case and without punctuation.

    Args:
        text: any text.
        words: anything but ``"auto"``.

    Example:
        >>> split_words("今天 Ｔｅｓｔ 42, привет!", "unicode"), split_words("naïve 42", "latin")
        (['今', '天', 'test', '42', 'привет'], ['na', 've', '42'])
    """
    found: list[str] = _PATTERNS[words].findall(text.lower() if words == "latin" else _fold(text))
    return found


def normalize(text: str, words: Words = "latin") -> str:
    """Lower the case, remove punctuation and collapse white space (official ``rouge_metric.normalize_answer``).

    Unless ``words`` is ``"latin"``, the punctuation of all scripts is removed, and white space between the characters
    of scripts without spaces does not matter.

    Example:
        >>> normalize("The  Cat, sat. "), normalize("你好，世界。", "unicode") == normalize("你好世界", "unicode")
        ('the cat sat', True)
    """
    if words == "latin":
        kept = text.lower().translate(str.maketrans("", "", string.punctuation))
        return re.sub(r"\s+", " ", kept).strip()
    return " ".join(regex.sub(f"({_ALONE})", r" \1 ", _PUNCTUATION.sub("", _fold(text))).split())


def count_unseen(rows: Iterable[Sequence[str]], words: Words = "auto") -> int:
    """Return the number of rows in whose references no word is found, so that every response scores 0.

    Example:
        >>> count_unseen([["今天"], ["today"]]), count_unseen([["今天"], ["today"]], "latin")
        (0, 1)
    """
    return sum(not any(split_words(text, choose_words(row, words)) for text in row) for row in rows)


def _fold(text: str) -> str:
    """Return a text in one form of several equal ones: compatibility characters, case, no invisible characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return str(_INVISIBLE.sub("", folded))
