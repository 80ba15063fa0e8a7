"""The file of finished documents, damaged in every way; and what answers come to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agent_memory.errors import ConfigError
from agent_memory.evaluate.resume import Answer, Finished, add_answers, interval

FIRST = Answer(0.5, 1.0, None, tokens=4, keys_scored=10, keys_attended=40, blocks_read=2, seconds=0.25)
SECOND = Answer(None, 0.5, 1.0, tokens=6, keys_scored=20, keys_attended=60, blocks_read=4, seconds=0.75)
THIRD = Answer(0.1, 0.0, 0.0, tokens=5, keys_scored=0, keys_attended=50, blocks_read=0, seconds=1.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two documents."""
    finished = Finished(tmp_path / "runs" / "done.jsonl")
    finished.keep({"task": "a", "depths": [0.5]}, [FIRST])
    finished.keep({"task": "b", "depths": []}, [SECOND, FIRST])
    return tmp_path / "runs" / "done.jsonl"


def test_what_is_kept_comes_back_by_its_key(file: Path) -> None:
    finished = Finished(file)
    assert finished.get({"depths": [0.5], "task": "a"}) == [FIRST]
    assert finished.get({"task": "b", "depths": []}) == [SECOND, FIRST]
    assert finished.get({"task": "a", "depths": [0.6]}) is None


def test_without_a_file_nothing_is_kept() -> None:
    finished = Finished(None)
    finished.keep({"task": "a"}, [FIRST])
    assert finished.get({"task": "a"}) is None


def test_a_line_that_was_cut_off_anywhere_is_made_again(file: Path) -> None:
    whole = file.read_bytes()
    first, second = whole.splitlines(keepends=True)
    for cut in range(len(first), len(whole)):
        file.write_bytes(whole[:cut])
        finished = Finished(file)
        assert finished.get({"task": "a", "depths": [0.5]}) == [FIRST] and finished.get({"task": "b", "depths": []}) is None
        finished.keep({"task": "b", "depths": []}, [SECOND, FIRST])
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("damaged", "line"),
    [
        ("\n", 3), ("{}\n", 3), ("[]\n", 3), ("notes\n", 3), ('{"task": "needle"}', 3), ("notes", 3), ('{"key": 1, "answers": [{}]}\n', 3),
        ('{"key": {}, "answers": 3}\n', 3), ('{"key": {}, "counts": []}\n', 3), ('{"key": "recall 400 0 0 10", "answers": []}\n', 3),
    ],
)  # fmt: skip
def test_a_file_that_is_something_else_is_refused_and_left_alone(file: Path, damaged: str, line: int) -> None:
    before = file.read_text() + damaged
    file.write_text(before)
    with pytest.raises(ConfigError, match=f"done.jsonl, line {line}: this is no line of measurements"):
        Finished(file)
    assert file.read_text() == before


@pytest.mark.parametrize(("name", "value"), [("score", None), ("score", "1"), ("keys_scored", None), ("seconds", [1]), ("more", 1)])
def test_an_answer_of_another_shape_is_refused(file: Path, name: str, value: Any) -> None:
    row = {"key": {}, "answers": [{**asdict(FIRST), name: value}]}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="line 1"):
        Finished(file)


def test_other_bytes_are_refused(file: Path) -> None:
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ConfigError, match="line 1"):
        Finished(file)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(99, 100, 0.9455, 0.9982), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 1, 0.2065, 1.0)],
)
def test_wilson_intervals_are_those_of_the_tables(right: int, count: int, low: float, high: float) -> None:
    assert interval(right / count, count) == pytest.approx([low, high], abs=2e-4)


def test_answers_come_to_cells_shares_and_counters() -> None:
    report: dict[str, Any] = {"cells": [], "summary": {}, "interval": {}, "counters": {}}
    add_answers(report, "recall", 400, [])
    assert not any(report.values())
    add_answers(report, "recall", 400, [SECOND, FIRST, THIRD])
    assert report["cells"] == [
        {"method": "recall", "length": 400, "depth": 0.1, "samples": 1, "exact": 0.0},
        {"method": "recall", "length": 400, "depth": 0.5, "samples": 1, "exact": 1.0},
        {"method": "recall", "length": 400, "depth": None, "samples": 1, "exact": 0.5},
    ]
    assert report["summary"] == {"recall": {"400": 0.5}}
    assert report["counters"]["recall"]["400"] == {
        "answers": 3, "keys_scored_per_answer": 10, "keys_scored_per_token": 2, "keys_attended_per_token": 10, "blocks_read_per_answer": 2,
        "seconds": 2.0, "outdated": 0.5,
    }  # fmt: skip
