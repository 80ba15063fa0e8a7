"""Segment files: how tensors of consecutive Blocks become one safetensors file, and what its row in the index says of it.

Knows bytes, offsets and checksums; nothing of turns or descriptors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from agent_memory.errors import StoreCorrupt
from agent_memory.store.files import Buffer

DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
"""Bytes of one element, by safetensors dtype name."""


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """A tensor as bytes: safetensors dtype name (``"F32"``, ``"BF16"``, ``"I8"``), shape, and its C-contiguous data.

    In a Segment the leading dimension is the number of Blocks.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies in its file: ``sums[i]`` is the xxh3 of its ``i``-th piece of ``piece_bytes`` bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    piece_bytes: int
    sums: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds, by its row: its size, its header's size and xxh3 (for ``verify``), and its tensors."""

    size: int
    header_bytes: int
    header_sum: int
    places: Mapping[str, Place]


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One Segment as the index knows it: Blocks ``[first_block, first_block + blocks)`` in ``file`` (``folder/name``)."""

    session_id: int
    first_block: int
    blocks: int
    file: str
    contents: Contents

    @property
    def places(self) -> Mapping[str, Place]:
        """Where each tensor lies."""
        return self.contents.places

    @property
    def stop(self) -> int:
        """Index after the last Block."""
        return self.first_block + self.blocks

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors."""
        return tuple(self.places)

    def cut(self, first: int, stop: int) -> SegmentRow:
        """The same file seen as Blocks ``[first, stop)`` only, clipped to those it holds."""
        first, stop = max(first, self.first_block), min(stop, self.stop)
        if (first, stop) == (self.first_block, self.stop):
            return self
        skip, blocks = first - self.first_block, stop - first
        places = {
            name: replace(
                place,
                shape=(blocks, *place.shape[1:]),
                offset=place.offset + skip * place.piece_bytes,
                sums=place.sums[skip : skip + blocks],
            )
            for name, place in self.places.items()
        }
        return replace(self, first_block=first, blocks=blocks, contents=replace(self.contents, places=places))


def checksum(data: Buffer) -> int:
    """xxh3 of the bytes, 64 bits."""
    return xxhash.xxh3_64_intdigest(memoryview(data))


def signed_checksum(data: Buffer) -> int:
    """The same as SQLite keeps it: a signed integer."""
    return int.from_bytes(checksum(data).to_bytes(8, "little"), "little", signed=True)


def encode(tensors: Mapping[str, TensorBytes], *, pieces: int | None) -> tuple[list[Buffer], Contents]:
    """Bytes of a safetensors file, in pieces, and what its row says of them.

    ``pieces`` is the leading dimension all tensors must have, with one checksum for each; None makes one checksum for each tensor.
    Raises ValueError for a tensor whose bytes are not what its dtype and shape say.
    """
    order = sorted(tensors, key=lambda name: (-_dtype_bytes(name, tensors[name].dtype), name))
    views = {name: _checked_view(name, tensors[name], pieces) for name in order}
    header: dict[str, object] = {}
    position = 0
    for name in order:
        end = position + views[name].nbytes
        header[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    head = len(encoded).to_bytes(8, "little") + encoded
    places: dict[str, Place] = {}
    offset = len(head)
    for name in order:
        tensor, view = tensors[name], views[name]
        piece_bytes = view.nbytes // pieces if pieces else view.nbytes
        places[name] = Place(tensor.dtype, tuple(tensor.shape), offset, piece_bytes, _sums(view, pieces or 1, piece_bytes))
        offset += view.nbytes
    return [head, *views.values()], Contents(offset, len(head), signed_checksum(head), places)


def contents_to_columns(contents: Contents) -> dict[str, Any]:
    """The columns that keep ``contents``: ``places`` is JSON of ``{name: [dtype, shape, offset]}``, ``sums`` all sums in that order."""
    places = contents.places
    described = {name: [place.dtype, list(place.shape), place.offset] for name, place in places.items()}
    return {
        "size": contents.size,
        "header_bytes": contents.header_bytes,
        "header_sum": contents.header_sum,
        "places": json.dumps(described, separators=(",", ":")),
        "sums": b"".join(place.sums.astype("<u8").tobytes() for place in places.values()),
    }


def contents_from_columns(row: Any, *, pieces: int | None) -> Contents:
    """Inverse of ``contents_to_columns``; StoreCorrupt if the columns do not fit together."""
    count = 1 if pieces is None else pieces
    try:
        every_sum = np.frombuffer(row.sums, dtype="<u8")
        described = json.loads(row.places)
        if type(row.header_bytes) is not int or type(row.size) is not int or not 0 <= row.header_bytes <= row.size:
            raise ValueError("the header does not fit")
        if len(every_sum) != count * len(described) or not described:
            raise ValueError("sizes do not fit")
        places = {
            name: _place(dtype, shape, offset, row.size, every_sum[position * count : (position + 1) * count].astype(np.uint64), pieces)
            for position, (name, (dtype, shape, offset)) in enumerate(described.items())
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(
            f"what the index says of the file {getattr(row, 'file', 'of the tail')!r} does not fit together; run verify"
        ) from error
    return Contents(row.size, row.header_bytes, row.header_sum, places)


def _place(dtype: str, shape: list[int], offset: int, size: int, sums: NDArray[np.uint64], pieces: int | None) -> Place:
    """Where a tensor lies in a file of ``size`` bytes; ValueError or TypeError for what cannot be."""
    if pieces is not None and shape[:1] != [pieces]:
        raise ValueError("a tensor is of another number of Blocks")
    if not all(type(number) is int and number >= 0 for number in (*shape, offset, size)) or dtype not in DTYPE_BYTES:
        raise ValueError("no tensor has such a shape")
    total = math.prod(shape) * DTYPE_BYTES[dtype]
    if total % len(sums) or offset > size - total:
        raise ValueError("a tensor leads out of its file")
    return Place(dtype, tuple(shape), offset, total // len(sums), sums)


def _dtype_bytes(name: str, dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"tensor {name!r} has dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]


def _checked_view(name: str, tensor: TensorBytes, pieces: int | None) -> memoryview:
    wanted = math.prod(tensor.shape) * DTYPE_BYTES[tensor.dtype]
    raw = memoryview(tensor.data)  # type: ignore[arg-type]  # numpy arrays have the buffer protocol
    if raw.nbytes != wanted:
        raise ValueError(f"tensor {name!r} has {raw.nbytes} bytes, its dtype and shape say {wanted}")
    if pieces is not None and (not tensor.shape or tensor.shape[0] != pieces):
        raise ValueError(f"tensor {name!r} has shape {tensor.shape}, the leading dimension must be the {pieces} Blocks of the Segment")
    return raw.cast("B") if wanted else memoryview(b"")


def _sums(view: memoryview, pieces: int, piece_bytes: int) -> NDArray[np.uint64]:
    parts = (view[i * piece_bytes : (i + 1) * piece_bytes] for i in range(pieces))
    return np.fromiter((checksum(part) for part in parts), dtype=np.uint64, count=pieces)
