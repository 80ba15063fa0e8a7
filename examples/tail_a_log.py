"""Follows a growing log file and keeps every line of it in one Session; killed and started again, it goes on at the next line.

The Session itself says how far it came, so a line is neither lost nor kept twice. The log may only be appended to. To try it::

    for file in /usr/bin/*; do echo "${file##*/} size: $(wc -c < "$file")"; sleep 0.1; done >> scan.log &
    python examples/tail_a_log.py scan.log                                           # until Ctrl-C, or kill -9
    python examples/tail_a_log.py scan.log --once --ask "What is the size of tar?"  # up to the end of the file, then a question
"""

import argparse
import time
from pathlib import Path
from typing import BinaryIO

from agent_memory import Runtime, Session

BATCH = 64
"""Lines of one turn, when that many wait: each turn is one transaction on disk."""

PAUSE = 0.5
"""Seconds to wait for more, so that a slow log gives turns of a few lines."""


def lines_held(session: Session) -> int:
    """How many lines of the log are in the Session."""
    return sum(turn.text.count("\n") for turn in session.turns() if turn.role == "tool")


def next_lines(file: BinaryIO) -> str:
    """The next whole lines of the log, or nothing. Blank lines wait for one with text, which every turn needs."""
    start = end = file.tell()
    lines = [""]
    while (len(lines) <= BATCH or not lines[-1].strip()) and (line := file.readline()).endswith(b"\n"):
        lines.append(line.decode(errors="replace"))
        end = file.tell()
    text = "".join(lines)
    file.seek(end if text.strip() else start)
    return text if text.strip() else ""


def follow(session: Session, file: BinaryIO, once: bool) -> None:
    """Append what comes; the model reads it whenever nothing more waits."""
    held = lines_held(session)
    for _ in range(held):
        file.readline()
    print(f"{held} lines are in the Session", flush=True)
    while True:
        if text := next_lines(file):
            session.append("tool", text, name="log", prefill=False)  # when this returns, the lines survive anything
            held += text.count("\n")
            print(f"{held} lines are safe", flush=True)
        else:
            session.prefill()
            if once:
                return
            time.sleep(PAUSE)


def main(store: str = "./memory", model: str | None = None, log: str = "scan.log", once: bool = True, ask: str | None = None) -> str:
    """Follow the log, until its end or until Ctrl-C, and return the answer to a question about it, if there is one."""
    with Runtime.load(model, store=store) as runtime, runtime.session(Path(log).name) as session:
        try:
            with open(log, "rb") as file:
                follow(session, file, once)
        except KeyboardInterrupt:
            print("no longer following")
        return session.reply(ask, max_new_tokens=32) if ask else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="file to follow")
    parser.add_argument("--once", action="store_true", help="stop at the end of the file")
    parser.add_argument("--ask", metavar="QUESTION", help="asked at the end")
    args = parser.parse_args()
    print(main(log=args.log, once=args.once, ask=args.ask))
