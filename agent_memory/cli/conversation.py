"""A conversation on a terminal: read a line, stream the answer, show what was recalled.

Knows Sessions and terminals; nothing of how a model or a Store is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from agent_memory.chat.stream import split_stream
from agent_memory.cli import shapes
from agent_memory.errors import EmptyMessage
from agent_memory.types import Recall, Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from agent_memory.session import Session

HELP = """/recall   all turns that the last answer recalled
/turns    the last turns of this Session
/help     this list
/quit     leave (Ctrl-D too); everything is kept
Ctrl-C while an answer is being written stops it."""


class Conversation:
    """The loop of ``agent-memory chat``.

    Args:
        session: an open Session.
        out: where to print; None prints nothing.
        max_new_tokens: most tokens of one answer.
        sampling: how tokens are chosen.
    """

    def __init__(self, session: Session, out: Console | None, max_new_tokens: int, sampling: Sampling) -> None:
        self._session, self._out = session, out
        self._max_new_tokens, self._sampling = max_new_tokens, sampling
        self.replies: list[dict[str, Any]] = []

    def run(self) -> None:
        """Talk until the input ends or ``/quit``."""
        for line in _lines(prompt="> " if self._out and sys.stdin.isatty() else None):
            if line.strip() == "/quit":
                return
            if line.startswith("/"):
                self._obey(line.strip())
            elif line.strip():
                self._answer(line)

    def _answer(self, text: str) -> None:
        pieces: list[str] = []
        stopped = False
        try:
            self._session.append("user", text, prefill=False)
            with closing(self._session.generate(max_new_tokens=self._max_new_tokens, sampling=self._sampling)) as stream:
                for kind, piece in split_stream(stream):
                    if kind == "text":
                        pieces.append(piece)
                    self._print(piece, end="", style=None if kind == "text" else "dim")
        except KeyboardInterrupt:
            stopped = True
            self._print("\n(stopped; your message is kept, the half answer is not)")
        except EmptyMessage as problem:
            self._print(str(problem))
            return
        recall = None if stopped else self._session.last_recall
        self.replies.append({"question": text, "answer": "".join(pieces), "stopped": stopped, "recall": recall and recall.to_dict()})
        if recall is not None:
            self._show_recall(recall)

    def _show_recall(self, recall: Recall | None, most: int = 5) -> None:
        if self._out is None or recall is None:
            return
        self._out.print()
        if not recall.turns:
            self._out.print("everything is still inside the window; nothing had to be recalled", style="dim")
        else:
            self._out.print(f"recalled {shapes.recall_line(recall)}", style="dim")
            self._out.print(shapes.recall_table(recall, most), style="dim")
        self._out.print()

    def _obey(self, order: str) -> None:
        if self._out is None:
            return
        if order == "/recall":
            self._show_recall(self._session.last_recall, most=64)
        elif order == "/turns":
            self._out.print(shapes.turn_table(self._session.turns()[-12:]))
        else:
            self._out.print(HELP)

    def _print(self, text: str, end: str = "\n", style: str | None = None) -> None:
        if self._out is not None:
            self._out.print(shapes.printable(text), end=end, style=style, markup=False, emoji=False, soft_wrap=True)


def _lines(prompt: str | None) -> Iterator[str]:
    if prompt is None:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  # gives input() its line editing and history

    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")  # an empty line, as a shell does
