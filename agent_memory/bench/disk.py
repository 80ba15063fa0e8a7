"""What writing costs: Segments through the Store against the same bytes written plainly, and how many bytes there are.

Knows the Store and files; made-up keys and values of an 8B-shaped model, all layers.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..store.segments import TensorBytes
from ..store.store import Store
from ..types import BLOCK_TOKENS, SEGMENT_BLOCKS, KVLayout, ModelId
from .compare import Progress, Ratio, compare, counted

LAYERS, KV_HEADS, DIM = 32, 8, 128
BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * DIM * 2
PIECE_BYTES = 4 << 20
"""Bytes of one write: what a Segment's tensors have."""

MODEL = ModelId("bench", "none", "none", "bfloat16", "none", "none", "none")
SEGMENT_TOKENS = BLOCK_TOKENS * SEGMENT_BLOCKS


def appends(progress: Progress, rounds: int = 6) -> Iterator[Ratio]:
    """R7 and R8: one Segment of 1,024 tokens (128 MiB), checksummed, fsynced and indexed, against one file of its bytes, fsynced."""
    progress("R7: writing Segments")
    rng = np.random.default_rng(0)
    kv = rng.integers(0, 255, (LAYERS, SEGMENT_TOKENS * BYTES_PER_TOKEN // LAYERS), dtype=np.uint8)
    shape = (SEGMENT_BLOCKS, 2, KV_HEADS, BLOCK_TOKENS, DIM)
    tensors = {f"layers.{layer}.kv": TensorBytes("BF16", shape, kv[layer]) for layer in range(LAYERS)}
    plain = memoryview(kv.tobytes())
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store") as store:
        layout = KVLayout((KV_HEADS,) * LAYERS, (DIM,) * LAYERS, "bfloat16")
        timeline = store.session("long", model=MODEL, layout=layout)
        ids = np.zeros(SEGMENT_TOKENS, dtype=np.int32)
        for turn in range(5 * rounds):
            timeline.append_turn("tool", f"turn {turn}", ids, chain=f"{turn}")
        index_before = _size(Path(folder) / "store", "index")
        number = 0

        def ours() -> None:
            nonlocal number
            timeline.put_segment(number * SEGMENT_BLOCKS, tensors)
            number += 1

        def raw() -> None:
            _write(Path(folder) / "plain", plain)

        def blobs() -> None:
            _write_blobs(Path(folder) / "blobs", plain)

        def clean() -> None:
            for name in ("plain", "blobs"):
                (Path(folder) / name).unlink(missing_ok=True)
            os.sync()  # so that neither waits for what the other left to be written

        detail = {"bytes": len(plain), "tokens": SEGMENT_TOKENS}
        append = compare("R7 append against a plain file", ours, raw, detail, target="0.8x", rounds=rounds, before=clean)
        strawman = compare(
            "R7 SQLite BLOBs against a plain file", blobs, raw, detail, target="for comparison", rounds=2, tries=1, before=clean
        )
        # The plain file takes longer after some neighbours than after others; both are compared with its best.
        best = min(append.baseline, strawman.baseline)
        for made in (append, strawman):
            yield replace(made, baseline=best, ratio=best / made.ours)
        files = sum(path.stat().st_size for path in (Path(folder) / "store").rglob("*.safetensors"))
        indexed = _size(Path(folder) / "store", "index") - index_before
        kv_bytes = number * SEGMENT_TOKENS * BYTES_PER_TOKEN
        counts = {"segments": number, "index_bytes_per_segment": indexed / number}
        yield counted("R8 bytes of Segments", files, kv_bytes, counts, target="at most 1.02x", unit="B", growth=True)


def _write(path: Path, data: memoryview) -> None:
    """A file of its own each time, fsynced, and its folder too: what a Segment needs to be durable."""
    for place, flags in ((path, os.O_WRONLY | os.O_CREAT), (path.parent, os.O_RDONLY)):
        fd = os.open(place, flags)
        try:
            if place == path:
                for at in range(0, len(data), PIECE_BYTES):
                    os.write(fd, data[at : at + PIECE_BYTES])
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_blobs(path: Path, data: memoryview) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS blocks (number INTEGER PRIMARY KEY, kv BLOB)")
    size = len(data) // SEGMENT_BLOCKS
    with connection:
        connection.executemany("INSERT INTO blocks (kv) VALUES (?)", ((data[at : at + size],) for at in range(0, len(data), size)))
    connection.close()


def _size(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}*"))
