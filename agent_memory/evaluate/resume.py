"""What has been measured: kept in a file of JSON lines, so that a run that was stopped goes on where it was, and summed up for a report.

Knows one line a document: its key and the answers given. Does not know tasks or models: the key holds all that an answer depends on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .json_lines import JsonLines


@dataclass(frozen=True, slots=True)
class Answer:
    """What one answer was worth, and what it took.

    Attributes:
        depth: of the question; None where that means nothing.
        score: how right it is, from 0 to 1.
        outdated: how much it is an answer that was right once, from 0 to 1; None where there is no such answer.
        tokens: fed for it, the question's and its own.
        keys_scored: key vectors scored to choose for them, over all layers and KV heads.
        keys_attended: keys they attended to, over all layers.
        blocks_read: distinct Blocks read for it.
        seconds: for it, with its share of filling the document.
    """

    depth: float | None
    score: float
    outdated: float | None
    tokens: int
    keys_scored: int
    keys_attended: int
    blocks_read: int
    seconds: float


class Finished:
    """The documents that were asked about, by key. Written through at once.

    Args:
        file: where they are kept; None keeps nothing.

    Raises:
        ConfigError: the file is something else.
    """

    def __init__(self, file: Path | None) -> None:
        self._rows = dict[str, list[Answer]]()
        self._lines = JsonLines(
            file,
            self._take,
            "this is no line of measurements that can be gone on with; "
            "name a file that eval --resume wrote, or one that does not exist yet",
        )

    def _take(self, row: Any) -> None:
        self._rows[_mark(row["key"])] = [_answer(given) for given in row["answers"]]

    def get(self, key: Mapping[str, Any]) -> list[Answer] | None:
        """The answers about a document; None if it was not asked about yet."""
        return self._rows.get(_mark(key))

    def keep(self, key: Mapping[str, Any], answers: Sequence[Answer]) -> None:
        """Add a document."""
        if self._lines.file is None:
            return
        self._rows[_mark(key)] = list(answers)
        self._lines.add({"key": dict(key), "answers": [asdict(answer) for answer in answers]})


def _mark(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def _answer(given: Mapping[str, Any]) -> Answer:
    numbers = [value for name, value in given.items() if value is not None or name not in ("depth", "outdated")]
    if set(given) != {field.name for field in fields(Answer)} or not all(isinstance(value, int | float) for value in numbers):
        raise ValueError
    return Answer(**given)


def add_answers(report: dict[str, Any], method: str, length: int, answers: Sequence[Answer]) -> None:
    """Add what one method did at one length to the JSON object of a task; nothing if it was not asked there."""
    if not answers:
        return
    count, share = len(answers), _mean([answer.score for answer in answers])
    for depth in sorted({answer.depth for answer in answers}, key=lambda depth: math.inf if depth is None else depth):
        scores = [answer.score for answer in answers if answer.depth == depth]
        place = None if depth is None else round(depth, 4)
        report["cells"].append({"method": method, "length": length, "depth": place, "samples": len(scores), "exact": _mean(scores)})
    counters = {
        "answers": count,
        "keys_scored_per_answer": _mean([answer.keys_scored for answer in answers]),
        "keys_scored_per_token": sum(answer.keys_scored for answer in answers) / max(1, sum(answer.tokens for answer in answers)),
        "keys_attended_per_token": sum(answer.keys_attended for answer in answers) / max(1, sum(answer.tokens for answer in answers)),
        "blocks_read_per_answer": _mean([answer.blocks_read for answer in answers]),
        "seconds": round(sum(answer.seconds for answer in answers), 2),
    }
    outdated = [answer.outdated for answer in answers if answer.outdated is not None]
    row = {"summary": share, "interval": interval(share, count), "counters": counters | ({"outdated": _mean(outdated)} if outdated else {})}
    for name, value in row.items():
        report[name].setdefault(method, {})[str(length)] = value


def interval(share: float, count: int) -> list[float]:
    """Wilson's 95 % interval ``[low, high]`` of a share of so many answers; Brown, Cai, DasGupta 2001, equation 4.

    For shares of answers that may be right in part it is wider than it need be.
    """
    z = 1.96
    centre, shrunk = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round(max(0.0, (centre - half) / shrunk), 4), round(min(1.0, (centre + half) / shrunk), 4)]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)
