"""What the tests of the Store share: small Sessions, faulty files, and killed children."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agent_memory.store.files import Files
from agent_memory.store.segments import TensorBytes
from agent_memory.store.store import INDEX_FILE, Store
from agent_memory.store.timeline import Timeline
from agent_memory.types import KVLayout, ModelId, Turn

MODEL = ModelId("Tiny", "config-1", "weights-1", "float32", "rope-1", "tokenizer-1", "template-1")
LAYOUT = KVLayout((1, 2), (8, 4), "float32")
KV, OTHER_KV, SUMMARY = "layers.0.kv", "layers.1.kv", "layers.0.mean"
OPERATIONS = frozenset(
    "open_for_reading create open_lock try_lock pread_into write fsync fsync_folder rename unlink make_folder remove_folder "
    "names write_note before_commit".split()
)


def open_session(store: Store, name: str = "s", namespace: str = "default", **options: Any) -> Timeline:
    """A Session of the test model."""
    return store.session(name, namespace, model=MODEL, layout=LAYOUT, **options)


def segment(first: int, blocks: int, salt: int = 0) -> dict[str, TensorBytes]:
    """Tensors of Blocks ``[first, first + blocks)``; Block b of every tensor holds bytes that only (b, salt) gives."""
    random = [np.random.default_rng([b, salt]) for b in range(first, first + blocks)]
    kv = np.stack([r.standard_normal((2, 1, 32, 8), dtype=np.float32) for r in random])
    other = np.stack([r.standard_normal((2, 2, 32, 4), dtype=np.float32) for r in random])
    mean = np.stack([r.integers(0, 256, (8, 2), dtype=np.uint8) for r in random])
    return {
        KV: TensorBytes("F32", (blocks, 2, 1, 32, 8), kv.view(np.uint8)),
        OTHER_KV: TensorBytes("F32", (blocks, 2, 2, 32, 4), other.view(np.uint8)),
        SUMMARY: TensorBytes("BF16", (blocks, 8), mean),
    }


def block_bytes(block: int, salt: int = 0, tensor: str = KV) -> bytes:
    """What ``segment`` puts in one Block."""
    return bytes(np.ascontiguousarray(segment(block, 1, salt)[tensor].data))


def fill(timeline: Timeline, turns: int, tokens: int = 16, word: str = "turn") -> list[Turn]:
    """Append numbered turns."""
    return [append(timeline, tokens, word) for _ in range(turns)]


def append(timeline: Timeline, tokens: int = 16, word: str = "turn") -> Turn:
    """Append the turn that ``expected_text`` and ``expected_ids`` describe."""
    number = timeline.turn_count
    return timeline.append_turn("user", f"{word} {number}", expected_ids(number, tokens), chain=f"chain {number}", meta={"number": number})


def fill_segments(store: Store, name: str = "s") -> Timeline:
    """A Session of 13 turns with two Segments of three Blocks, and a tail."""
    timeline = open_session(store, name)
    fill(timeline, 13)
    for first in (0, 3):
        timeline.put_segment(first, segment(first, 3))
    timeline.put_tail(208, segment(6, 1))
    return timeline


def expected_ids(number: int, tokens: int) -> np.ndarray[Any, Any]:
    """Ids of turn ``number``."""
    return np.arange(tokens, dtype=np.int64) + 1000 * number


def assert_numbered(timeline: Timeline, tokens: int = 16, word: str = "turn") -> None:
    """Every turn is exactly one that ``append`` made, in order."""
    turns = timeline.turns()
    assert [turn.text for turn in turns] == [f"{word} {i}" for i in range(len(turns))]
    assert [turn.start for turn in turns] == [tokens * i for i in range(len(turns))]
    ids = timeline.tokens(0, timeline.token_count).reshape(-1, tokens)
    assert all(np.array_equal(row, expected_ids(i, tokens)) for i, row in enumerate(ids))


def folder_digest(root: Path) -> dict[str, str]:
    """Digest of every file under a folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def segment_files(root: Path) -> list[Path]:
    """Segment files of a Store."""
    return sorted((root / "sessions").rglob("0*.safetensors"))


def assert_whole(root: Path) -> None:
    """SQLite finds nothing wrong with the index."""
    connection = sqlite3.connect(root / INDEX_FILE)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    finally:
        connection.close()


class FaultyFiles(Files):
    """Files whose ``nth`` operation fails, once or from then on; ``after`` lets the operation happen first."""

    def __init__(self, nth: int = -1, error: Callable[[], BaseException] = OSError, *, lasting: bool = False, after: bool = False) -> None:
        self.nth, self.error, self.lasting, self.after = nth, error, lasting, after
        self.only: frozenset[str] = OPERATIONS
        self.done: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in OPERATIONS or name not in self.only:
            return found

        def call(*arguments: Any) -> Any:
            self.done.append(name)
            number = len(self.done) - 1
            hit = number == self.nth or (self.lasting and 0 <= self.nth < number)
            if hit and not self.after:
                raise self.error()
            result = found(*arguments)
            if hit:
                raise self.error()
            return result

        return call


class Child:
    """A forked process that runs ``work(write)``; what it writes is read from ``lines``."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        self._read_end, write_end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have started threads; this child uses none of them
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._read_end)
                work(partial(_tell, write_end))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write_end)

    def wait_for_line(self) -> str:
        """The next line; empty at the end."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._read_end, 1)
            if not byte:
                break
            line += byte
        return line.decode().rstrip("\n")

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> tuple[list[str], int]:
        """Whole lines it wrote since, and its exit status (negative: the signal)."""
        data = b""
        while piece := os.read(self._read_end, 65536):
            data += piece
        os.close(self._read_end)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return [line.decode() for line in data.split(b"\n")[:-1]], status


def _tell(fd: int, line: str) -> None:
    os.write(fd, f"{line}\n".encode())
