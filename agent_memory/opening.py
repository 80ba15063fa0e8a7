"""From Settings to a Runtime, or to Histories over one that a whole process shares. Knows these, and nothing else."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any, NamedTuple

import torch

from agent_memory.config import Settings
from agent_memory.history import Histories
from agent_memory.runtime import Runtime
from agent_memory.types import ModelId

_shared: dict[tuple[int, Settings], Histories] = {}
_mutex = threading.Lock()
"""The one thing a process has once: a Session is written by one process at a time, and by one Runtime in it, so wrappers with the same
settings have to find each other, however they were copied. In a forked process it counts as empty."""


class LoadedModel(NamedTuple):
    """A model and its tokenizer, ready to run, and their fingerprint."""

    model: Any
    tokenizer: Any
    model_id: ModelId


def open_runtime(settings: Settings, loaded: LoadedModel | None = None) -> Runtime:
    """Load the model of ``settings`` over their Store.

    Args:
        settings: what the user set.
        loaded: a model that was loaded by these settings already, of another Runtime.

    Raises:
        ModelError: no such model, or one that cannot be attached.
        StoreError: the Store cannot be opened.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    options: dict[str, Any] = {
        "store": settings.store, "method": settings.method, "budget": settings.budget, "window": settings.window,
        "backend": settings.backend, "border": None if settings.border == "off" else settings.border,
        "attention_shares": settings.attention_shares,
    }  # fmt: skip
    if loaded is not None:
        return Runtime(loaded.model, loaded.tokenizer, source=loaded.model_id, **options)
    return Runtime.load(
        settings.model,
        revision=settings.revision,
        gguf_file=settings.gguf_file,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        **options,
    )


def shared_histories(**given: Any) -> tuple[Histories, str]:
    """(Histories, namespace) of ``Settings.load(**given)``: the same Histories for the same settings, whatever the namespace.

    The model is loaded at the first request, once. It stays loaded until ``close``, or the end of the process, which closes it too.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    settings = Settings.load(**given)
    store = settings.store if "://" in settings.store else os.path.abspath(settings.store)
    everyone = settings.model_copy(update={"namespace": "default", "store": store})
    with _mutex:
        found = _shared.get((os.getpid(), everyone))
        if found is None:
            found = _shared[os.getpid(), everyone] = Histories(lambda: open_runtime(everyone))
            atexit.register(found.close)
        return found, settings.namespace
