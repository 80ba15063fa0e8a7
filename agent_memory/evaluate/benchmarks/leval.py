"""L-Eval (arXiv 2307.11088; GitHub OpenLMLab/LEval): its files, its prompts, its scores for exams, F1 and ROUGE.

Knows the data format, the prompts of ``Baselines/turbo16k-test.py`` and what ``Evaluation/auto_eval.py`` computes; does not know how
questions are asked. Lines that people or another model are to judge are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

from .. import metrics
from .base import Benchmark, Item, Metric, Row, around_context, best, jsonl

MAX_NEW_TOKENS = 512
CHOICES = "ABCD"

EXAM_METRICS = {
    "coursera": "letters",
    "quality": "letter",
    "tpo": "letter",
    "gsm100": "final_number",
    "codeU": "output",
    "sci_fi": "verdict",
}
"""Files of exams whose answers are read in a way of their own; the others' are compared as they are."""

JUDGED_ELSEWHERE = frozenset({"human", "llm"})

_SYSTEM = {
    "gsm100": (
        "Given several question answer pairs, you need to follow a similar format to answer the last question. Make sure the response is "
        "end with The answer is _ . "
    ),
    "topic_retrieval_longchat": (
        "Below is a record of our previous conversation on many different topics. You are the ASSISTANT, and I am the USER. At the "
        "beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize each <TOPIC>. At the end of "
        "the record, I will ask you to retrieve the first/second/third topic names. Now the record start. "
    ),
    "coursera": (
        "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice questions, there "
        "could be a sinlge correct option or multiple correct options. Please only provide the letter corresponding to the answer (like A "
        "or AB) when answering. "
    ),
    "codeU": (
        "Now you are given a code base consisting of a large amount of functions and the corresponding comments. In the end, I will call "
        "some functions defined in the code base. Please carefully read these codes and comments and answer the question."
    ),
    "sci_fi": (
        'Now you are given a scientific fiction. I will ask you some questions and the answer should be "True" or "False". Notice that you '
        "should answer the question based on the evidence in the document instead of your background knowledge."
    ),
    "exam": (
        "Now you are given a very long document. Please follow the instruction based on this document. For multi-choice questions, there "
        "is only a sinlge correct option. Please only provide the letter corresponding to the answer (like A or B) when answering. For "
        "other questions, please directly give the concise and accurate answer. "
    ),
    "open": (
        "Now you are given a very long document. Please follow the instruction after this document. These instructions may include "
        "summarizing a document, answering questions based on the document, or writing a required paragraph. "
    ),
}

_PLAIN = "{context}\n\n{input}"
_EXAM = (
    "Document is as follows. {context} Question: {input} \nPlease directly give answer without any additional output or explanation\n "
    "Answer: "
)
_OPEN = "Document is as follows. {context} Instruction: {input} The suggested output length is around {words} words. Output: "
_IN_THE_STORY = "based on the world described in the document."
_IN_THE_WORLD = "based on the real-world knowledge and facts up until your last training"
_FACT = "{input}\nPlease directly give answer without any additional output or explanation \nAnswer:"


def read(path: Path) -> Iterator[Item]:
    """The questions of one jsonl file of L-Eval; the file's name without ``.jsonl`` is the data set.

    Raises:
        ConfigError: the file is in another format; names file, line and key.
    """
    for row in jsonl(path, "L-Eval"):
        kind = row.text("evaluation").lower()
        if kind in JUDGED_ELSEWHERE:
            continue
        if kind not in ("exam", "f1", "rouge"):
            raise row.wrong(f"key 'evaluation' must be exam, f1, rouge, human or LLM, not {kind!r}")
        yield from _items(row, path.stem, kind)


def _items(row: Row, dataset: str, kind: str) -> Iterator[Item]:
    document = row.text("input" if "input" in row.data or "document" not in row.data else "document")
    asked, outputs = row.texts("instructions"), row.texts("outputs")
    if len(asked) != len(outputs):
        raise row.wrong(f"keys 'instructions' and 'outputs' must be equally long, not {len(asked)} and {len(outputs)}")
    metric = EXAM_METRICS.get(dataset, "exact") if kind == "exam" else kind
    template = _PLAIN if metric in ("final_number", "output") else _EXAM if kind == "exam" else _OPEN
    system = _SYSTEM.get(dataset, _SYSTEM["exam" if kind == "exam" else "open"])
    for number, (question, output) in enumerate(zip(asked, outputs, strict=True), 1):
        before, after = around_context(template, input=question, words=str(len(output.split())))
        name, answers = f"{dataset}/{row.number}/{number}", _answers(row, metric, output)
        yield Item(name, dataset, (before + document,), after, answers[:1], metric, MAX_NEW_TOKENS, system, query=question)
    if metric == "verdict":
        yield from _facts(row, dataset, asked, outputs)


def _facts(row: Row, dataset: str, asked: tuple[str, ...], outputs: tuple[str, ...]) -> Iterator[Item]:
    """The same statements, asked about the real world without the story; half of the score of ``sci_fi``."""
    for number, (question, output) in enumerate(zip(asked, outputs, strict=True), 1):
        question = _FACT.format(input=question.replace(_IN_THE_STORY, _IN_THE_WORLD))
        answers = _answers(row, "verdict", output)[1:]
        yield Item(f"{dataset}/{row.number}/{number}/fact", dataset, (), question, answers, "verdict", MAX_NEW_TOKENS)


def _answers(row: Row, metric: str, output: str) -> tuple[str, ...]:
    """What the authors' script makes of an output; for ``sci_fi`` what the story says and what is so in the world."""
    if metric in ("letter", "letters"):
        return ("".join(letter for letter in (output.split() or [""])[0] if letter in CHOICES) or "A",)
    if metric == "final_number":
        return (final_number(output),)
    if metric == "verdict":
        story, mark, fact = output.lower().partition("[fact:")
        if not mark:
            raise row.wrong(f"key 'outputs' of sci_fi must be like 'True [fact: False]', not {output!r}")
        return story.strip(), fact[:-1].strip()
    return (output,)


def exact(said: str, answer: str) -> float:
    """Whether an answer is right; ``exact_match_score`` of ``Evaluation/em.py``.

    Letters: 1 for the same, a quarter for some of the right ones only. Numbers: 1 for the same value. Other text: 1 if the right
    answer is part of what was said, case and spaces aside.
    """
    right, heard = (metrics.normalized(text, lower=False) for text in (answer, said))
    if set(right) <= set(CHOICES):
        return 1.0 if heard == right else 0.25 * (set(heard) <= set(right))
    try:
        return float(float(said) == float(answer))
    except ValueError:
        return float(answer.lower().replace(" ", "") in said.lower().replace(" ", ""))


def letters(said: str, several: bool) -> str:
    """The letters chosen in an answer to a multiple-choice question; ``process_output_mc``.

    Args:
        said: the answer.
        several: more than one letter may be right (``coursera``); otherwise the first is taken.
    """
    if not said.strip():
        return "None"
    first = next((letter for letter in said if letter in CHOICES), "A")
    if said in CHOICES or not several:
        return said if said in CHOICES else first
    leading = "".join(takewhile(CHOICES.__contains__, said))
    rest = said[len(leading) :].split("Question")[0]
    marked = re.findall(r"[A-D](?=[\s.)])", rest) if len(leading) < 2 else []
    run = re.search("[A-D]+", rest)
    return "".join(sorted({*leading, *marked})) or (run[0] if run else "A")


def final_number(text: str) -> str:
    """The digits before the decimal point of a solution's number; ``process_math``."""
    found = re.search(r"The answer is (\S+)", text)
    words = [found[1]] if found else text.split("\n\n")[0].split(" ")
    last = next((word for word in reversed(words) if any(letter.isdigit() for letter in word)), "")
    return "".join(letter for letter in last.split(".")[0] if letter.isdigit())


def output_of(said: str, answer: str) -> float:
    """Whether a program's output is at the end of an answer; ``process_output_code`` and ``process_gt_code``."""
    plain = _code(said)
    for phrase in ("will be", "of the code", "is", "would be", "the value of", "the result of", "printed"):
        plain = plain.replace(phrase, "")
    room, mark = len(answer.split()) + 3, "the final output"
    words = re.split(r"\s+", plain.split(mark)[-1])
    return exact(" ".join(words[:room] if mark in plain else words[-room:]), _code(answer))


def _code(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    for old, new in ((",", ""), ("'", ""), ("\\", ""), (".0", ""), ("] [", "]["), ("[ [", "[["), ("] ]", "]]")):
        text = text.replace(old, new)
    return text


def verdict(said: str, answer: str) -> float:
    """Whether the first word with "true" or "false" in it says the right one; ``process_output_judge``."""
    words = said.lower().split("[fact:")[0].split()
    found = (mark for word in words for mark in ("true", "false") if mark in word)
    return exact(next(found, "<error>"), answer)


def rouge(said: str, item: Item) -> tuple[float, ...]:
    """ROUGE-1, ROUGE-2 and ROUGE-L; ``auto_eval.py`` takes the geometric mean of their means as the score of a data set."""
    kinds = (partial(metrics.rouge_n, n=1), partial(metrics.rouge_n, n=2), metrics.rouge_l)
    return tuple(max(kind(said, answer) for answer in item.answers) for kind in kinds)


def _stripped(metric: Metric) -> Metric:
    """A metric of the answer without spaces around it, as the authors' script keeps it."""
    return lambda said, item: metric(said.strip(), item)


BENCHMARK = Benchmark(
    read,
    {
        "exact": _stripped(best(exact)),
        "letter": _stripped(best(lambda said, answer: exact(letters(said, several=False), answer))),
        "letters": _stripped(best(lambda said, answer: exact(letters(said, several=True), answer))),
        "final_number": _stripped(best(lambda said, answer: exact(final_number(said), answer))),
        "output": _stripped(best(output_of)),
        "verdict": _stripped(best(verdict)),
        "f1": _stripped(best(metrics.f1)),
        "rouge": _stripped(rouge),
    },
)
