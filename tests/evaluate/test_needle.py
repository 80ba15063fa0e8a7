"""Facts in hay: where they lie, what lies around them, and which answers are right."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate.haystack import Needle, make_haystack
from agent_memory.evaluate.needle import Crowd, MultiKey, MultiQuery, MultiValue, NearDuplicate, SingleNeedle, Updated, near_name
from agent_memory.evaluate.task import Match
from agent_memory.pocket import data

DEPTHS = [0.1, 0.5, 0.9]


def words(text: str) -> int:
    return len(text.split())


def test_every_needle_lies_at_its_depth() -> None:
    stack = make_haystack(random.Random(0), 2000, DEPTHS, words)
    text = "\n".join(stack.pieces)
    assert words(text) >= 2000
    for needle in stack.needles:
        place = text.index(f"{needle.name}") / len(text)
        assert abs(place - needle.depth) < 0.1
    assert len({needle.name for needle in stack.needles}) == 3


def test_the_same_seed_gives_the_hay_that_published_figures_are_of() -> None:
    digest = hashlib.sha256()
    for seed in range(5):
        for length in (160, 2000):
            stack = make_haystack(random.Random(f"{seed} {length} 0"), length, DEPTHS, words)
            digest.update("\0".join(stack.pieces).encode())
            digest.update(repr([(n.name, n.field, n.value, n.depth, n.question) for n in stack.needles]).encode())
    assert digest.hexdigest() == "335b573264a05778fed8cf60351c927b83bc06c8d305fbadcc138d5eb3829c25"


def test_a_needle_is_asked_about_the_hay_it_was_hidden_in() -> None:
    stack = make_haystack(random.Random(3), 500, DEPTHS, words)
    document = SingleNeedle().make(random.Random(3), 500, DEPTHS, words, None)
    assert document.pieces == stack.pieces
    for needle, (question,) in zip(stack.needles, document.questions, strict=True):
        assert (question.text, question.answers, question.depth) == (needle.question, (needle.value,), needle.depth)


def test_hay_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "hay.txt"
    file.write_text("\n".join(f"line {i} of the log" for i in range(500)))
    stack = make_haystack(random.Random(0), 600, DEPTHS, words, file)
    assert all("of the log" in piece for piece in stack.pieces)
    (tmp_path / "empty.txt").write_text("\n\n")
    for bad in (tmp_path / "none.txt", tmp_path / "empty.txt"):
        with pytest.raises(ConfigError, match="haystack"):
            make_haystack(random.Random(0), 600, DEPTHS, words, bad)


@pytest.mark.parametrize(
    ("said", "match", "right"),
    [
        ("foo version: 1.2.3", "exact", True),
        (" 1.2.3.\n", "exact", True),
        ("1.2.3", "exact", True),
        ("1.2.33", "exact", False),
        ("bar version: 1.2.3", "exact", False),
        ("It is 1.2.3, I think", "exact", False),
        ("It is 1.2.3, I think", "contains", True),
        ("", "exact", False),
    ],
)
def test_what_counts_as_right(said: str, match: Match, right: bool) -> None:
    assert Needle("foo", "version", "1.2.3", 0.5).found_in(said, match) is right


def test_multi_key_has_a_fact_about_another_name_in_every_piece_and_around_every_needle(tmp_path: Path) -> None:
    log = tmp_path / "hay.txt"
    log.write_text("\n".join("of the log" for _ in range(50)))
    document = MultiKey().make(random.Random(1), 600, DEPTHS, words, log)
    assert all(any(line != "of the log" for line in piece.split("\n")) for piece in document.pieces)
    lines = "\n".join(document.pieces).split("\n")
    for (question,) in document.questions:
        field, name = re.fullmatch(r"What is the (\w+) of (.+)\?", question.text).groups()  # type: ignore[union-attr]
        (at,) = [
            i for i, line in enumerate(lines) if any(line == data.render_fact(name, field, question.answers[0], x) for x in data.LAYOUTS)
        ]
        for beside in (lines[at - 1], lines[at + 1]):
            assert (field in beside or "==" in beside) and name not in beside


def test_all_values_of_a_name_are_wanted_and_lie_from_its_depth_on() -> None:
    task = MultiValue()
    document = task.make(random.Random(2), 2000, DEPTHS, words, None)
    text = "\n".join(document.pieces)
    for (question,) in document.questions:
        name = question.stem.rsplit(" ", 1)[0]
        assert len(set(question.answers)) == 4 and text.count(name) == 4
        assert text.index(name) / len(text) == pytest.approx(question.depth, abs=0.1)
        one = f"{question.stem} {question.answers[2]}"
        assert (task.score(question, one, "exact"), task.score(question, "", "exact")) == (0.25, 0.0)
        assert task.score(question, ", ".join(question.answers) + ".", "exact") == 1.0


def test_a_value_counts_only_where_it_stands_for_itself() -> None:
    task, (question,) = MultiValue(), MultiValue().make(random.Random(2), 50, [0.5], words, None).questions[0]
    asked = replace(question, answers=("1.2", "3"), stem="foo version:")
    assert task.score(asked, "foo version: 1.2, 3.", "exact") == 1.0
    for said in ("1.2.3 and 1:1.2-3", "1.25", "11.2", "4.3"):
        assert task.score(asked, said, "exact") == 0.0
    assert task.score(asked, "1.2.3", "contains") == 1.0


def test_names_are_asked_one_after_another_in_turns_of_one_fork() -> None:
    depths = [(i + 0.5) / 6 for i in range(6)]
    document = MultiQuery().make(random.Random(4), 1000, depths, words, None)
    assert [len(turns) for turns in document.questions] == [3, 3]
    assert sorted(question.depth or -1 for turns in document.questions for question in turns) == depths


def test_there_are_always_several_to_ask_one_after_another() -> None:
    (turns,) = MultiQuery().make(random.Random(4), 300, [0.3], words, None).questions
    assert len(turns) == 4 and [question.depth for question in turns if question.depth is not None] == [0.3]


@pytest.mark.parametrize("task", [NearDuplicate(), Crowd()])
def test_every_line_is_a_fact_on_the_same_field(task: NearDuplicate | Crowd) -> None:
    document = task.make(random.Random(5), 1500, DEPTHS, words, None)
    lines = "\n".join(document.pieces).split("\n")
    field = re.fullmatch(r"What is the (\w+) of .+\?", document.questions[0][0].text)[1]  # type: ignore[index]
    names = [question.text.rsplit(" of ", 1)[1].removesuffix("?") for (question,) in document.questions]
    assert words("\n".join(lines)) >= 1500
    told = [line for line in lines if field in line or (field == "version" and "==" in line)]
    assert told == lines
    for name, (question,) in zip(names, document.questions, strict=True):
        mine = [line for line in lines if any(line == data.render_fact(name, field, question.answers[0], x) for x in data.LAYOUTS)]
        assert len(mine) == 1
        assert lines.index(mine[0]) / len(lines) == pytest.approx(question.depth, abs=0.1)


def test_a_long_history_has_as_many_near_duplicates_of_a_name_as_a_short_one() -> None:
    for length in (200, 3000):
        document = NearDuplicate().make(random.Random(8), length, [0.5], words, None)
        pieces = set(re.split(r"[-_.\d]+", document.questions[0][0].stem.split(" ")[0]))
        lines = "\n".join(document.pieces).split("\n")
        near = [line for line in lines if len(pieces & set(re.split(r"[-_.\d\s\":=|,]+", line))) >= len(pieces) - 1]
        assert len(lines) > length / 10 and 4 <= len(near) <= 9  # the asked one, six near it, and who resembles it by chance


def test_near_names_are_near_and_never_twice() -> None:
    rng, taken = random.Random(6), {"solar-lib3-core"}
    found = [near_name(rng, "solar-lib3-core", taken) for _ in range(200)]
    assert len({*found, "solar-lib3-core"}) == 201
    same_pieces = [len({"solar", "lib3", "core"} & set(name.split("-"))) for name in found]
    assert sum(count >= 2 for count in same_pieces) > 190
    assert {len(name) == len("solar-lib3-core") for name in found} == {True, False}


def test_near_duplicates_refuse_a_file(tmp_path: Path) -> None:
    for task in (NearDuplicate(), Crowd()):
        with pytest.raises(ConfigError, match=f"{task.name} makes its own hay"):
            task.make(random.Random(0), 100, [0.5], words, tmp_path / "hay.txt")


@pytest.mark.parametrize("depth", [0.0, 0.01, 0.5, 0.99])
def test_the_newest_value_stands_after_the_older_one(depth: float) -> None:
    for seed in range(30):
        document = Updated().make(random.Random(seed), 300, [depth], words, None)
        ((question,),) = document.questions
        name = question.stem.rsplit(" ", 1)[0]
        first, second = [line for line in "\n".join(document.pieces).split("\n") if name in line]
        assert question.outdated[0] in first and question.answers[0] in second
        assert question.outdated != question.answers
