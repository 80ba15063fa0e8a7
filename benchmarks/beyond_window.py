"""What is lost beyond the trained window, and by what: `python benchmarks/beyond_window.py --haystack FILE [--tokens N]`.

The same facts are asked for in several ways. `inside`: in a document of three quarters of the window, with full attention. Then in one of
`--tokens`, by default twice the window. `made` is the method as users have it: it makes the memory, and reads it; `--beside` names others
that read this memory too. `everything` and `chosen` read keys and values that were made with a window of tokens attended to (`streaming`):
`everything` with `recall` over a whole window of tokens, so that it loses what is lost by where keys stand, and `chosen` with the method,
so that it loses what is not chosen, too. A row a document and way is kept, so that a run that was stopped goes on; with `--work FOLDER` a
memory that is being made is kept there, too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agent_memory.attention.methods import make_method
from agent_memory.evaluate.fidelity.asking import ask, encoder
from agent_memory.evaluate.fidelity.documents import Document, Question
from agent_memory.evaluate.fidelity.needles import NeedleDocuments, NeedleOptions
from agent_memory.evaluate.fidelity.runtimes import fill
from agent_memory.evaluate.fidelity.scoring import right
from agent_memory.evaluate.json_lines import Measured
from agent_memory.evaluate.statistics import bootstrap_mean, bootstrap_ratio
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Budget

RESULTS = Path(__file__).parent / "results" / "beyond-window.jsonl"

ROOM = Budget(device="4GiB", host="64MiB")
"""Where Blocks lie changes no figure."""

QUESTION_TOKENS = 384
"""Room for questions and answers after a document."""

WAYS = ("inside", "everything", "chosen", "made")

Outcomes = list[list[dict[str, Any]]]
"""Of each document, of each question."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of asking: the method that memory is made with, and the one that it is read with."""

    name: str
    made: str
    read: str
    inside: bool = False


def ways(window: int, method: str, beside: Sequence[str]) -> list[Way]:
    """All of them; those with one memory follow each other."""
    last = f"streaming:attended={window}"
    return [
        Way("inside", "full", "full", inside=True),
        Way("everything", last, f"recall:attended={window}"),
        Way("chosen", last, method),
        Way("made", method, method),
        *(Way(other, method, other) for other in beside),
    ]


class Documents:
    """The documents of a run by number, with the same facts inside the window and beyond it."""

    def __init__(self, args: argparse.Namespace) -> None:
        with tempfile.TemporaryDirectory() as folder, Runtime.load(args.model, store=folder) as runtime:
            encode, self.window = encoder(runtime), runtime.window
        self.tokens = args.tokens or 2 * self.window
        self._texts = {
            inside: NeedleDocuments(
                NeedleOptions(length=length, haystack=args.haystack, keys=args.keys, seed=args.seed, facts=args.facts),
                lambda text: len(encode(text)),
            )
            for inside, length in {True: self.window * 3 // 4, False: self.tokens - QUESTION_TOKENS}.items()
        }

    def make(self, number: int, inside: bool) -> Document:
        """One of them."""
        return self._texts[inside].make(number)


@contextmanager
def memory(args: argparse.Namespace, name: str) -> Iterator[str]:
    """A folder for a document's memory, dropped as soon as all are done that read it."""
    if args.work is None:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    folder = str(args.work / name)
    yield folder
    shutil.rmtree(folder)


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
        response = ask(runtime, session, question, f"asked {os.getpid()} {number}")  # a run that was killed left its own
        said = question.whole if response.reply is None else response.reply
        found.append({"asked": question.text, "nll": round(sum(response.nll), 4), "right": right(question, said)})
    return sorted(found, key=lambda one: one["asked"])


def measure(args: argparse.Namespace, rows: Measured) -> list[tuple[str, Outcomes]]:
    """Outcomes of each way, document by document."""
    documents, numbers = Documents(args), range(args.first, args.first + args.documents)
    wanted = [way for way in ways(documents.window, args.method, args.beside) if way.name in (*args.ways, *args.beside)]
    keys = {(way.name, number): _key(args, way, number, documents) for number in numbers for way in wanted}
    missing = {at for at, key in keys.items() if key not in rows}
    with tqdm(total=len(missing), unit="row", disable=None) as bar:
        for number in numbers:
            left = [way for way in wanted if (way.name, number) in missing]
            for (made, inside), some in groupby(left, key=lambda way: (way.made, way.inside)):
                document = documents.make(number, inside)
                with memory(args, f"{args.keys}-{args.seed}-{number}-{documents.tokens}-{'inside' if inside else made}") as folder:
                    with opened(args, folder, made, document, bar):
                        pass  # made, before others read it
                    for way in some:
                        with opened(args, folder, way.read, document, bar) as (runtime, session):
                            rows.keep(keys[way.name, number], asked(runtime, session, document.questions))  # type: ignore[arg-type]
                        bar.update()
    return [(way.name, [rows[keys[way.name, number]] for number in numbers]) for way in wanted]


def _key(args: argparse.Namespace, way: Way, number: int, documents: Documents) -> dict[str, Any]:
    """What a row depends on, every option of a method written out; of what is inside the window, no method and no length."""
    facts = {"keys": args.keys, "seed": args.seed, "facts": args.facts, "document": number}
    if way.inside:
        return {"model": args.model, "way": way.name, "made": "full", "read": "full", "tokens": 0, **facts}
    made, read = (make_method(spec, documents.window).spec for spec in (way.made, way.read))
    name = way.name if way.name in WAYS else "beside"
    return {"model": args.model, "way": name, "made": made, "read": read, "tokens": documents.tokens, **facts}


def tell(found: Sequence[tuple[str, Outcomes]]) -> None:
    """Print each way's answers, beside those inside the window and those of the way before it; intervals resample documents."""
    inside = next((_right(outcomes) for name, outcomes in found if name == "inside"), None)
    before: list[float] | None = None
    for name, outcomes in found:
        losses = [sum(one["nll"] for one in document) / len(document) for document in outcomes]
        count, answers = sum(len(document) for document in outcomes), _right(outcomes)
        line = f"{name:12} {sum(answers):3} of {count} right, {sum(losses) / len(losses):.3f} nats an answer"
        if before is not None and len(losses) > 1:
            change = [mine - theirs for mine, theirs in zip(losses, before, strict=True)]
            low, high = bootstrap_mean(change)
            line += f", {sum(change) / len(change):+.3f} ({low:+.3f} to {high:+.3f})"
        if inside is not None and name != "inside" and any(inside) and len(losses) > 1:
            low, high = bootstrap_ratio(answers, inside)
            line += f"; right beside inside {sum(answers) / sum(inside):.2f} ({low:.2f} to {high:.2f})"
        print(line)
        before = losses


def _right(outcomes: Outcomes) -> list[int]:
    return [sum(bool(one["right"]) for one in document) for document in outcomes]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--method", default="recall")
    parser.add_argument("--haystack", type=Path, required=True, help="text, or .jsonl with a text a line")
    parser.add_argument("--keys", default="foods")
    parser.add_argument("--tokens", type=int, help="of a document beyond the window; by default twice the window")
    parser.add_argument("--facts", type=int, default=8, help="and questions, of each document")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="number of the first document, to share the work")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--beside", nargs="*", default=[], metavar="METHOD", help="others that read the same memory")
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--work", type=Path, help="folder for memories, which are dropped; by default the system's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tell(measure(args, Measured(RESULTS, "outcomes", "this is no row of beyond_window.py; move the file away")))


if __name__ == "__main__":
    main()
