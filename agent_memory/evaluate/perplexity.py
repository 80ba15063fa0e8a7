"""Perplexity by position, far beyond the trained window: is a text read better, or at least no worse, with a long history than without?

Knows Runtimes and text files; does not know how a method works. One pass of a method over a text gives both answers: the mean loss of
each bucket of positions, and that of the last half window, which is compared, text by text, with the loss of the same tokens in the
plain model with half a window before them: what a user without memory has.

Where a method chooses what to recall, the queries of a group share a choice while a text is read, and tokens that stand after a token in
its group have a say in what is recalled for it: the loss of such a token is no likelihood in the strict sense. So the last tokens of
each text (``alone``) are scored as a reply is made, each choosing for itself; what is said about histories rests on these.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attention.methods import make_method
from ..engine import Counters
from ..errors import ConfigError
from ..runtime import Runtime
from ..types import Budget
from .readings import Kept, Reading, buckets, cells, counters, history
from .work import Note, Progress

WINDOWS = 64
"""Windows a text has by default."""
LONGEST_TOKEN = 32
"""Characters of a file that are read for each token wanted."""

MakeRuntime = Callable[..., Runtime]


@dataclass(frozen=True, slots=True)
class PerplexityOptions:
    """What to measure.

    Attributes:
        methods: by name.
        files: UTF-8 text; a text is the beginning of a file.
        length: tokens of each text, more than a window; None is 64 windows. Shorter files are skipped.
        texts: at most so many, drawn from the files.
        seed: of that, and of the intervals.
        reach: windows that methods which attend to everything are run to.
        alone: last tokens of each text that choose for themselves (a forward each); None is half a window.
        budget: bytes for each Tier; ``device`` has to hold a text.
        resume: file that keeps what is done, so that a run that was stopped goes on.
    """

    methods: tuple[str, ...] = ("recall", "streaming", "full")
    files: tuple[Path, ...] = ()
    length: int | None = None
    texts: int = 32
    seed: int = 0
    reach: int = WINDOWS
    alone: int | None = None
    budget: Budget = field(default_factory=Budget)
    resume: Path | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """The beginning of a file: ``lead`` tokens that the tokenizer puts before any text, and its own, int64 ``[length]`` with them."""

    name: str
    lead: int
    ids: Tensor

    def end(self, window: int) -> Tensor:
        """As the plain model is given its last tokens: as many as a window holds, ``[window]``."""
        return torch.cat([self.ids[: self.lead], self.ids[self.lead - window :]])


def run_perplexity(
    make_runtime: MakeRuntime, options: PerplexityOptions, progress: Progress | None = None, note: Note | None = None
) -> dict[str, Any]:
    """Measure, and return the JSON object of ``agent-memory eval perplexity``.

    Args:
        make_runtime: ``make_runtime(method=, store=, budget=)`` gives a Runtime.
        options: what to measure.
        progress: told tokens read, tokens to read, and what is being done.
        note: told the loss of each text that is read now, and that of the method's texts so far.

    Raises:
        ConfigError: no file, one that is no text, none long enough, no such method, an option out of its bounds, or a budget that does
            not hold a text.
    """
    _check("texts", options.texts, 1, None)
    _check("reach", options.reach, 1, None)
    with tempfile.TemporaryDirectory(prefix="agent-memory-eval-") as folder:
        made = {"store": Path(folder) / "store", "budget": options.budget}
        with make_runtime(method="full", **made) as runtime:
            window, model = runtime.window, runtime.model_id
            length = _check("length", WINDOWS * window if options.length is None else options.length, window + 1, None)
            alone = _check("alone", window // 2 if options.alone is None else options.alone, 0, length)
            for method in options.methods:
                make_method(method, window)  # whatever is wrong with one is said before hours went into the others
            texts, skipped = read_texts(runtime.tokenizer, options, length)
            run = _Run(options, window, alone, progress, note, len(texts) * (window + length * len(options.methods)))
            plain = [run.read(runtime, "window", text.name, text.end(window)) for text in texts]
        readings: dict[str, list[Reading]] = {}
        for method in options.methods:
            with make_runtime(method=method, **made) as runtime:
                if runtime.model_id != model:
                    raise ConfigError(f"the model changed while it was measured: it was {model}, and is {runtime.model_id}")
                reached = length if runtime.method(0).sizes is not None else min(length, options.reach * window)
                readings[method] = [run.read(runtime, method, text.name, text.ids[:reached], length) for text in texts]
    return {
        "task": "perplexity", "model": model.architecture, "window": window,
        "length": length, "texts": len(texts), "skipped": skipped, "alone": alone,
        "buckets": [list(bucket) for bucket in buckets(window, length)],
        "cells": [cell for method, parts in readings.items() for cell in cells(method, parts, window)],
        "history": {m: history(parts, plain, options.seed) for m, parts in readings.items() if parts[0].tokens == length},
        "counters": {method: counters(parts) for method, parts in readings.items()},
        "plot": None,
    }  # fmt: skip


def read_texts(tokenizer: Any, options: PerplexityOptions, length: int) -> tuple[list[Text], int]:
    """Texts of ``length`` tokens in the order of the files they begin, and how many files were met that are too short.

    Raises:
        ConfigError: no files, one that cannot be read or is no UTF-8, or all of them too short.
    """
    if not options.files:
        raise ConfigError("files=() gives nothing to read; at least 1 text file is needed")
    lead = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id][:1]
    order = list(enumerate(options.files))
    random.Random(options.seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    found: dict[int, Text] = {}
    longest = skipped = 0
    for number, file in order:
        if len(found) == options.texts:
            break
        said = _beginning(file, LONGEST_TOKEN * length)
        ids = [*lead, *tokenizer(said, add_special_tokens=False, verbose=False).input_ids]
        longest = max(longest, len(ids))
        if len(ids) < length:
            skipped += 1
        else:
            found[number] = Text(file.name, len(lead), torch.tensor(ids[:length]))
    if not found:
        raise ConfigError(f"length={length} is more than the {longest} tokens of the longest of {len(options.files)} files")
    return [found[number] for number in sorted(found)], skipped


def _beginning(file: Path, characters: int) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.read(characters)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(file)!r} is no UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error}") from error


class _Run:
    """Readings, made or taken up again, and how far it all is."""

    def __init__(
        self, options: PerplexityOptions, window: int, alone: int, progress: Progress | None, note: Note | None, total: int
    ) -> None:
        self._window, self._alone, self._progress, self._note, self._total = window, alone, progress, note, total
        self._kept, self._done = Kept(options.resume), 0
        self._last: dict[str, list[float]] = {}

    def read(self, runtime: Runtime, method: str, name: str, ids: Tensor, share: int = 0) -> Reading:
        """What a method makes of ``ids``; of all tokens to read it counts as ``share``."""
        facts = json.dumps([method, self._window, self._alone, runtime.model_id.to_dict()], sort_keys=True)
        key = hashlib.sha256(facts.encode() + ids.numpy().tobytes()).hexdigest()
        reading, losses = self._kept.readings.get(key), self._last.setdefault(method, [])
        known = reading is not None
        if reading is None:
            reading = self._measure(runtime, ids, lambda done: self._tell(done, f"{method}: {name}"))
            self._kept.add(key, reading, method=method, text=name)
        losses.append(reading.last)
        if not known and self._note is not None:
            mean = math.fsum(losses) / len(losses)
            self._note(f"{method}: {name}: loss of the last tokens {reading.last:.4f}, {mean:.4f} on average so far ({len(losses)})")
        self._done += max(share, len(ids))
        self._tell(0, f"{method}: {name}")
        return reading

    def _measure(self, runtime: Runtime, ids: Tensor, told: Callable[[int], None]) -> Reading:
        started, counted = time.perf_counter(), Counters()
        losses = runtime.score(ids, of=range(1, len(ids)), alone=len(ids) - self._alone, counters=counted, progress=told).double()
        sums = [float(losses[start - 1 : stop - 1].sum()) for start, stop in buckets(self._window, len(ids))]
        last = float(losses[-(self._window // 2) :].mean())
        return Reading(sums, last, len(ids), counted.keys_scored, time.perf_counter() - started)

    def _tell(self, read: int, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done + read, self._total, what)


def _check(name: str, value: int, least: int, most: int | None) -> int:
    if value < least or most is not None and value > most:
        bound = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ConfigError(f"{name}={value} cannot be used: it must be {bound}")
    return value
