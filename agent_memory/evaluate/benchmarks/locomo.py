"""LoCoMo (arXiv 2402.17753; GitHub snap-research/LoCoMo): its conversations of many days, its questions, its scores.

Knows the data format, the prompts for open models (``task_eval/hf_llm_utils.py``) and what ``task_eval/evaluation.py`` computes; does not
know how questions are asked. Each day's conversation is one piece of context, oldest first; each kind of question is one data set.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .. import metrics
from .base import JSON_TYPES, Benchmark, Context, Item, Row, Section, best, row_of

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
MAX_NEW_TOKENS = 50
NOTHING_SAID = "No information available"

_OPENING = (
    "Below is a conversation between two people: {} and {}. The conversation takes place over multiple days and the date of each "
    "conversation is wriiten at the beginning of the conversation.\n\n"
)
_QUESTION = (
    "\nBased on the above conversations, write a short answer for the following question in a few words. Do not write complete and lengthy "
    "sentences. Answer with exact words from the conversations whenever possible.\n\nQuestion: {}\n"
)
_WHEN = " Use DATE of CONVERSATION to answer with an approximate date."
_CHOOSE = " (a) {} (b) {}. Select the correct answer by writing (a) or (b)."


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation, a section each day, and the questions about it."""

    name: str
    context: Context
    items: tuple[Item, ...]


def read(path: Path) -> Iterator[Item]:
    """The questions of one json file of LoCoMo, conversation by conversation.

    Raises:
        ConfigError: the file is in another format; names file, place and key.
    """
    for conversation in conversations(path):
        yield from conversation.items


def conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of one json file of LoCoMo, turn by turn.

    Raises:
        ConfigError: the file is in another format; names file, place and key.
    """
    for number, value in enumerate(_samples(path), 1):
        sample = row_of(value, f"{path}, sample {number}", number, "LoCoMo")
        name, context = sample.text("sample_id"), _context(sample)
        pieces = context.pieces()
        items = tuple(_item(row, f"{path.stem}/{name}/{row.number}", pieces, context) for row in sample.rows("qa"))
        yield Conversation(f"{path.stem}/{name}", context, items)


def _samples(path: Path) -> list[Any]:
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}; LoCoMo files hold one JSON list") from error
    if not isinstance(samples, list):
        found = f" with keys {', '.join(sorted(samples))}" if isinstance(samples, dict) else ""
        raise ConfigError(
            f"{path}, line 1: LoCoMo files hold one JSON list of conversations, not {JSON_TYPES.get(type(samples), 'null')}{found}"
        )
    return samples


def _context(sample: Row) -> Context:
    """The days of a conversation in the order of their numbers; those without words are left out. Turns are named by ``dia_id``."""
    talk = row_of(sample.get("conversation", dict), f"{sample.place}, conversation", sample.number, sample.format)
    numbers = sorted(int(key.split("_")[1]) for key in talk.data if re.fullmatch(r"session_\d+", key))
    days: list[Section] = []
    for number in numbers:
        turns = list(talk.rows(f"session_{number}"))
        if turns:
            heading = f"\nDATE: {talk.text(f'session_{number}_date_time')}\nCONVERSATION:\n"
            lines = tuple((str(turn.data.get("dia_id", f"D{number}:{turn.number}")), _line(turn)) for turn in turns)
            days.append(Section(heading, lines))
    if not days:
        raise talk.wrong(f"key 'session_1' is missing or empty; found are {', '.join(sorted(talk.data)) or 'no keys'}")
    return Context(_OPENING.format(talk.text("speaker_a"), talk.text("speaker_b")), tuple(days))


def _line(turn: Row) -> str:
    shared = f" and shared {turn.text('blip_caption')}." if "blip_caption" in turn.data else ""
    return f'{turn.text("speaker")} said, "{turn.text("text")}"\n{shared}\n'


def _item(row: Row, name: str, pieces: tuple[str, ...], context: Context) -> Item:
    query, category = row.text("question"), row.get("category", int)
    if category not in CATEGORIES:
        raise row.wrong(f"key 'category' must be 1 to 5, not {category}")
    meta: dict[str, Any] = {"category": category, "evidence": row.data.get("evidence")}
    question = query
    if category == 5:
        meta["options"] = _options(row, name)
        question += _CHOOSE.format(*meta["options"])
    elif category == 2:
        question += _WHEN
    answers = row.texts("answer") if category != 5 else (NOTHING_SAID,)
    if category == 3:  # what follows is an explanation
        answers = tuple(answer.split(";")[0].strip() for answer in answers)
    dataset = CATEGORIES[category]
    metric = {1: "partial_f1", 5: "choice"}.get(category, "stemmed_f1")
    evidence, asked = tuple(re.findall(r"D\d+:\d+", str(meta["evidence"] or ""))), _QUESTION.format(question)
    return Item(name, dataset, pieces, asked, answers, metric, MAX_NEW_TOKENS, meta=meta, context=context, evidence=evidence, query=query)


def _options(row: Row, name: str) -> list[str]:
    """That nothing was said of it, and the trap, in an order drawn from the question's name: the authors draw it at random."""
    trap = row.texts("adversarial_answer" if "adversarial_answer" in row.data or "answer" not in row.data else "answer")[0]
    options = [NOTHING_SAID, trap]
    return options if random.Random(name).random() < 0.5 else options[::-1]  # noqa: S311 - reproducible, not secret


def _first_line(said: str) -> str:
    return said.replace('\\"', "'").strip().split("\n")[0].strip().lower()


def plain_answer(said: str) -> str:
    """The first line of an answer in lower case, without the marks of a choice; what ``get_hf_answers`` keeps."""
    line = _first_line(said)
    for mark in ("(a)", "(b)", "a)", "b)", "answer:"):
        line = line.replace(mark, "")
    return line.strip()


def choice(said: str, item: Item) -> tuple[float, ...]:
    """Whether the option is chosen that nothing was said: (a) if "(a)" is in the first line, otherwise (b)."""
    chosen = item.meta["options"][0 if "(a)" in _first_line(said) else 1].lower()
    return (float("no information available" in chosen or "not mentioned" in chosen),)


BENCHMARK = Benchmark(
    read,
    {
        "stemmed_f1": best(lambda said, answer: metrics.stemmed_f1(plain_answer(said), answer)),
        "partial_f1": best(lambda said, answer: metrics.partial_f1(plain_answer(said), answer)),
        "choice": choice,
    },
)
