"""What masses come to: shares layer by layer and KV head by KV head, and of what an oracle holds.

Knows sums and numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..statistics import bootstrap_ratio
from .rows import FIGURES, MassRow

KINDS = ("decoded", "groups")


def summarize_mass(rows: Sequence[MassRow], seed: int = 0) -> dict[str, Any] | None:
    """One method's masses; None where its choices cannot be weighed.

    Returns:
        for ``decoded`` and ``groups``: ``queries``, choices of one KV head of one layer at most; ``available``, ``chosen`` and ``oracle``,
        means ``[layers][KV heads]`` over choices, None where a layer made none; over all layers and heads, with intervals,
        ``available_share`` of all mass, ``chosen_share`` of what was available and ``of_oracle``; and the ``worst`` layer and KV head.
    """
    found = [row.mass for row in rows if row.mass is not None]
    if not found:
        return None
    return {kind: _summary([{name: _padded(one[kind][name]) for name in FIGURES} for one in found], seed) for kind in KINDS}


def _padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """``[layers, most KV heads]``, NaN where a layer has fewer heads."""
    most = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (most - len(row))] for row in rows], dtype=np.float64)


def _summary(documents: Sequence[dict[str, NDArray[np.float64]]], seed: int) -> dict[str, Any] | None:
    sums = {name: np.sum([one[name] for one in documents], axis=0) for name in FIGURES}
    if not np.nansum(sums["queries"]):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: sums[name] / sums["queries"] for name in FIGURES[1:]}
        shares = sums["chosen"] / sums["oracle"]
    return {
        "queries": int(np.nanmax(sums["queries"])),
        **{name: _listed(mean) for name, mean in means.items()},
        "available_share": _ratio(documents, "available", "queries", seed),
        "chosen_share": _ratio(documents, "chosen", "available", seed),
        "of_oracle": _ratio(documents, "chosen", "oracle", seed),
        "worst": _worst(shares, means["available"]),
    }


def _ratio(documents: Sequence[dict[str, NDArray[np.float64]]], part: str, whole: str, seed: int) -> dict[str, Any]:
    """Sum by sum over layers and heads, drawn by document."""
    parts, wholes = ([float(np.nansum(one[name])) for one in documents] for name in (part, whole))
    if not sum(wholes):
        return {"value": None, "interval": None}
    interval = list(bootstrap_ratio(parts, wholes, seed=seed)) if len(documents) > 1 else None
    return {"value": sum(parts) / sum(wholes), "interval": interval}


def _worst(shares: NDArray[np.float64], available: NDArray[np.float64]) -> dict[str, Any] | None:
    """Where what is chosen holds least of what the oracle holds, and the share of all mass there is to choose from there."""
    if not np.isfinite(shares).any():
        return None
    layer, head = (int(place) for place in np.unravel_index(np.nanargmin(shares), shares.shape))
    return {"layer": layer, "kv_head": head, "of_oracle": float(shares[layer, head]), "available": float(available[layer, head])}


def _listed(rows: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in rows]
