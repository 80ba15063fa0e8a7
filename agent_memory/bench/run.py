"""All measurements by name, what they ran on, and where their figures go.

Knows the other files of this room; a figure is appended to a CSV with machine, versions and commit, so that a claim can name its row.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from .compare import Progress, Ratio
from .disk import appends
from .far_keys import against_every_key, growth
from .layer import attention_layer, certified_recall, summed_attention
from .quality import recalled_mass
from .session import attention_shares, flatness, heap, new_turn, reopening

COLUMNS = ("when", "commit", "machine", "torch", "name", "ours", "baseline", "unit", "ratio", "noise_low", "noise_high", "target", "detail")


@dataclass(frozen=True, slots=True)
class Options:
    """How long the histories are.

    Attributes:
        store: folder for Sessions that are filled once and used by several measurements; kept between runs.
        layer: tokens of the one-layer histories.
        certified: tokens of certified recall.
        short, long: tokens whose cost is compared.
        turn: tokens of the history a new turn is added to.
        quality: tokens of the history whose choices are compared.
        far: tokens of the memories of one layer whose far keys are looked up: a window, two, and longer ones.
    """

    store: Path
    layer: tuple[int, ...] = (32_768, 131_072)
    certified: int = 131_072
    short: int = 64_000
    long: int = 1_000_000
    turn: int = 8_000
    reopen: int = 200_000
    quality: int = 131_072
    far: tuple[int, int, int, int] = (8_192, 16_384, 32_768, 65_536)


Bench = Callable[[Options, Progress], Iterator[Ratio]]

BENCHES: dict[str, Bench] = {
    "layer": lambda options, progress: attention_layer(options.layer, progress),
    "certified": lambda options, progress: certified_recall(options.certified, progress),
    "turn": lambda options, progress: new_turn(options.store, options.turn, progress),
    "shares": lambda options, progress: _shares(options, progress),
    "reopen": lambda options, progress: reopening(options.store, options.reopen, progress),
    "append": lambda options, progress: appends(progress),
    "heap": lambda options, progress: heap(45_000, progress),
    "flat": lambda options, progress: flatness(options.store, options.short, options.long, progress),
    "far": lambda options, progress: _far_keys(options, progress),
    "quality": lambda options, progress: recalled_mass(options.store, options.quality, progress),
}
"""In the order they are run."""


def _far_keys(options: Options, progress: Progress) -> Iterator[Ratio]:
    yield from growth(options.far, progress)
    for tokens in options.far[1:]:
        yield from against_every_key(tokens, progress)


def _shares(options: Options, progress: Progress) -> Iterator[Ratio]:
    yield from summed_attention(options.layer[0], progress)
    yield from attention_shares(options.store, options.turn, progress)


def run(names: tuple[str, ...], options: Options, progress: Progress) -> Iterator[Ratio]:
    """Measure, one after the other."""
    for name in names:
        yield from BENCHES[name](options, progress)


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def commit() -> str | None:
    """The commit measured, with ``+`` where the tree had changes; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def keep(path: Path, ratios: list[Ratio], where: dict[str, Any], at: str | None) -> None:
    """Append figures to a CSV, one row each; its folder and head line are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for ratio in ratios:
            made = ratio.to_dict()
            about = {"when": datetime.now(UTC).date().isoformat(), "commit": at, "torch": where["torch"]}
            about["machine"] = f"{where['gpu'] or where['processor']}, {where['threads']} thread"
            row = about | {name: _short(made[name]) for name in COLUMNS if name in made} | {"detail": json.dumps(made["detail"])}
            writer.writerow(row)


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
