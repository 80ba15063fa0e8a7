"""A picture of fidelity: mass by layer and KV head, and losses by question or by position.

Knows the JSON object of ``run_fidelity``, and matplotlib; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

ACROSS = 4
"""Maps in one row."""

MAP_INCHES, LOSS_INCHES, WIDTH = 2.6, 4.0, 11.0


def draw_fidelity(report: Mapping[str, Any], path: Path) -> Path:
    """Maps of what is chosen of what an oracle would choose, one a method and kind of choice, above the losses. Returns the path written.

    Args:
        report: the JSON object of a measurement.
        path: file to write, as PNG or whatever its suffix says; its folder is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    maps = [(f"{method}\n{kind}", row) for method, kinds in report["mass"].items() for kind, row in (kinds or {}).items() if row]
    down = -(-len(maps) // ACROSS)
    figure = Figure(figsize=(WIDTH, MAP_INCHES * down + LOSS_INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2 if maps else 1, 1, height_ratios=[MAP_INCHES * down, LOSS_INCHES] if maps else None, squeeze=False)[:, 0]
    if maps:
        _draw_maps(parts[0], maps, down)
    axis = parts[-1].subplots()
    if "right" in report["full"]:
        _draw_questions(axis, report)
    else:
        _draw_positions(axis, report)
    documents = f"{report['documents']} documents of at most {report['length']:,} tokens"
    figure.suptitle(f"{report['model']} beside full attention: {documents}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _draw_maps(part: SubFigure, maps: Sequence[tuple[str, Mapping[str, Any]]], down: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = part.subplots(down, min(ACROSS, len(maps)), squeeze=False).flatten()
    image = None
    for axis, (title, row) in zip(axes, maps, strict=False):
        shares = [
            [float("nan") if not best else chosen / best for chosen, best in zip(mine, oracle, strict=True)]
            for mine, oracle in zip(row["chosen"], row["oracle"], strict=True)
        ]
        image = axis.imshow([list(heads) for heads in zip(*shares, strict=True)], vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_title(title, fontsize="x-small")
        axis.set_xlabel("layer (white: recalls nothing)", fontsize="small")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_yticks(range(len(shares[0])))
        axis.set_ylabel("KV head", fontsize="small")
    for axis in axes[len(maps) :]:
        axis.set_axis_off()
    if image is not None:
        part.colorbar(image, ax=list(axes), label="mass chosen / oracle's")


def _draw_questions(axis: Axes, report: Mapping[str, Any]) -> None:
    """Each question's change, sorted, a line a method and mode: where a line crosses zero says how many got worse."""
    for number, (method, modes) in enumerate(report["methods"].items()):
        for mode in modes:
            changes = sorted(row["nll_change"] for row in report["rows"] if (row["method"], row["mode"]) == (method, mode))
            axis.plot(range(1, len(changes) + 1), changes, **_line(number, method, mode))
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.set_xlabel("questions, from the most improved to the most worsened")
    axis.set_ylabel("change of the answer's NLL, nats")
    axis.legend(fontsize="x-small")


def _draw_positions(axis: Axes, report: Mapping[str, Any]) -> None:
    for number, (method, modes) in enumerate(report["methods"].items()):
        for mode, row in modes.items():
            parts = row["by_position"]
            middles, changes = [(one["start"] + one["stop"]) / 2 for one in parts], [one["nll_change"] for one in parts]
            axis.plot(middles, changes, **_line(number, method, mode))
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("scored token")
    axis.set_ylabel("change of the loss, nats a token")
    axis.legend(fontsize="x-small")


def _line(number: int, method: str, mode: str) -> dict[str, Any]:
    """A method has one colour; memory that was made is drawn through, memory that is only read is dotted."""
    return {"color": f"C{number}", "marker": ".", "linestyle": "-" if mode == "made" else ":", "label": f"{method}, {mode}"}
