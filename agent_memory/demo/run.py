"""The demo from end to end: fill half, be killed, reopen, fill the rest, ask, sum up.

Knows the order of things and what is printed; each thing itself is done elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from .. import pocket
from ..errors import ConfigError
from ..memory.sizes import parse_size
from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .ask import Asked, Examiner
from .fill import SESSION, TENTHS, Plan, acknowledged, fill, make_plan, text_hash
from .inventory import Question, questions

OLD = 100_000
"""Tokens after which a record counts as old."""
QUESTIONS = 20
FEWER = 16
"""Questions to a named model."""

STORE = Path("agent-memory-demo")
"""Where a Store is kept by default; a number follows where there is one already."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo does.

    Attributes:
        model: folder or file of a model that was not taught this task: tool results are appended without calls, records are plain
            sentences, an answer is right if it contains the value; None is the pocket model.
        tokens: how long the memory gets; by default 200,000, and 12,000 of a named model.
        store: folder, which is kept.
        device: bytes of the device Tier; by default 192 MiB, and 1 GiB of a named model.
        host: bytes of the host Tier.
        plot: picture to write.
        seed: of the questions.
    """

    model: str | None = None
    tokens: int | None = None
    store: Path | None = None
    device: int | str | None = None
    host: int | str = "256MiB"
    plot: Path = Path("agent-memory-demo.png")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """The options, with what is derived from them."""

    model: str | None
    tokens: int
    store: Path
    budget: Budget
    seed: int

    @classmethod
    def of(cls, options: DemoOptions) -> Setting:
        """Defaults for what is not given."""
        named = options.model is not None
        budget = Budget(device=parse_size(options.device or ("1GiB" if named else "192MiB")), host=parse_size(options.host))
        tokens = options.tokens or (12_000 if named else 200_000)
        return cls(options.model, tokens, _free(options.store), budget, options.seed)

    @property
    def how(self) -> dict[str, Any]:
        """See :class:`.fill.Plan`: a real model takes seconds for what the pocket model does in a hundredth."""
        return {} if self.model is None else {"per_call": 1, "calls": False, "probes": 1, "plain": True}

    @property
    def questions(self) -> int:
        """How many are asked."""
        return QUESTIONS if self.model is None else FEWER


def _free(store: Path | None) -> Path:
    """The folder of the Store.

    Raises:
        ConfigError: it is there already: what the demo counts must be its own.
    """
    if store is None:
        return next(path for path in chain([STORE], (Path(f"{STORE}-{n}") for n in count(2))) if not path.exists())
    if store.exists() and any(store.iterdir()):
        raise ConfigError(f"the demo fills a Store of its own, and {str(store)!r} is not empty; name another folder")
    return store


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
    started, log, setting = time.perf_counter(), Log(), Setting.of(options)
    killed = _fill_and_kill(setting, log, say, progress)
    with Runtime.load(setting.model, store=setting.store, budget=setting.budget) as runtime:
        _warm(runtime)
        before = _rss()
        with runtime.session(SESSION) as session:
            lost = _lost(session, log)
            say(f"killed with SIGKILL at {killed:,} tokens; reopened with {session.tokens:,}; acknowledged turns missing: {lost}")
            plan = make_plan(runtime, setting.tokens, **setting.how)
            fill(runtime, session, plan, _both(log, session, setting.tokens, progress))
            asked = _ask_all(runtime, session, plan, setting, say)
            result = _sum_up(setting, session, log, asked, lost, before, time.perf_counter() - started)
            window = runtime.window
    if setting.model is None:
        result["in_window_exact"] = pocket.in_window_exact()
    result["plot"] = str(_draw(result, asked, log, window, options.plot))
    _tell_where(setting, say)
    return result


def _tell_where(setting: Setting, say: Say) -> None:
    """How to look at what was made."""
    given = f" --store {setting.store}"
    model = "" if setting.model is None else f" --model {setting.model}"
    say(f"the memory is kept in {setting.store}; look at it:")
    for line in (f"show {SESSION}{given}", f"recall {SESSION}{given} --last 3", f"chat {SESSION}{given}{model}"):
        say(f"  agent-memory {line}")


def _fill_and_kill(setting: Setting, log: Log, say: Say, progress: Callable[[int, int], None] | None) -> int:
    """A child fills the first half and is killed without warning; returns the tokens it had acknowledged."""
    say(f"an agent looks up every package installed here, until {setting.tokens:,} tokens are in memory")
    budget = (str(setting.budget.device), str(setting.budget.host))
    arguments = [str(setting.store), str(setting.tokens), *budget, json.dumps(setting.how)]
    arguments += [] if setting.model is None else ["--model", setting.model]
    command = [sys.executable, "-m", "agent_memory.demo.fill", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    if child.stdout is None:
        raise RuntimeError("the filling process has no output")
    for event in acknowledged(child.stdout):
        log.add(event)
        if progress is not None:
            progress(log.tokens, setting.tokens)
        if log.tokens >= setting.tokens // 2:
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


def _ask_all(runtime: Runtime, session: Session, plan: Plan, setting: Setting, say: Say) -> list[Asked]:
    """Half the questions about records more than ``OLD`` tokens ago, half about newer ones, in random order."""
    holders = _holders(session, plan)
    rng = random.Random(setting.seed)  # noqa: S311 - reproducible
    border = session.tokens - OLD if session.tokens > 2 * OLD else session.tokens // 2
    known = [package for package in plan.packages if package.name in holders]
    old = questions([p for p in known if holders[p.name] < border], setting.questions // 2, rng, plan.plain)
    new = questions([p for p in known if holders[p.name] >= border], setting.questions - len(old), rng, plan.plain)
    chosen: list[Question] = [*old, *new]
    rng.shuffle(chosen)
    examiner, asked = Examiner(runtime, session, plan.plain), []
    for question in chosen:
        asked.append(examiner.ask(question, holders[question.package]))
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
        share = "" if hit.score is None or hit.peak is None else f"{hit.score:.1%} of the attention (peak {hit.peak:.0%}), "
        say(f"       recalled turn {hit.turn} ({hit.role}), {hit.tokens_ago:,} tokens ago, {share}from {hit.tier}")
    say(f"       without memory: {asked.plain_answer.strip()!r} ({plain})")
    if asked.in_window_right is not None:
        say(f"       with the record in the model's window: {'right' if asked.in_window_right else 'wrong'}")


def _sum_up(setting: Setting, session: Session, log: Log, asked: list[Asked], lost: int, rss_before: int, seconds: float) -> dict[str, Any]:
    old = [one for one in asked if one.tokens_ago > min(OLD, setting.tokens // 2)]
    known = [one.in_window_right for one in asked if one.in_window_right is not None]
    return {
        "tokens": session.tokens,
        "questions": len(asked),
        "right": sum(one.right for one in asked),
        "old_questions": len(old),
        "old_right": sum(one.right for one in old),
        "old_right_without_memory": sum(one.plain_right for one in old),
        "right_without_memory": sum(one.plain_right for one in asked),
        **({"right_in_window": sum(known)} if known else {}),
        "store": str(setting.store),
        "lost_turns": lost,
        "tool_calls": log.calls,
        "tool_calls_right": log.right_calls,
        "latency_ratio": _latency_ratio(log, setting.tokens),
        "seconds": round(seconds, 1),
        "peak_rss_bytes": _peak_rss(),
        "rss_growth_bytes": max(0, _peak_rss() - rss_before),
        "budget_bytes": parse_size(setting.budget.device) + parse_size(setting.budget.host),
    }


def _latency_ratio(log: Log, tokens: int) -> float | None:
    """Median time to the first token in the last tenth of the history over that in the second."""
    tenths: dict[int, list[float]] = {}
    for probe in log.probes:
        tenths.setdefault(probe["probe"] * TENTHS // tokens, []).append(probe["seconds"])
    if not tenths.get(1) or not tenths.get(TENTHS - 1):
        return None
    return round(statistics.median(tenths[TENTHS - 1]) / statistics.median(tenths[1]), 3)


def _draw(result: dict[str, Any], asked: list[Asked], log: Log, window: int, path: Path) -> Path:
    from .picture import draw

    answers = [(one.tokens_ago, one.right, one.plain_right) for one in asked]
    return draw(answers, [(probe["tokens"], probe["seconds"]) for probe in log.probes], result, window, path)
