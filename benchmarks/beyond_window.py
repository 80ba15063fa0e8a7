"""What is lost beyond the trained window, and by what: `python benchmarks/beyond_window.py --haystack FILE`.

The same facts are asked for in four ways. `inside`: in a document of three quarters of the window, with full attention. Then in one of
twice the window whose keys and values were made with a window of tokens attended to (`streaming`): `everything` reads it with `recall` over
a whole window of tokens, and loses what is lost by where keys stand; `chosen` reads it with the method, and loses what is not chosen, too.
`made` is the method as users have it, with keys and values that were made through it. A row a document and way is kept, so that a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from agent_memory.evaluate.fidelity.asking import ask, encoder
from agent_memory.evaluate.fidelity.documents import Document, Question
from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions
from agent_memory.evaluate.fidelity.runtimes import fill
from agent_memory.evaluate.fidelity.scoring import right
from agent_memory.evaluate.json_lines import Measured
from agent_memory.evaluate.statistics import bootstrap_mean
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget

RESULTS = Path(__file__).parent / "results" / "beyond-window.jsonl"

ROOM = Budget(device="3GiB", host="64MiB")
"""Where Blocks lie changes no figure."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of asking: the method that memory is made with, and the one that it is read with."""

    name: str
    made: str
    read: str
    inside: bool = False


def ways(window: int, method: str) -> list[Way]:
    """The four of them; those with one memory follow each other."""
    last = f"streaming:attended={window}"
    return [
        Way("inside", "full", "full", inside=True),
        Way("everything", last, f"recall:attended={window}"),
        Way("chosen", last, method),
        Way("made", method, method),
    ]


@contextmanager
def opened(args: argparse.Namespace, folder: str, method: str, document: Document, bar: tqdm[Any]) -> Iterator[tuple[Runtime, Session]]:
    """The document's memory in a Store in ``folder``: made by the first method that opens it, read by all others."""
    options: dict[str, Any] = {"method": method, "store": folder, "budget": ROOM, "border": None, "attention_shares": False}
    with Runtime.load(args.model, **options) as runtime, runtime.session("document", reinterpret=True) as session:
        fill(session, document, lambda done: bar.set_postfix_str(f"{method}: {done:,} tokens", refresh=False))
        yield runtime, session


def asked(runtime: Runtime, session: Session, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """What comes out for each question, by what is asked."""
    found = []
    for number, question in enumerate(questions):
        response = ask(runtime, session, question, f"asked {number}")
        said = question.whole if response.reply is None else response.reply
        found.append({"asked": question.text, "nll": round(sum(response.nll), 4), "right": right(question, said)})
    return sorted(found, key=lambda one: one["asked"])


def measure(args: argparse.Namespace, rows: Measured) -> list[tuple[str, list[list[dict[str, Any]]]]]:
    """Outcomes of each way, document by document."""
    with tempfile.TemporaryDirectory() as folder, Runtime.load(args.model, store=folder) as runtime:
        encode, window = encoder(runtime), runtime.window
    lengths = {True: window * 3 // 4, False: 2 * window - 384}
    texts = {
        inside: NeedleDocuments(
            NeedleOptions(length=length, haystack=args.haystack, keys=args.keys, seed=args.seed), lambda text: len(encode(text))
        )
        for inside, length in lengths.items()
    }
    all_ways = ways(window, args.method)
    keys = {
        (way.name, number): {
            "model": args.model,
            "way": way.name,
            "method": args.method,
            "keys": args.keys,
            "seed": args.seed,
            "document": number,
        }
        for number in range(args.documents)
        for way in all_ways
    }
    missing = {at for at, key in keys.items() if key not in rows}
    with tqdm(total=len(missing), unit="row", disable=None) as bar:
        for number in range(args.documents):
            left = [way for way in all_ways if (way.name, number) in missing]
            for (made, inside), some in groupby(left, key=lambda way: (way.made, way.inside)):
                document = texts[inside].make(number)
                with tempfile.TemporaryDirectory(dir=args.work) as folder:
                    with opened(args, folder, made, document, bar):
                        pass  # made, before others read it
                    for way in some:
                        with opened(args, folder, way.read, document, bar) as (runtime, session):
                            rows.keep(keys[way.name, number], asked(runtime, session, document.questions))  # type: ignore[arg-type]
                        bar.update()
    return [(way.name, [rows[keys[way.name, number]] for number in range(args.documents)]) for way in all_ways]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="recall")
    parser.add_argument("--haystack", type=Path, required=True, help="text, or .jsonl with a text a line")
    parser.add_argument("--keys", default="foods")
    parser.add_argument("--documents", type=int, default=8, help="of eight questions each")
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--work", type=Path, help="folder for memories, which are dropped; by default the system's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    before = None
    for name, outcomes in measure(args, Measured(RESULTS, "outcomes", "this is no row of beyond_window.py; move the file away")):
        losses = np.array([[one["nll"] for one in document] for document in outcomes])
        total = sum(one["right"] for document in outcomes for one in document)
        line = f"{name:12} {total:3} of {losses.size} right, {losses.mean():.3f} nats an answer"
        if before is not None:
            change = (losses - before).mean(1)
            low, high = bootstrap_mean(change.tolist())
            line += f", {change.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        print(line)
        before = losses


if __name__ == "__main__":
    main()
