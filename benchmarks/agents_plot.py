"""A picture of the ways to answer in a long conversation: how many answers are right, and what a turn costs.

Knows the JSON of a run, and matplotlib; measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

OURS, OTHERS, ONCE = "#2a9d4a", "#8da0cb", "#d9d9d9"


def draw(found: dict[str, Any], path: Path) -> Path:
    """Four panels with a bar for each way; costs on logarithmic axes. Returns the path written.

    Args:
        found: JSON of a run.
        path: PNG to write; its folder is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["rows"]
    figure = Figure(figsize=(15, 0.45 * len(rows) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    right, tokens, seconds, kept = figure.subplots(1, 4, sharey=True)
    _right(right, rows)
    _tokens(tokens, rows)
    _seconds(seconds, rows)
    _bars(kept, rows, [row["kept_bytes"] or 0 for row in rows], _size, "kept from turn to turn, bytes")
    right.invert_yaxis()
    figure.suptitle(f"{found['tokens']:,} tokens of conversation, a model with a window of {found['window']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _colours(rows: list[dict[str, Any]]) -> list[str]:
    return [OURS if "ours" in row["name"] else OTHERS for row in rows]


def _right(axis: Any, rows: list[dict[str, Any]]) -> None:
    bars = axis.barh([row["name"] for row in rows], [row["exact"] / row["asked"] for row in rows], color=_colours(rows))
    axis.bar_label(bars, [f"{row['exact']} of {row['asked']}" for row in rows], padding=3)
    axis.set_xlim(0, 1.3)
    axis.set_xticks([0, 0.5, 1], ["0", "half", "all"])
    axis.set_xlabel("exact answers")


def _tokens(axis: Any, rows: list[dict[str, Any]]) -> None:
    names = [row["name"] for row in rows]
    axis.barh(names, [row["read_tokens"] for row in rows], 0.8, color=ONCE, hatch="//", edgecolor="white", label="once, for the history")
    _bars(axis, rows, [row["prefill_tokens"] for row in rows], lambda count: f"{count:,.0f}", "prefilled tokens a turn", 0.45)
    axis.legend(fontsize=7, loc="lower right")


def _seconds(axis: Any, rows: list[dict[str, Any]]) -> None:
    _bars(axis, rows, [row["seconds"] for row in rows], lambda seconds: "", "seconds a turn (least to most)")
    for place, row in enumerate(rows):
        axis.plot([row["seconds_min"], row["seconds_max"]], [place, place], color="black", linewidth=1)
        axis.text(row["seconds_max"] * 1.15, place, f"{row['seconds']:.2g} s", verticalalignment="center")


def _bars(axis: Any, rows: list[dict[str, Any]], values: list[float], label: Any, title: str, height: float = 0.7) -> None:
    bars = axis.barh([row["name"] for row in rows], values, height, color=_colours(rows))
    axis.set_xscale("log")
    axis.bar_label(bars, [label(value) if value else "" for value in values], padding=3)
    axis.set_xlabel(title)
    axis.margins(x=0.5)


def _size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
