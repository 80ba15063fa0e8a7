"""Examples about restarts: every run here is a process of its own, and one of them is killed."""

from __future__ import annotations

import random
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from agent_memory.pocket import data
from agent_memory.store.store import Store
from examples import langgraph_over_days, tail_a_log

EXAMPLES = Path(__file__).parents[2] / "examples"
WINDOW = 512


def test_on_the_third_day_an_agent_answers_about_the_first_and_reads_nothing_again(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for day in (1, 2):
        command = [sys.executable, str(EXAMPLES / "langgraph_over_days.py"), "--day", str(day)]
        printed.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert "mail-relay owner: Tom Okafor" in printed[1]
    said = langgraph_over_days.main(day=3)
    assert said[-1].text == "billing-api port: 8417"
    for text in (*printed, capsys.readouterr().out):
        costs = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:tokens in memory|appended|read)", text)]
        assert len(costs) == 9
        assert all(appended <= read < appended + 64 for appended, read in zip(costs[1::3], costs[2::3], strict=True))
    assert costs[0] > 400 and costs[-3] > WINDOW
    with Store.open("memory") as store:
        asked = [turn.text for turn in store.turns("on-call") if turn.role == "user"]
        assert asked == [text for texts in langgraph_over_days.DAYS.values() for text in texts]


def test_without_a_day_the_script_lives_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[1:]))
    monkeypatch.setattr(sys, "argv", ["langgraph_over_days.py"])
    script = str(EXAMPLES / "langgraph_over_days.py")
    runpy.run_path(script, run_name="__main__")
    assert commands == [[script, "--day", "1"], [script, "--day", "2"], [script, "--day", "3"]]


def log_lines(records: int) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Lines of a log: a record each, among others that answer nothing, blank ones, and one that is not UTF-8; and the records."""
    rng = random.Random(0)
    lines, found = [], []
    for number in range(records):
        name, size = data.make_name(rng), str(rng.randrange(1000, 10**6))
        found.append((name, size))
        lines += [f"09:{number // 60:02d}:{number % 60:02d} INFO reading {name}\n".encode(), f"{name} size: {size}\n".encode()]
    lines[9:9] = [b"\n", b" \n", b"\xff is no UTF-8\r\n"]
    return lines, found


def test_a_tailed_log_has_every_line_once_after_a_kill_and_old_lines_are_known(own_folder: Path) -> None:
    lines, records = log_lines(150)
    log = own_folder / "app.log"
    log.write_bytes(b"".join(lines[:100]) + lines[100][:7])
    command = [sys.executable, str(EXAMPLES / "tail_a_log.py"), "app.log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child, log.open("ab") as file:
        assert child.stdout is not None
        wait_for(child.stdout, 100)
        file.write(lines[100][7:] + b"".join(lines[101:250]))
        file.flush()
        safe = wait_for(child.stdout, 101)
        child.send_signal(signal.SIGKILL)
        safe = max(safe, wait_for(child.stdout, len(lines)))
        file.write(b"".join(lines[250:]))
    assert child.returncode == -signal.SIGKILL
    survived = held_lines()
    assert safe <= len(survived) <= 250 and survived == decoded(lines[: len(survived)])

    name, size = records[3]
    answer = tail_a_log.main(log="app.log", ask=f"What is the size of {name}?")
    assert answer == f"{name} size: {size}"
    assert held_lines() == decoded(lines)
    for more, held in ((b"\n", lines), (b"the end\n", [*lines, b"\n", b"the end\n"])):  # blank lines alone wait for one with text
        with log.open("ab") as file:
            file.write(more)
        tail_a_log.main(log="app.log")
        assert held_lines() == decoded(held)
    with Store.open("memory") as store:
        turns = [turn for turn in store.turns("app.log") if turn.role == "tool"]
        assert store.turns("app.log")[-1].start > 2 * WINDOW and len(turns) < 20
        assert max(turn.text.count("\n") for turn in turns) <= tail_a_log.BATCH + 1


def wait_for(output: IO[str], lines: int) -> int:
    """Read what a process prints until it says that so many lines are safe, or ends; how many it said are."""
    safe = 0
    for line in output:
        if found := re.match(r"(\d+) lines are safe$", line):
            safe = int(found[1])
            if safe >= lines:
                break
    return safe


def held_lines() -> list[str]:
    """The lines in the Session, in their order."""
    with Store.open("memory") as store:
        text = "".join(turn.text for turn in store.turns("app.log") if turn.role == "tool")
    return text.split("\n")[:-1]


def decoded(lines: list[bytes]) -> list[str]:
    return [line.decode(errors="replace")[:-1] for line in lines]
