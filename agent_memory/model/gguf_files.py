"""GGUF files: their parts, whether they are whole, and one file of several parts.

Knows the package ``gguf`` (an extra) and file names as llama.cpp writes them; nothing of transformers. GGUF's specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_memory.errors import ConfigError, ModelNotFound, UnsupportedModel, first_line

_MAGIC = b"GGUF"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of the split model that a file's name says it is one of (``NAME-00001-of-00003.gguf``), in their order; of
    any other file its own."""
    found = _PART.fullmatch(name)
    if not found or not 1 <= int(found["number"]) <= int(found["count"]):
        return (name,)
    return tuple(f"{found['stem']}-{number + 1:05}-of-{found['count']}.gguf" for number in range(int(found["count"])))


def parts_of(file: Path) -> tuple[Path, ...]:
    """``file``, or all parts of the split model that its name says it is one of.

    Raises:
        ModelNotFound: a part is missing or cannot be read.
        UnsupportedModel: a part does not begin as a GGUF file does.
    """
    parts = tuple(file.with_name(name) for name in part_names(file.name))
    for part in parts:
        _check_begins(part)
    return parts


def _check_begins(part: Path) -> None:
    try:
        with part.open("rb") as file:
            begins = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise ModelNotFound(f"no GGUF file at {str(part)!r}") from error
    except OSError as error:
        raise ModelNotFound(f"{str(part)!r} cannot be read: {error.strerror}") from error
    if begins != _MAGIC:
        raise UnsupportedModel(f"{str(part)!r} is no GGUF file: it begins with {begins!r} instead of {_MAGIC!r}")


def read(parts: Sequence[Path]) -> list[Any]:
    """A ``gguf.GGUFReader`` of each part; tensors are mapped, not loaded.

    Raises:
        ConfigError: the package ``gguf`` is not installed.
        UnsupportedModel: a part is damaged, cut off, or one of several without its name saying so.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError("a GGUF file is read with the package gguf: pip install 'agent-kv-memory[gguf]'") from error

    class Reader(GGUFReader):
        """One that ends where the file does; the library's own makes tensors and texts of what is not there."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            stop = int(offset) + np.dtype(dtype).itemsize * int(count)
            if stop > self.data.size:
                raise EOFError(f"it has {self.data.size:,} bytes of at least {stop:,}, so it was cut off, or is damaged")
            return super()._get(offset, dtype, count, override_order)

    return [_read(part, len(parts), Reader) for part in parts]


def _read(part: Path, count: int, reader: type[Any]) -> Any:
    try:
        made = reader(part)
        field = made.get_field("split.count")
        announced = 1 if field is None else int(field.contents())
    except Exception as error:  # whatever a damaged file makes of the library
        raise UnsupportedModel(f"{str(part)!r} cannot be read as a GGUF file: {first_line(error)}") from error
    if announced not in (0, count):
        raise UnsupportedModel(
            f"{str(part)!r} is one of {announced} parts of a model; keep all in one folder, named as NAME-00001-of-{announced:05}.gguf"
        )
    return made


def join(readers: Sequence[Any], target: Path) -> None:
    """Write the parts of a split model as one file: the metadata of the first, and the tensors of all.

    Raises:
        UnsupportedModel: two parts hold a tensor of the same name.
        OSError: it cannot be written.
    """
    from gguf import GGUFValueType, GGUFWriter

    first = readers[0]
    tensors = [(reader, tensor) for reader in readers for tensor in reader.tensors]
    writer = GGUFWriter(target, arch=first.get_field("general.architecture").contents(), endianess=first.endianess)
    writer.data_alignment = first.alignment
    with contextlib.closing(writer):
        for field in first.fields.values():
            if field.name == "general.architecture" or field.name.startswith(("GGUF.", "split.")) or not field.data:
                continue
            of_items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of_items)
        try:
            for _, tensor in tensors:
                writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
        except ValueError as error:
            raise UnsupportedModel(f"the parts of the model do not belong together: {first_line(error)}") from error
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for reader, tensor in tensors:
            writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
