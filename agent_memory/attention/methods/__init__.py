"""The named methods, one file each: which keys take part, and at which positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_memory_kernels import operations

from .base import Given, Method, Recipe, Sizes, derive_sizes
from .dual_chunk import DCA, DCA_CODE
from .full import Full
from .infllm import InfLLM
from .reattention import ReAttention
from .recall import Recall
from .rerope import LeakyReRoPE, ReRoPE
from .self_extend import SelfExtend
from .spec import make, read
from .streaming import Streaming
from .string import String

__all__ = ["METHODS", "Given", "Method", "Recipe", "Sizes", "check_spec", "derive_sizes", "make_method"]

METHODS: dict[str, Recipe] = {
    "dca": DCA,
    "dca-code": DCA_CODE,
    "full": Full(),
    "infllm": InfLLM(),
    "infllm-16k": InfLLM(local=4096, block=128, topk=96, init=128, group=512),
    "infllm-8k": InfLLM(local=4096, block=128, topk=32, init=128, group=512),
    "infllm-repo": InfLLM(local=4096, block=128, topk=16, init=128, group=512),
    "leaky_rerope": LeakyReRoPE(),
    "reattention": ReAttention(),
    "reattention-16k": ReAttention(sink=32, k=4, span=32, local=8192, clip=256, group=512),
    "reattention-8k": ReAttention(sink=32, k=4, span=32, local=4096, clip=127, group=512),
    "recall": Recall(),
    "rerope": ReRoPE(),
    "self_extend": SelfExtend(),
    "streaming": Streaming(),
    "string": String(),
}
"""Recipes by name. A plain name derives what it needs from the trained window; one with a suffix is a paper's own preset."""


def check_spec(spec: str) -> None:
    """Raise ``ConfigError`` for a line that names no method or option, before any model is loaded."""
    read(spec, METHODS)


def make_method(
    spec: str,
    window: int,
    head: int = 0,
    *,
    choosers: frozenset[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    backend: str = "auto",
) -> Method:
    """Make a method for a model's trained window.

    Args:
        spec: a name of :data:`METHODS`, with options (``rerope:window=128``), or a selection and a map (``recall+rerope``).
        window: trained window in tokens.
        head: tokens of system prompt and tool schemas.
        choosers: layers that choose for ``recall``; None is all.
        settings: options of ``recall`` that a checkpoint names; what ``spec`` says comes first.
        backend: kernel implementation.

    Raises:
        ConfigError: no such method or option, or a value the window does not allow.
    """
    return make(spec, METHODS, Given(window, head, operations(backend), choosers, settings or {}))
