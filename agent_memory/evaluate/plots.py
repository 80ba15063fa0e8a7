"""Pictures of measurements: heat maps of exact answers over length and depth.

Knows the JSON object of an evaluation, and matplotlib; measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_needle(report: dict[str, Any], path: Path) -> Path:
    """One heat map a method: length across, depth down, share of exact answers as colour. Returns the path written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(report["summary"])
    lengths = sorted({cell["length"] for cell in report["cells"]})
    depths = sorted({cell["depth"] for cell in report["cells"]})
    figure = Figure(figsize=(3.2 * len(methods) + 1, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(methods), squeeze=False, sharey=True)[0]
    image = None
    for axis, method in zip(axes, methods, strict=True):
        exact = {(cell["length"], cell["depth"]): cell["exact"] for cell in report["cells"] if cell["method"] == method}
        grid = [[exact.get((length, depth), float("nan")) for length in lengths] for depth in depths]
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_title(method)
        axis.set_xticks(range(len(lengths)), [_short(length) for length in lengths], rotation=45)
        axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axis.set_xlabel("tokens of history")
    axes[0].set_ylabel("depth of the fact")
    if image is not None:
        figure.colorbar(image, ax=axes, label="exact answers")
    figure.suptitle(f"needles, window {report['window']}, in-window score {report['in_window']:.0%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"
