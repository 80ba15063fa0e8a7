"""Which way of choosing finds the fact that was asked for among its near-duplicates, and what it costs: one thing changed at a time.

Fills a Session with a document of `agent-memory eval`, asks about each depth under every rule, and prints for each length the share of
right answers, the keys scored and the Blocks read an answer. What cannot be changed after filling (another method, other groups) fills
its own. `python benchmarks/choosing.py --task near-duplicate --lengths 2048,16384,131072 --samples 10`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agent_memory.attention.selectors import RecallSelector
from agent_memory.evaluate.fork import asked_on_a_fork
from agent_memory.evaluate.run import make_tasks
from agent_memory.evaluate.task import Document, Task
from agent_memory.runtime import Runtime
from agent_memory.session import Session

CHANGES: dict[str, dict[str, object]] = {
    "recall": {},
    "vote: softmax of each query, no echo": {"echo": 0.0},
    "vote: raw maximum": {"vote": "max", "echo": 0.0},
    "each query head votes, no echo": {"pool": False},
    "each KV head chooses": {"scope": "kv_head"},
    "hears 6 queries": {"heard": 6},
    "hears 24 queries": {"heard": 24},
    "query at a far angle (255)": {"angle": 255},
    "query at a far angle, no echo": {"angle": 255, "echo": 0.0},
    "at most 3 Blocks": {"blocks": 3},
    "only the best Block": {"margin": 0.0},
    "always 7 Blocks": {"margin": 1e9},
    "means, then 64 Blocks rescored": {"scan": "means", "echo": 0.0},
}
FILLED_ANEW = {
    "recall:group=4": 16_384, "recall:group=64": 16_384, "infllm": 16_384, "reattention": 16_384,
    "reattention:k=1": 2_048, "reattention:k=16": 2_048, "reattention:span=8": 2_048,
}  # fmt: skip
"""Other methods, and the longest history each is filled with: ReAttention's selection is quadratic in it."""


class Row:
    """What one way of choosing did at one length."""

    def __init__(self) -> None:
        self.right, self.asked, self.keys, self.blocks = 0.0, 0, 0, 0

    def add(self, score: float, session: Session) -> None:
        """Count one answer."""
        recall = session.last_recall
        self.right, self.asked = self.right + score, self.asked + 1
        self.keys += 0 if recall is None else recall.keys_scored
        self.blocks += 0 if recall is None else recall.blocks

    def shown(self) -> dict[str, float]:
        """Shares and means."""
        return {
            "exact": round(self.right / self.asked, 4),
            "answers": self.asked,
            "keys_scored": round(self.keys / self.asked),
            "blocks": round(self.blocks / self.asked, 1),
        }


def filled(runtime: Runtime, task: Task, length: int, args: argparse.Namespace) -> Iterator[tuple[Document, Session]]:
    """A Session for each sample, filled with its document."""
    depths = [(i + 0.5) / args.depths for i in range(args.depths)]
    for sample in range(args.samples):
        rng = random.Random(f"{args.seed} {length} {sample}")  # noqa: S311 - reproducible, not secret
        document = task.make(rng, length, depths, lambda text: len(runtime.tokenizer.encode(text, add_special_tokens=False)), None)
        with runtime.session(f"{length} {sample}") as session:
            for piece in document.pieces:
                session.append("tool", piece, name="read", prefill=False)
            session.prefill()
            yield document, session
        runtime.store.delete(f"{length} {sample}")


def ask(runtime: Runtime, task: Task, document: Document, session: Session, row: Row) -> None:
    """Every question once, each on a fork."""
    for turns in document.questions:
        with asked_on_a_fork(runtime, session, "asked") as child:
            for question in turns:
                row.add(task.score(question, child.reply(question.text, max_new_tokens=48), "exact"), child)


def measure(task: Task, method: str, length: int, changes: dict[str, dict[str, object]], args: argparse.Namespace) -> dict[str, Row]:
    """Rows of one method at one length, for each change of its rule (none: for the method as it is)."""
    rows = {name: Row() for name in changes or (method,)}
    with tempfile.TemporaryDirectory() as folder, Runtime.load(store=Path(folder), method=method) as runtime:
        for document, session in tqdm(filled(runtime, task, length, args), desc=f"{method} at {length:,}", total=args.samples, leave=False):
            if not changes:
                ask(runtime, task, document, session, rows[method])
                continue
            selector = session.engine.method.selector
            if not isinstance(selector, RecallSelector):
                raise SystemExit(f"the rule of {method} cannot be changed")
            default = selector.rule
            for name, change in changes.items():
                selector.rule = dataclasses.replace(default, **change)  # type: ignore[arg-type]
                ask(runtime, task, document, session, rows[name])
            selector.rule = default
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="near-duplicate")
    parser.add_argument("--lengths", default="2048,16384,131072", help="tokens, separated by commas")
    parser.add_argument("--depths", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write, after each length")
    args = parser.parse_args()
    torch.set_num_threads(1)
    (task,) = make_tasks([args.task], "record")
    table: dict[str, dict[str, Any]] = {}
    for length in map(int, args.lengths.split(",")):
        methods = [method for method, longest in FILLED_ANEW.items() if length <= longest]
        for rows in (measure(task, "recall", length, CHANGES, args), *(measure(task, method, length, {}, args) for method in methods)):
            for name, row in rows.items():
                found = table.setdefault(name, {})[str(length)] = row.shown()
                print(f"{length:8,} {name:40s} {found['exact']:7.1%} of {row.asked} {found['keys_scored']:12,} keys "
                      f"{found['blocks']:6.1f} Blocks", flush=True)  # fmt: skip
            if args.json:
                args.json.write_text(json.dumps({"task": args.task, "rows": table}, indent=1))


if __name__ == "__main__":
    main()
