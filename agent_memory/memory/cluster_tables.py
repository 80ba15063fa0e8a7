"""Tables of one layer's clusters, a row for each, those of all KV heads side by side: one operation looks at all of them.

Knows shapes and how tables grow; nothing of keys, or of who is in which cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MEMBERS = 128
"""Keys of one cluster at most."""

RUN = 32
"""Rows that are looked at together; there is always a multiple of them."""

_FILL = {"members": -1, "reach": -1e30}


@dataclass(slots=True)
class ClusterTables:
    """Clusters of every KV head; rows that no cluster has yet are empty and reach nowhere.

    Attributes:
        sums: fp32 ``[Hk, R, d]``, of the members' keys.
        squares: fp32 ``[Hk, R]``, of their squared norms.
        centres: fp32 ``[Hk, R, d]``, their mean.
        spread: fp32 ``[Hk, R]``, how far members lie from the centre: the mean square of their offsets, a dimension.
        reach: fp32 ``[Hk, R]``.
        sizes: int64 ``[Hk, R]``.
        members: int32 ``[Hk, R, MEMBERS]``, tokens, padded with -1 at the end.
    """

    sums: Tensor
    squares: Tensor
    centres: Tensor
    spread: Tensor
    reach: Tensor
    sizes: Tensor
    members: Tensor

    @staticmethod
    def empty(kv_heads: int, head_dim: int, device: torch.device | str) -> ClusterTables:
        """Tables without rows."""
        keys, one = torch.empty((kv_heads, 0, head_dim), device=device), torch.empty((kv_heads, 0), device=device)
        members = torch.empty((kv_heads, 0, MEMBERS), dtype=torch.int32, device=device)
        return ClusterTables(keys, one, keys, one, one, one.long(), members)

    def emptied(self) -> ClusterTables:
        """Others of the same kind, without rows."""
        return ClusterTables.empty(self.sums.shape[0], self.sums.shape[2], self.sums.device)

    @property
    def rows(self) -> int:
        """Rows of each KV head."""
        return self.sizes.shape[1]

    def reserve(self, rows: int) -> None:
        """Have at least so many rows for each KV head."""
        if rows <= self.rows:
            return
        more = max(256, 2 * self.rows, -(-rows // RUN) * RUN) - self.rows
        for name in self.names():
            table = getattr(self, name)
            setattr(self, name, torch.cat([table, table.new_full((table.shape[0], more, *table.shape[2:]), _FILL.get(name, 0))], 1))

    def cut(self, rows: int) -> ClusterTables:
        """Views of the first ``rows`` rows of each KV head."""
        return ClusterTables(*(getattr(self, name)[:, :rows] for name in self.names()))

    def clone(self) -> ClusterTables:
        """An independent copy."""
        return ClusterTables(*(getattr(self, name).clone() for name in self.names()))

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(getattr(self, name).nbytes for name in self.names())

    @staticmethod
    def names() -> tuple[str, ...]:
        """What the tables are called."""
        return tuple(field.name for field in fields(ClusterTables))
