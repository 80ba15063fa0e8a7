"""Running tasks with the pocket model: the report, what is left out, the window, forks, and going on after a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from agent_memory import pocket
from agent_memory.errors import ConfigError
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.evaluate.resume import Finished
from agent_memory.evaluate.run import TASKS, EvalOptions, _Run, make_tasks, run_tasks
from agent_memory.evaluate.task import Task
from agent_memory.evaluate.work import Work
from agent_memory.model.load import load
from agent_memory.runtime import Runtime
from agent_memory.session import Session

FIELDS = {"task", "model", "window", "in_window", "cells", "summary", "interval", "counters", "plot"}


@cache
def pocket_model() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load(str(pocket.path()))


def make_runtime(**options: Any) -> Runtime:
    return Runtime(*pocket_model(), source=str(pocket.path()), **options)


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, int]]]:
    """Every question: the Session it was put to, its text, and the tokens of that Session once it was answered."""
    seen: list[tuple[str, str, int]] = []
    generate = Session.generate

    def spied(self: Session, **options: Any) -> Any:
        asked = self.last_turn
        yield from generate(self, **options)
        seen.append((self.name, asked.text if asked else "", self.tokens))

    monkeypatch.setattr(Session, "generate", spied)
    yield seen


def test_a_small_run_reports_every_cell_and_goes_on_after_a_stop(tmp_path: Path, replies: list[tuple[str, str, int]]) -> None:
    tasks = make_tasks(["needle", "updated"], "record")
    resume = tmp_path / "new" / "done.jsonl"
    options = EvalOptions(("recall", "streaming", "full"), (700,), depths=2, samples=1, max_new_tokens=32, reach=1, resume=resume)
    told: list[tuple[int, int, str]] = []
    reports = run_tasks(make_runtime, tasks, options, lambda *what: told.append(what))
    assert [report["task"] for report in reports] == ["needle", "updated"]
    for report in reports:
        assert set(report) == FIELDS and report["plot"] is None and report["window"] == 512
        assert [(cell["method"], cell["length"], cell["depth"], cell["samples"]) for cell in report["cells"]] == [
            (method, 700, depth, 1) for method in ("recall", "streaming") for depth in (0.25, 0.75)
        ]  # fmt: skip
        low, high = report["interval"]["recall"]["700"]
        assert low <= report["summary"]["recall"]["700"] <= high
        counters = {method: row["700"] for method, row in report["counters"].items()}
        assert counters["recall"]["keys_scored_per_answer"] > 0 == counters["streaming"]["keys_scored_per_answer"]
        assert counters["recall"]["answers"] == 2
        assert ("outdated" in counters["recall"]) == (report["task"] == "updated")
    assert reports[0]["in_window"] == reports[0]["summary"]["recall"]["700"] == 1.0
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told) and told[-1][0] == told[-1][1]
    assert {what for _, _, what in told} >= {"needle: recall at 700", "needle: full is left out over 512 tokens"}
    assert len(resume.read_text().splitlines()) == 2 * (2 + 2)

    replies.clear()
    assert run_tasks(make_runtime, tasks, options) == reports
    assert not replies, "what was done is not done again"


def test_runs_that_differ_are_not_mixed(tmp_path: Path, replies: list[tuple[str, str, int]]) -> None:
    def run(name: str = "passkey", style: Any = "record", **changed: Any) -> int:
        replies.clear()
        given: dict[str, Any] = {"methods": ("streaming",), "lengths": (100,), "depths": 1, "samples": 1, "max_new_tokens": 4, **changed}
        run_tasks(make_runtime, make_tasks([name], style), EvalOptions(resume=tmp_path / "done.jsonl", **given))
        return len(replies)

    hay = tmp_path / "hay.txt"
    hay.write_text("of the log\n" * 30)
    assert (run(), run()) == (2, 0)
    assert (run(style="prose"), run(seed=1), run(match="contains"), run(max_new_tokens=5), run(haystack=hay)) == (2, 2, 2, 2, 2)
    assert (run(methods=("recall",)), run(lengths=(120,)), run(depths=2), run(samples=2)) == (1, 1, 3, 1)
    hay.write_text("of another log\n" * 30)
    assert run(haystack=hay) == 2
    (row,) = {json.loads(line)["key"]["model"] for line in (tmp_path / "done.jsonl").read_text().splitlines()}
    assert row.startswith("LlamaForCausalLM ")


def every_task() -> list[Task]:
    return make_tasks(list(TASKS), "record") + make_tasks(["passkey", "variable-tracking", "aggregation"], "prose")


def test_documents_that_fit_the_window_are_looked_for(tmp_path: Path) -> None:
    tasks, options = every_task(), EvalOptions()
    with make_runtime(method="full", store=tmp_path) as runtime:
        run = _Run(runtime, "full", options, Finished(None), Work())
        needs = [run._needs(run._fitting(task, sample)) for task in tasks for sample in range(8)]
    assert max(needs) <= 512


def test_every_task_is_asked_inside_the_window(replies: list[tuple[str, str, int]]) -> None:
    options, tasks = EvalOptions(methods=(), lengths=(), depths=1, samples=1), every_task()
    reports = run_tasks(make_runtime, tasks, options)
    in_window = dict(zip(map(repr, tasks), (report["in_window"] for report in reports), strict=True))
    assert all(tokens <= 512 for _, _, tokens in replies)
    assert in_window["SingleNeedle()"] == in_window["MultiQuery(several=4)"] == 1.0
    assert {name.split(" in window")[0] for name, _, _ in replies} == set(TASKS)


def test_the_questions_of_one_entry_are_turns_of_one_fork(replies: list[tuple[str, str, int]]) -> None:
    options = EvalOptions(("streaming",), (200,), depths=4, samples=1, max_new_tokens=2)
    (report,) = run_tasks(make_runtime, make_tasks(["multi-query"], "record"), options)
    turns = [row for row in replies if "200" in row[0]]
    assert len({name for name, _, _ in turns}) == 1 and len({text for _, text, _ in turns}) == 4
    assert [tokens for _, _, tokens in turns] == sorted(tokens for _, _, tokens in turns)
    assert [cell["depth"] for cell in report["cells"]] == [0.125, 0.375, 0.625, 0.875]


def test_a_key_that_must_be_alone_gets_a_document_for_each_depth(replies: list[tuple[str, str, int]]) -> None:
    options = EvalOptions(("streaming",), (150,), depths=2, samples=1, max_new_tokens=2)
    (report,) = run_tasks(make_runtime, make_tasks(["passkey"], "prose"), options)
    assert [(cell["depth"], cell["samples"]) for cell in report["cells"]] == [(0.25, 1), (0.75, 1)]
    assert len(replies) == 2 + 2


def test_answers_that_lie_at_no_depth_have_a_cell_of_their_own() -> None:
    options = EvalOptions(("streaming",), (150,), depths=1, samples=1, max_new_tokens=2)
    (report,) = run_tasks(make_runtime, make_tasks(["aggregation"], "record"), options)
    assert [(cell["depth"], cell["samples"]) for cell in report["cells"]] == [(None, 1)]


def test_what_cannot_be_made_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "hay.txt").write_text("of the log\n")

    def no_runtime(**_: Any) -> Runtime:
        raise AssertionError("too late")

    with pytest.raises(ConfigError, match="aggregation makes its own hay"):
        run_tasks(no_runtime, make_tasks(["needle", "aggregation"], "record"), EvalOptions(haystack=tmp_path / "hay.txt"))
    with pytest.raises(ConfigError, match=r"hay.txt, line 1: this is no line of measurements"):
        run_tasks(no_runtime, make_tasks(["needle"], "record"), EvalOptions(resume=tmp_path / "hay.txt"))


def test_a_fork_that_was_asked_is_dropped_whatever_happened(tmp_path: Path) -> None:
    with make_runtime(method="recall", store=tmp_path) as runtime, runtime.session("told", "tenant") as session:
        session.append("tool", "foo version: 1.2.3", name="read")
        before = session.tokens
        with asked_on_a_fork(runtime, session, "asked") as child:
            assert child.reply("What is the version of foo?", max_new_tokens=12) == "foo version: 1.2.3"
        with pytest.raises(KeyError), asked_on_a_fork(runtime, session, "asked") as child:
            child.append("user", "What is the version of foo?")
            raise KeyError
        assert [info.name for info in runtime.store.sessions("tenant")] == ["told"] and session.tokens == before
