"""Measures of answers, general and of each benchmark: values worked out by hand, and the quirks of the sources whose numbers they give."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate import metrics
from agent_memory.evaluate.benchmarks import infinitebench, leval, locomo, longbench
from agent_memory.evaluate.benchmarks.base import Item


def test_normal_form_drops_marks_articles_and_spaces() -> None:
    assert metrics.normalized("The A-team's,  a  test!") == "ateams test"
    assert metrics.normalized("The A-team's,  a  test!", lower=False) == "The Ateams test"
    assert metrics.normalized("salt and a pepper", articles="a|an|the|and") == "salt pepper"
    assert metrics.normalized_chinese("北京，是 A。") == "北京是a"


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("The cat sat.", "a cat sat down", 0.8),  # 2 of 2 said, 2 of 3 wanted
        ("cat cat", "cat", 2 / 3),  # 1 of 2 said, 1 of 1 wanted
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("The", "the", 0.0),  # nothing is left of either
    ],
)
def test_f1_counts_each_word_as_often_as_both_have_it(said: str, answer: str, score: float) -> None:
    assert metrics.f1(said, answer) == pytest.approx(score)


def test_chinese_f1_of_letters() -> None:
    assert metrics.chinese_letter_f1("北京，大学", "北京") == pytest.approx(2 * 2 / (4 + 2))


def test_chinese_measures_cut_words_with_jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", SimpleNamespace(cut=lambda text, cut_all: iter(text.split("|"))))
    assert metrics.chinese_word_f1("北京|大学|。", "北京|天津") == pytest.approx(0.5)
    assert metrics.chinese_rouge_l("北京|大学", "北京|天津") == pytest.approx(0.5)


def test_f1_of_stems() -> None:
    assert metrics.stemmed_f1("He was running", "runs") == pytest.approx(0.5)  # he wa run / run
    assert metrics.stemmed_f1("salt and pepper", "peppers, salt") == 1.0


def test_partial_f1_takes_the_best_part_for_each_wanted_one() -> None:
    assert metrics.partial_f1("swimming, painting", "Paint, camping") == pytest.approx(0.5)
    assert metrics.partial_f1("Paint", "Paint") == 1.0


@pytest.mark.parametrize(("module", "package"), [("jieba", "jieba"), ("nltk.stem.porter", "nltk")])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    metrics._stemmer.cache_clear()
    measure = metrics.chinese_word_f1 if package == "jieba" else metrics.stemmed_f1
    with pytest.raises(ConfigError, match=f"pip install {package}$"):
        measure("a", "b")


def test_rouge_l_of_the_package_rouge_counts_distinct_words() -> None:
    said, answer = "the cat sat on the mat", "the cat lay on the mat"
    assert metrics.rouge_l_of_sets(said, answer) == pytest.approx(4 / 5)  # the, cat, on, mat of five each
    assert metrics.rouge_l(said, answer) == pytest.approx(5 / 6)


def test_rouge_l_of_the_package_rouge_looks_at_every_pair_of_sentences() -> None:
    assert metrics.rouge_l_of_sets("one two. three", "three. one two") == pytest.approx(1.0)
    assert metrics.rouge_l_of_sets("three four. one", "one three.") == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    for nothing in ("", ".", "..."):
        assert metrics.rouge_l_of_sets(nothing, "one") == metrics.rouge_l_of_sets("one", nothing) == 0.0


def test_where_two_common_subsequences_are_as_long_each_package_takes_its_own() -> None:
    assert metrics.rouge_l_of_sets("b a. b", "a b") == pytest.approx(0.5)  # "b" of "b a", and "b": one word of two
    assert metrics.rouge_l_sum("b a\nb", "a b") == pytest.approx(0.8)  # "a" of "b a", and "b": two of three said and two wanted


def test_long_sentences_are_not_given_up() -> None:
    words = " ".join(f"w{number}" for number in range(1200))
    assert metrics.rouge_l_of_sets(words, words) == pytest.approx(1.0)


def test_rouge_n() -> None:
    assert metrics.rouge_n("The cat, the cat", "the cat", 1) == pytest.approx(2 * 2 / (4 + 2))
    assert metrics.rouge_n("The cat, the cat", "the cat", 2) == pytest.approx(2 * 1 / (3 + 1))
    assert metrics.rouge_n("cat", "cat", 2) == metrics.rouge_l("", "cat") == 0.0


def test_rouge_l_sum_counts_no_word_twice() -> None:
    assert metrics.rouge_l_sum("a b\na b", "a b") == pytest.approx(2 * 2 / (4 + 2))
    assert metrics.rouge_l_sum("a", "a\na") == pytest.approx(2 * 1 / (1 + 2))
    assert metrics.rouge_l_sum("\n\n", "a") == 0.0


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [("abcd", "bcde", 0.75), ("ab", "b", 0.67), ("same", "same", 1.0), ("", "", 1.0), ("x", "", 0.0), ("", "x", 0.0)],
)
def test_similarity_is_in_hundredths(said: str, answer: str, score: float) -> None:
    assert metrics.similarity(said, answer) == score


@pytest.mark.parametrize(
    ("said", "answer", "classes", "score"),
    [
        ("City", "City", ["City", "Food"], 1.0),
        ("Food", "City", ["City", "Food"], 0.0),
        ("Other food or City", "Other food", ["Food", "Other food", "City"], 0.5),
        ("abc", "abc", ["a", "abc"], 1.0),  # "a" is only part of the right name
        ("abc z", "abc", ["a", "b", "abc", "z"], 1 / 3),  # "b" is not looked at once "a" is dropped
    ],
)
def test_class_share(said: str, answer: str, classes: list[str], score: float) -> None:
    assert metrics.class_share(said, answer, classes) == pytest.approx(score)


def test_numbers_in_answers() -> None:
    assert metrics.number_share("Paragraph 4, or 4 of 12", "4") == pytest.approx(2 / 3)
    assert metrics.number_share("none", "4") == 0.0
    assert [metrics.first_integer(text) for text in ("It is 71432.", "-5 or 6", "none")] == ["71432", "5", ""]
    assert metrics.spaced("a.b:c", ".:") == "a b c"


def item(*answers: str, dataset: str = "", **meta: Any) -> Item:
    return Item("1", dataset, (), "?", answers, "", 1, meta=meta)


@pytest.mark.parametrize(
    ("dataset", "metric", "said", "answer", "score"),
    [
        ("narrativeqa", "f1", "Ada\nGrace Hopper", "Ada Hopper", 0.8),
        ("triviaqa", "f1", "\nAda\nGrace Hopper", "Ada", 1.0),  # the first line only
        ("samsum", "rouge_l", "one two\nthree", "one two", 1.0),
        ("trec", "class_share", "Person\nPlace", "Person", 1.0),
        ("passage_retrieval_en", "passage_share", "Paragraph 3 or 5", "Paragraph 3", 0.5),
        ("passage_retrieval_zh", "passage_share", "段落3", "段落3", 1.0),
        ("passage_count", "number_share", "3", "3", 1.0),
        ("lcc", "next_line", "\n# so\n```python\nx = 1\ny", "x = 1", 1.0),
    ],
)
def test_longbench_scores(dataset: str, metric: str, said: str, answer: str, score: float) -> None:
    judged = longbench.BENCHMARK.metrics[metric](said, item(answer, dataset=dataset, classes=("Person", "Place")))
    assert judged == pytest.approx((score,))


@pytest.mark.parametrize(
    ("metric", "said", "answers", "score"),
    [
        ("first_integer", " 71432. Or 5", ("71432",), 1), ("first_integer", "5, 71432", ("71432",), 0),
        ("said_word", '{"k": "v-1"}', ("v-1",), 1), ("said_word", "v-12", ("v-1",), 0),
        ("said_name", "ace, I think", ("ACE",), 1), ("said_name", "Ace", ("ACE ROTHSTEIN",), 0),
        ("last_integer", "It is -5.", ("-5",), 1), ("last_integer", "5 apples", ("5",), 0), ("last_integer", "", ("5",), 0),
        ("first_number", "about 8.5, or 3", ("8.5",), 1), ("first_number", "-94", ("94",), 1), ("first_number", "no", ("94",), 0),
        ("numbers_in_order", "[1, 4, 9]", ("1", "4", "8", "2"), 0.5), ("numbers_in_order", "", ("1",), 0),
        ("numbers_in_order", "1, 5, 8", ("1", "4", "8", "2"), 0.25),
        ("said_choice", "B. Bob", ("Bob", "B"), 1), ("said_choice", "Bob", ("Bob", "B"), 1), ("said_choice", "C", ("Bob", "B"), 0),
        ("said_choice", "the answer is: B", ("Bob", "B"), 1), ("said_choice", "the answer is:", ("Bob", "B"), 0),
        ("said_choice", "I take B", ("Bob", "B"), 1), ("said_choice", "", ("Bob", "B"), 0), ("said_choice", "I take", ("Bob", "B"), 0),
        ("said_choice", "C? No, the answer is: B", ("Bob", "B"), 0),
        ("said_option", "B. f", ("f", "B"), 1), ("said_option", "the correct option is: f", ("f", "B"), 1),
        ("said_option", "B", ("f", "B"), 0), ("said_option", "it is: C", ("f", "B"), 0),
    ],
)  # fmt: skip
def test_infinitebench_scores(metric: str, said: str, answers: tuple[str, ...], score: float) -> None:
    assert infinitebench.BENCHMARK.metrics[metric](said, item(*answers)) == pytest.approx((score,))


@pytest.mark.parametrize(
    ("metric", "said", "answer", "score"),
    [
        ("letter", "I choose B, not A", "B", 1), ("letter", "no idea", "A", 1), ("letter", " ", "A", 0), ("letter", "AB", "A", 0),
        ("letters", "AB", "AB", 1), ("letters", "A. and C) both", "AC", 1), ("letters", "BA.", "AB", 1), ("letters", "A", "AC", 0.25),
        ("letters", "D", "AC", 0), ("letters", "xDC", "CD", 0.25), ("letters", "none", "A", 1),
        ("final_number", "So 3 + 4. The answer is $1,8.0", "18", 1), ("final_number", "It has 3 or 18 eggs\n\n7", "18", 1),
        ("output", "the value of the code will be [1, 2]", "[1, 2]", 1), ("output", "the final output is 3 and so we go on with 9", "3", 1),
        ("verdict", "That is not-false.", "false", 1), ("verdict", "maybe", "true", 0),
        ("exact", "The Role  of art", "role of art", 1), ("exact", "18", "18.0", 1), ("exact", "19", "18", 0), ("f1", "a b", "b c", 2 / 3),
    ],
)  # fmt: skip
def test_leval_scores(metric: str, said: str, answer: str, score: float) -> None:
    assert leval.BENCHMARK.metrics[metric](said, item(answer)) == pytest.approx((score,))


def test_leval_rouge_has_three_parts() -> None:
    parts = leval.BENCHMARK.metrics["rouge"]("the cat sat", item("a cat sat", "dog"))
    assert parts == pytest.approx((2 / 3, 0.5, 2 / 3))


def test_locomo_scores() -> None:
    judge = locomo.BENCHMARK.metrics
    assert judge["stemmed_f1"]("(a) Answer: Running\nand more", item("runs")) == (1.0,)
    assert judge["partial_f1"]("Painting", item("paint, camp")) == (0.5,)
    options = ["No information available", "a cat"]
    assert judge["choice"]("It is (A).", item(options=options)) == judge["choice"]("b", item(options=options[::-1])) == (1.0,)
    assert judge["choice"]("a", item(options=options)) == (0.0,)
