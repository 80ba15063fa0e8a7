"""From Settings to a Runtime, or to Histories over one. Knows these, and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from agent_memory.config import Settings
from agent_memory.history import Histories
from agent_memory.runtime import Runtime


def open_runtime(settings: Settings) -> Runtime:
    """Load the model of ``settings`` over their Store.

    Raises:
        ModelError: no such model, or one that cannot be attached.
        StoreError: the Store cannot be opened.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Runtime.load(
        settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        store=settings.store,
        method=settings.method,
        budget=settings.budget,
        window=settings.window,
        backend=settings.backend,
        border=None if settings.border == "off" else settings.border,
    )


def open_histories(**given: Any) -> Histories:
    """Histories over the Runtime of ``Settings.load(**given)``, which is loaded at the first request.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    settings = Settings.load(**given)
    return Histories(lambda: open_runtime(settings), settings.namespace)
