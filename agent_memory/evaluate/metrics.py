"""The measures public long-context benchmarks judge answers by: overlap of words, longest common subsequences, choices and numbers.

Knows texts only; does not know benchmarks, files or models. Every score is from 0 to 1. Each function names the public source whose
numbers it gives; where that source has a quirk that changes numbers, the quirk is kept and said.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal

from .packages import package

CHINESE_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
MARKS = frozenset(string.punctuation)
ALL_MARKS = MARKS | frozenset(CHINESE_MARKS)


def normalized(text: str, *, articles: str = "a|an|the", lower: bool = True) -> str:
    """Text without punctuation, articles and more than single spaces: the usual form of SQuAD, in which answers are compared.

    Args:
        text: any text.
        articles: words to drop, as a regular expression.
        lower: in lower case.
    """
    plain = "".join(letter for letter in (text.lower() if lower else text) if letter not in MARKS)
    return " ".join(re.sub(rf"\b({articles})\b", " ", plain).split())


def normalized_chinese(text: str) -> str:
    """Chinese text without punctuation and spaces; ``normalize_zh_answer`` of LongBench and InfiniteBench."""
    return "".join("".join(letter for letter in text.lower() if letter not in ALL_MARKS).split())


def overlap_f1(said: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the tokens two lists share, each counted as often as it is in both."""
    same = (Counter(said) & Counter(right)).total()
    return 2 * same / (len(said) + len(right)) if same else 0.0


def f1(said: str, answer: str) -> float:
    """Overlap of words; ``qa_f1_score`` of LongBench and InfiniteBench, ``f1_score`` of L-Eval."""
    return overlap_f1(normalized(said).split(), normalized(answer).split())


def chinese_word_f1(said: str, answer: str) -> float:
    """Overlap of Chinese words as the package ``jieba`` cuts them; ``qa_f1_zh_score`` of LongBench."""
    words = ([normalized_chinese(word) for word in _cut(text)] for text in (said, answer))
    return overlap_f1(*([word for word in found if word] for found in words))


def chinese_letter_f1(said: str, answer: str) -> float:
    """Overlap of Chinese characters; ``qa_f1_score_zh`` of InfiniteBench."""
    return overlap_f1(normalized_chinese(said), normalized_chinese(answer))


def stemmed_f1(said: str, answer: str) -> float:
    """Overlap of word stems; ``f1_score`` of LoCoMo, which also drops "and". Needs the package ``nltk`` for the stems."""
    stem = _stemmer().stem
    return overlap_f1(*([stem(word) for word in normalized(text, articles="a|an|the|and").split()] for text in (said, answer)))


def partial_f1(said: str, answer: str) -> float:
    """Mean over the comma-separated parts of an answer of the best :func:`stemmed_f1` of a said part; ``f1`` of LoCoMo."""
    parts = [part.strip() for part in said.split(",")]
    scores = [max(stemmed_f1(part, wanted.strip()) for part in parts) for wanted in answer.split(",")]
    return sum(scores) / len(scores)


def rouge_l_of_sets(said: str, answer: str) -> float:
    """ROUGE-L as the package ``rouge`` 1.0.1 counts it, which LongBench uses: F of *distinct* words, sentence by sentence.

    A full stop ends a sentence. The words counted as common are those in a longest common subsequence of any sentence of the answer
    and any said one. That package gives up on sentences of about 1,000 words, for which LongBench then scores 0; this does not.
    """
    sentences = [[" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (answer, said)]
    if not all(sentences):
        return 0.0
    right, heard = ({word for sentence in found for word in sentence} for found in sentences)
    pairs = ((wanted, found) for wanted in sentences[0] for found in sentences[1])
    common = {wanted[at] for wanted, found in pairs for at in _common_places(wanted, found, drop="said")}
    precision, recall = len(common) / len(heard), len(common) / len(right)
    return 2 * precision * recall / (precision + recall + 1e-8)


def chinese_rouge_l(said: str, answer: str) -> float:
    """:func:`rouge_l_of_sets` of words as ``jieba`` cuts them; ``rouge_zh_score`` of LongBench."""
    return rouge_l_of_sets(" ".join(_cut(said)), " ".join(_cut(answer)))


def rouge_n(said: str, answer: str, n: int) -> float:
    """F of common n-grams; ``rouge1`` and ``rouge2`` of the package ``rouge-score`` without stemming."""
    grams = ([tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in (_rouge_words(said), _rouge_words(answer)))
    heard, right = (Counter(found) for found in grams)
    return _f((heard & right).total(), max(heard.total(), 1), max(right.total(), 1))


def rouge_l(said: str, answer: str) -> float:
    """F of the longest common subsequence of words; ``rougeL`` of the package ``rouge-score`` without stemming."""
    heard, right = _rouge_words(said), _rouge_words(answer)
    return _f(_common_lengths(right, heard)[-1][-1], len(heard), len(right)) if heard and right else 0.0


def rouge_l_sum(said: str, answer: str) -> float:
    """F of the words of the answer that are in a longest common subsequence with any said line; ``rougeLsum`` of ``rouge-score``.

    A line end ends a sentence; no word counts more often than it is in both texts.
    """
    heard, right = ([_rouge_words(line) for line in text.split("\n") if line] for text in (said, answer))
    left = Counter(word for line in heard for word in line) & Counter(word for line in right for word in line)
    hits = 0
    for wanted in right:
        for at in sorted({at for line in heard for at in _common_places(wanted, line, drop="right")}):
            if left[wanted[at]] > 0:
                left[wanted[at]] -= 1
                hits += 1
    return _f(hits, sum(map(len, heard)), sum(map(len, right)))


def similarity(said: str, answer: str) -> float:
    """Edit similarity in whole hundredths: ``fuzz.ratio`` of ``fuzzywuzzy`` without ``python-Levenshtein``, as LongBench installs it.

    Twice the letters in :class:`difflib.SequenceMatcher`'s matching blocks by the letters of both; 1 for equal texts, 0 if one is empty.
    """
    if said == answer:
        return 1.0
    return round(100 * SequenceMatcher(None, said, answer).ratio()) / 100 if said and answer else 0.0


def class_share(said: str, answer: str, classes: Sequence[str]) -> float:
    """One by the number of class names in the text if the right one is among them; ``classification_score`` of LongBench.

    Names that are part of the right one do not count; as in the source, the name after a dropped one is not looked at.
    """
    named, at = [name for name in classes if name in said], 0
    while at < len(named):
        if named[at] in answer and named[at] != answer:
            del named[at]
        at += 1
    return 1.0 / len(named) if answer in named else 0.0


def number_share(said: str, answer: str) -> float:
    """Share of the numbers in a text that are the right one; ``count_score`` of LongBench, and its retrieval scores."""
    numbers = re.findall(r"\d+", said)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def first_integer(said: str) -> str:
    """The first run of the digits 0 to 9, or nothing; ``first_int_match`` of InfiniteBench."""
    found = re.search(r"[0-9]+", said)
    return found[0] if found else ""


def spaced(text: str, marks: str) -> str:
    """Text with a space in the place of each of the marks."""
    return "".join(" " if letter in marks else letter for letter in text)


def _f(common: int, said: int, right: int) -> float:
    return 2 * common / (said + right) if common else 0.0


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _common_lengths(right: Sequence[str], said: Sequence[str]) -> list[list[int]]:
    """Lengths of the longest common subsequences of all beginnings, ``[len(right) + 1][len(said) + 1]``."""
    table = [[0] * (len(said) + 1)]
    for word in right:
        above, row = table[-1], [0]
        for at, other in enumerate(said):
            row.append(above[at] + 1 if word == other else max(above[at + 1], row[at]))
        table.append(row)
    return table


def _common_places(right: Sequence[str], said: Sequence[str], drop: Literal["right", "said"]) -> list[int]:
    """Places in ``right`` of one longest common subsequence.

    Where there are several, the sources take different ones: ``drop`` names the text that loses its last word where either might,
    ``right`` in ``rouge-score``, ``said`` in ``rouge``.
    """
    table, i, j, places = _common_lengths(right, said), len(right), len(said), []
    while i and j:
        if right[i - 1] == said[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif table[i - 1][j] > table[i][j - 1] or (drop == "right" and table[i - 1][j] == table[i][j - 1]):
            i -= 1
        else:
            j -= 1
    return places


def _cut(text: str) -> list[str]:
    return list(package("jieba", "jieba", "cutting Chinese text into words").cut(text, cut_all=False))


@cache
def _stemmer() -> Any:
    return package("nltk.stem.porter", "nltk", "finding the stems of words").PorterStemmer()
