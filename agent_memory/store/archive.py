"""One Session as one archive file: export and import.

Knows a zip file of stored entries and a manifest with the size and xxh3 of each; nothing in it is ever run or unpickled.
Format 1: ``turns.jsonl``, ``tokens.i32``, ``segments/*.safetensors``, ``tail.safetensors`` if there is one, ``manifest.json``.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import xxhash
from sqlalchemy.exc import IntegrityError

from agent_memory.errors import FormatTooNew, SessionExists, StoreCorrupt, StoreError, StoreFull
from agent_memory.store import index, segment_index, turn_index
from agent_memory.store.contents import misfit, not_finite
from agent_memory.store.faults import NO_ROOM
from agent_memory.store.files import Buffer, Files, make_folder_durably, write_all, write_atomically
from agent_memory.store.index import is_time
from agent_memory.store.segment_index import TailRow
from agent_memory.store.segments import Contents, SegmentRow, TensorBytes, encode
from agent_memory.store.timeline import Ground, Timeline, check_turn, layout_from_json, model_from_json
from agent_memory.store.turn_index import NewTurn
from agent_memory.store.view import TAIL_FILE
from agent_memory.types import BLOCK_TOKENS, SEGMENT_BLOCKS, KVLayout

FORMAT = 1
_MANIFEST, _TURNS, _TOKENS = "manifest.json", "turns.jsonl", "tokens.i32"
_TURN_FIELDS = ("role", "name", "text", "chain", "created", "meta", "recall", "tokens")
_READ_AHEAD = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive whose every byte has been checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the Session it was made of."""
        return str(self.manifest["name"])

    @property
    def namespace(self) -> str:
        """Namespace it came from."""
        return str(self.manifest["namespace"])

    @property
    def model(self) -> str:
        """Fingerprint, as JSON."""
        return json.dumps(self.manifest["model"])

    @property
    def layout(self) -> str:
        """Layout, as JSON."""
        return json.dumps(self.manifest["layout"])


def write(timeline: Timeline, path: Path, files: Files) -> None:
    """Write the archive of a Session to ``path``, replacing what is there only when it is whole and on the device."""
    try:
        _forget_broken_off(path, files)
        _write(timeline, path, files)
    except OSError as error:  # the place is the caller's; the Store goes on
        kind = StoreFull if error.errno in NO_ROOM else StoreError
        raise kind(f"the archive {path} cannot be written ({error.strerror or error}); nothing is there, name another place") from error


def _write(timeline: Timeline, path: Path, files: Files) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        fd = files.create(temporary)
        try:
            files.try_lock(fd)  # for as long as it is written, so that one a killed process left can be told from it
            with zipfile.ZipFile(_Sink(files, fd), "w", zipfile.ZIP_STORED) as archive:
                _write_entries(timeline, archive)
            files.fsync(fd)
            files.rename(temporary, path)
        finally:
            files.close(fd)
    except BaseException:
        with suppress(OSError):
            files.unlink(temporary)
        raise
    files.fsync_folder(path.parent)


def _forget_broken_off(path: Path, files: Files) -> None:
    """Remove what exports to the same place left when they were killed."""
    for name in files.names(path.parent):
        if re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{8}\.tmp", name):
            with suppress(OSError):
                fd, _ = files.open_for_reading(path.with_name(name))
                try:
                    if files.try_lock(fd):
                        files.unlink(path.with_name(name))
                finally:
                    files.close(fd)


def check(path: Path) -> Archive:
    """Read the whole archive and compare it with its manifest; StoreCorrupt if anything differs. Writes nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _checked_manifest(archive, path.stat().st_size)
        return Archive(path, manifest)
    except FileNotFoundError:
        raise StoreCorrupt(f"there is no archive {path}") from None
    except (FormatTooNew, StoreCorrupt, MemoryError):
        raise
    except Exception as error:  # zipfile and json have a dozen ways to say that a file is damaged
        raise StoreCorrupt(f"the archive {path} is damaged ({error}); export it again") from error


def read(ground: Ground, archive: Archive, values: dict[str, Any]) -> None:
    """Make a Session with the columns ``values`` of a checked archive: its files first, then all its rows in one transaction."""
    folder = ground.folder / values["folder"]
    manifest = archive.manifest
    with _reading(archive.path) as source:
        with ground.health.writing("an import"):
            make_folder_durably(ground.files, folder)
        segments = [_copy_segment(ground, source, entry, folder) for entry in manifest["segments"]]
        tail = _copy_tail(ground, archive, source, folder) if manifest["tail"] else None
        with ground.database.write("an import") as connection:
            try:
                session = index.insert_session(connection, values)
            except IntegrityError:
                raise SessionExists(f"there is a session {values['name']!r} in {values['namespace']!r}; give another name") from None
            turn_index.insert_turns(connection, session.id, _read(archive.path, _turns(source)))
            for first_block, blocks, file, contents in segments:
                segment_index.insert_segment(connection, SegmentRow(session.id, first_block, blocks, file, contents), time.time())
            if tail is not None:
                segment_index.put_tail_row(connection, session.id, tail)


@contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive again; what fails about it is the archive's fault, not the Store's."""
    try:
        source = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise StoreCorrupt(f"the archive {path} cannot be read any more ({error}); export it again") from error
    with source:
        yield source


def _read(path: Path, found: Iterator[T]) -> Iterator[T]:
    """What is read of an archive, piece by piece, with errors of our own."""
    while True:
        try:
            piece = next(found)
        except StopIteration:
            return
        except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
            raise StoreCorrupt(f"the archive {path} changed while it was read ({error}); export it again") from error
        yield piece


class _Sink(io.RawIOBase):
    """What zipfile writes to, so that its writes go through ``Files`` as all others do."""

    def __init__(self, files: Files, fd: int) -> None:
        self._files, self._fd = files, fd

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        write_all(self._files, self._fd, memoryview(data).cast("B"))
        return memoryview(data).nbytes


def _write_entries(timeline: Timeline, archive: zipfile.ZipFile) -> None:
    listed: dict[str, dict[str, Any]] = {}
    turns, tokens = timeline.turn_count, timeline.token_count
    recalls = {found["turn"]: found["recall"] for found in timeline.recalls()}
    _write_entry(archive, _TURNS, _turn_lines(timeline, turns, recalls), listed)
    _write_entry(archive, _TOKENS, _token_pieces(timeline, tokens), listed)
    segments = []
    for segment in _of_tokens(timeline.segments(), tokens):
        tensors = {name: _segment_tensor(timeline, segment, name) for name in segment.tensors}
        pieces, contents = encode(tensors, pieces=segment.blocks)
        entry = f"segments/{segment.first_block:012d}.safetensors"
        _write_entry(archive, entry, pieces, listed)
        segments.append({"file": entry, "first_block": segment.first_block, "blocks": segment.blocks, "tensors": _described(contents)})
    manifest = {
        "format": FORMAT,
        "namespace": timeline.namespace,
        "name": timeline.name,
        "model": timeline.model.to_dict(),
        "layout": asdict(timeline.layout),
        "turns": turns,
        "tokens": tokens,
        "segments": segments,
        "tail": _write_tail(timeline, archive, listed, tokens, segments),
        "files": listed,
    }
    archive.writestr(_MANIFEST, json.dumps(manifest))


def _of_tokens(segments: list[SegmentRow], tokens: int) -> list[SegmentRow]:
    """Segments as far as their tokens are there."""
    cut = [segment.cut(0, tokens // BLOCK_TOKENS) for segment in segments]
    return [segment for segment in cut if segment.blocks > 0]


def _write_entry(archive: zipfile.ZipFile, name: str, pieces: Iterable[Buffer], listed: dict[str, dict[str, Any]]) -> None:
    digest, size = xxhash.xxh3_128(), 0
    with archive.open(name, "w", force_zip64=True) as entry:
        for piece in pieces:
            entry.write(piece)
            digest.update(piece)
            size += memoryview(piece).nbytes
    listed[name] = {"bytes": size, "xxh3": digest.hexdigest()}


def _turn_lines(timeline: Timeline, count: int, recalls: dict[int, Any]) -> Iterator[bytes]:
    for start in range(0, count, 256):
        for turn in timeline.turns(start, min(start + 256, count)):
            fields = {**asdict(turn), "recall": recalls.get(turn.index)}
            yield json.dumps({field: fields[field] for field in _TURN_FIELDS}).encode("ascii") + b"\n"


def _token_pieces(timeline: Timeline, count: int) -> Iterator[bytes]:
    for start in range(0, count, _READ_AHEAD):
        yield timeline.tokens(start, min(start + _READ_AHEAD, count)).astype("<i4").tobytes()


def _segment_tensor(timeline: Timeline, segment: SegmentRow, name: str) -> TensorBytes:
    place = segment.places[name]
    data = b"".join(timeline.read_block(name, block) for block in range(segment.first_block, segment.stop))
    return TensorBytes(place.dtype, place.shape, data)


def _write_tail(
    timeline: Timeline, archive: zipfile.ZipFile, listed: dict[str, dict[str, Any]], tokens: int, segments: list[dict[str, Any]]
) -> dict[str, Any] | None:
    tail = timeline.tail()
    blocks = segments[-1]["first_block"] + segments[-1]["blocks"] if segments else 0
    if tail is None or tail[0] != tokens or timeline.kv_tokens != blocks * BLOCK_TOKENS:
        return None
    pieces, contents = encode(tail[1], pieces=None)
    _write_entry(archive, TAIL_FILE, pieces, listed)
    return {"file": TAIL_FILE, "first_block": blocks, "tensors": _described(contents)}


def _described(contents: Contents) -> dict[str, Any]:
    return {name: [place.dtype, list(place.shape), place.offset] for name, place in contents.places.items()}


def _checked_manifest(archive: zipfile.ZipFile, archive_bytes: int) -> dict[str, Any]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    stored = all(entry.compress_type == zipfile.ZIP_STORED and entry.file_size <= archive_bytes for entry in entries.values())
    if len(entries) != len(archive.infolist()) or not stored or sum(entry.file_size for entry in entries.values()) > archive_bytes:
        raise StoreCorrupt("the archive's entries do not fit its size; export it again")
    manifest = json.loads(archive.read(_MANIFEST))
    if manifest["format"] > FORMAT:
        raise FormatTooNew(f"the archive has format {manifest['format']}, this version knows {FORMAT}; upgrade agent_memory")
    if set(entries) != {*manifest["files"], _MANIFEST}:
        raise StoreCorrupt("the archive's entries are not those of its manifest; export it again")
    for name, wanted in manifest["files"].items():
        with archive.open(name) as entry:
            if (entries[name].file_size, _digest(entry)) != (wanted["bytes"], wanted["xxh3"]):
                raise StoreCorrupt(f"the archive's entry {name!r} is damaged; export it again")
    _check_sense(archive, manifest)
    return dict(manifest)


def _check_sense(archive: zipfile.ZipFile, manifest: dict[str, Any]) -> None:
    """Everything ``read`` relies on, so that it cannot fail half-way."""
    model_from_json(json.dumps(manifest["model"]))
    layout = layout_from_json(json.dumps(manifest["layout"]))
    counts = [turn.tokens for turn in _turns(archive)]
    if (len(counts), sum(counts)) != (manifest["turns"], manifest["tokens"]):
        raise StoreCorrupt("the archive's turns are not those of its manifest; export it again")
    expected = 0
    for entry in manifest["segments"]:
        if entry["first_block"] != expected or not 1 <= entry["blocks"] <= SEGMENT_BLOCKS:
            raise StoreCorrupt("the archive's segments do not follow each other; export it again")
        expected += entry["blocks"]
        _check_tensors(_tensors(archive, entry), layout, entry["blocks"])
    if expected * BLOCK_TOKENS > manifest["tokens"]:
        raise StoreCorrupt("the archive's segments hold more tokens than its turns; export it again")
    if manifest["tail"]:
        if manifest["tail"]["first_block"] != expected:
            raise StoreCorrupt("the archive's tail does not follow its segments; export it again")
        _check_tensors(_tensors(archive, manifest["tail"]), layout, None)


def _check_tensors(tensors: dict[str, TensorBytes], layout: KVLayout, blocks: int | None) -> None:
    _, contents = encode(tensors, pieces=blocks)
    wrong = misfit(contents.places, layout, blocks) or not_finite(tensors)
    if wrong:
        raise StoreCorrupt(f"{wrong}; export it again")


def _digest(entry: IO[bytes]) -> str:
    digest = xxhash.xxh3_128()
    while piece := entry.read(_READ_AHEAD):
        digest.update(piece)
    return digest.hexdigest()


def _turns(archive: zipfile.ZipFile) -> Iterator[NewTurn]:
    start = 0
    with archive.open(_TURNS) as lines, archive.open(_TOKENS) as ids:
        for number, line in enumerate(lines):
            turn = json.loads(line)
            own = ids.read(4 * turn["tokens"])
            if len(own) != 4 * turn["tokens"] or np.any(np.frombuffer(own, "<i4") < 0):
                raise StoreCorrupt(f"the archive's token ids end before turn {number}; export it again")
            recall = None if turn["recall"] is None else json.dumps(turn["recall"])
            check_turn(turn["role"], turn["text"], turn["name"], turn["chain"])
            if not (isinstance(turn["meta"], dict) and isinstance(turn["recall"], dict | None) and is_time(float(turn["created"]))):
                raise StoreCorrupt(f"turn {number} of the archive is not one; export it again")
            yield NewTurn(
                idx=number,
                start=start,
                tokens=turn["tokens"],
                role=turn["role"],
                name=turn["name"],
                text=turn["text"],
                ids=own,
                chain=turn["chain"],
                created=float(turn["created"]),
                meta=json.dumps(turn["meta"]),
                recall=recall,
            )
            start += int(turn["tokens"])


def _tensors(archive: zipfile.ZipFile, entry: dict[str, Any]) -> dict[str, TensorBytes]:
    try:
        data = memoryview(archive.read(entry["file"]))
    except (OSError, zipfile.BadZipFile) as error:
        raise StoreCorrupt(f"the archive's entry {entry['file']!r} cannot be read ({error}); export it again") from error
    ordered = sorted(entry["tensors"].items(), key=lambda item: int(item[1][2]))
    stops = [int(item[1][2]) for item in ordered[1:]] + [data.nbytes]
    pairs = zip(ordered, stops, strict=True)
    return {name: TensorBytes(dtype, tuple(shape), data[offset:stop]) for (name, (dtype, shape, offset)), stop in pairs}


def _copy_segment(ground: Ground, source: zipfile.ZipFile, entry: dict[str, Any], folder: Path) -> tuple[int, int, str, Contents]:
    pieces, contents = encode(_tensors(source, entry), pieces=entry["blocks"])
    path = folder / f"{entry['first_block']:012d}-{secrets.token_hex(4)}.safetensors"
    with ground.health.writing("an import"):
        write_atomically(ground.files, path, pieces)
    return entry["first_block"], entry["blocks"], f"{folder.name}/{path.name}", contents


def _copy_tail(ground: Ground, archive: Archive, source: zipfile.ZipFile, folder: Path) -> TailRow:
    entry = archive.manifest["tail"]
    pieces, contents = encode(_tensors(source, entry), pieces=None)
    with ground.health.writing("an import"):
        write_atomically(ground.files, folder / TAIL_FILE, pieces)
    return TailRow(archive.manifest["tokens"], entry["first_block"], contents)
