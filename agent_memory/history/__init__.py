"""For clients that hand over a whole history each time: which of its messages a Session does not hold yet.

Knows Sessions and messages; nothing of any client. A history that was edited becomes a branch; nothing is ever overwritten.
"""

from agent_memory.history.asynchronous import in_one_thread
from agent_memory.history.counting import count_tokens
from agent_memory.history.histories import Histories
from agent_memory.history.records import Delta, Given, OnTrim, Reply, Request

__all__ = ["Delta", "Given", "Histories", "OnTrim", "Reply", "Request", "count_tokens", "in_one_thread"]
