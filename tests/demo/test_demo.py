"""The demo, small: real packages, a child that is really killed, every field of the result."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from agent_memory import pocket
from agent_memory.demo.ask import contains
from agent_memory.demo.fill import SESSION
from agent_memory.demo.inventory import ASKED_FOR, Question, installed, questions, told
from agent_memory.demo.run import FEWER, STORE, DemoOptions, Setting, run_demo
from agent_memory.errors import ConfigError
from agent_memory.runtime import Runtime


def test_the_inventory_is_what_is_installed() -> None:
    packages = {package.name: package for package in installed()}
    assert packages["torch"].fields["version"] == torch.__version__
    assert packages["numpy"].noise, "its files are the noise"
    assert list(packages) == [package.name for package in installed()], "the order is fixed"


def test_questions_cannot_be_guessed() -> None:
    packages = installed()
    asked = questions(packages, 20, random.Random(0))
    assert len({question.package for question in asked}) == len(asked)
    for question in asked:
        sharing = sum(package.fields.get(question.field) == question.value for package in packages)
        assert sharing <= max(1, 0.02 * len(packages))


def test_facts_told_in_plain_sentences_are_few_and_can_be_asked_for() -> None:
    packages = installed()
    few = told(packages, facts=2, lines=12)
    assert len(few) >= 24 and few == told(packages, facts=2, lines=12)
    for package in few:
        assert 1 <= len(package.fields) <= 2 and package.fields.keys() <= set(ASKED_FOR) and len(package.noise) >= 12
        for field, value in package.fields.items():
            assert value.casefold() not in Question(package.name, field, value).text.casefold()
            assert sum(other.fields.get(field) == value for other in packages) <= max(1, 0.02 * len(packages))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    said: list[str] = []
    told: list[tuple[int, int]] = []
    options = DemoOptions(tokens=6_000, store=tmp_path / "store", device="24MiB", host="64MiB", plot=tmp_path / "demo.png")
    result = run_demo(options, said.append, lambda done, total: told.append((done, total)))
    assert result["lost_turns"] == 0
    assert result["tokens"] >= 6_000 and result["questions"] > 10
    assert {
        "in_window_exact", "tokens", "questions", "right", "old_questions", "old_right", "old_right_without_memory", "lost_turns",
        "latency_ratio", "seconds", "peak_rss_bytes", "budget_bytes", "plot",
    } <= set(result)  # fmt: skip
    assert Path(result["plot"]).read_bytes()[:4] == b"\x89PNG"
    assert any("SIGKILL" in line for line in said) and any("the machine says" in line for line in said)
    assert told[-1][0] >= 6_000
    assert result["store"] == str(tmp_path / "store") and said[-3].strip() == f"agent-memory show inventory --store {tmp_path / 'store'}"


def test_a_named_model_is_shown_results_it_did_not_ask_for_and_is_asked_in_its_window_too(tmp_path: Path) -> None:
    said: list[str] = []
    store = tmp_path / "store"
    options = DemoOptions(str(pocket.path()), tokens=4_000, store=store, device="24MiB", host="64MiB", plot=tmp_path / "demo.png")
    result = run_demo(options, said.append)
    assert result["questions"] == FEWER and 0 <= result["right_in_window"] <= FEWER
    assert result["lost_turns"] == result["tool_calls"] == 0 and "in_window_exact" not in result
    assert sum("with the record in the model's window" in line for line in said) == FEWER
    assert said[-1].endswith(f"--model {pocket.path()}")
    with Runtime.load(store=store) as runtime, runtime.session(SESSION) as session:
        roles = [turn.role for turn in session.turns() if not turn.meta.get("head")]
        filled, asked = roles[:-2], roles[-2:]
        assert asked == ["user", "assistant"], "the first question; the others were asked on forks"
        assert filled == ["user", "tool"] * (len(filled) // 2), "no generated calls"
        record = next(turn.text for turn in session.turns() if turn.role == "tool")
        assert " of " in record and record.count(" is ") >= 1


def test_a_store_that_is_there_is_refused_and_the_default_takes_a_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not empty; name another folder"):
        run_demo(DemoOptions(store=tmp_path / "store"), print)
    monkeypatch.chdir(tmp_path)
    assert Setting.of(DemoOptions()).store == STORE
    for taken in (STORE, Path(f"{STORE}-2")):
        taken.mkdir()
    assert Setting.of(DemoOptions()).store == Path(f"{STORE}-3")


def test_an_answer_contains_a_value_where_it_stands_for_itself() -> None:
    question = Question("curl", "size", "14")
    assert contains(question, "The size of curl is 14.") and not contains(question, "The size is 1.14.2.") and not contains(question, "140")
