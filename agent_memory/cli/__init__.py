"""The command ``agent-memory``.

Knows how to ask, print and fail on a terminal; what the commands do lives in the rooms they call. Rooms that need torch are
imported inside the commands that need them, so that looking at a Store starts fast.
"""

from agent_memory.cli.main import app, main

__all__ = ["app", "main"]
