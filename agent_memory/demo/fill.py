"""Filling a memory: an agent looks up every package, and tells what was acknowledged as it goes.

Knows the agent loop and the inventory; does not know who listens. Run as a process of its own it prints one JSON line an event, and may
be killed at any moment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..agent import INTERRUPTED, Agent, Answered, Appended, ToolReturned
from ..evaluate.fork import asked_on_a_fork
from ..pocket import data
from ..runtime import Runtime
from ..session import Session
from ..types import Budget
from .inventory import Package, installed, questions, told

SESSION = "inventory"
TENTHS = 10

NO_PACKAGE = "there is no package"

RESULT_TOKENS = 400
"""Of a tool's result in plain sentences, about."""
FACTS = 1
"""Of each package that are told in plain sentences, at most."""
NOISE_LINES = 12
"""That a package has at least, of which facts are told in plain sentences."""
LEAST_PACKAGES = 24
"""Packages that are looked up at least: so many can be asked about."""

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is looked up: every package, in batches that one tool call reads, with so many lines of noise each.

    Attributes:
        packages: all of them.
        batches: what each call reads.
        lines: of noise around a record.
        tokens: how long the memory gets.
        calls: the model calls the tool by itself; otherwise its results are appended as if it had.
        probes: questions asked on a fork in each tenth of the history.
        plain: records are told in plain sentences.
    """

    packages: tuple[Package, ...]
    batches: tuple[tuple[Package, ...], ...]
    lines: int
    tokens: int
    calls: bool = True
    probes: int = 3
    plain: bool = False


def make_plan(runtime: Runtime, tokens: int, per_call: int = 4, calls: bool = True, probes: int = 3, plain: bool = False) -> Plan:
    """Spread ``tokens`` over every installed package, or in plain sentences over as many as give long results; packages are looked up
    again, with other noise, if there are too few.

    Args:
        runtime: of the model.
        tokens: how long the memory gets.
        per_call: packages in a batch.
        calls, probes, plain: of :class:`Plan`.
    """
    packages = installed()
    if plain:
        packages = told(packages, FACTS, NOISE_LINES)[: max(LEAST_PACKAGES, tokens // RESULT_TOKENS)]
    sample = packages[:: max(1, len(packages) // 40)]
    lines = 2

    def size(count: int) -> float:
        return sum(len(runtime.tokenizer.encode(p.text("lines", count), add_special_tokens=False)) for p in sample) / len(sample)

    while size(lines) * len(packages) < tokens * 0.97 and lines < 64:
        lines += 1
    batches = tuple(tuple(packages[i : i + per_call]) for i in range(0, len(packages), per_call))
    return Plan(tuple(packages), batches, lines, tokens, calls, probes, plain)


class Inventory:
    """The agent's tool: reads the record of a package, and of those after it."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.round = plan, 0
        self._batch = {package.name: batch for batch in plan.batches for package in batch}

    def lookup(self, name: str) -> str:
        """Look up the record of a package.

        Args:
            name: The name.
        """
        batch = self._batch.get(name)
        if batch is None:
            return f"{NO_PACKAGE} {name}"
        layouts = ["plain"] if self.plan.plain else [layout for layout in data.LAYOUTS if layout != "note"]
        rng = random.Random(f"{name} {self.round}")  # noqa: S311 - the same text for the same package
        return "\n".join(package.text(rng.choice(layouts), self.plan.lines) for package in batch)


def fill(runtime: Runtime, session: Session, plan: Plan, tell: Tell) -> None:
    """Look up batch after batch until the Session holds ``plan.tokens``, from wherever it stands.

    Args:
        runtime: of the Session.
        session: the open Session.
        plan: what to look up.
        tell: told ``{"turn", "tokens", "hash"}`` for each acknowledged turn, ``{"probe", "seconds"}`` for each probe, and
            ``{"call", "right"}`` for each tool call the model made.
    """
    inventory = Inventory(plan)
    agent = Agent(runtime, [inventory.lookup], max_steps=2, max_new_tokens=64) if plan.calls else None
    probes = _probe_points(plan, session.tokens)
    done = _batches_done(session)
    while session.tokens < plan.tokens:
        inventory.round, index = divmod(done, len(plan.batches))
        batch = plan.batches[index]
        if agent is None:
            _append(session, batch, inventory, tell)
        else:
            _look_up(agent, session, batch, inventory, tell)
        done += 1
        while probes and session.tokens >= probes[0]:
            _probe(runtime, session, plan, done, probes.pop(0), tell)


def _batches_done(session: Session) -> int:
    """Batches whose record is in the Session; one that a kill interrupted is looked up again."""
    failed = (INTERRUPTED, NO_PACKAGE)
    return sum(turn.role == "tool" and not turn.text.startswith(failed) for turn in session.turns())


def _look_up(agent: Agent, session: Session, batch: Sequence[Package], inventory: Inventory, tell: Tell) -> None:
    """One request. Where the model calls the tool wrongly the record is appended all the same, and the miss is counted."""
    wanted, seen = inventory.lookup(batch[0].name), False
    for event in agent.run_in(session, data.lookup(batch[0].name)):
        if isinstance(event, ToolReturned):
            seen = seen or event.text == wanted
            tell({"call": event.call.name, "right": event.text == wanted})
        if isinstance(event, Appended | Answered):
            _tell_turns(session, tell)
    if not seen:
        session.append("tool", wanted, name="lookup")
        tell({"call": None, "right": False})
        _tell_turns(session, tell)


def _append(session: Session, batch: Sequence[Package], inventory: Inventory, tell: Tell) -> None:
    """One request and the tool's result, without a reply of the model in between."""
    session.append("user", data.lookup(batch[0].name))
    _tell_turns(session, tell)
    session.append("tool", inventory.lookup(batch[0].name), name="lookup")
    _tell_turns(session, tell)


def _tell_turns(session: Session, tell: Tell) -> None:
    turn = session.last_turn
    if turn is not None:
        tell({"turn": turn.index, "tokens": turn.stop, "hash": text_hash(turn.text)})


def text_hash(text: str) -> str:
    """Hash by which an acknowledged turn is compared with what is found later."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _probe_points(plan: Plan, start: int) -> list[int]:
    tenths = (tenth + (probe + 0.5) / plan.probes for tenth in range(TENTHS) for probe in range(plan.probes))
    points = [int(plan.tokens * tenth / TENTHS) for tenth in tenths]
    return [point for point in points if point > start]


def _probe(runtime: Runtime, session: Session, plan: Plan, done: int, point: int, tell: Tell) -> None:
    """Ask one question on a fork that is dropped, and tell the time to the first token of its answer."""
    known = [package for batch in plan.batches[: min(done, len(plan.batches))] for package in batch]
    rng = random.Random(point)  # noqa: S311 - reproducible
    asked = questions(known, 1, rng, plan.plain) or questions(plan.packages, 1, rng, plan.plain)
    with asked_on_a_fork(runtime, session, f"probe {point}") as child:
        started = time.perf_counter()
        pieces = child.stream(asked[0].text, max_new_tokens=2)
        next(iter(pieces), None)
        seconds = time.perf_counter() - started
        pieces.close()
        tell({"probe": point, "tokens": session.tokens, "seconds": seconds})


def acknowledged(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Events of a filling process, as far as it wrote them whole."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def main() -> None:
    """Fill the Store given on the command line, printing events; made to be killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("tokens", type=int)
    parser.add_argument("device")
    parser.add_argument("host")
    parser.add_argument("how")
    parser.add_argument("--model")
    args = parser.parse_args()
    with Runtime.load(args.model, store=args.store, budget=Budget(device=args.device, host=args.host)) as runtime:
        with runtime.session(SESSION) as session:
            plan = make_plan(runtime, args.tokens, **json.loads(args.how))
            fill(runtime, session, plan, lambda event: print(json.dumps(event), flush=True))


if __name__ == "__main__":
    main()
