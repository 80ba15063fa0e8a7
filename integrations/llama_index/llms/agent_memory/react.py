"""What ReAct agents of LlamaIndex make of a reply, and the way back to the reply.

Knows their reasoning steps; nothing of Sessions. Such an agent parses what the model wrote and sends back its own writing of it, and
at the end of a run one message in which all steps and observations are joined. Taken as they come, these would be another history; a
step that was thrown away (an agent tries again where it cannot read the model) is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llama_index.core.agent.react.output_parser import ReActOutputParser

from agent_memory.chat.hashing import what_counts
from agent_memory.types import Message

_STEP, _OBSERVATION = "Thought: ", "Observation: "


def has_steps(messages: Sequence[Message]) -> bool:
    """Whether a ReAct agent may have written some of the messages."""
    return any(_is_step(message) for message in messages)


def as_remembered(messages: Sequence[Message], memories: Iterable[Sequence[Message]]) -> list[Message]:
    """``messages`` with their steps as that one of ``memories`` has them which agrees longest."""
    found = [_follow(messages, memory) for memory in memories]
    return max(found, key=lambda one: one[0], default=(0, list(messages)))[1]


def _follow(messages: Sequence[Message], memory: Sequence[Message]) -> tuple[int, list[Message]]:
    """(messages that agree with a memory, all of them with its words for those)."""
    at, said = 0, list[Message]()
    for number, message in enumerate(messages):
        stop = _steps(message, memory, at) if _is_step(message) else None
        if stop is None:
            if at >= len(memory) or what_counts(message) != what_counts(memory[at]):
                return number, [*said, *messages[number:]]
            stop = at + 1
        said += memory[at:stop]
        at = stop
    return len(messages), said


def _steps(message: Message, memory: Sequence[Message], start: int) -> int | None:
    """Where in a memory those messages end that joined together are ``message``; None if they are not."""
    left = message.content
    for at in range(start, len(memory)):
        form = _form(memory[at])
        if form is None:
            return None
        if left.strip() == form.strip():
            return at + 1
        if not left.startswith(form + "\n"):
            return None
        left = left[len(form) + 1 :]
    return None


def _form(message: Message) -> str | None:
    """How the agent writes what the model wrote, or an observation; None if it is neither."""
    if message.role != "assistant":
        return message.content if message.content.startswith(_OBSERVATION) else None
    try:
        return ReActOutputParser().parse(message.content).get_content()
    except ValueError:
        return None


def _is_step(message: Message) -> bool:
    return message.role == "assistant" and message.content.startswith(_STEP)
