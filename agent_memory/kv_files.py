"""Keys and values between memory and the Store: tensors to the bytes a Segment holds, and back.

Knows dtypes, tensor names and which Blocks are due; does not know attention, files or SQL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .errors import BlockDamaged
from .memory.session_kv import SessionKV
from .store.contents import misfit, not_finite
from .store.segments import SegmentRow, TensorBytes
from .store.timeline import Timeline
from .types import SEGMENT_BLOCKS

MANY_TOKENS = 131_072
"""Sorting the keys of more tokens than these into clusters takes so long that it is announced."""

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int32: "I32",
}
"""safetensors names of the dtypes we store."""
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def to_bytes(tensor: Tensor) -> TensorBytes:
    """A tensor as the Store takes it."""
    flat = tensor.detach().cpu().contiguous()
    return TensorBytes(DTYPE_NAMES[flat.dtype], tuple(flat.shape), flat.reshape(-1).view(torch.uint8).numpy())


def to_tensor(stored: TensorBytes) -> Tensor:
    """The tensor the Store gave back."""
    data = np.frombuffer(stored.data, dtype=np.uint8)
    if not len(data):
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    return torch.from_numpy(data.copy()).view(DTYPES[stored.dtype]).reshape(stored.shape)


class SegmentFiles:
    """Reads and writes one Session's Blocks.

    Args:
        timeline: the Session in the Store.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def read_kv(self, layer: int, blocks: np.ndarray, out: Tensor) -> np.ndarray:
        """Fill ``out [n, 2, Hk, 32, d]`` with Blocks read from disk; bool ``[n]``, False where a Block is damaged."""
        whole = np.ones(len(blocks), dtype=bool)
        if len(blocks):
            whole[self._timeline.read_blocks(f"layers.{layer}.kv", blocks.tolist(), out.view(-1).view(torch.uint8).numpy())] = False
            # NaN and infinities would spread through attention; the sum of a Block is finite only where it holds none.
            whole &= out.flatten(1).sum(1, dtype=torch.float32).isfinite().numpy() | ~whole
        return whole

    def flush(self, kv: SessionKV, final: int, *, whole: bool = True) -> None:
        """Write the Blocks before token ``final`` that are due: full Segments, and with ``whole=False`` the short last one too."""
        ready = kv.settled(final) // kv.layout.block_tokens
        while ready > kv.saved:
            last = min(ready, (kv.saved // SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS)
            if whole and last % SEGMENT_BLOCKS:
                return
            first, tensors = self._due(kv, last)
            self.write(first, tensors)
            kv.mark_saved(last)

    def write(self, first: int, tensors: dict[str, Tensor], *, repair: bool = False) -> None:
        """Write Blocks from ``first`` on as one Segment; ``repair`` puts it in the place of the one that covers exactly these."""
        self._timeline.put_segment(first, {name: to_bytes(rows) for name, rows in tensors.items()}, repair=repair)

    def _due(self, kv: SessionKV, last: int) -> tuple[int, dict[str, Tensor]]:
        """The next Segment up to Block ``last``; it takes in a short one before it if that can still be read."""
        first = self._short_segment(kv.saved)
        try:
            return first, kv.stored(first, last)
        except BlockDamaged:
            return kv.saved, kv.stored(kv.saved, last)

    def _short_segment(self, saved: int) -> int:
        """First Block of the own Segment that ends, short, at ``saved`` and is superseded by a longer one; else ``saved``."""
        if saved % SEGMENT_BLOCKS == 0:
            return saved
        last = self._timeline.segment_at(saved - 1)
        return last.first_block if self._timeline.owns(last) and last.first_block // SEGMENT_BLOCKS == saved // SEGMENT_BLOCKS else saved

    def save_tail(self, kv: SessionKV) -> None:
        """Write the tokens after the last Segment, for an exact reopening."""
        self._timeline.put_tail(self._timeline.token_count, {name: to_bytes(rows) for name, rows in kv.tail().items()})

    def load(self, kv: SessionKV, progress: Callable[[int], None] | None = None) -> None:
        """Take up what is on disk: summaries of every Segment, window, sink, tail. Damaged Segments are marked lost."""
        for row in self._timeline.segments():
            fits = misfit(row.places, kv.layout, row.blocks) is None
            kv.restore(row.blocks, self._summaries(row) if fits else None)
            if progress is not None:
                progress(row.blocks)
        kv.refill()
        tail = self._timeline.tail()
        if tail is not None and self._continues(tail[1], kv):
            kv.restore_tail({name: to_tensor(stored) for name, stored in tail[1].items()})
        behind = max((part.clusters.pending(kv.length) for part in kv.layers if part.clusters is not None), default=0)
        if behind > MANY_TOKENS:
            logging.getLogger(__name__).warning(
                "session %r was not closed, or not with this method: the keys of %s tokens are sorted into clusters again before its next "
                "step (a million of two KV heads takes about a minute)",
                self._timeline.name,
                f"{behind:,}",
            )

    def _continues(self, tail: Mapping[str, TensorBytes], kv: SessionKV) -> bool:
        """Whether a tail holds what may follow the Segments: of every layer the same tokens, and no more than there are."""
        if misfit(tail, kv.layout, None) is not None or not_finite(tail) is not None:
            return False
        counts = {tail[f"layers.{layer}.kv"].shape[3] for layer in range(kv.layout.layers)}
        return len(counts) == 1 and kv.length + counts.pop() <= self._timeline.token_count

    def _summaries(self, row: SegmentRow) -> dict[str, Tensor] | None:
        try:
            return {name: self._rows(name, row) for name in row.tensors if not name.endswith(".kv")}
        except BlockDamaged:
            return None

    def _rows(self, name: str, row: SegmentRow) -> Tensor:
        place = row.places[name]
        raw = torch.from_numpy(self._timeline.read_segment_tensor(name, row.first_block))
        return raw.view(DTYPES[place.dtype]).reshape(place.shape)
