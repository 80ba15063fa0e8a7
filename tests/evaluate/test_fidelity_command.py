"""``agent-memory eval fidelity``: its tables, picture and JSON, what is shown while it runs, and mistakes; and a run that is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_memory.cli import fidelity_tables
from agent_memory.cli.measuring import live_report
from tests.evaluate.fidelity_runs import RECALL, STREAMING
from tests.evaluate.tiny import Words

SMALL = ("eval", "fidelity", "--lengths", "300", "--depths", "2", "--max-new-tokens", "2", "--cache", "cache")


def text_file(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text("\n".join(f"port-{number} is {number * 7 % 1000}." for number in range(400)))
    return file


def test_a_killed_run_goes_on_and_shows_figures_and_a_picture(cli: Words, tmp_path: Path) -> None:
    words = [*SMALL, "--on", "single", "--method", RECALL, "--samples", "2", "--resume", "rows.jsonl"]
    rows = tmp_path / "rows.jsonl"
    child = subprocess.Popen([sys.executable, "-m", "agent_memory.cli", *words], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while child.poll() is None and (not rows.exists() or rows.stat().st_size < 1000):
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    first = rows.read_bytes()
    code, out, err = cli(*words, "--plot", "picture.png", "--json")
    report = json.loads(out)
    assert code == 0 and rows.read_bytes().startswith(first[: first.rindex(b"\n") + 1]) and len(rows.read_text().splitlines()) == 2 * 3
    assert (report["on"], report["documents"], report["questions"], report["plot"]) == ("single", 2, 2, "picture.png")
    assert set(report["methods"]) == {RECALL} and set(report["methods"][RECALL]) == {"read", "made"}
    assert report["mass"][RECALL]["decoded"]["of_oracle"]["value"] <= 1
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in err.splitlines() if " right): " in line]
    assert [line.split(" (")[0] for line in lines] == ["1 document", "2 documents"] and f"{RECALL}, made: dNLL " in lines[0]
    code, out, _ = cli(*words)
    assert code == 0 and "kept share" in out and "chosen of oracle" in out and "2 documents of at most 2" in out


def test_losses_of_text_have_a_table_and_a_picture(cli: Words, tmp_path: Path) -> None:
    text_file(tmp_path)
    words = [*SMALL, "--on", "loss", "--file", "text.txt", "--scored", "8", "--samples", "2", "--no-mass", "--modes", "made"]
    code, out, err = cli(*words, "--method", f"{RECALL},{STREAMING}", "--plot", "loss.png")
    assert code == 0 and "closed of streaming:" in out and " text" in out and "full attention: NLL " in out and "picture in loss.png" in out
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and f"2 documents: {RECALL}, made: " in err and "mass" not in out


def test_a_terminal_shows_tables_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    figure = {"value": 0.5, "interval": None}
    losses = {"nll_change_per_token": figure, "nll_per_token": figure, "kl_per_token": figure, "gap_closed": {}}
    report = {"documents": 1, "full": {"nll_per_token": figure}, "methods": {"recall": {"made": losses}}, "mass": {}}
    with live_report(fidelity_tables.line, fidelity_tables.tables) as live:
        live.progress(30, 120, "text 1: recall, made")
        live.partial(report)
    shown = terminal.getvalue()
    assert "text 1: recall, made" in shown and "25%" in shown and "+0.5000" in shown and "NLL/token" in shown


def test_every_option_is_in_the_help(cli: Words) -> None:
    code, out, _ = cli("eval", "--help")
    assert code == 0 and all(option in out for option in ("--on", "--modes", "--keys", "--scored", "--no-mass", "--cache", "fidelity"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--on", "poems"), "--on 'poems': choose one of single, multi-key, multi-value, multi-query, loss, locomo, leval"),
        (("--modes", "read,heard"), "--modes 'read,heard': choose from read, made"),
        (("--modes", ","), "choose from read, made"),
        (("--method", "psychic"), "no method named 'psychic'"),
        (("--lengths", "200,300"), "--lengths '200,300': fidelity measures documents of one length"),
        (("--lengths", "4k"), "more than the trained window of 512"),
        (("--haystack", "nowhere.txt"), "nowhere.txt"),
        (("--on", "loss"), "name them with --file PATH"),
        (("--on", "locomo", "--file", "text.txt"), "text.txt"),
        (("--on", "leval", "--file", "text.txt"), "text.txt, line 1"),
        (("--resume", "text.txt"), "text.txt, line 1: this is no row of eval fidelity"),
        (("--cache", "text.txt"), "text.txt"),
    ],
)
def test_a_mistake_is_one_line(cli: Words, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    text_file(tmp_path)
    code, out, err = cli(*SMALL, *words)
    assert (code, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err
