"""LlamaIndex's memory of an agent, kept in a Session. Knows LlamaIndex's interface of a memory; what is on disk is the model's matter."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, SerializeAsAny, field_validator, model_validator
from llama_index.core.memory import BaseMemory
from llama_index.llms.agent_memory.base import AgentMemory, AgentMemoryCustomLLM
from llama_index.llms.agent_memory.conversing import ConversingLLM
from llama_index.llms.agent_memory.messages import to_messages

from agent_memory.connection import session_named, tenant_named
from agent_memory.errors import ConfigError

_MODELS: Mapping[str, type[ConversingLLM]] = {model.class_name(): model for model in (AgentMemory, AgentMemoryCustomLLM)}
_first_use = threading.Lock()
"""Held while a buffer takes over what it read; a lock in each buffer could not be copied with it."""


class AgentMemoryBuffer(BaseMemory):
    """A memory that never trims, and is there again after a restart.

    Give agents its :attr:`llm`, which talks in the same Session, and each run ``memory=``: a workflow's Context does not keep memories.

    It begins with the conversation that the Session holds (that of the branch which holds most). What is put is held in this process
    until the model is asked; then it is in the Session, before the reply begins. So what an agent's model has read or written survives
    anything; what was put and no model was asked about yet (at the end of a run only the output of a tool that returns directly) does not.

    Messages that are put have to go on with what is there; :meth:`set` replaces them here, and at the next request what differs becomes
    a branch of the Session.

    Attributes:
        llm: the model that is asked; here it talks in ``session_id``.
        session_id: name of the Session.
        namespace: tenant; None is the model's own.
    """

    model_config = ConfigDict(extra="forbid")

    llm: SerializeAsAny[ConversingLLM]
    session_id: str = Field(min_length=1)
    namespace: str | None = None
    _messages: list[ChatMessage] | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised configurations."""
        return "AgentMemoryBuffer"

    @classmethod
    def from_defaults(
        cls,
        llm: Any = None,
        session_id: str | None = None,
        namespace: str | None = None,
        chat_history: Sequence[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> AgentMemoryBuffer:
        """A memory in a Session.

        Args:
            llm: an ``AgentMemory``; by default one with the pocket model.
            session_id: name of the Session; by default that of ``llm``.
            namespace: tenant; by default that of ``llm``.
            chat_history: messages to begin with, in the place of those in the Session.
            kwargs: none; memories that trim have a ``token_limit`` and the like.

        Raises:
            ConfigError: another kind of model, no name for the Session, or an argument there is not.
            InvalidName: a name that cannot be; an empty one cannot.
        """
        if kwargs:
            raise ConfigError(f"{cls.__name__} has no {next(iter(kwargs))!r}: it holds every message")
        llm = AgentMemory() if llm is None else llm
        if not isinstance(llm, ConversingLLM):
            raise ConfigError(f"{cls.__name__} needs an AgentMemory, whose Session it is kept in, not {type(llm).__name__}")
        name = llm.session_id if session_id is None else session_named(session_id)
        if name is None:
            raise ConfigError(f"{cls.__name__} needs a session_id, under which it is found again")
        memory = cls(llm=llm, session_id=name, namespace=llm.namespace if namespace is None else tenant_named(namespace, namespace))
        if chat_history is not None:
            memory.set(list(chat_history))
        return memory

    @field_validator("llm", mode="before")
    @classmethod
    def _from_dict(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("class_name") in _MODELS:
            return _MODELS[given["class_name"]].from_dict(dict(given))
        return given

    @model_validator(mode="after")
    def _in_session(self) -> AgentMemoryBuffer:
        if (self.llm.session_id, self.llm.namespace) != (self.session_id, self.namespace):
            self.llm = self.llm.with_session(self.session_id, self.namespace)
        return self

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Every message, whatever the arguments. Loads the model at first use."""
        return self.get_all()

    def get_all(self) -> list[ChatMessage]:
        """Every message. They are those that were put, not copies: what an agent writes into them is what its model reads."""
        return list(self._held())

    def put(self, message: ChatMessage) -> None:
        """Add a message.

        Raises:
            ConfigError: content that is not text; every later request would fail of it.
        """
        to_messages([message])
        self._held().append(message)

    def set(self, messages: list[ChatMessage]) -> None:
        """Let these be the messages.

        Raises:
            ConfigError: content that is not text.
        """
        to_messages(messages)
        self._messages = list(messages)

    def reset(self) -> None:
        """Forget everything: the messages, and the Session with its branches."""
        self.llm.delete_session(self.session_id, self.namespace)
        self._messages = []

    def _held(self) -> list[ChatMessage]:
        if self._messages is None:
            found = self.llm.session_messages()
            with _first_use:
                if self._messages is None:
                    self._messages = found
        return self._messages
