"""A picture of perplexity over position: one line a method, and where the trained window ends.

Knows the JSON object of ``run_perplexity``, and matplotlib; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLIP = 2.5
"""Heights of the largest perplexity inside the window that are shown; a method that fails beyond it would flatten all others."""


def draw_perplexity(report: dict[str, Any], path: Path) -> Path:
    """Perplexity of each bucket at its end, positions in powers of two. Returns the path written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = report["cells"]
    top = highest(cells, report["window"])
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for method in dict.fromkeys(cell["method"] for cell in cells):
        mine = [cell for cell in cells if cell["method"] == method]
        axis.plot([cell["stop"] for cell in mine], [cell["perplexity"] for cell in mine], marker="o", label=label(method, mine, top))
    stops = sorted({cell["stop"] for cell in cells})
    axis.axvline(report["window"], color="grey", linestyle="--", label=f"trained window, {report['window']:,} tokens")
    axis.set_xscale("log", base=2)
    axis.set_xticks(stops, [f"{stop:,}" for stop in stops], rotation=45)
    axis.set_ylim(0.95 * min(cell["perplexity"] for cell in cells), top)
    axis.set_xlabel("position in the text, tokens")
    axis.set_ylabel("perplexity")
    axis.set_title(f"{report['model']}, {report['texts']} texts of {report['length']:,} tokens")
    axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def highest(cells: Sequence[dict[str, Any]], window: int) -> float:
    """Perplexity at the upper edge: all of it, but at most ``CLIP`` times the largest inside the window."""
    inside = [cell["perplexity"] for cell in cells if cell["stop"] <= window]
    return float(min(1.05 * max(cell["perplexity"] for cell in cells), CLIP * max(inside)))


def label(method: str, cells: Sequence[dict[str, Any]], top: float) -> str:
    """The method's name; with where it leaves the picture and how far it gets, if it does."""
    above = [cell for cell in cells if cell["perplexity"] > top]
    if not above:
        return method
    return f"{method} (above from {above[0]['start']:,}, up to {max(cell['perplexity'] for cell in above):,.0f})"
