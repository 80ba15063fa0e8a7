"""The demo, small: real packages, a child that is really killed, every field of the result."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from agent_memory.demo.inventory import installed, questions
from agent_memory.demo.run import DemoOptions, run_demo
from agent_memory.types import Budget


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


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    said: list[str] = []
    told: list[tuple[int, int]] = []
    options = DemoOptions(tokens=6_000, store=tmp_path / "store", budget=Budget(device="24MiB", host="64MiB"), plot=tmp_path / "demo.png")
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
