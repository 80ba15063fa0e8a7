"""Asking a public benchmark's questions: each context is prefilled once a method, each question asked on a fork that is dropped.

Knows Runtimes, Sessions, and the four benchmarks by name; does not know their formats or how an answer is judged.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...runtime import Runtime
from ...session import Session
from ...types import Budget
from ..forced import answer_loss
from ..fork import asked_on_a_fork
from ..work import Note, Progress
from . import infinitebench, leval, locomo, longbench
from .base import Benchmark, Item
from .shown import has_evidence, shown_by
from .tally import Losses, Tally

BENCHMARKS: Mapping[str, Benchmark] = {
    "longbench": longbench.BENCHMARK,
    "leval": leval.BENCHMARK,
    "infinitebench": infinitebench.BENCHMARK,
    "locomo": locomo.BENCHMARK,
}

MakeRuntime = Callable[..., Runtime]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to ask.

    Attributes:
        name: of the benchmark: ``longbench``, ``leval``, ``infinitebench`` or ``locomo``.
        files: its files.
        methods: by name; beside methods of memory ``evidence`` and ``bm25``, see :mod:`.shown`. With ``evidence`` only questions
            are asked that name theirs.
        limit: questions of each data set, the first ones; all by default.
        datasets: which data sets; all by default.
        drawn: so many questions of what is left, drawn by ``seed``; all by default.
        seed: of the draw.
        truncate: ``none``, or ``middle:N``: of a longer prompt the first and the last half of N tokens, as the papers do.
        max_new_tokens: tokens an answer may have, instead of the authors' number for each data set.
        budget: bytes for each Tier.
        resume: file that keeps the answers, so that a run that was stopped goes on.
    """

    name: str
    files: tuple[Path, ...]
    methods: tuple[str, ...] = ("recall", "streaming")
    limit: int | None = None
    datasets: tuple[str, ...] = ()
    drawn: int | None = None
    seed: int = 0
    truncate: str = "none"
    max_new_tokens: int | None = None
    budget: Budget = field(default_factory=Budget)
    resume: Path | None = None


def run_benchmark(
    make_runtime: MakeRuntime, options: BenchmarkOptions, progress: Progress | None = None, note: Note | None = None
) -> dict[str, Any]:
    """Ask every question with every method, and return a JSON object.

    Its keys are ``task``, ``model``, ``window`` (tokens), ``truncate``, ``summary`` (method to data set to score, 0 to 100), ``counts``
    (data set to questions), ``metrics`` (data set to metric), ``losses`` (method to data set to mean negative log-likelihood of the first
    right answer, in nats, and ``all``) and ``against`` (of each method but the first its mean difference from the first, with a 95 %
    interval over contexts). All files are read once before the first question, so that a wrong file, or a package that a metric needs,
    is named at the start.

    Args:
        make_runtime: ``make_runtime(method=, store=, budget=)`` gives a Runtime.
        options: what to ask.
        progress: told answers given, answers to give, and what is being done.
        note: told the running score of a data set whenever the questions about a context are answered.

    Raises:
        ConfigError: an unknown benchmark, a wrong file, or an option that cannot be.
    """
    benchmark = _checked(options)
    counts, metrics = _plan(benchmark, options)
    tally, losses = Tally(counts.total() * len(options.methods), progress), Losses()
    model, window = "", 0
    for method in options.methods:
        with tempfile.TemporaryDirectory(prefix="agent-memory-eval-") as folder:
            attends = method if shown_by(method) is None else "full"
            with make_runtime(method=attends, store=Path(folder) / "store", budget=options.budget) as runtime:
                model, window = runtime.model_id.architecture, runtime.window
                answers = _answers(runtime, method, benchmark, options)
                for pieces, given in groupby(answers, key=lambda one: one.item.pieces):
                    context = _digest("\0".join(pieces))
                    for one in given:
                        tally.add(method, one.item.dataset, one.parts)
                        losses.add(method, one.item.dataset, context, one.loss)
                    if note is not None:
                        note(tally.said_of(method))
    return {
        "task": options.name, "model": model, "window": window, "truncate": options.truncate, "summary": tally.summary(),
        "counts": dict(counts), "metrics": metrics, "losses": losses.means(), "against": losses.against(options.methods[0]),
    }  # fmt: skip


def _checked(options: BenchmarkOptions) -> Benchmark:
    """The benchmark, if the options can be."""
    if options.name not in BENCHMARKS:
        raise ConfigError(f"benchmark {options.name!r} is unknown; there are {', '.join(BENCHMARKS)}")
    if not options.files:
        raise ConfigError(f"name at least one file of {options.name}")
    if any(count is not None and count < 1 for count in (options.limit, options.drawn, options.max_new_tokens)):
        raise ConfigError("limit, drawn and max_new_tokens must be at least 1")
    for method in options.methods:
        if (shown := shown_by(method)) is not None:
            shown.check()  # a package that is missing is better missed now than after hours
    tokens_kept(options.truncate)
    return BENCHMARKS[options.name]


def _plan(benchmark: Benchmark, options: BenchmarkOptions) -> tuple[Counter[str], dict[str, str]]:
    """How many questions each data set has, and its metric."""
    counts: Counter[str] = Counter()
    metrics: dict[str, str] = {}
    for item in _items(benchmark, options):
        if item.dataset not in counts:
            benchmark.metrics[item.metric]("", item)  # a package that is missing is better missed now than after hours
        if metrics.setdefault(item.dataset, item.metric) != item.metric:
            raise ConfigError(f"data set {item.dataset!r} mixes metrics {metrics[item.dataset]} and {item.metric}, at {item.id}")
        counts[item.dataset] += 1
    if not counts:
        raise ConfigError(f"there are no questions to ask in {', '.join(str(file) for file in options.files)}")
    return counts, metrics


def _items(benchmark: Benchmark, options: BenchmarkOptions) -> Iterator[Item]:
    """The questions that are asked, in the order of the files."""
    kept = list(_choosable(benchmark, options))
    if options.drawn is not None and options.drawn < len(kept):
        numbers = random.Random(options.seed).sample(range(len(kept)), options.drawn)  # noqa: S311 - reproducible, not secret
        kept = [kept[number] for number in sorted(numbers)]
    yield from kept


def _choosable(benchmark: Benchmark, options: BenchmarkOptions) -> Iterator[Item]:
    taken: Counter[str] = Counter()
    by_evidence = "evidence" in options.methods
    for file in options.files:
        for item in benchmark.read(file):
            if (options.datasets and item.dataset not in options.datasets) or (by_evidence and not has_evidence(item)):
                continue
            taken[item.dataset] += 1
            if options.limit is None or taken[item.dataset] <= options.limit:
                yield item


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a method made of a question.

    Attributes:
        parts: of its score.
        loss: negative log-likelihood of the first right answer, nats.
    """

    item: Item
    parts: tuple[float, ...]
    loss: float


Asked = tuple[str | None, tuple[str, ...], list[Item]]
"""System prompt, pieces of context, and the questions that share them."""


def _contexts(runtime: Runtime, method: str, benchmark: Benchmark, options: BenchmarkOptions) -> Iterator[Asked]:
    """The contexts that a method is given, and what is asked about each."""
    shown = shown_by(method)
    for (system, pieces), questions in groupby(_items(benchmark, options), key=lambda item: (item.system, item.pieces)):
        group = list(questions)
        if shown is None:
            yield system, cut_middle(pieces, [item.question for item in group], runtime.tokenizer, tokens_kept(options.truncate)), group
            continue
        for item in group:
            yield (
                system,
                shown.passages(item, lambda text: len(runtime.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)),
                [item],
            )


def _answers(runtime: Runtime, method: str, benchmark: Benchmark, options: BenchmarkOptions) -> Iterator[_Answer]:
    """Every question and its answer; those that follow each other with the same context share it."""
    kept = _Kept(options, method, runtime)
    for number, (system, pieces, group) in enumerate(_contexts(runtime, method, benchmark, options)):
        context = _digest("\0".join([system or "", *pieces]))
        known = [(item, kept.answer(context, item, benchmark)) for item in group]
        yield from (answer for _, answer in known if answer is not None)
        left = [item for item, answer in known if answer is None]
        if left:
            with _filled(runtime, f"{options.name} {number}", system, pieces) as session:
                for item in left:
                    yield kept.add(context, item, benchmark, *_asked(runtime, session, item, options))


def _asked(runtime: Runtime, session: Session, item: Item, options: BenchmarkOptions) -> tuple[str, float]:
    """What is answered, and how unlikely the first right answer is."""
    name = f"{session.name}/{item.id}"
    with asked_on_a_fork(runtime, session, name) as child:
        said = child.reply(item.question, max_new_tokens=options.max_new_tokens or item.max_new_tokens, stop=item.stop)
    return said, answer_loss(runtime, session, item.question, item.answers[0], name) if item.answers else 0.0


@contextmanager
def _filled(runtime: Runtime, name: str, system: str | None, pieces: Sequence[str]) -> Iterator[Session]:
    """A Session that holds a context, deleted in the end."""
    session = runtime.session(name)
    try:
        if system is not None:
            session.configure(system=system)
        for piece in pieces:
            session.append("user", piece, prefill=False)
        session.prefill()
        yield session
    finally:
        session.close(keep=False)
        runtime.store.delete(name)


def tokens_kept(truncate: str) -> int | None:
    """N of ``middle:N``; nothing for ``none``.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"none|middle:(\d{1,9})", truncate)
    if found is None or found[1] in ("0", "1"):
        raise ConfigError(f"truncate={truncate!r}: write none, or middle:N for the first and last half of N tokens, N at least 2")
    return int(found[1]) if found[1] else None


def cut_middle(pieces: tuple[str, ...], questions: Sequence[str], tokenizer: Any, tokens: int | None) -> tuple[str, ...]:
    """Pieces without the middle of the prompt they make with the longest of the questions; questions are never cut.

    ``pred.py`` of LongBench and ``truncate_by_tokens`` of InfiniteBench, which cut the same tokens of the same text: tokens are counted
    over the whole prompt, with the special tokens the tokenizer adds.

    Args:
        pieces: of the context.
        questions: all that share it.
        tokenizer: a transformers tokenizer that knows where its tokens stand in a text.
        tokens: that may stay; nothing leaves all.
    """
    if tokens is None or not pieces:
        return pieces
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"truncate=middle:{tokens} needs a fast tokenizer; {type(tokenizer).__name__} does not say where its tokens stand"
        )
    longest = max(questions, key=lambda question: len(tokenizer(question, verbose=False)["input_ids"]))
    whole = "".join([*pieces, longest])
    places, half = tokenizer(whole, return_offsets_mapping=True, verbose=False)["offset_mapping"], tokens // 2
    if len(places) <= tokens:
        return pieces
    first = places[half - 1][1]
    last, start, left = max(first, places[-half][0]), 0, []
    for piece in pieces:
        stop = start + len(piece)
        left.append(whole[start : min(first, stop)] + whole[max(last, start) : stop])
        start = stop
    return tuple(piece for piece in left if piece.strip())


class _Kept:
    """One method's answers in the file that keeps them, one JSON object a line. Their words are kept, so that they can be judged again;
    where they were taken out, since they may not be passed on, the score stands for them."""

    def __init__(self, options: BenchmarkOptions, method: str, runtime: Runtime) -> None:
        self._file, self._torn = options.resume, False
        self._run = {
            "task": options.name, "method": method, "model": _digest(json.dumps(runtime.model_id.to_dict(), sort_keys=True)),
            "window": runtime.window, "truncate": options.truncate, "max_new_tokens": options.max_new_tokens,
        }  # fmt: skip
        self._found = {row["prompt"]: row for row in self._rows() if self._run.items() <= row.items()}

    def answer(self, context: str, item: Item, benchmark: Benchmark) -> _Answer | None:
        """What was answered to a question after the context with that digest."""
        row = self._found.get(context + _digest(item.question))
        if row is None or row.get("loss") is None:
            return None
        said, parts = row["answer"], tuple(row["parts"])
        return _Answer(item, parts if said is None else benchmark.metrics[item.metric](said, item), row["loss"])

    def add(self, context: str, item: Item, benchmark: Benchmark, said: str, loss: float) -> _Answer:
        """Judge an answer and keep it."""
        found = _Answer(item, benchmark.metrics[item.metric](said, item), round(loss, 5))
        if self._file is not None:
            row = {"id": item.id, "prompt": context + _digest(item.question), "answer": said, "parts": found.parts, "loss": found.loss}
            with self._file.open("a", encoding="utf-8") as out:
                out.write("\n" * self._torn + json.dumps({**self._run, **row}) + "\n")
            self._torn = False
        return found

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are whole: where a run was killed, a part of one may stand."""
        if self._file is None or not self._file.exists():
            return
        lines = self._file.read_text(encoding="utf-8", errors="replace").split("\n")
        self._torn = bool(lines[-1])
        for number, line in enumerate(lines):
            row = _object(line)
            if {"prompt", "answer"} <= row.keys():
                yield row
            elif number == 0 and line:
                raise ConfigError(f"{self._file} keeps no answers of a benchmark; resume needs a file of its own")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
