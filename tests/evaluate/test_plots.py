"""Pictures of measurements: one map a method, four in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from agent_memory.evaluate.plots import draw_maps


def report(methods: int, depths: list[float | None]) -> dict[str, Any]:
    names = [f"method {i}" for i in range(methods)]
    cells = [
        {"method": name, "length": length, "depth": depth, "samples": 1, "exact": 0.5}
        for name in names
        for length in (400, 64_000, 1_000_000)
        for depth in depths
        if (name, length) != ("method 0", 1_000_000)
    ]
    return {"task": "needle", "window": 512, "in_window": 1.0, "cells": cells, "summary": {name: {} for name in names}}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    seen: list[Figure] = []
    save = Figure.savefig

    def spied(self: Figure, *args: Any, **options: Any) -> None:
        seen.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spied)
    return seen


@pytest.mark.parametrize(("methods", "rows", "columns"), [(0, 1, 1), (1, 1, 1), (4, 1, 4), (5, 2, 4), (10, 3, 4)])
def test_maps_wrap_into_rows_of_four(tmp_path: Path, figures: list[Figure], methods: int, rows: int, columns: int) -> None:
    path = draw_maps(report(methods, [0.25, 0.75]), tmp_path / "plots" / "needle.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    axes = [axis for axis in figures[0].axes if axis.get_label() != "<colorbar>"]
    grid = axes[0].get_gridspec()
    assert grid is not None and (grid.nrows, grid.ncols) == (rows, columns)
    assert [axis.get_title() for axis in axes if axis.get_title()] == [f"method {i}" for i in range(methods)]
    assert sum(axis.axison for axis in axes) == max(methods, 0 if methods else 0)


def test_lengths_go_across_and_depths_down(tmp_path: Path, figures: list[Figure]) -> None:
    draw_maps(report(1, [None, 0.75, 0.25]), tmp_path / "needle.png")
    axis = figures[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["400", "64k"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["25%", "75%", "any"]
