"""Needles: hay, answers, the report, and going on after a stop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.evaluate.haystack import Needle, make_haystack
from agent_memory.evaluate.needle import NeedleOptions, run_needle
from agent_memory.evaluate.plots import draw_needle
from agent_memory.runtime import Runtime

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
def test_what_counts_as_right(said: str, match: str, right: bool) -> None:
    assert Needle("foo", "version", "1.2.3", 0.5).found_in(said, match) is right


def make_runtime(**options: Any) -> Runtime:
    torch.set_num_threads(1)
    return Runtime.load(**options)


def test_a_small_run_reports_every_cell_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    resume = tmp_path / "done.jsonl"
    options = NeedleOptions(methods=("recall", "streaming"), lengths=(900,), depths=2, samples=1, max_new_tokens=12, resume=resume)
    told: list[int] = []
    report = run_needle(make_runtime, options, lambda done, total, what: told.append(done))
    assert {"task", "model", "window", "in_window", "cells", "summary", "counters", "plot"} <= set(report)
    assert [(cell["method"], cell["length"], cell["samples"]) for cell in report["cells"]] == [
        ("recall", 900, 1), ("recall", 900, 1), ("streaming", 900, 1), ("streaming", 900, 1)
    ]  # fmt: skip
    assert (
        report["counters"]["recall"]["900"]["keys_scored_per_answer"]
        > 0
        == report["counters"]["streaming"]["900"]["keys_scored_per_answer"]
    )
    assert told == sorted(told) and told[-1] == 6
    assert len(resume.read_text().splitlines()) == 2
    again = run_needle(lambda **kw: _no_sessions(make_runtime(**kw)), options)
    assert again["summary"] == report["summary"] and again["counters"] == report["counters"]
    assert draw_needle(report, tmp_path / "plots" / "needle.png").read_bytes()[:4] == b"\x89PNG"


def _no_sessions(runtime: Runtime) -> Runtime:
    """A Runtime that may still measure inside the window, but not fill a haystack again."""
    original = runtime.session

    def session(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.startswith("in-window"), "this haystack was done already"
        return original(name, *args, **kwargs)

    runtime.session = session  # type: ignore[method-assign]
    return runtime
