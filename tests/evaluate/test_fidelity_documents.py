"""Documents that fidelity is measured on: needles in RULER's words, conversations cut around their evidence, passages of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate.fidelity.conversations import ConversationOptions, leval_documents, locomo_documents
from agent_memory.evaluate.fidelity.documents import Continuation, Document, Question
from agent_memory.evaluate.fidelity.keys import KEYS, read_keys
from agent_memory.evaluate.fidelity.needles import KINDS, NeedleDocuments, NeedleOptions
from agent_memory.evaluate.fidelity.passages import PassageOptions, lead_of, passages
from agent_memory.evaluate.fidelity.scoring import right, score
from tests.evaluate.tiny import tiny


def words(text: str) -> int:
    """A token a word."""
    return len(text.split())


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def needles(**options: Any) -> Document:
    return NeedleDocuments(NeedleOptions(**{"length": 400, **options}), words).make(options.pop("number", 0))


def asked(document: Document) -> list[Question]:
    return [question for question in document.questions if isinstance(question, Question)]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    file = tmp_path / "prose.txt"
    lines = [f"Line {number} of the play says little, and says it slowly." for number in range(50)]
    file.write_text("\n\n".join([*lines, "A long line. " * 60]))
    return file


def test_needles_are_told_and_asked_in_rulers_words(prose: Path) -> None:
    document = needles(haystack=prose, keys="animals")
    [(role, text)] = document.messages
    lines = text.split("\n")
    assert role == "user" and lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number afterwards."
    )
    assert len(document.questions) == 8 and 360 < words(text) <= 400
    for question in asked(document):
        [value] = question.expected
        key = question.text.removeprefix("What is the special magic number for ").removesuffix(" mentioned in the provided text?")
        assert key in KEYS["animals"] and len(value) == 7 and value.isdigit()
        needle = f"One of the special magic numbers for {key} is: {value}."
        assert lines.count(needle) == 1 and question.answer == value and question.depth is not None
        assert question.prefix == f"The special magic number for {key} mentioned in the provided text is"
        assert question.depth == pytest.approx(words("\n".join(lines[: lines.index(needle)])) / words(text), abs=0.12)
    plain = [line for line in lines[1:] if not line.startswith("One of the special")]
    source = prose.read_text().replace("\n\n", " ")
    assert all(line in source for line in plain) and max(map(len, plain)) < 400


def test_several_values_and_several_keys_are_asked_at_once(prose: Path) -> None:
    values = needles(haystack=prose, kind="multi-value")
    text, [first, second] = values.messages[0][1], asked(values)
    assert text.startswith("Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you")
    for question in (first, second):
        key = question.text.removeprefix("What are all the special magic numbers for ").removesuffix(" mentioned in the provided text?")
        told = [line.split(": ")[1].rstrip(".") for line in text.split("\n") if f"for {key} is: " in line]
        assert list(question.expected) == told and len(told) == 4
        assert question.answer == f"{told[0]}, {told[1]}, {told[2]}, and {told[3]}" and question.prefix.endswith("provided text are")
    keys = [line.split(" for ")[1].split(" is: ")[0] for line in text.split("\n") if " is: " in line]
    assert len(keys) == 8 and len(set(keys)) == 2 and keys not in ([keys[0]] * 4 + [keys[4]] * 4,)  # values of a key are not in a row
    assert score(first, f"{first.expected[1]} and {first.expected[3]}") == 0.5 and not right(first, first.expected[1])
    assert right(first, first.answer)
    queries = asked(needles(haystack=prose, kind="multi-query"))
    assert len(queries) == 2 and all(" and " in question.text and len(question.expected) == 4 for question in queries)
    assert len(needles(haystack=prose, kind="single").questions) == 1


def test_prose_may_be_in_lines_of_json(prose: Path, tmp_path: Path) -> None:
    lines = prose.read_text().splitlines(keepends=True)
    parts = ["".join(lines[: len(lines) // 2]), "".join(lines[len(lines) // 2 :])]
    (tmp_path / "prose.jsonl").write_text("".join(json.dumps({"input": part}) + "\n" for part in parts))
    assert needles(haystack=tmp_path / "prose.jsonl") == needles(haystack=prose)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_the_same_for_the_same_seed_and_number(prose: Path, kind: str) -> None:
    def made(seed: int, number: int) -> Document:
        return NeedleDocuments(NeedleOptions(kind, 400, haystack=prose, seed=seed), words).make(number)

    assert made(0, 1) == made(0, 1) and made(0, 1).key == made(0, 1).key
    assert len({made(seed, number).key for seed in (0, 1) for number in (0, 1)}) == 4


def test_what_is_asked_changes_no_memory_but_what_a_truth_is_kept_for() -> None:
    question = Question("Who?", "Ann", "It is", ("Ann",), 4, 0.5)
    assert Document("a", (("user", "x"),), (question,)).key == Document("b", (("user", "x"),)).key
    assert Document("a", (("user", "x"),)).key != Document("a", (("tool", "x"),)).key
    assert question.key == Question("Who?", "Ann", "It is", ("Ann",), 4, 0.75).key != Question("Who?", "Ann", "It is", ("Ann",), 5, 0.5).key
    assert question.tokens(encode) == (encode("It is Ann"), len("It is")) and Question("Who?", "Ann").tokens(encode) == (encode("Ann"), 0)
    assert question.contained_in("so it was ann!") and not question.contained_in("so it was An")
    with pytest.raises(ConfigError, match="the gold answer '' has no tokens"):
        Question("Who?", "").tokens(encode)


def test_keys_come_from_lists_or_files(tmp_path: Path) -> None:
    assert all(len(set(keys)) == len(keys) >= 60 for keys in KEYS.values()) and not set(KEYS["cities"]) & set(KEYS["animals"])
    (tmp_path / "keys.txt").write_text("oak\n elm \n\noak\n")
    assert read_keys(str(tmp_path / "keys.txt"), 2) == ("oak", "elm")
    with pytest.raises(ConfigError, match="has 2 keys; 3 are needed"):
        read_keys(str(tmp_path / "keys.txt"), 3)
    with pytest.raises(ConfigError, match="'trees' is neither a list .animals, cities, foods, jobs, words. nor a file"):
        read_keys("trees", 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "many"}, "kind='many' is no kind of needle"),
        ({"kind": "multi-value", "facts": 6}, "6 facts cannot be used; it must be a multiple of 4"),
        ({"facts": 0}, "0 facts cannot be used; it must be at least 1"),
        ({"length": 60}, "a document of 60 tokens has no room for 8 facts"),
        ({"haystack": Path("nowhere.txt")}, "cannot be read as UTF-8 text"),
        ({"facts": 80}, "keys='cities' has .* keys; 80 are needed"),
    ],
)
def test_needles_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        needles(**options)


def talk(days: int = 6, turns: int = 10) -> dict[str, Any]:
    """A conversation in LoCoMo's format with one question about each day, and some that cannot be asked."""
    conversation: dict[str, Any] = {"speaker_a": "Ann", "speaker_b": "Bob"}
    for day in range(1, days + 1):
        conversation[f"session_{day}_date_time"] = f"{day} May"
        conversation[f"session_{day}"] = [
            {"speaker": "Ann", "dia_id": f"D{day}:{turn}", "text": f"On day {day} turn {turn} I saw {day * 100 + turn} birds."}
            for turn in range(1, turns + 1)
        ]
    qa = [
        {"question": f"How many on day {day}?", "answer": day * 100 + 5, "evidence": [f"D{day}:5"], "category": 4}
        for day in range(1, days + 1)
    ]
    wrong = [
        {"question": "Open?", "answer": "Yes", "evidence": ["D1:1"], "category": 3},
        {"question": "Where?", "answer": "There", "evidence": ["D9:1"], "category": 1},
        {"question": "Far apart?", "answer": "Yes", "evidence": [f"D1:1; D{days}:1"], "category": 1},
        {"question": "No evidence?", "answer": "Yes", "evidence": [], "category": 2},
    ]
    return {"sample_id": "talk-1", "conversation": conversation, "qa": qa + wrong}


def test_conversations_are_cut_around_the_evidence_and_cuts_are_shared(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    file = tmp_path / "locomo.json"
    file.write_text(json.dumps([talk(), {**talk(2), "sample_id": "talk-2"}]))
    options = ConversationOptions((file,), 300, 100)
    found = locomo_documents(options, words)
    assert found == locomo_documents(options, words)
    questions = [(document, question) for document in found for question in asked(document)]
    far = {"Yes"}  # evidence in the first and the last day fits a cut of the conversation of two days only
    assert sorted(question.answer for _, question in questions) == sorted([*far, *map(str, [105, 205, 305, 405, 505, 605, 105, 205])])
    assert len(found) < len(questions) and len({document.key for document in found}) == len(found)
    for document, question in questions:
        if question.answer in far:
            continue
        told = "\n".join(text for _, text in document.messages)
        day, depth = int(question.answer) // 100, question.depth
        assert f"On day {day} turn 5 I saw {question.answer} birds." in told and f"DATE: {day} May" in told and depth is not None
        assert 200 < words(told) <= 300 or "talk-2" in document.name
        assert depth == pytest.approx(words(told[: told.index(f"saw {question.answer}")]) / words(told), abs=0.2)
        assert right(question, question.answer) and not right(question, "none") and question.max_new_tokens == 50
    fewer = [one.answer for document in locomo_documents(ConversationOptions((file,), 300, 3), words) for one in asked(document)]
    other = [one.answer for document in locomo_documents(ConversationOptions((file,), 300, 3, seed=1), words) for one in asked(document)]
    assert len(fewer) == len(other) == 3 and fewer != other
    with pytest.raises(ConfigError, match="no question of categories 1, 2 and 4 has evidence that fits 5 tokens"):
        locomo_documents(ConversationOptions((file,), 5, 3), words)
    with pytest.raises(ConfigError, match="on locomo reads its files"):
        locomo_documents(ConversationOptions((), 300), words)


def test_leval_documents_lose_their_middle_and_come_with_their_questions(tmp_path: Path) -> None:
    file, text = tmp_path / "short_qa.jsonl", " ".join(f"word{number}" for number in range(300))
    rows = [
        {"instructions": ["Who?", "Where?"], "outputs": [f"Ann {row}", "Home"], "input": f"{row} {text}", "evaluation": "f1"}
        for row in range(4)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = tiny()[1]
    found = leval_documents(ConversationOptions((file,), 400, 3, max_new_tokens=6), tokenizer)
    assert [len(document.questions) for document in found] == [2, 1]
    for document in found:
        told = "".join(said for _, said in document.messages)
        assert len(tokenizer(told).input_ids) <= 400 and "word2 " in told and "word299" in told and "word150 " not in told
        assert document.system is not None and asked(document)[0].max_new_tokens == 6
        assert score(asked(document)[0], asked(document)[0].answer) == 1.0


def test_passages_begin_at_lines_and_end_with_what_is_scored(tmp_path: Path) -> None:
    text = "\n".join(f"{number} bottles" for number in range(400))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"input": f"{name} " * 500}) for name in ("oak", "elm")) + "\n\n")
    (tmp_path / "short.txt").write_text("too short")
    files = tuple(tmp_path / name for name in ("a.txt", "b.jsonl", "short.txt"))
    found = passages(PassageOptions(files, 300, 50, 6, seed=3), encode, (7,))
    assert found == passages(PassageOptions(files, 300, 50, 6, seed=3), encode, (7,)) and len({one.key for one in found}) == 6
    for document in found:
        [question] = document.questions
        assert isinstance(question, Continuation) and len(question.ids) == 51 and len(document.ids) + 51 == 300 and document.ids[0] == 7
        whole = "".join(map(chr, (*document.ids[1:], *question.ids)))
        if document.name.startswith("a from"):
            start = int(document.name.removeprefix("a from "))
            assert text[start:].startswith(whole) and (start == 0 or text[start - 1] == "\n")
    assert {document.name.split(" from")[0] for document in found} == {"a", "b 1", "b 2"}
    assert lead_of(tiny()[1]) == ()


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, {}, "on loss reads text files"),
        ({"a.txt": "short"}, {}, "none of 1 texts has 300 tokens"),
        ({"a.txt": "x" * 400}, {"scored": 300}, "300 scored tokens cannot be used; it must be between 1 and 299"),
        ({"a.txt": b"\xff\xfe\x00"}, {}, "a.txt' cannot be read as UTF-8 text"),
        ({"a.jsonl": "{"}, {}, "a.jsonl, line 1: Expecting property name"),
        ({"a.jsonl": '{"text": "x"}\n{"words": "x"}'}, {}, "a.jsonl, line 2: no text under any of the keys input, context, text"),
    ],
)
def test_passages_that_cannot_be_are_refused(tmp_path: Path, files: dict[str, Any], options: dict[str, Any], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    given = PassageOptions(**{"files": tuple(tmp_path / name for name in files), "length": 300, "scored": 50, **options})
    with pytest.raises(ConfigError, match=said):
        passages(given, encode)
