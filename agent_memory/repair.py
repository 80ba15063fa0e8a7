"""Making damaged Blocks again from their tokens.

Knows which Blocks of which Segment are damaged; does not know how damage was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .engine import MemoryEngine
    from .kv_files import SegmentFiles
    from .store.timeline import Timeline

OpenEngine = Callable[[], "tuple[MemoryEngine, SegmentFiles]"]


def repair_blocks(
    timeline: Timeline, damaged: set[int], open_engine: OpenEngine, progress: Callable[[int], None] | None = None
) -> tuple[int, ...]:
    """Make damaged Blocks again in timeline order, Segment by Segment, with only earlier memory visible.

    Approximate where a Block was made from memory that is damaged too. Blocks inherited from a parent are left to the parent.

    Args:
        timeline: the Session in the Store.
        damaged: numbers of damaged Blocks.
        open_engine: reads keys and values from disk anew, and returns what makes and what writes them.
        progress: told how many Blocks were made again, after each Segment.

    Returns:
        The Blocks that were made again.
    """
    fixed: list[int] = []
    for row in timeline.segments():
        blocks = sorted(block for block in damaged if row.first_block <= block < row.stop)
        if blocks and timeline.owns(row):
            engine, files = open_engine()
            _rebuild(engine, files, row.first_block, row.stop, blocks)
            engine.kv.close()
            fixed += blocks
            if progress is not None:
                progress(len(blocks))
    return tuple(fixed)


def _rebuild(engine: MemoryEngine, files: SegmentFiles, first: int, stop: int, blocks: list[int]) -> None:
    """Write one Segment anew: sound Blocks as they are, damaged ones made again."""
    again = engine.rebuild(range(blocks[0], stop), files)
    parts = [
        {name: rows[block - blocks[0], None] for name, rows in again.items()} if block in blocks else engine.kv.stored(block, block + 1)
        for block in range(first, stop)
    ]
    files.write(first, {name: torch.cat([part[name] for part in parts]) for name in again}, repair=True)
