"""A picture of ratios.

Knows the JSON rows of a run, and matplotlib; measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_ratios(rows: list[dict[str, Any]], path: Path) -> Path:
    """Horizontal bars on a logarithmic axis: how many times faster ours is, or, hatched, how much a cost grows. Returns the path written.

    Args:
        rows: ``ratios`` of a run.
        path: file to write; its folder is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [f"{row['name']} ({row['target']})" if row["target"] else row["name"] for row in rows]
    colours = ["#8da0cb" if row["growth"] else "#66a61e" for row in rows]
    bars = axis.barh(names, [row["ratio"] for row in rows], color=colours, hatch=["//" if row["growth"] else "" for row in rows])
    axis.bar_label(bars, [f"{row['ratio']:.3g}" for row in rows], padding=3)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("times faster; hatched: times the cost")
    axis.margins(x=0.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
