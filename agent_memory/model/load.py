"""Loading a model and its tokenizer from a folder or the hub.

Knows ``from_pretrained`` and its failures; nothing of attention. Weights are read from safetensors only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from agent_memory.errors import ConfigError, ModelNotFound, UnsupportedModel


def load(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and tokenizer at ``source``, ready to run (eval mode).

    Args:
        source: a folder, or a hub id such as ``"Qwen/Qwen3-4B"``.
        revision: branch, tag or commit on the hub.
        dtype: ``"bfloat16"`` and the like; None takes the checkpoint's own.
        device_map: as in ``from_pretrained``; None puts the model on the CPU.
        trust_remote_code: run code that lies beside the weights. Off unless you know it.
        options: further keywords of the model's ``from_pretrained``.

    Raises:
        ModelNotFound: nothing at that path or id, or the hub cannot be reached.
        UnsupportedModel: something is there that transformers cannot load.
        ConfigError: a dtype or device_map that cannot be used.
    """
    place, kind = _place(source), _dtype(dtype)
    shared = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    weights = {"dtype": kind, "device_map": device_map, "use_safetensors": True, **options}
    try:
        with _bar_on_a_terminal():
            tokenizer = AutoTokenizer.from_pretrained(place, **shared)
            model = AutoModelForCausalLM.from_pretrained(place, **shared, **weights)
    except ImportError as error:
        raise ConfigError(f"{place!r} needs a package that is not installed: {_line(error)}") from error
    except OSError as error:
        raise ModelNotFound(f"no model found at {place!r}: {_line(error)}") from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(f"{place!r} cannot be loaded: {_line(error)}") from error
    return model, tokenizer


@contextmanager
def _bar_on_a_terminal() -> Iterator[None]:
    """transformers draws its progress bar wherever standard error goes; in a log or a notebook it is in the way."""
    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _place(source: str | os.PathLike[str]) -> str:
    """The folder's full path, or the hub id as it is."""
    text = os.fspath(source)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"the folder {text!r} holds no config.json, so it is no model; give the folder save_pretrained() wrote")
        return str(folder)
    if isinstance(source, os.PathLike) or text.startswith((".", "/", "~")) or text.count("/") != 1 and "/" in text or not text.strip():
        raise ModelNotFound(f"no folder at {text!r}; give an existing folder, or a hub id such as 'Qwen/Qwen3-4B'")
    return text


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} is no floating point type of torch; use 'auto', 'float32', 'bfloat16' or 'float16'")
    return found


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
