"""``agent-memory bench``: ratios of speed with their noise, as a table, JSON, CSV and a picture.

Knows what is asked for and how figures are shown; measures nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.cli.command import Call, command
from agent_memory.cli.shapes import table
from agent_memory.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from agent_memory.bench.compare import Ratio


def register(app: typer.Typer) -> None:
    """Add this file's command to ``app``."""
    command(app, "bench", {})(bench)


def bench(
    call: Call,
    names: Annotated[list[str] | None, typer.Argument(help="What to measure: layer, certified, turn, ...; all by default.")] = None,
    store: Annotated[Path, typer.Option(help="Folder of the Sessions that are filled for it, kept between runs.")] = Path("bench-store"),
    long: Annotated[int, typer.Option(help="Tokens of the long memory in `flat`.", min=70_000)] = 1_000_000,
    csv: Annotated[Path | None, typer.Option(help="Append the figures to this CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios.")] = None,
) -> None:
    """Measure speed as ratios, ours and a baseline in turns, with the noise of the same run."""
    import torch

    from agent_memory.bench.run import BENCHES, Options, commit, keep, machine, run

    unknown = [name for name in names or () if name not in BENCHES]
    if unknown:
        raise ConfigError(f"there is nothing named {unknown[0]!r} to measure; choose from {', '.join(BENCHES)}")
    torch.set_num_threads(1)
    call.quiet_libraries()
    where, at = machine(), commit()
    wanted: tuple[str, ...] = tuple(names or BENCHES)
    ratios: list[Ratio] = []
    with call.progress(f"measuring on {where['gpu'] or where['processor']}") as show:
        made = run(wanted, Options(store=store, long=long), lambda doing: show(len(ratios), len(ratios) + 1, doing))
        for ratio in made:
            ratios.append(ratio)
            if csv is not None:
                keep(csv, [ratio], where, at)
    payload: dict[str, Any] = {"machine": where, "commit": at, "ratios": [ratio.to_dict() for ratio in ratios]}
    if plot is not None:
        from agent_memory.bench.plot import draw_ratios

        payload["plot"] = str(draw_ratios(payload["ratios"], plot))
    call.answer(payload, lambda: _show(call, payload))


def _show(call: Call, payload: dict[str, Any]) -> None:
    where = payload["machine"]
    call.out.print(_table(payload["ratios"]))
    call.out.print(
        f"{where['gpu'] or where['processor']}, {where['threads']} thread, torch {where['torch']}, commit {payload['commit']}", markup=False
    )
    if "plot" in payload:
        call.out.print(f"picture in {payload['plot']}", markup=False)


def _table(ratios: list[dict[str, Any]]) -> Table:
    made = table("what", "ours", "baseline", "ratio", "wanted", "baseline against itself")
    for row in ratios:
        ours, baseline = (_figure(row[side], row["unit"]) for side in ("ours", "baseline"))
        ratio = f"{row['ratio']:.3g}" + (" (noisy)" if row["noisy"] else "")
        made.add_row(row["name"], ours, baseline, ratio, row["target"], f"{row['noise_low']:.2f} to {row['noise_high']:.2f}")
    return made


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3g} {unit}"
