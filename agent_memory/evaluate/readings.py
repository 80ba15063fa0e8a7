"""What methods made of texts: kept in a file of JSON lines, so that a run that was stopped goes on where it was, and summed up.

Knows losses, buckets of positions and intervals; does not know models or files of text. A key holds all that a reading depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .json_lines import JsonLines
from .statistics import bootstrap_mean

Bucket = tuple[int, int]
"""Tokens ``[start, stop)`` of a text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one method made of one text: nats in each bucket, and the mean of the last half window, in nats a token."""

    sums: Sequence[float]
    last: float
    tokens: int
    keys_scored: int
    seconds: float


def buckets(window: int, length: int) -> list[Bucket]:
    """Positions ``[1, W/2), [W/2, W), [W, 2W), [2W, 4W)...`` up to ``length``; nothing predicts a text's first token."""
    edges = [1, window // 2]
    while window < length:
        edges.append(window)
        window *= 2
    return list(pairwise([*edges, length]))


class Kept:
    """Readings by key, kept in a file of JSON lines.

    Raises:
        ConfigError: the file is something else.
    """

    def __init__(self, file: Path | None) -> None:
        self.readings = dict[str, Reading]()
        self._lines = JsonLines(file, self._take, "no line of a run that can be gone on with; name a new file for resume")

    def _take(self, row: Any) -> None:
        self.readings[str(row["key"])] = Reading(**{part: row[part] for part in Reading.__dataclass_fields__})

    def add(self, key: str, reading: Reading, **facts: str) -> None:
        """Keep one more, with facts for people."""
        self._lines.add({"key": key, **facts, **asdict(reading)})


def cells(method: str, readings: Sequence[Reading], window: int) -> list[dict[str, Any]]:
    """Mean loss, in nats, and perplexity of one method's readings, bucket by bucket."""
    found = []
    for i, (start, stop) in enumerate(buckets(window, readings[0].tokens)):
        tokens = (stop - start) * len(readings)
        loss = math.fsum(reading.sums[i] for reading in readings) / tokens
        found.append({"method": method, "start": start, "stop": stop, "tokens": tokens, "loss": loss, "perplexity": math.exp(loss)})
    return found


def history(readings: Sequence[Reading], plain: Sequence[Reading], seed: int = 0) -> dict[str, Any]:
    """The paired comparison of the last half windows, with all before them and with what fits the window. ``not_worse`` says only that
    being worse is not shown; how much worse it could be, the interval says."""
    differences = [reading.last - alone.last for reading, alone in zip(readings, plain, strict=True)]
    interval = bootstrap_mean(differences, seed=seed) if len(differences) > 1 else None
    return {
        "with_history": math.fsum(reading.last for reading in readings) / len(readings),
        "window_only": math.fsum(reading.last for reading in plain) / len(plain),
        "difference": math.fsum(differences) / len(differences),
        "interval": None if interval is None else list(interval),
        "not_worse": None if interval is None else interval[0] <= 0,
        "better": None if interval is None else interval[1] < 0,
        "texts": len(readings),
    }


def counters(readings: Sequence[Reading]) -> dict[str, float]:
    """What one method's readings took."""
    return {
        "tokens": sum(reading.tokens for reading in readings),
        "keys_scored": sum(reading.keys_scored for reading in readings),
        "seconds": round(math.fsum(reading.seconds for reading in readings), 2),
    }
