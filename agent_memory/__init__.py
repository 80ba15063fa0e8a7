"""The public names of this package, each loaded from its room on first use.

Knows where the names live and nothing else: importing it is cheap and does not import torch. Errors are in ``agent_memory.errors``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.config import Settings
    from agent_memory.errors import AgentMemoryError
    from agent_memory.runtime import Runtime
    from agent_memory.session import Session
    from agent_memory.store.store import Store
    from agent_memory.tools import Tool, tool
    from agent_memory.types import Budget, Message, Recall, RecalledTurn, Receipt, ReplyFormat, Sampling, Turn

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentMemoryError",
    "Budget",
    "Message",
    "Recall",
    "RecalledTurn",
    "Receipt",
    "ReplyFormat",
    "Runtime",
    "Sampling",
    "Session",
    "Settings",
    "Store",
    "Tool",
    "Turn",
    "__version__",
    "tool",
]

_ROOMS = {
    "agent": ("Agent",),
    "config": ("Settings",),
    "errors": ("AgentMemoryError",),
    "runtime": ("Runtime",),
    "session": ("Session",),
    "store.store": ("Store",),
    "tools": ("Tool", "tool"),
    "types": ("Budget", "Message", "Recall", "RecalledTurn", "Receipt", "ReplyFormat", "Sampling", "Turn"),
}


def __getattr__(name: str) -> object:
    for room, names in _ROOMS.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{room}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
