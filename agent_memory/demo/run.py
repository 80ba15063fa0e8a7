"""The demo from end to end: fill half, be killed, reopen, fill the rest, ask, sum up.

Knows the order of things and what is printed; each thing itself is done elsewhere.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import pocket
from ..memory.sizes import parse_size
from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .ask import Asked, ask
from .fill import SESSION, TENTHS, Plan, acknowledged, fill, make_plan, text_hash
from .inventory import Question, questions

OLD = 100_000
"""Tokens after which a record counts as old."""
QUESTIONS = 20

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo does.

    Attributes:
        tokens: how long the memory gets.
        store: folder; a temporary one by default.
        budget: bytes for each Tier.
        plot: picture to write.
        seed: of the questions.
    """

    tokens: int = 200_000
    store: Path | None = None
    budget: Budget = field(default_factory=lambda: Budget(device="192MiB", host="256MiB"))
    plot: Path = Path("agent-memory-demo.png")
    seed: int = 0


@dataclass(slots=True)
class Log:
    """What was acknowledged and measured while filling."""

    turns: dict[int, dict[str, Any]] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    right_calls: int = 0

    def add(self, event: dict[str, Any]) -> None:
        """Take one event of ``fill``."""
        if "turn" in event:
            self.turns[event["turn"]] = event
        elif "probe" in event:
            self.probes.append(event)
        elif "call" in event:
            self.calls += 1
            self.right_calls += event["right"]

    @property
    def tokens(self) -> int:
        """Tokens acknowledged."""
        return max((event["tokens"] for event in self.turns.values()), default=0)


def run_demo(options: DemoOptions, say: Say, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Run the demo and return the object ``agent-memory demo --json`` prints.

    Args:
        options: what to do.
        say: prints one line for people.
        progress: told tokens in memory, and tokens wanted.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="agent-memory-demo-") as folder:
        store = options.store or Path(folder) / "store"
        log = Log()
        killed = _fill_and_kill(store, options, log, say, progress)
        with Runtime.load(store=store, budget=options.budget) as runtime:
            _warm(runtime)
            before = _rss()
            with runtime.session(SESSION) as session:
                lost = _lost(session, log)
                say(f"killed with SIGKILL at {killed:,} tokens; reopened with {session.tokens:,}; acknowledged turns missing: {lost}")
                plan = make_plan(runtime, options.tokens)
                fill(runtime, session, plan, _both(log, session, options.tokens, progress))
                asked = _ask_all(runtime, session, plan, options, say)
                result = _sum_up(options, session, log, asked, lost, before, time.perf_counter() - started)
                result["in_window_exact"] = pocket.in_window_exact()
    result["plot"] = str(_draw(result, asked, log, options.plot))
    return result


def _fill_and_kill(store: Path, options: DemoOptions, log: Log, say: Say, progress: Callable[[int, int], None] | None) -> int:
    """A child fills the first half and is killed without warning; returns the tokens it had acknowledged."""
    say(f"an agent looks up every package installed here, until {options.tokens:,} tokens are in memory")
    arguments = [str(store), str(options.tokens), str(options.budget.device), str(options.budget.host)]
    command = [sys.executable, "-m", "agent_memory.demo.fill", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    if child.stdout is None:
        raise RuntimeError("the filling process has no output")
    for event in acknowledged(child.stdout):
        log.add(event)
        if progress is not None:
            progress(log.tokens, options.tokens)
        if log.tokens >= options.tokens // 2:
            break
    else:
        _, errors = child.communicate()
        raise RuntimeError(f"the filling process ended early: {errors.strip().splitlines()[-1:] or child.returncode}")
    os.kill(child.pid, signal.SIGKILL)
    for event in acknowledged(child.stdout):
        log.add(event)  # what it acknowledged before it died counts too
    child.communicate()
    return log.tokens


def _warm(runtime: Runtime) -> None:
    """One reply in a Session of its own, so that growth is counted from a process that has done everything once."""
    with runtime.session("warm-up") as session:
        session.reply("Hello.", max_new_tokens=4)
    runtime.store.delete("warm-up")


def _rss() -> int:
    """Bytes of memory this process has now."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_rss()


def _peak_rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lost(session: Session, log: Log) -> int:
    """Acknowledged turns that are not there, or not as they were."""
    found = {turn.index: text_hash(turn.text) for turn in session.turns()}
    return sum(found.get(index) != event["hash"] for index, event in log.turns.items())


def _both(log: Log, session: Session, tokens: int, progress: Callable[[int, int], None] | None) -> Callable[[dict[str, Any]], None]:
    def tell(event: dict[str, Any]) -> None:
        log.add(event)
        if progress is not None:
            progress(session.tokens, tokens)

    return tell


def _ask_all(runtime: Runtime, session: Session, plan: Plan, options: DemoOptions, say: Say) -> list[Asked]:
    """Half the questions about records more than ``OLD`` tokens ago, half about newer ones, in random order."""
    holders = _holders(session, plan)
    rng = random.Random(options.seed)  # noqa: S311 - reproducible
    border = session.tokens - OLD if session.tokens > 2 * OLD else session.tokens // 2
    known = [package for package in plan.packages if package.name in holders]
    old = questions([p for p in known if holders[p.name] < border], QUESTIONS // 2, rng)
    new = questions([p for p in known if holders[p.name] >= border], QUESTIONS - len(old), rng)
    chosen: list[Question] = [*old, *new]
    rng.shuffle(chosen)
    asked = []
    for question in chosen:
        asked.append(ask(runtime, session, question, holders[question.package]))
        _say_answer(asked[-1], say)
    return asked


def _holders(session: Session, plan: Plan) -> dict[str, int]:
    """Where the newest turn with each package's record ends."""
    names = {batch[0].name: [package.name for package in batch] for batch in plan.batches}
    holders: dict[str, int] = {}
    asked = ""
    for turn in session.turns():
        if turn.role == "user" and turn.text.startswith("Look up "):
            asked = turn.text.removeprefix("Look up ").removesuffix(".")
        elif turn.role == "tool" and asked in names and len(turn.text) > 200:
            holders.update(dict.fromkeys(names[asked], turn.stop))
    return holders


def _say_answer(asked: Asked, say: Say) -> None:
    mark = "right" if asked.right else "WRONG"
    plain = "right" if asked.plain_right else "wrong"
    say(f"{mark}  {asked.question.text}")
    said, value = asked.answer.strip(), asked.question.value
    say(f"       {said!r}; the machine says {value!r}; {asked.tokens_ago:,} tokens ago, {asked.seconds:.2f} s")
    for hit in asked.recalled:
        share = "" if hit.score is None else f"{hit.score:.1%} of the attention, "
        say(f"       recalled turn {hit.turn} ({hit.role}), {hit.tokens_ago:,} tokens ago, {share}from {hit.tier}")
    say(f"       without memory: {asked.plain_answer.strip()!r} ({plain})")


def _sum_up(
    options: DemoOptions, session: Session, log: Log, asked: list[Asked], lost: int, rss_before: int, seconds: float
) -> dict[str, Any]:
    old = [one for one in asked if one.tokens_ago > min(OLD, options.tokens // 2)]
    return {
        "tokens": session.tokens,
        "questions": len(asked),
        "right": sum(one.right for one in asked),
        "old_questions": len(old),
        "old_right": sum(one.right for one in old),
        "old_right_without_memory": sum(one.plain_right for one in old),
        "right_without_memory": sum(one.plain_right for one in asked),
        "lost_turns": lost,
        "tool_calls": log.calls,
        "tool_calls_right": log.right_calls,
        "latency_ratio": _latency_ratio(log, options.tokens),
        "seconds": round(seconds, 1),
        "peak_rss_bytes": _peak_rss(),
        "rss_growth_bytes": max(0, _peak_rss() - rss_before),
        "budget_bytes": parse_size(options.budget.device) + parse_size(options.budget.host),
    }


def _latency_ratio(log: Log, tokens: int) -> float | None:
    """Median time to the first token in the last tenth of the history over that in the second."""
    tenths: dict[int, list[float]] = {}
    for probe in log.probes:
        tenths.setdefault(probe["probe"] * TENTHS // tokens, []).append(probe["seconds"])
    if not tenths.get(1) or not tenths.get(TENTHS - 1):
        return None
    return round(statistics.median(tenths[TENTHS - 1]) / statistics.median(tenths[1]), 3)


def _draw(result: dict[str, Any], asked: list[Asked], log: Log, path: Path) -> Path:
    from .picture import draw

    answers = [(one.tokens_ago, one.right, one.plain_right) for one in asked]
    return draw(answers, [(probe["tokens"], probe["seconds"]) for probe in log.probes], result, path)
