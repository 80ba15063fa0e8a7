"""What holds for every task; and passkeys, chains and common words."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate.aggregation import Aggregation
from agent_memory.evaluate.haystack import FILLER
from agent_memory.evaluate.passkey import Passkey
from agent_memory.evaluate.run import TASKS, make_tasks
from agent_memory.evaluate.task import Style
from agent_memory.evaluate.tracking import Tracking
from agent_memory.pocket import data

DEPTHS = [0.1, 0.5, 0.9]
EVERY = [(name, style) for name in TASKS for style in ("record", "prose")]


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(("name", "style"), EVERY)
@pytest.mark.parametrize("length", [1, 800, 5000])
def test_a_document_is_long_enough_and_the_same_for_the_same_seed(name: str, style: Style, length: int) -> None:
    (task,) = make_tasks([name], style)
    depths = DEPTHS[:1] if task.alone else DEPTHS
    document = task.make(random.Random(7), length, depths, words, None)
    assert document == task.make(random.Random(7), length, depths, words, None)
    assert document != task.make(random.Random(8), length, depths, words, None)
    told = words("\n".join(document.pieces))
    assert length <= told <= max(1.3 * length, 500) and all(document.pieces)
    assert task.name == name and repr(task) != repr(TASKS["needle" if name != "needle" else "updated"](style))


@pytest.mark.parametrize(("name", "style"), EVERY)
def test_the_right_answer_is_right_and_another_is_not(name: str, style: Style) -> None:
    (task,) = make_tasks([name], style)
    document = task.make(random.Random(1), 600, [0.4], words, None)
    depths = [question.depth for turns in document.questions for question in turns]
    assert 0.4 in depths or (name == "aggregation" and depths == [None])
    for question in (question for turns in document.questions for question in turns):
        right = ", ".join(question.answers)
        for match in ("exact", "contains"):
            assert task.score(question, right, match) == 1.0
            assert task.score(question, f"{question.stem} {right}.", match) == 1.0
            assert task.score(question, "I do not know.", match) == 0.0
        assert all(answer in "\n".join(document.pieces) for answer in question.answers)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown task haystack; there are needle, multi-key"):
        make_tasks(["needle", "haystack"], "record")
    with pytest.raises(ConfigError, match="unknown task"):
        make_tasks([], "record")


def test_a_passkey_in_prose_is_the_published_form() -> None:
    task = Passkey("prose")
    for seed, depth in enumerate([0.0] * 6 + [0.3, 0.6, 0.99]):
        document = task.make(random.Random(seed), 1500, [depth], words, None)
        ((question,),) = document.questions
        lines = "\n".join(document.pieces).split("\n")
        key = f"The pass key is {question.answers[0]}. Remember it. {question.answers[0]} is the pass key."
        assert re.fullmatch(r"\d{5}", question.answers[0]) and question.text == "What is the pass key?"
        assert lines[0].startswith("There is an important info hidden") and lines.count(key) == 1
        assert set(lines[1:]) == {FILLER, key}
        assert lines.index(key) / len(lines) == pytest.approx(depth, abs=0.1)


def test_passkeys_as_records_belong_to_names(tmp_path: Path) -> None:
    document = Passkey().make(random.Random(0), 400, DEPTHS, words, None)
    text = "\n".join(document.pieces)
    assert len(set(document.questions)) == 3 and not Passkey().alone and Passkey("prose").alone
    for (question,) in document.questions:
        assert text.index(question.stem.split()[0]) / len(text) == pytest.approx(question.depth, abs=0.1)
    file = tmp_path / "hay.txt"
    file.write_text("of the log\n" * 30)
    assert FILLER not in "".join(Passkey().make(random.Random(0), 400, DEPTHS, words, file).pieces)


def test_a_chain_in_prose_hands_its_value_on_from_its_depth_on() -> None:
    document = Tracking("prose", hops=3, chains=2).make(random.Random(2), 900, [0.2, 0.6], words, None)
    text = "\n".join(document.pieces)
    links = re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", text, re.M)
    assert len(links) == 2 * 2 * 4 and len({name for name, _ in links}) == len(links)
    for (question,), depth in zip(document.questions, (0.2, 0.6), strict=True):
        value = re.findall(r"\d+", question.text)[0]
        chain = [value]
        for name, given in links:  # in the order in which they are told
            if given == chain[-1]:
                chain.append(name)
        assert tuple(chain[1:]) == question.answers
        assert text.index(f"= {value}") / len(text) == pytest.approx(depth, abs=0.1)


def test_extra_names_cost() -> None:
    task = Tracking("prose", hops=1)
    ((question,),) = task.make(random.Random(0), 50, [0.5], words, None).questions
    first, second = question.answers
    assert task.score(question, f"VAR {first}", "exact") == 0.5
    assert task.score(question, f"{first}, {second}, ZZZZZ and QQQQQ", "exact") == 0.5


def test_a_chain_of_records_is_asked_hop_by_hop() -> None:
    document = Tracking(hops=2).make(random.Random(3), 400, [0.5], words, None)
    text = "\n".join(document.pieces)
    first, second, third = (question for (question,) in document.questions)
    assert first.answers[0].isdigit() and [question.depth for question in (first, second, third)] == [0.5] * 3
    assert second.text == data.question(second.stem.split()[0], "source") and second.answers[0] == first.stem.split()[0]
    assert third.answers[0] == second.stem.split()[0]
    places = [text.index(f) for f in (first.answers[0], second.stem.split()[0], third.stem.split()[0])]
    assert places == sorted(places)


@pytest.mark.parametrize("style", ["record", "prose"])
def test_wanted_words_come_up_most_often(style: Style) -> None:
    for length, often, seldom in ((3000, 30, 3), (300, None, 1)):
        task = Aggregation(style)
        document = task.make(random.Random(length), length, DEPTHS, words, None)
        ((question,),) = document.questions
        lines = "\n".join(document.pieces).split("\n")
        count = Counter(word for line in lines for word in re.findall(r"[a-z]{4,}", line) if word != "section")
        times = [count[word] for word in question.answers]
        assert question.depth is None and len(times) == 10
        if style == "prose":
            assert [line.split(". ")[0] for line in lines] == [str(i) for i in range(1, len(lines) + 1)]
            assert {w for w, _ in count.most_common(10)} == set(question.answers)
            assert len(set(times)) == 1 and (often is None or times[0] == often)
            assert {n for word, n in count.items() if word not in question.answers} == {seldom}
        assert min(times) >= (often or 2)
        assert task.score(question, ", ".join(question.answers[:4]), "exact") == 0.4


def test_words_refuse_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aggregation makes its own hay"):
        Aggregation().make(random.Random(0), 100, [0.5], words, tmp_path / "hay.txt")
