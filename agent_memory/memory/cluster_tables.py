"""Tables of one layer's clusters, a row for each, those of all KV heads side by side: one operation looks at all of them.

Knows shapes and how tables grow; nothing of keys, or of who is in which cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MEMBERS = 128
"""Keys of one cluster at most, unless something else is asked for."""

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
        members: int32 ``[Hk, R, M]``, tokens, padded with -1 at the end.
        codes: int8 ``[Hk, R, M, d]``, their keys as a scan reads them, so that those of a cluster are read in one run; ``[Hk, R, 0, d]``
            where they are not kept.
        steps: fp32 ``[Hk, R, M]``, what the codes are multiples of; ``[Hk, R, 0]`` where they are not kept.
        centre_codes, centre_steps: int8 ``[Hk, R, d]`` and fp32 ``[Hk, R]``, the centres in 8 bits, where keys are kept.
    """

    sums: Tensor
    squares: Tensor
    centres: Tensor
    spread: Tensor
    reach: Tensor
    sizes: Tensor
    members: Tensor
    codes: Tensor
    steps: Tensor
    centre_codes: Tensor
    centre_steps: Tensor

    @staticmethod
    def empty(
        kv_heads: int, head_dim: int, device: torch.device | str, members: int = MEMBERS, *, holds_keys: bool = False
    ) -> ClusterTables:
        """Tables without rows, for clusters of up to ``members`` keys."""
        keys, one = torch.empty((kv_heads, 0, head_dim), device=device), torch.empty((kv_heads, 0), device=device)
        tokens, held = torch.empty((kv_heads, 0, members), dtype=torch.int32, device=device), members if holds_keys else 0
        codes, steps = torch.empty((kv_heads, 0, held, head_dim), dtype=torch.int8, device=device), one[..., None].expand(-1, -1, held)
        return ClusterTables(keys, one, keys, one, one, one.long(), tokens, codes, steps, keys.to(torch.int8), one)

    def emptied(self) -> ClusterTables:
        """Others of the same kind, without rows."""
        return ClusterTables(*(getattr(self, name)[:, :0].clone() for name in self.names()))

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

    def take(self, rows: Tensor, heads: slice, *names: str) -> list[Tensor]:
        """Rows int64 ``[s, ...]`` of the tables ``names``, of each of the KV heads ``heads`` its own, as ``[s, ..., *row]``; copies."""
        first = torch.arange(heads.start, heads.stop, device=rows.device) * self.rows
        flat = (rows + first.view(-1, *[1] * (rows.dim() - 1))).flatten()
        tables = (getattr(self, name) for name in names)
        return [table.flatten(0, 1).index_select(0, flat).view(*rows.shape, *table.shape[2:]) for table in tables]

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
