"""InfiniteBench (arXiv 2402.13718; GitHub OpenBMB/InfiniteBench): its files, its prompts for open models, its scores.

Knows the data format, the prompts of ``src/prompt.py`` (``yarn_mistral_templates``, which its authors use for every open model) and what
``src/compute_scores.py`` computes; does not know how they are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from .. import metrics
from .base import Benchmark, Item, Row, around_context, best, jsonl

LETTERS = "ABCD"
NUMERIC = {"last_integer": r"-?\d+", "first_number": r"-?\d+(\.\d+)?", "numbers_in_order": r"-?\d+"}
"""What the right answers of some metrics look like."""

_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\n"


@dataclass(frozen=True, slots=True)
class _Task:
    """One task: its metric, the tokens of its longest answer (``src/eval_utils.py``) and its prompt."""

    metric: str
    max_new_tokens: int
    prompt: str


_TASKS = {
    "passkey": _Task(
        "first_integer",
        6,
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you about the "
        "important information.\n\n{context}\n\n{input}\n\nThe pass key is",
    ),
    "number_string": _Task(
        "first_integer",
        12,
        "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the important information "
        "there.\n\n{context}\n\n{input}\n\nThe sequence of digits is",
    ),
    "kv_retrieval": _Task(
        "said_word", 50, "Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n{input}"
    ),
    "longbook_sum_eng": _Task("rouge_l_sum", 1200, "Summarize the book below.\n\n{context}\n\nSummary:"),
    "longbook_choice_eng": _Task(
        "said_choice",
        40,
        "Read the book and answer the question.\n\n{context}\n\nQuestion: {input}\n" + _OPTIONS + "The letter of the correct answer is",
    ),
    "longbook_qa_eng": _Task(
        "f1", 40, "Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\nQuestion: {input}\nAnswer:"
    ),
    "longbook_qa_chn": _Task("chinese_letter_f1", 40, "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}\n答案："),
    "longdialogue_qa_eng": _Task(
        "said_name",
        40,
        'Below is a dialogue script where one random occurrence of a character name is replaced with "$$MASK$$", and you should try '
        "to guess who that character is.\n\n{context}\n\nThe name that has been replaced with $$MASK$$ is likely",
    ),
    "math_find": _Task("first_number", 3, "What is {wanted} in the following list?\n\n{context}\n\n{input}"),
    "math_calc": _Task(
        "numbers_in_order",
        30000,
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: [1, 4, 8]\n\nExpression: 8 - 3 + "
        "2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}\nValues:",
    ),
    "code_run": _Task(
        "last_integer",
        5,
        "There is a function called {function} in the following Python code.\n\n{context}\n\nPlease compute the exact value of {call}. "
        "The value of {call} is",
    ),
    "code_debug": _Task(
        "said_option",
        5,
        "Following is a Python code where exactly one of the functions/methods has a deliberate error that makes it crash.\n\n"
        "{context}\n\nOptions:\n" + _OPTIONS + "The correct option is:",
    ),
}


def read(path: Path) -> Iterator[Item]:
    """The questions of one jsonl file of InfiniteBench; the file's name without ``.jsonl`` is the task.

    Raises:
        ConfigError: no task has that name, or the file is in another format; names file, line and key.
    """
    if path.stem not in _TASKS:
        raise ConfigError(f"{path}: InfiniteBench has no task {path.stem!r}; name the file after its task: {', '.join(_TASKS)}")
    for row in jsonl(path, "InfiniteBench"):
        yield _item(row, path.stem)


def _item(row: Row, name: str) -> Item:
    task, context, asked = _TASKS[name], row.text("context"), row.text("input")
    fields = {"input": asked}
    if name == "code_run":
        fields["call"] = _found(row, r"func_[0-9]+\(-?[0-9]+\)", asked)
        fields["function"] = fields["call"].split("(")[0]
    elif name == "math_find":
        fields["wanted"] = _found(row, r"The .+ of", asked).lower().removesuffix(" of")
    elif task.metric in ("said_choice", "said_option"):
        fields |= {f"OPTION_{letter}": option for letter, option in zip(LETTERS, _options(row), strict=True)}
    before, after = around_context(task.prompt, **fields)
    return Item(f"{name}/{row.number}", name, (before + context,), after, _answers(row, task), task.metric, task.max_new_tokens)


def _found(row: Row, pattern: str, asked: str) -> str:
    found = re.search(pattern, asked)
    if found is None:
        raise row.wrong(f"key 'input' must ask for {pattern!r}, not {asked[:80]!r}")
    return found[0]


def _options(row: Row) -> tuple[str, ...]:
    options = row.texts("options")
    if len(options) != len(LETTERS):
        raise row.wrong(f"key 'options' must hold {len(LETTERS)} options, not {len(options)}")
    return options


def _answers(row: Row, task: _Task) -> tuple[str, ...]:
    """Answers as strings; for a choice its text and its letter, for a calculation its values, which stand in a list of their own."""
    answers = row.texts("answer", nested=task.metric == "numbers_in_order")
    if task.metric in NUMERIC and not all(re.fullmatch(NUMERIC[task.metric], answer) for answer in answers):
        raise row.wrong(f"key 'answer' must hold numbers, not {list(answers[:3])!r}")
    if not answers:
        raise row.wrong("key 'answer' holds no answer")
    if task.metric not in ("said_choice", "said_option"):
        return answers
    options = _options(row)
    if len(answers) == 2 and answers[1] in tuple(LETTERS):
        return answers
    if len(answers) != 1 or answers[0] not in options:
        raise row.wrong(f"key 'answer' must be one of the options, not {list(answers)!r}")
    return (answers[0], LETTERS[options.index(answers[0])])


def _one(score: bool) -> tuple[float, ...]:
    return (float(score),)


def said_word(said: str, item: Item) -> tuple[float, ...]:
    """Whether the value is one of the words; ``get_score_one_kv_retrieval``."""
    return _one(item.answers[0] in metrics.spaced(said, "\n:\"'.,?!{}").split())


def said_name(said: str, item: Item) -> tuple[float, ...]:
    """Whether the first name given as right is one of the words, in capitals; ``get_score_one_longdialogue_qa_eng``."""
    return _one(item.answers[0] in metrics.spaced(said, "\n:\"'.,?!{}").upper().split())


def last_integer(said: str, item: Item) -> tuple[float, ...]:
    """Whether the last word is the number; ``get_score_one_code_run``."""
    words = metrics.spaced(said, "\n.`'\":").split()
    try:
        return _one(bool(words) and int(words[-1]) == int(item.answers[0]))
    except ValueError:
        return (0.0,)


def first_number(said: str, item: Item) -> tuple[float, ...]:
    """Whether the first number, without its sign, is the right one; ``get_score_one_math_find``."""
    found = re.search(r"\d+\.\d+|\d+", said)
    return _one(found is not None and float(found[0]) == float(item.answers[0]))


def numbers_in_order(said: str, item: Item) -> tuple[float, ...]:
    """Share of the values that are right before the first wrong one; ``get_score_one_math_calc``."""
    right = 0
    for number, value in zip(re.findall(r"[0-9]+", said), item.answers, strict=False):
        if int(number) != int(value):
            break
        right += 1
    return (right / len(item.answers),)


def said_choice(said: str, item: Item) -> tuple[float, ...]:
    """Whether a letter or an option's text is the right one; ``get_score_one_longbook_choice_eng``, order of its rules included."""
    said, right = said.strip(), item.answers
    if not said:
        return (0.0,)
    if said[0] in LETTERS:
        return _one(said[0] in right)
    if said in right:
        return (1.0,)
    plain = re.sub(" +", " ", metrics.spaced(said, "\n\"'.,?!{}"))
    after = _after(plain, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return _one(after.startswith(right))
    return _one(next((word in right for word in plain.split() if word in LETTERS), False))


def said_option(said: str, item: Item) -> tuple[float, ...]:
    """Whether the letter or the function's name is the right one; ``get_score_one_code_debug``, order of its rules included."""
    said, (function, letter) = said.strip(), item.answers
    if said.startswith((f"{letter}.", f"{letter}:")):
        return (1.0,)
    plain = re.sub("[Oo]ption", " ", metrics.spaced(said, "\n`'\"-*"))
    after = _after(re.sub(" +", " ", plain), ("answer is:", "is:", "answer:", "correct option is:"))
    return _one(after is not None and after.startswith((letter, function)))


def _after(text: str, prefixes: tuple[str, ...]) -> str | None:
    """What follows the first of the prefixes that is there, and one more letter (a space); nothing if none is."""
    at = next((text.find(prefix) + len(prefix) for prefix in prefixes if prefix in text), None)
    return None if at is None else text[at + 1 :]


BENCHMARK = Benchmark(
    read,
    {
        "first_integer": lambda said, item: _one(metrics.first_integer(said) == item.answers[0]),
        "said_word": said_word,
        "said_name": said_name,
        "last_integer": last_integer,
        "first_number": first_number,
        "numbers_in_order": numbers_in_order,
        "said_choice": said_choice,
        "said_option": said_option,
        "f1": best(metrics.f1),
        "chinese_letter_f1": best(metrics.chinese_letter_f1),
        "rouge_l_sum": best(metrics.rouge_l_sum),
    },
)
