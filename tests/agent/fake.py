"""A Session of plain lists kept in a JSON file, with a model that reads from a script.

Run as a program it is an agent at work, to be killed: ``python -m tests.agent.fake FILE``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_memory.agent import Agent
from agent_memory.chat.reply import parse_text
from agent_memory.errors import ConfigError, TurnTooLarge
from agent_memory.types import Recall, Receipt, Role, Turn

MAX_CHARS = 10_000


class FileSession:
    """Every append rewrites the file, so it survives a killed process."""

    def __init__(self, path: Path, script: Sequence[str]) -> None:
        self._path, self._script = path, script
        state = json.loads(path.read_text()) if path.exists() else {"head": None, "turns": []}
        self._head, self._turns = state["head"], [Turn(**turn) for turn in state["turns"]]
        self.last_recall: Recall | None = None
        self.cancelled = 0

    @property
    def name(self) -> str:
        return self._path.stem

    @property
    def last_turn(self) -> Turn | None:
        return self._turns[-1] if self._turns else None

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        return self._turns[start:stop]

    def configure(self, *, system: str | None, tools: Sequence[Mapping[str, Any]]) -> None:
        head = json.loads(json.dumps([system, list(tools)]))
        if self._head not in (None, head):
            raise ConfigError("another head")
        self._head = head

    def append(self, role: Role, text: str, *, name: str | None = None, tool_call_id: str | None = None) -> Receipt:
        if len(text) > MAX_CHARS:
            raise TurnTooLarge("over the limit")
        turn = self._add(role, text, name, {"tool_call_id": tool_call_id} if tool_call_id else {})
        return Receipt(turn.index, turn.tokens, True)

    def generate(self, *, max_new_tokens: int) -> Iterator[str]:
        reply = self._script[sum(turn.role == "assistant" for turn in self._turns)]
        try:
            for start in range(0, len(reply), 5):
                yield reply[start : start + 5]
        except GeneratorExit:
            self.cancelled += 1
            raise
        parsed = parse_text(reply)
        calls = [{"id": f"call-{len(self._turns)}-{i}", "name": c.name, "arguments": c.arguments} for i, c in enumerate(parsed.tool_calls)]
        self._add("assistant", parsed.content, None, {"tool_calls": calls} if calls else {})
        self.last_recall = Recall(blocks=len(self._turns))

    def _add(self, role: Role, text: str, name: str | None, meta: Mapping[str, Any]) -> Turn:
        start = self._turns[-1].stop if self._turns else 0
        turn = Turn(len(self._turns), role, name, text, start, len(text), "", 0.0, meta)
        self._turns.append(turn)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"head": self._head, "turns": [asdict(turn) for turn in self._turns]}))
        os.replace(new, self._path)
        return turn


class FakeRuntime:
    """Opens FileSessions in a folder."""

    def __init__(self, folder: Path, *script: str) -> None:
        self.folder, self.script = folder, script
        self.opened: list[tuple[str, str, FileSession]] = []
        self.closed = 0
        self.closed_in = ""

    @contextmanager
    def session(self, name: str, namespace: str = "default") -> Iterator[FileSession]:
        opened = FileSession(self.folder / f"{name}.json", self.script)
        self.opened.append((name, namespace, opened))
        try:
            yield opened
        finally:
            self.closed += 1
            self.closed_in = threading.current_thread().name


def call(name: str, **arguments: Any) -> str:
    """A tool call as the script's model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


KILLED_SCRIPT = (call("quick", x=1) + call("slow", x=2) + call("quick", x=3), "One.", "Two.")


def killed_tools(slow: Callable[[], None]) -> list[Callable[..., Any]]:
    """The tools of the run that is killed."""

    def quick(x: int) -> int:
        """Return at once.

        Args:
            x: a number.
        """
        return x

    def run_slowly(x: int) -> str:
        """Take its time.

        Args:
            x: a number.
        """
        slow()
        return f"slow {x}"

    run_slowly.__name__ = "slow"
    return [quick, run_slowly]


if __name__ == "__main__":
    for event in Agent(FakeRuntime(Path(sys.argv[1]), *KILLED_SCRIPT), killed_tools(lambda: time.sleep(600))).run("work", "Do it."):
        print(json.dumps(event.to_dict()), flush=True)
