"""Loading a model and its tokenizer from wherever a user says they are.

Knows ``from_pretrained`` and its failures; nothing of attention. Weights are read from safetensors only; those of a GGUF file are
dequantised into such a folder first.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from agent_memory.errors import ConfigError, ModelNotFound, UnsupportedModel, first_line
from agent_memory.given import without_credentials
from agent_memory.model.dequantized import tokenizer_of
from agent_memory.model.locate import locate
from agent_memory.model.progress import bars_on_a_terminal


def load(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and tokenizer at ``source``, ready to run (eval mode).

    Args:
        source, gguf_file, revision: as :func:`.locate.locate` takes them.
        dtype: ``"bfloat16"`` and the like; None takes the checkpoint's own.
        device_map: as in ``from_pretrained``; None puts the model on the CPU.
        trust_remote_code: run code that lies beside the weights. Off unless you know it.
        options: further keywords of the model's ``from_pretrained``.

    Raises:
        ModelNotFound: nothing at that path or id, or it cannot be fetched.
        UnsupportedModel: something is there that transformers cannot load.
        ConfigError: a dtype or device_map that cannot be used, or a GGUF file that there is no room or no package for.
    """
    kind = _dtype(dtype)
    place = locate(source, gguf_file=gguf_file, revision=revision)
    shared = {"revision": "main" if revision is None else revision, "trust_remote_code": trust_remote_code}
    weights = {"dtype": kind, "device_map": device_map, "use_safetensors": True, **options}
    try:
        with bars_on_a_terminal():
            tokenizer = tokenizer_of(place).from_pretrained(place, **shared)
            model = AutoModelForCausalLM.from_pretrained(place, **shared, **weights)
    except ImportError as error:
        raise ConfigError(f"{place!r} needs a package that is not installed: {first_line(error)}") from error
    except OSError as error:
        raise ModelNotFound(without_credentials(f"no model found at {place!r}: {first_line(error)}")) from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(without_credentials(f"{place!r} cannot be loaded: {first_line(error)}")) from error
    return model, tokenizer


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype or "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} is no floating point type of torch; use 'auto', 'float32', 'bfloat16' or 'float16'")
    return found
