"""A LangChain language model (text in, text out) whose prompts are remembered.

Knows LangChain's plain interface. Each prompt is one new user turn of the Session; there is no history to send.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LLM
from langchain_core.outputs import GenerationChunk
from pydantic import Field, PrivateAttr

from agent_memory.types import Message, Sampling

if TYPE_CHECKING:
    from agent_memory.history import Histories


class AgentMemoryLLM(LLM):
    """A language model that remembers every prompt of its Session.

    Attributes:
        session_id: Session to talk in, unless a call names one; None is a Session that is deleted after the call.
        model: local folder or hub id; None is the pocket model. ``store``, ``namespace`` and ``method`` as in Settings.
        options: further Settings, such as ``{"device": "8GiB"}``.
        max_tokens: longest reply.
        temperature: 0 is greedy.
    """

    session_id: str | None = None
    model: str | None = None
    store: str | None = None
    namespace: str | None = None
    method: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int = 256
    temperature: float = 0.0
    cache: bool | None = False
    _histories: Histories | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "agent-memory"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "namespace", "method", "session_id", "max_tokens", "temperature")}

    def close(self) -> None:
        """Close its Sessions and its model; the next call opens them again."""
        if self._histories is not None:
            self._histories.close()

    def _call(self, prompt: str, stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any) -> str:
        return "".join(chunk.text for chunk in self._stream(prompt, stop, run_manager, **kwargs))

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: CallbackManagerForLLMRun | None = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        from agent_memory.history import Request

        request = Request(
            session=kwargs.get("session_id", self.session_id),
            messages=[Message("user", prompt)],
            given="new",
            max_new_tokens=kwargs.get("max_tokens", self.max_tokens),
            sampling=Sampling(temperature=kwargs.get("temperature", self.temperature)),
            stop=stop or (),
        )
        for piece in self._open().stream(request):
            if run_manager is not None:
                run_manager.on_llm_new_token(piece)
            yield GenerationChunk(text=piece)

    def _open(self) -> Histories:
        if self._histories is None:
            from agent_memory.opening import open_histories

            given = {"model": self.model, "store": self.store, "namespace": self.namespace, "method": self.method}
            self._histories = open_histories(**given, **self.options)
        return self._histories
