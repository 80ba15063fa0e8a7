"""Writing one Session's timeline: turns, Segments, the tail, forks.

Knows the order in which bytes and rows must reach the disk; nothing of what the tensors mean.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy.exc import IntegrityError

from agent_memory.errors import InvalidTurn, SessionBusy, SessionError, SessionExists, StoreCorrupt
from agent_memory.given import text_problem
from agent_memory.store import index, segment_index, turn_index
from agent_memory.store.database import Database
from agent_memory.store.faults import Health
from agent_memory.store.files import Files, make_folder_durably, write_atomically
from agent_memory.store.index import SessionRow
from agent_memory.store.lock import SessionLock
from agent_memory.store.names import check_name, name_digest
from agent_memory.store.recovery import tidy_folder
from agent_memory.store.segment_index import TailRow
from agent_memory.store.segments import SegmentRow, TensorBytes, encode
from agent_memory.store.tables import LIVE
from agent_memory.store.threads import ReadThreads
from agent_memory.store.turn_index import NewTurn
from agent_memory.store.view import TAIL_FILE, View
from agent_memory.types import BLOCK_TOKENS, ROLES, SEGMENT_BLOCKS, KVLayout, ModelId, Role, Turn


class Ground:
    """What the Timelines of one Store stand on: its index, its files, its folder, whether it may still write, its threads."""

    def __init__(self, database: Database, files: Files, folder: Path, health: Health, threads: ReadThreads) -> None:
        self.database, self.files, self.folder, self.health, self.threads = database, files, folder, health, threads


class Timeline(View):
    """One Session's durable truth, with the right to write it (or ``lock`` None: only to read it).

    One thread writes at a time: a second one waits at most ``timeout`` seconds, then SessionBusy. A write that fails in any way,
    also by an interrupt, leaves what was committed before it.
    """

    def __init__(self, ground: Ground, row: SessionRow, lock: SessionLock | None, timeout: float) -> None:
        self._health, self._lock, self._timeout = ground.health, lock, timeout
        self._turn_to_write = threading.RLock()
        self._untidy = False
        super().__init__(ground.database, ground.files, ground.folder, row, follow=lock is None, threads=ground.threads)
        if lock is not None and self._turn_count != self._row.turns:
            raise StoreCorrupt(
                f"session {row.label!r} has {self._row.turns} turns, {self._turn_count} are in the index; run verify, then export what is "
                "there, or delete it"
            )
        self.model = model_from_json(row.model)
        self.layout = layout_from_json(row.layout)

    def append_turn(
        self,
        role: Role,
        text: str,
        token_ids: ArrayLike,
        *,
        name: str | None = None,
        chain: str,
        meta: Mapping[str, Any] | None = None,
        recall: Mapping[str, Any] | None = None,
    ) -> Turn:
        """Append a turn in one transaction; when this returns, its text and ids are on the device.

        ``token_ids`` is ``[tokens]`` of integers in int32; ``meta`` and ``recall`` are plain JSON types. Raises ValueError for ids
        or JSON that cannot be kept, InvalidTurn, StoreFull, StoreStopped.
        """
        ids = _int32(token_ids)
        check_turn(role, text, name, chain)
        with self._writing():
            new = NewTurn(
                idx=self._turn_count,
                start=self._token_count,
                tokens=len(ids),
                role=role,
                name=name,
                text=text,
                ids=ids.astype("<i4").tobytes(),
                chain=chain,
                created=time.time(),
                meta=_json(meta or {}),
                recall=None if recall is None else _json(recall),
            )
            with self._database.write("a turn") as connection:
                turn_index.insert_turns(connection, self._row.id, [new])
            self._turn_count, self._token_count, self._chain = new.idx + 1, new.start + new.tokens, chain
            return Turn(new.idx, role, name, text, new.start, new.tokens, chain, new.created, json.loads(new.meta))

    def put_segment(self, first_block: int, tensors: Mapping[str, TensorBytes], *, repair: bool = False) -> None:
        """Write the Blocks from ``first_block`` on as one Segment, durably.

        Every tensor's leading dimension is the number of Blocks, 1 to 32. It continues the Segments there are, or begins where an
        own one begins and reaches further than all there are; then it takes their place. ``repair=True`` lets it take the place of
        own Segments it covers exactly, anywhere. Raises ValueError for anything else, and for Blocks of tokens not committed.
        """
        if not tensors:
            raise ValueError("a Segment has at least one tensor")
        blocks = next(iter(tensors.values())).shape[0]
        if not 1 <= blocks <= SEGMENT_BLOCKS:
            raise ValueError(f"a Segment has 1 to {SEGMENT_BLOCKS} Blocks, not {blocks}")
        pieces, contents = encode(tensors, pieces=blocks)
        with self._writing():
            self._check_place(first_block, blocks, repair)
            path = self._own_folder() / f"{first_block:012d}-{secrets.token_hex(4)}.safetensors"
            row = SegmentRow(self._row.id, first_block, blocks, f"{self._row.folder}/{path.name}", contents)
            with self._health.writing("a segment"):
                write_atomically(self._files, path, pieces)
            with self._database.write("the row of a segment") as connection:
                unused = segment_index.supersede(connection, row, time.time())
            self._kv_blocks = max(self._kv_blocks, row.stop)
            self._forget_rows()
            self._remove_files(unused)

    def put_tail(self, tokens_at: int, tensors: Mapping[str, TensorBytes]) -> None:
        """Write what follows the last Segment as the one tail file; ``tokens_at`` is the token count it belongs to."""
        pieces, contents = encode(tensors, pieces=None)
        with self._writing():
            if tokens_at != self._token_count:
                raise ValueError(f"the tail is of {tokens_at} tokens, session {self._row.label!r} has {self._token_count}")
            with self._health.writing("the tail"):
                write_atomically(self._files, self._own_folder() / TAIL_FILE, pieces)
            with self._database.write("the row of the tail") as connection:
                segment_index.put_tail_row(connection, self._row.id, TailRow(tokens_at, self._kv_blocks, contents))

    def fork(self, name: str, at: int | None = None, *, conversation: str | None = None) -> None:
        """Make a Session that begins with this one's first ``at`` turns (all by default) and the whole Blocks before that point; a branch
        of ``conversation``, if given.

        Nothing is copied. Raises SessionExists, InvalidName, and ValueError for a point that is not there.
        """
        check_name(name)
        with self._writing():
            at = self._turn_count if at is None else at
            if not 0 <= at <= self._turn_count:
                raise ValueError(f"session {self._row.label!r} has {self._turn_count} turns, it cannot be forked at {at}")
            tokens = 0 if at == 0 else self.turns(at - 1, at)[0].stop
            child = new_session(self.namespace, name, self._row.model, self._row.layout, conversation)
            child |= {
                "parent_id": self._row.id,
                "fork_turns": at,
                "turns": at,
                "fork_tokens": tokens,
                "fork_blocks": min(tokens // BLOCK_TOKENS, self._kv_blocks),
            }
            with self._database.write("a fork") as connection:
                try:
                    index.insert_session(connection, child)
                except IntegrityError:
                    raise SessionExists(f"there is a session {name!r} in namespace {self.namespace!r}; choose another name") from None

    def drop_kv(self, first_block: int) -> None:
        """Forget this Session's keys and values from Block ``first_block`` on, and the tail; its turns stay, and so do its forks."""
        with self._writing():
            with self._database.write("dropped segments") as connection:
                row = index.session_by_id(connection, self._row.id)
                spans = index.lineage(connection, row.id)
                unused = segment_index.drop_from(connection, row, spans, max(first_block, 0))
            self._refresh()
            self._remove_files(unused)

    def close(self) -> None:
        """Give the Session back; closing twice is no error."""
        if self._closed:
            return
        try:
            if self._lock is not None and self._untidy:
                with contextlib.suppress(Exception):
                    self._tidy()
        finally:
            super().close()
            if self._lock is not None:
                self._lock.release(clean=not self._untidy)

    def let_go(self) -> Callable[[], None]:
        """Free the Session as the end of the process would, for whoever dropped it without ``close``: nothing is written or removed, and no
        lock of this process is waited for. Returns what closes its files, to be called where one may be."""
        self._closed = True
        if self._lock is not None:
            self._lock.release(clean=False)
        return super().close

    def abandon(self) -> None:
        """In a forked child: let go of the inherited lock without freeing it."""
        if self._lock is not None:
            self._lock.abandon()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._check_usable()
        if self._lock is None:
            raise SessionError(f"session {self._row.label!r} was opened to be read; open it without read_only=True")
        if not self._turn_to_write.acquire(timeout=self._timeout):
            raise SessionBusy(self._row.label, "another thread")
        try:
            self._health.check()
            if self._untidy:
                self._tidy()
            self._current()
            yield
        except BaseException:
            self._stale = self._untidy = True  # whether the last COMMIT happened is for the index to say
            raise
        finally:
            self._turn_to_write.release()

    def _tidy(self) -> None:
        with self._health.reading("leftovers"):
            tidy_folder(self._database, self._files, self._folder, self._row)
        self._untidy = False

    def _own_folder(self) -> Path:
        path = self._folder / self._row.folder
        with self._health.writing("a folder"):
            make_folder_durably(self._files, path)
        return path

    def _check_place(self, first_block: int, blocks: int, repair: bool) -> None:
        stop = first_block + blocks
        if stop * BLOCK_TOKENS > self._token_count:
            raise ValueError(f"Blocks up to {stop} hold tokens beyond the {self._token_count} that are committed")
        if first_block == self._kv_blocks:
            return
        with self._database.read("segments") as connection:
            own = segment_index.own_starts(connection, self._row.id, first_block)
        starts = [start for start, _ in own]
        ends = [start + count for start, count in own]
        longer = stop > self._kv_blocks or (repair and stop in ends)
        if first_block not in starts or not longer:
            raise ValueError(
                f"a Segment of Blocks [{first_block}, {stop}) neither continues the {self._kv_blocks} Blocks there are "
                f"nor takes the place of a shorter last one"
            )

    def _remove_files(self, unused: list[str]) -> None:
        for file in unused:
            self._reader.forget(file)
            with self._health.writing("a removal"):
                self._files.unlink(self._folder / file)


def check_turn(role: object, text: object, name: object, chain: object) -> None:
    """Raise InvalidTurn for what cannot be a turn, before anything of it is written."""
    if role not in ROLES:
        raise InvalidTurn(f"role={role!r} cannot be used; choose one of {', '.join(ROLES)}")
    for what, value in {"text": text, "name": "" if name is None else name, "chain": chain}.items():
        if not isinstance(value, str):
            raise InvalidTurn(f"the {what} of a turn is text, not {type(value).__name__}")
        if problem := text_problem(value):
            raise InvalidTurn(f"the {what} of a turn cannot be kept: {problem}")


def new_session(namespace: str, name: str, model: str, layout: str, conversation: str | None = None) -> dict[str, Any]:
    """Columns of a new Session without parent."""
    return {
        "namespace": namespace,
        "name": name,
        "folder": f"{name_digest(namespace, name)}-{secrets.token_hex(4)}",
        "state": LIVE,
        "parent_id": None,
        "fork_turns": 0,
        "fork_tokens": 0,
        "fork_blocks": 0,
        "model": model,
        "layout": layout,
        "created": time.time(),
        "conversation": conversation,
        "turns": 0,
    }


def model_from_json(text: str) -> ModelId:
    """Inverse of ``json.dumps(model.to_dict())``; StoreCorrupt for anything else."""
    try:
        return ModelId(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise StoreCorrupt("the model of a session is not what belongs there; restore the session from an export") from error


def layout_from_json(text: str) -> KVLayout:
    """Inverse of ``json.dumps(asdict(layout))``; StoreCorrupt for anything else."""
    try:
        fields = json.loads(text)
        layout = KVLayout(**{**fields, "kv_heads": tuple(fields["kv_heads"]), "head_dim": tuple(fields["head_dim"])})
    except (TypeError, ValueError, KeyError) as error:
        raise StoreCorrupt("the layout of a session is not what belongs there; restore the session from an export") from error
    shapes = (*layout.kv_heads, *layout.head_dim, layout.block_tokens)
    if len(layout.kv_heads) != len(layout.head_dim) or not all(type(number) is int and number > 0 for number in shapes):
        raise StoreCorrupt("the layout of a session has shapes that cannot be; restore the session from an export")
    return layout


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"only plain JSON types can be kept with a turn: {error}") from error


def _int32(token_ids: ArrayLike) -> NDArray[np.int32]:
    ids = np.asarray(token_ids)
    if ids.size == 0:
        return np.empty(0, np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"token ids are one row of integers, not {ids.dtype} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
        raise ValueError("token ids are from 0 to 2**31 - 1")
    return ids.astype(np.int32)
