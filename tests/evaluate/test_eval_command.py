"""``agent-memory eval``: its options, tables, JSON and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent_memory.cli import measure_commands
from agent_memory.evaluate.run import TASKS, EvalOptions
from tests.evaluate.tiny import Words

SMALL = ("--lengths", "400,600", "--depths", "1", "--samples", "1", "--reach", "1")


def test_one_task_is_one_object_with_a_picture(cli: Words, tmp_path: Path) -> None:
    code, out, err = cli("eval", "needle", "--method", "recall,full,recall", *SMALL, "--plot", "needle.png", "--json")
    report = json.loads(out)
    told = [line.split(": ")[1] for line in err.splitlines() if line.endswith("of 1 right so far")]
    assert told == ["inside the window", "recall at 400", "recall at 600", "full at 400"]
    assert code == 0 and report["task"] == "needle" and report["plot"] == "needle.png"
    assert {method: set(row) for method, row in report["summary"].items()} == {"recall": {"400", "600"}, "full": {"400"}}
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")


def test_several_tasks_have_a_table_and_a_picture_each(cli: Words, tmp_path: Path) -> None:
    options = (*SMALL, "--plot", "maps/all.png", "--resume", "done.jsonl")
    code, out, _ = cli("eval", "updated,multi-query,updated", "--methods", "streaming,full", *options)
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines if "600" in line and line[0] != "-"] == ["updated", "an", "multi-query"]
    assert lines[0].split() == ["updated", "400", "600"]
    assert [line.split()[-1] for line in lines if line.startswith("full")] == ["-", "-", "-"]
    assert "512 tokens, 1 windows (--reach)" in out and "exact inside its window" in out
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["all-multi-query.png", "all-updated.png"]
    report = json.loads(cli("eval", "updated,multi-query", "--methods", "streaming,full", *options, "--json")[1])
    assert [task["task"] for task in report["tasks"]] == ["updated", "multi-query"]


def test_intervals_are_shown_for_enough_answers() -> None:
    report: dict[str, Any] = {
        "summary": {"recall": {"400": 0.99, "1000": 1.0}}, "interval": {"recall": {"400": [0.9455, 0.9982], "1000": [0.83, 1.0]}},
        "counters": {"recall": {"400": {"answers": 20}, "1000": {"answers": 19}}},
    }  # fmt: skip
    rows = {method: measure_commands._shares(report, method) for method in ("recall", "full")}
    console = Console(width=80)
    with console.capture() as printed:
        console.print(measure_commands._length_table("needle", rows, EvalOptions(lengths=(1000, 400))))
    assert [line.split() for line in printed.get().splitlines()] == [
        ["needle", "400", "1,000"], ["recall", "99.0%", "95-100", "100.0%"], ["full", "-", "-"]
    ]  # fmt: skip


def test_every_task_is_listed_in_the_help(cli: Words) -> None:
    code, out, _ = cli("eval", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0 and all(name in text for name in TASKS)
    assert all(option in out for option in ("--method", "--style", "--reach", "--resume", "--match", "--haystack", "--plot"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("needle,haystack",), "unknown task haystack; there are needle, multi-key"),
        ((",",), "unknown task (none)"),
        (("needle", "--method", "recall,psychic"), "no method named 'psychic'; choose one of"),
        (("needle", "--methods", ","), "no method; there are"),
        (("needle", "--method", "rerope:windw=3"), "rerope:windw=3: unknown option; rerope has log_n, window"),
        (("needle", "--lengths", "many"), "'many' is no number of tokens"),
        (("needle", "--lengths", ","), "no length"),
        (("needle", "--haystack", "nowhere.txt"), "nowhere.txt"),
        (("needle,near-duplicate", "--haystack", "hay.txt"), "near-duplicate makes its own hay"),
        (("needle", "--resume", "hay.txt"), "hay.txt, line 1"),
    ],
)
def test_a_mistake_is_one_line(cli: Words, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "hay.txt").write_text("of the log\n")
    code, out, err = cli("eval", words[0], *SMALL, *words[1:])
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err
