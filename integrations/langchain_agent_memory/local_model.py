"""What both LangChain models have: the options of a local model with memory, its Sessions, and how a configuration names one.

Knows settings and configurations; nothing of messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from agent_memory.connection import Connection, session_named, tenant_named
from agent_memory.errors import ConfigError, SessionBusy
from agent_memory.given import without_credentials
from agent_memory.types import Sampling

if TYPE_CHECKING:
    from agent_memory.history import Histories, Request

PROVIDER = "agent_memory"

STANDARD = frozenset({"api_key", "base_url", "max_retries", "streaming", "timeout"})
"""Options of models behind a network, which LangChain's users pass to any model; here they mean nothing."""

CALL_OPTIONS = frozenset(
    {
        "session_id", "namespace", "max_tokens", "temperature", "top_p", "top_k", "seed", "model", "stream",
        "tools", "tool_choice", "parallel_tool_calls", "strict", "response_format",
    }
)  # fmt: skip
"""Options of one call."""


class LocalModel(BaseModel):
    """A local model with memory. It is loaded at the first call, once in a process for the same settings.

    Attributes:
        session_id: Session to talk in where neither a call nor a configuration names one; None is one that is deleted after the call.
        model: local folder, GGUF file, hub id, or ``smollm2``; None is the pocket model. ``gguf_file``, ``store``, ``namespace`` and
            ``method`` as in Settings.
        options: further Settings, such as ``{"device": "8GiB", "dtype": "bfloat16"}``.
        max_tokens: longest reply.
        temperature, top_p, top_k, seed: how tokens are chosen; greedy by default.
        stop: strings that end a reply.
        cache: LangChain's cache of answers; one would be given without the Session knowing of it, so it is off.
    """

    model_config = ConfigDict(populate_by_name=True, protected_namespaces=())

    session_id: str | None = None
    model: str | None = Field(default=None, validation_alias=AliasChoices("model", "model_name", "model_id"))
    gguf_file: str | None = None
    store: str | None = None
    namespace: str | None = None
    method: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int = Field(default=256, ge=1, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    cache: Any = False
    _connection: Connection = PrivateAttr(default_factory=Connection)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        """A typing mistake would otherwise be an option that does nothing."""
        known = {name for name in cls.model_fields} | {"model_name", "model_id", "max_new_tokens", "stop_sequences"}
        for name in given if isinstance(given, Mapping) else ():
            if name not in known and name not in STANDARD:
                close = get_close_matches(name, known, 1)
                raise ValueError(f"{cls.__name__} has no option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return given

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """What was configured can be written down; a model or its memory never is."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where LangChain finds the class."""
        return ["langchain_agent_memory"]

    @property
    def model_label(self) -> str:
        """What the model is called in traces and metadata."""
        return "pocket" if self.model is None else str(without_credentials(self.model))

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("gguf_file", "namespace", "method", "session_id", "max_tokens", "temperature", "top_p", "top_k", "seed", "options")
        return {"model": self.model_label, **{name: without_credentials(getattr(self, name)) for name in ("store", *names)}}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain writes down in the place of attributes that hold a password."""
        given = {name: getattr(self, name) for name in ("model", "store", "options")}
        return {name: shown for name, value in given.items() if (shown := without_credentials(value)) != value}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is printed of the model: no password in a URL."""
        return ((name, without_credentials(value)) for name, value in super().__repr_args__())

    def load(self) -> None:
        """Load the model now instead of at the first call: in a server before its event loop starts, which importing torch holds up."""
        _ = self._open()[0].runtime

    def close(self) -> None:
        """Close the model and its Sessions, for all that share them; the next call opens them again."""
        self._connection.close(self._settings)

    def delete_thread(self, thread_id: str, *, namespace: str | None = None) -> None:
        """Forget a conversation with its branches; an unknown one is forgotten already.

        Raises:
            InvalidName: a thread or namespace that cannot be; an empty one cannot.
        """
        name = session_named(thread_id)
        histories, tenant = self._open(namespace)
        histories.delete(name, tenant)

    async def adelete_thread(self, thread_id: str, *, namespace: str | None = None) -> None:
        """:meth:`delete_thread` in a thread."""
        await asyncio.to_thread(self.delete_thread, thread_id, namespace=namespace)

    def copy_thread(self, source_thread_id: str, target_thread_id: str, *, namespace: str | None = None) -> None:
        """Let a new conversation begin as a copy of another, sharing what is on disk.

        Raises:
            SessionExists: there is one of that name.
            InvalidName: a thread or namespace that cannot be; an empty one cannot.
        """
        source, target = session_named(source_thread_id), session_named(target_thread_id)
        histories, tenant = self._open(namespace)
        histories.copy(source, target, tenant)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str, *, namespace: str | None = None) -> None:
        """:meth:`copy_thread` in a thread."""
        await asyncio.to_thread(self.copy_thread, source_thread_id, target_thread_id, namespace=namespace)

    def prune(
        self, thread_ids: Iterable[str], *, strategy: Literal["keep_latest", "delete"] = "keep_latest", namespace: str | None = None
    ) -> None:
        """Of each conversation keep the branch that was written to last, or nothing, as a checkpointer's ``prune`` does.

        Raises:
            SessionBusy: some are in use elsewhere; it names them, and all others were pruned.
        """
        names = [session_named(thread_id) for thread_id in thread_ids]
        histories, tenant = self._open(namespace)
        busy: list[SessionBusy] = []
        for name in names:
            try:
                histories.prune([name], tenant, strategy=strategy)
            except SessionBusy as problem:
                busy.append(problem)
        if busy:
            raise SessionBusy(", ".join(problem.session for problem in busy), busy[0].holder)

    async def aprune(
        self, thread_ids: Iterable[str], *, strategy: Literal["keep_latest", "delete"] = "keep_latest", namespace: str | None = None
    ) -> None:
        """:meth:`prune` in a thread."""
        await asyncio.to_thread(self.prune, thread_ids, strategy=strategy, namespace=namespace)

    def branches(self, thread_id: str, *, namespace: str | None = None) -> list[str]:
        """The Sessions of a conversation: its own, and those where it went another way."""
        name = session_named(thread_id)
        histories, tenant = self._open(namespace)
        return histories.branches(name, tenant)

    def _open(self, namespace: str | None = None) -> tuple[Histories, str]:
        """The Histories, and the namespace that is meant; InvalidName for one that cannot be."""
        tenant_named(namespace, "")  # before anything is opened
        histories, own = self._connection.open(self._settings)
        return histories, tenant_named(namespace, own)

    @property
    def _settings(self) -> dict[str, Any]:
        names = ("model", "gguf_file", "store", "namespace", "method")
        return {**{name: getattr(self, name) for name in names}, **self.options}

    def _asked(self, kwargs: Mapping[str, Any], stop: list[str] | None) -> dict[str, Any]:
        """What a call says beside its messages, as arguments of a Request.

        Raises:
            ConfigError: an option there is not, or another model.
        """
        for name in kwargs:
            if name not in CALL_OPTIONS:
                raise ConfigError(f"a call of {type(self).__name__} has no option {name!r}; it has: {', '.join(sorted(CALL_OPTIONS))}")
        if kwargs.get("model", self.model) != self.model:
            raise ConfigError(f"this is model {self.model_label!r}, not {kwargs['model']!r}; make another {type(self).__name__} for that")
        options = {name: kwargs.get(name, getattr(self, name)) for name in ("temperature", "top_p", "top_k", "seed")}
        return {
            "session": kwargs.get("session_id", self.session_id),
            "namespace": kwargs.get("namespace"),
            "max_new_tokens": kwargs.get("max_tokens", self.max_tokens),
            "sampling": Sampling(**options),
            "stop": stop or self.stop or (),
        }

    def _prepare(self, request: Request) -> tuple[Histories, Request]:
        """The Histories, and the request with the namespace that is meant. Imports torch, so not for an event loop's thread."""
        from dataclasses import replace

        histories, namespace = self._open(request.namespace)
        return histories, replace(request, namespace=namespace)


def with_session(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs`` with the Session and namespace that a configuration names, unless the call names them itself.

    LangChain gives a model no configuration, so this is done where it comes in. ``memory_session`` counts before ``thread_id``; None is
    not given, and an empty name is refused with the request.
    """
    named = ensure_config(config).get("configurable", {})
    session = named.get("thread_id") if named.get("memory_session") is None else named["memory_session"]
    found = {"session_id": session, "namespace": named.get("memory_namespace")}
    return {**{name: str(value) for name, value in found.items() if value is not None}, **kwargs}
