"""What makes `recall` read the right record out of many that are alike: real package records, one rule changed at a time.

Fills one Session with the record of every package installed here, asks the same questions under each rule, and prints how many
answers equal what the machine says. `python benchmarks/records.py --tokens 100000 --questions 60`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time

import torch
from tqdm import tqdm

from agent_memory.attention.selectors import RecallSelector
from agent_memory.attention.selectors.recall import RecallRule
from agent_memory.demo.ask import is_right
from agent_memory.demo.fill import Inventory, Plan, make_plan
from agent_memory.demo.inventory import Package, Question, questions
from agent_memory.demo.window_only import ANSWER
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.runtime import Runtime
from agent_memory.session import Session

CHANGES: dict[str, dict[str, object]] = {
    "the default": {},
    "each query speaks for itself": {"echo": 0.0},
    "echo 2": {"echo": 2.0},
    "echo 8": {"echo": 8.0},
    "hears 6 queries": {"heard": 6},
    "hears 16 queries": {"heard": 16},
    "each KV head chooses": {"scope": "kv_head"},
    "margin 0: only the best Block": {"margin": 0.0},
    "margin 1": {"margin": 1.0},
    "margin 4": {"margin": 4.0},
    "no margin: always 7 Blocks": {"margin": float("inf")},
}


def fill(session: Session, plan: Plan) -> list[Question]:
    """Append the records of package after package; returns a question for each package told."""
    inventory = Inventory(plan)
    told: list[Package] = []
    with tqdm(total=plan.tokens, unit="token", desc="records") as bar:
        for batch in plan.batches:
            session.append("tool", inventory.lookup(batch[0].name), name="lookup")
            told += batch
            bar.update(session.tokens - bar.n)
            if session.tokens >= plan.tokens:
                break
    return questions(told, len(told), random.Random(0))  # noqa: S311 - reproducible


def ask(runtime: Runtime, session: Session, asked: list[Question], name: str) -> tuple[int, float, float]:
    """Right answers, Blocks read an answer, and seconds an answer."""
    right, blocks, started = 0, 0, time.perf_counter()
    for question in tqdm(asked, desc=name, leave=False):
        with asked_on_a_fork(runtime, session, "asked") as child:
            right += is_right(question, child.reply(question.text, max_new_tokens=ANSWER.tokens))
            blocks += child.last_recall.blocks if child.last_recall is not None else 0
    return right, blocks / len(asked), (time.perf_counter() - started) / len(asked)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Runtime.load(store=folder) as runtime, runtime.session("records") as session:
        asked = fill(session, make_plan(runtime, args.tokens))[: args.questions]
        selector = session.engine.method.selector
        if not isinstance(selector, RecallSelector):
            raise SystemExit("the pocket model's method is not recall")
        default: RecallRule = selector.rule
        for name, change in CHANGES.items():
            selector.rule = dataclasses.replace(default, **change)  # type: ignore[arg-type]
            right, blocks, seconds = ask(runtime, session, asked, name)
            rows.append({"rule": name, "right": right, "asked": len(asked), "blocks": round(blocks, 1), "seconds": round(seconds, 3)})
            if not args.json:
                print(f"{name:32s} {right:4d} of {len(asked)}   {blocks:6.1f} Blocks   {seconds:.2f} s an answer", flush=True)
    if args.json:
        print(json.dumps({"tokens": args.tokens, "rules": rows}))


if __name__ == "__main__":
    main()
