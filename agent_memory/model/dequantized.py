"""Dequantised copies of GGUF files, made once and kept in the user's cache folder: safetensors in fp32, and the tokenizer.

Knows transformers' loader of GGUF files, which takes half a minute for a small model, and nothing of who runs the copy. A copy is named
by the hash of what it was made from, so a file may move, and a copy appears whole or not at all.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from agent_memory.errors import ConfigError, ModelNotFound, UnsupportedModel, first_line
from agent_memory.model import gguf_files
from agent_memory.model.attach import inspect
from agent_memory.model.progress import Bar, progress_bar, quiet
from agent_memory.user_folders import cache_folder

TOKENIZER_FILES = (
    "merges.txt",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files beside a GGUF file that transformers may take the tokenizer from, before what the GGUF file itself says."""

_MODEL = "model.gguf"
_TOLD = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told what is missing or of another shape, instead of warned
_CONTENTS = "copy-of.json"
_PARTIAL = "partial-"
_HINT = "make room, or name another cache folder with XDG_CACHE_HOME"


@dataclass(frozen=True, slots=True)
class _Source:
    """What a copy is made from: a GGUF file as it was named, all its parts, and the tokenizer files beside it."""

    file: Path
    parts: tuple[Path, ...]
    extras: tuple[Path, ...]

    def key(self) -> str:
        """The name of the copy: a hash of the contents of all these files, which are read for it each time."""
        names = [*(f"part {number}" for number in range(len(self.parts))), *(extra.name for extra in self.extras)]
        try:
            hashes = [_sha256(file) for file in (*self.parts, *self.extras)]
        except OSError as error:
            raise ModelNotFound(f"{str(self.file)!r} cannot be read: {first_line(error)}") from error
        contents = "".join(f"{digest}  {name}\n" for digest, name in zip(hashes, names, strict=True))
        return hashlib.sha256(contents.encode()).hexdigest()


def dequantized(file: Path, beside: Path) -> Path:
    """The folder of the dequantised copy of a GGUF file, which is made if there is none yet.

    Args:
        file: the GGUF file; of a split model, any of its parts.
        beside: the folder whose ``TOKENIZER_FILES`` count.

    Raises:
        ModelNotFound: no such file, or a part of a split model is missing.
        UnsupportedModel: it is damaged, transformers cannot load it, or its attention cannot be attached.
        ConfigError: the package ``gguf`` is missing, or there is no cache folder, or no room in it for the copy.
    """
    extras = tuple(beside / name for name in TOKENIZER_FILES if (beside / name).is_file())
    source = _Source(file, gguf_files.parts_of(file), extras)
    folder = cache_folder() / "gguf" / source.key()
    if not _is_whole(folder):
        with progress_bar(f"dequantising {file.name}, once") as bar, _alone(folder.parent), bar.of_transformers():
            if not _is_whole(folder):  # another process may have made it while this one waited
                _make(folder, source, bar)
    return folder


def tokenizer_of(folder: str) -> type[Any]:
    """What loads the tokenizer of a model's folder or hub id. That of a copy is taken as it was written: for some architectures
    ``AutoTokenizer`` would make one of its own rules from the vocabulary, whatever the GGUF file said."""
    return PreTrainedTokenizerFast if Path(folder, _CONTENTS).is_file() else AutoTokenizer


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether the copy is there with every file in the length it was written in."""
    try:
        sizes = json.loads((folder / _CONTENTS).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One copy is made at a time, by one thread of one process; what a killed process left half-written is taken away."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / "lock")
        lock.acquire()
    except OSError as error:
        raise _cannot_write(root, error) from error
    try:
        for leftover in root.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _make(folder: Path, source: _Source, bar: Bar) -> None:
    """Make the copy in a folder beside, and give it its name when it is whole."""
    root, readers = folder.parent, gguf_files.read(source.parts)
    size = _check_room(root, source.file, readers)
    try:
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=root) as scratch:
            alone, made = Path(scratch, "alone"), Path(scratch, "made")
            _set_apart(source, readers, alone)
            del readers
            model, tokenizer = _load(alone, source.file)
            if source.key() != folder.name:
                raise UnsupportedModel(f"{str(source.file)!r} changed while it was read; load it again when it is whole")
            bar.say(f"writing the dequantised {source.file.name}")
            _save(model, tokenizer, made)
            _seal(made, source.file)
            if folder.exists():  # damaged
                folder.rename(Path(scratch, "damaged"))
            made.rename(folder)
            _fsync(root)
    except OSError as error:
        raise _cannot_write(root, error, size) from error


def _set_apart(source: _Source, readers: list[Any], folder: Path) -> None:
    """A folder with the file and what counts beside it, and nothing else that transformers would look at."""
    folder.mkdir()
    for extra in source.extras:
        (folder / extra.name).symlink_to(extra.resolve())
    if len(source.parts) == 1:
        (folder / _MODEL).symlink_to(source.file.resolve())
    else:
        gguf_files.join(readers, folder / _MODEL)


def _check_room(root: Path, file: Path, readers: list[Any]) -> int:
    """Bytes the copy takes, and while it is made the joined parts; ConfigError if there are not as many."""
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    size = torch.float32.itemsize * sum(int(tensor.n_elements) for tensor in tensors)
    if len(readers) > 1:
        size += sum(int(tensor.n_bytes) for tensor in tensors)
    free = shutil.disk_usage(root).free
    if size > free:
        raise ConfigError(
            f"no room for the dequantised copy of {str(file)!r}: it takes {size:,} bytes, and {str(root)!r} has {free:,}; {_HINT}"
        )
    return size


def _load(folder: Path, file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_MODEL)
            loader: Any = AutoModelForCausalLM
            model, found = loader.from_pretrained(folder, gguf_file=_MODEL, dtype=torch.float32, **_TOLD)
    except ImportError as error:
        raise ConfigError(f"{str(file)!r} needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:  # whatever a file that says it is a model makes of transformers' loader
        line = first_line(error).replace(str(folder / _MODEL), file.name)
        raise UnsupportedModel(f"{str(file)!r} cannot be loaded: {line}") from error
    unlike = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if unlike:  # transformers would make them up
        raise UnsupportedModel(f"{str(file)!r} lacks {len(unlike)} tensors of a {type(model).__name__} of its shape, such as {unlike[0]!r}")
    report = inspect(model)
    if not report.ok:
        raise UnsupportedModel(f"{str(file)!r}: {report.model} cannot be attached: {report.reason}")
    return model, tokenizer


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write both as a folder for ``from_pretrained``. transformers saves no model that came from a GGUF file, whatever became of its
    weights, so a model of the same class and config takes them over."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    try:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors and tokenizers raise errors of their own where the disk is full
        raise OSError(first_line(error)) from error


def _seal(made: Path, file: Path) -> None:
    """Wait until the copy is on the disk, and write down what belongs to it."""
    sizes = {path.name: path.stat().st_size for path in made.iterdir()}
    (made / _CONTENTS).write_text(json.dumps({"copy of": str(file.resolve()), "files": sizes}, indent=2))
    for path in (*made.iterdir(), made):
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(root: Path, error: OSError, size: int | None = None) -> ConfigError:
    takes = "" if size is None else f", which takes {size:,} bytes,"
    return ConfigError(f"the dequantised copy{takes} cannot be written to {str(root)!r}: {error.strerror or first_line(error)}; {_HINT}")
