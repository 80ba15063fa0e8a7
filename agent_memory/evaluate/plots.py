"""Pictures of measurements: heat maps of right answers over length and depth.

Knows the JSON object of an evaluation, and matplotlib; measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

ACROSS = 4
"""Maps in one row of a picture."""


def draw_maps(report: dict[str, Any], path: Path) -> Path:
    """One heat map a method: length across, depth down, share of right answers as colour. Returns the path written.

    Args:
        report: the JSON object of one task.
        path: file to write, as PNG or whatever its suffix says; its folder is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(report["summary"])
    across = max(1, min(ACROSS, len(methods)))
    down = max(1, -(-len(methods) // across))
    figure = Figure(figsize=(3.2 * across + 1, 3.1 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    images = [_draw_map(axis, report, method) for axis, method in zip(axes, methods, strict=False)]
    for axis in axes[len(methods) :]:
        axis.set_axis_off()
    for axis in axes[::across]:
        axis.set_ylabel("depth of the fact")
    if images:
        figure.colorbar(images[0], ax=axes, label="right answers")
    figure.suptitle(f"{report['task']}, window {report['window']:,}, in-window score {report['in_window']:.0%}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _draw_map(axis: Axes, report: dict[str, Any], method: str) -> AxesImage:
    cells = report["cells"]
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells}, key=lambda depth: 2.0 if depth is None else depth)
    exact = {(cell["length"], cell["depth"]): cell["exact"] for cell in cells if cell["method"] == method}
    grid = [[exact.get((length, depth), float("nan")) for length in lengths] for depth in depths]
    axis.set_title(method)
    axis.set_xticks(range(len(lengths)), [_short(length) for length in lengths], rotation=45)
    axis.set_yticks(range(len(depths)), ["any" if depth is None else f"{depth:.0%}" for depth in depths])
    axis.set_xlabel("tokens of history")
    return axis.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")


def _short(tokens: int) -> str:
    for unit, letter in ((1_000_000, "m"), (1_000, "k")):
        if tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return f"{tokens:,}"
