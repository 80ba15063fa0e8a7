"""An agent's long conversation: memory against what people do today, with one model, the same questions, in one run.

Knows the ways to answer by name, and how answers and times are told; the conversation and the ways are in the modules beside this one.

    python -m benchmarks.agents --plot agents.png
    python -m benchmarks.agents --tokens 10000 --questions 10 --json
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from agent_memory.bench.run import commit, machine
from benchmarks.agents_methods import WORDS, Among, Cached, Inside, Memory, Prefill, Retrieval, Summaries, Way, trimmed
from benchmarks.agents_talk import ANSWER_TOKENS, WINDOW, Meter, Plain, Talk, load_plain, make_talk

WAYS: dict[str, Callable[[Plain, Path], Way]] = {
    "memory (ours)": lambda plain, folder: Memory(folder),
    "full re-prefill": lambda plain, folder: Prefill(plain.chat(Meter())),
    "kept cache": lambda plain, folder: Cached(plain.chat(Meter())),
    "trim_messages": lambda plain, folder: Prefill(plain.chat(Meter()), trimmed(plain.rendering)),
    "SummarizationMiddleware": lambda plain, folder: Summaries(plain),
    "BM25, whole messages": lambda plain, folder: Retrieval(plain.chat(Meter())),
    "BM25, four lines": lambda plain, folder: Retrieval(plain.chat(Meter()), lines=4, word=WORDS),
    "inside, among lookalikes": lambda plain, folder: Among(plain.chat(Meter())),
    "inside the window": lambda plain, folder: Inside(plain.chat(Meter())),
}
"""In the order they are run and shown; the last two are what the model can do at best: as hard as in the history, and as easy as can be."""

OURS, FULL, REFERENCE = "memory (ours)", "full re-prefill", "inside the window"
REFERENCES = ("inside, among lookalikes", REFERENCE)

COLUMNS = (
    "name", "exact", "asked", "read_tokens", "read_seconds", "prefill_tokens", "seconds", "seconds_min", "seconds_max",
    "generated_tokens", "kept_bytes", "counted_by",
)  # fmt: skip
"""Of the CSV, and in JSON beside the turns; means are of one turn."""


@dataclass(frozen=True)
class Turn:
    """One question and what came of it."""

    question: str
    wanted: str
    said: str
    right: bool
    depth: float
    prefilled: int
    generated: int
    seconds: float


@dataclass
class Row:
    """One way's figures.

    Attributes:
        read_tokens, read_seconds: what reading the history once took, before the first question.
        kept_bytes: kept from turn to turn.
        counted_by: what counted the tokens: the model's own input, or, of memory, the engine or the Session's length.
    """

    name: str
    read_tokens: int
    read_seconds: float
    turns: list[Turn] = field(default_factory=list)
    kept_bytes: int | None = None
    counted_by: str = "input"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        times = [turn.seconds for turn in self.turns]
        made: dict[str, Any] = {"exact": sum(turn.right for turn in self.turns), "asked": len(self.turns)}
        made |= {"prefill_tokens": self._mean("prefilled"), "generated_tokens": self._mean("generated")}
        made |= {"seconds": self._mean("seconds"), "seconds_min": min(times), "seconds_max": max(times)}
        return asdict(self) | made

    def _mean(self, of: str) -> float:
        return float(sum(getattr(turn, of) for turn in self.turns)) / len(self.turns)


def measure(name: str, way: Way, talk: Talk, questions: int, step: Callable[[], object] = lambda: None) -> Row:
    """Let one way read the history and answer the first questions.

    Args:
        name: of the row.
        way: that answers.
        talk: history and questions.
        questions: how many are asked.
        step: called after each answer.
    """
    start = time.perf_counter()
    way.read(talk)
    row = Row(name, way.meter.prefilled, time.perf_counter() - start)
    for needle in talk.needles[:questions]:
        prefilled, generated, start = way.meter.prefilled, way.meter.generated, time.perf_counter()
        said = way.ask(needle.question)
        seconds = time.perf_counter() - start
        fed, made = way.meter.prefilled - prefilled, way.meter.generated - generated
        row.turns.append(Turn(needle.question, needle.value, said, needle.found_in(said), needle.depth, fed, made, seconds))
        step()
    row.kept_bytes = None if name in REFERENCES else way.kept()
    row.counted_by = getattr(way, "counted_by", row.counted_by)
    return row


def compare(talk: Talk, plain: Plain, full_questions: int) -> Iterator[Row]:
    """All ways, one after the other; progress on a terminal's stderr.

    Args:
        talk: history and questions.
        plain: the weights as transformers has them.
        full_questions: how many questions are asked where everything is read again each time.
    """
    asked = {name: min(full_questions, len(talk.needles)) if name == FULL else len(talk.needles) for name in WAYS}
    with tqdm(total=sum(asked.values()), disable=None, unit="question") as bar:
        for name, make in WAYS.items():
            bar.set_description(name)
            with tempfile.TemporaryDirectory() as folder:
                yield measure(name, make(plain, Path(folder)), talk, asked[name], bar.update)


def payload(talk: Talk, rows: list[Row], args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain JSON types."""
    made = {row.name: row.to_dict() for row in rows}
    return {
        "tokens": talk.tokens,
        "messages": len(talk.messages),
        "text_bytes": talk.text_bytes,
        "seed": args.seed,
        "window": WINDOW,
        "answer_tokens": ANSWER_TOKENS,
        "machine": machine(),
        "commit": commit(),
        "prefill_ratio": made[FULL]["prefill_tokens"] / made[OURS]["prefill_tokens"],
        "rows": list(made.values()),
    }


def table(found: dict[str, Any]) -> Table:
    """For people."""
    title = f"{found['tokens']:,} tokens of history, window {found['window']}: tokens and seconds to read it once, and of a turn"
    made = Table(title=title)
    for name in ("method", "exact", "once", "s", "a turn", "s", "least to most", "kept"):
        made.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in found["rows"]:
        once = ("-", "-") if row["name"] in REFERENCES else (f"{row['read_tokens']:,}", _short(row["read_seconds"]))
        times = _short(row["seconds"]), f"{_short(row['seconds_min'])} to {_short(row['seconds_max'])}"
        kept = "-" if row["kept_bytes"] is None else _bytes(row["kept_bytes"])
        made.add_row(row["name"], f"{row['exact']} of {row['asked']}", *once, f"{row['prefill_tokens']:,.0f}", *times, kept)
    return made


def _short(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def write_csv(found: dict[str, Any], path: Path) -> None:
    """One row for each way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found["rows"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000, help="of the history")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--full-questions", type=int, default=3, help="asked where everything is read again each turn, which is slow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    plain = load_plain()
    talk = make_talk(args.tokens, args.questions, args.seed, plain.rendering)
    found = payload(talk, list(compare(talk, plain, args.full_questions)), args)
    if args.csv is not None:
        write_csv(found, args.csv)
    if args.plot is not None:
        from benchmarks.agents_plot import draw

        draw(found, args.plot)
    if args.json:
        print(json.dumps(found))
        return
    console = Console()
    console.width = max(console.width, 110)
    console.print(table(found))
    console.print(f"full re-prefill reads {found['prefill_ratio']:,.0f} times the tokens of memory a turn", highlight=False)


def quiet() -> None:
    """What transformers says of lengths beyond the window is the point here, and not news."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
