"""Dequantising has one bar on a terminal, and says nothing anywhere else."""

from __future__ import annotations

import os
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.utils import logging

from agent_memory.model.locate import locate
from tests.model.tiny_gguf import tiny_model, write_gguf


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))


def shown_on_a_terminal(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``work`` writes to standard error where that is a terminal."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 120))
    pieces = list[bytes]()

    def read() -> None:
        while not pieces or not pieces[-1].endswith(b"\0"):
            pieces.append(os.read(ours, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(its, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        work()
        terminal.write("\0")
        terminal.flush()
        reader.join(timeout=10)
    os.close(ours)
    return b"".join(pieces).decode()


def test_a_terminal_shows_one_bar(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_on_a_terminal(lambda: locate(file), monkeypatch)
    assert "dequantising tiny.gguf, once:   0%" in shown and "writing the dequantised tiny.gguf: 100%" in shown
    assert "Converting" not in shown and "Loading weights" not in shown
    assert shown_on_a_terminal(lambda: locate(file), monkeypatch) == "\0"


def test_nothing_is_said_elsewhere(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), logging.set_tqdm_hook(None)
    locate(file)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), logging.set_tqdm_hook(None)) == before
