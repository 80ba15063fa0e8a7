"""The demo's picture: exact answers over distance, and time to the first token over memory length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BINS = 5


def draw(
    answers: list[tuple[int, bool, bool]], latencies: list[tuple[int, float]], result: dict[str, Any], window: int, path: Path
) -> Path:
    """Write the picture.

    Args:
        answers: tokens ago, right with memory, right without.
        latencies: tokens in memory, seconds to the first token.
        result: the demo's figures, for the title.
        window: of the model.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    width = max(ago for ago, _, _ in answers) / BINS
    groups = [[a for a in answers if width * i <= a[0] < width * (i + 1) or (i == BINS - 1 and a[0] >= width * BINS)] for i in range(BINS)]
    places = range(BINS)
    left.bar([i - 0.2 for i in places], [_share(group, 1) for group in groups], 0.4, label="with memory", color="#2a9d4a")
    left.bar([i + 0.2 for i in places], [_share(group, 2) for group in groups], 0.4, label="window only", color="#c0392b")
    left.set_xticks(list(places), _labels(width, groups), fontsize=8)
    left.set_ylim(0, 1.05)
    left.set_xlabel("thousand tokens ago")
    left.set_ylabel("right answers")
    left.legend()
    right.plot([tokens / 1000 for tokens, _ in latencies], [seconds * 1000 for _, seconds in latencies], "o", color="#1f5fa8")
    right.set_ylim(bottom=0)
    right.set_xlabel("thousand tokens in memory")
    right.set_ylabel("first answer token, ms")
    figure.suptitle(f"{result['right']} of {result['questions']} right over {result['tokens']:,} tokens, window {window:,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _labels(width: float, groups: list[list[tuple[int, bool, bool]]]) -> list[str]:
    return [f"{width * i / 1000:.0f} to {width * (i + 1) / 1000:.0f}\n({len(group)} asked)" for i, group in enumerate(groups)]


def _share(group: list[tuple[int, bool, bool]], column: int) -> float:
    return sum(bool(answer[column]) for answer in group) / len(group) if group else 0.0
