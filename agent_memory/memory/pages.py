"""Which slot holds each Block of a Session at each layer, as kernels are told, and the page where a Block in the making is written.

Knows the Session's Blocks and the Tiers; nothing of what is chosen or attended to. Whatever moves Blocks in the Tiers meanwhile shows
in a count of changes, so nothing has to be held in place: who read by an old table reads again.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from .session_kv import SessionKV

ABSENT = -1


class PageTables:
    """Tables of one Session, for the tokens of one reply after another; use it between ``open`` and ``close``.

    Args:
        kv: the Session's keys and values.
        width: Blocks the tables have room for, the one in the making with them.

    Attributes:
        table: int32 ``[layers, 1, width]`` on the device: slot, ``-(slot + 2)`` of the host's pool, or -1.
        lost: bool ``[width]`` on the device.
        rows: for each layer int64 ``[2 * Hk]``, where in the pool, seen as rows of ``head_dim`` numbers, the keys and values of the first
            token of the Block in the making go.
    """

    def __init__(self, kv: SessionKV, width: int) -> None:
        self.kv, self.width = kv, width
        layers, device = kv.layout.layers, kv.device
        self.table = torch.full((layers, 1, width), ABSENT, dtype=torch.int32, device=device)
        self.lost = torch.zeros(width, dtype=torch.bool, device=device)
        self.rows = [torch.zeros(2 * heads, dtype=torch.int64, device=device) for heads in kv.layout.kv_heads]
        self._known = np.full((layers, width), ABSENT, np.int32)
        self._tiers = np.zeros((layers, width), np.uint8)
        self._changes = -1
        self._page = np.empty(0, np.int64)

    def open(self) -> None:
        """Take a page at each layer for the Block in the making, and write what there is of it.

        Raises:
            ConfigError: no room for it.
        """
        self.close()
        self._page = self.kv.cache.allocate(1)
        try:
            for layer in range(self.kv.layout.layers):
                self.kv.cache.put(layer, self._page, self._begun(layer)[None])
        except BaseException:
            self.close()
            raise
        for layer, rows in enumerate(self.rows):
            _, _, heads, size, _ = self.kv.cache.pools(layer)[0].shape
            first = (self._slot(layer) * 2 * heads + torch.arange(2 * heads)) * size
            rows.copy_(first)

    def close(self) -> None:
        """Give the page back."""
        page, self._page = self._page, np.empty(0, np.int64)
        self.kv.cache.release(page)

    def settle(self, needed: range, held: ExitStack) -> None:
        """Look where all Blocks are, bringing up those that have to be on the device.

        Args:
            needed: Blocks every layer attends to, besides the first ones.
            held: keeps what is brought up where it is.

        Raises:
            ConfigError: the device budget cannot hold what one token attends to, at all layers.
        """
        wanted = np.union1d(np.arange(-(-self.kv.plan.sink // self.kv.layout.block_tokens)), np.array(needed, np.int64)).astype(np.int64)
        for layer in range(self.kv.layout.layers):
            self.bring(layer, wanted[wanted < self.kv.blocks], held)
        self._look()

    def bring(self, layer: int, blocks: np.ndarray, held: ExitStack) -> np.ndarray:
        """Have Blocks on the device until ``held`` ends; their Tiers."""
        reading = held.enter_context(self.kv.cache.reading(layer, self.kv.uids[blocks], blocks, self.kv.source, exact=False))
        self.kv.lost[blocks[(reading.slots < 0).cpu().numpy()]] = True
        return reading.tiers

    def absent(self, layer: int, blocks: np.ndarray) -> np.ndarray:
        """Those of ``blocks`` int64, not negative and distinct, that the table knew in no Tier."""
        missing: np.ndarray = blocks[(self._known[layer, blocks] == ABSENT) & ~self.kv.lost[blocks]]
        return missing

    def tiers(self, layer: int, blocks: np.ndarray) -> np.ndarray:
        """uint8, the Tier of each of ``blocks`` when the table was made."""
        tiers: np.ndarray = self._tiers[layer, blocks]
        return tiers

    def moved(self) -> bool:
        """Whether a Block may lie elsewhere than the table says."""
        return self.kv.cache.changes != self._changes

    def made(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[Hk, stop - start, d]`` of tokens of the Block in the making."""
        pool, size = self.kv.cache.pools(layer)[0], self.kv.layout.block_tokens
        page = pool[self._slot(layer)]
        first = start - start % size
        return page[0, :, start - first : stop - first], page[1, :, start - first : stop - first]

    def _look(self) -> None:
        count, self._changes = self.kv.blocks, self.kv.cache.changes  # read first: what moves meanwhile is seen as moved
        uids = np.concatenate([self.kv.uids[:count], self._page])
        self._known.fill(ABSENT)
        for layer in range(self.kv.layout.layers):
            self._known[layer, : count + 1], self._tiers[layer, : count + 1] = self.kv.cache.pages(layer, uids)
        self.table[:, 0].copy_(torch.from_numpy(self._known))
        self.lost[:count].copy_(torch.from_numpy(self.kv.lost[:count]))
        self.lost[count:] = False

    def _slot(self, layer: int) -> int:
        return int(self.kv.cache.pages(layer, self._page)[0][0])

    def _begun(self, layer: int) -> Tensor:
        window, size = self.kv.layers[layer].window, self.kv.layout.block_tokens
        block = torch.zeros(self.kv.layout.block_shape(layer), dtype=self.kv.dtype, device=self.kv.device)
        k, v = window.view(window.stop - window.stop % size, window.stop)
        block[0, :, : k.shape[1]], block[1, :, : k.shape[1]] = k, v
        return block
