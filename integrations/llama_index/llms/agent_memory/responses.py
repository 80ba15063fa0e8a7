"""Replies as LlamaIndex's responses, whole and while they are made. Knows both shapes; nothing of models or Sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, ToolCallBlock
from llama_index.llms.agent_memory.messages import answer, call_blocks

if TYPE_CHECKING:
    from agent_memory.history import Delta, Reply


class GrowingReply:
    """Makes the responses of one reply that is streamed."""

    def __init__(self) -> None:
        self._text, self._thought, self._calls = "", "", dict[int, ToolCallBlock]()

    def of(self, piece: Delta | Reply) -> ChatResponse:
        """The response after one piece. The last piece is the Reply: with it calls get their ids, and usage comes."""
        from agent_memory.history import Reply

        if isinstance(piece, Reply):
            whole = finished(piece)
            text = piece.message.content
            whole.delta = text[len(self._text) :] if text.startswith(self._text) else ""
            return whole
        text = self._take(piece)
        return ChatResponse(
            message=answer(self._text, list(self._calls.values()), self._thought),
            delta=text if piece.kind == "text" else "",
            additional_kwargs={"thinking_delta": text} if piece.kind == "thought" else {},
        )

    def _take(self, piece: Delta) -> str:
        """What of a piece is shown: all but the blank lines that models write after their thoughts."""
        if piece.kind == "call":
            before = self._calls.get(piece.index)
            name, arguments = (before.tool_name, str(before.tool_kwargs)) if before else (piece.name or "", "")
            self._calls[piece.index] = ToolCallBlock(tool_name=name, tool_kwargs=arguments + piece.text)
        elif piece.kind == "thought":
            self._thought += piece.text
        else:
            text = piece.text if self._text or not self._thought else piece.text.lstrip("\n")
            self._text += text
            return text
        return piece.text


def finished(reply: Reply) -> ChatResponse:
    """The response of a whole reply."""
    counts, facts = usage(reply), reply.facts()
    return ChatResponse(
        message=answer(reply.message.content, call_blocks(reply.message.tool_calls), reply.reasoning),
        raw={"usage": counts, "agent_memory": facts},
        additional_kwargs={**counts, "agent_memory": facts},
    )


def completion(response: ChatResponse) -> CompletionResponse:
    """The completion that a chat response is."""
    return CompletionResponse(
        text=response.message.content or "", delta=response.delta, raw=response.raw, additional_kwargs=response.additional_kwargs
    )


def usage(reply: Reply) -> dict[str, int]:
    """Tokens of a reply under the names LlamaIndex counts; those that were in memory already, and those appended now, on their own."""
    prompt = reply.known + reply.added
    return {
        "prompt_tokens": prompt,
        "completion_tokens": reply.generated,
        "total_tokens": prompt + reply.generated,
        "cache_read_tokens": reply.known,
        "cache_creation_tokens": reply.added,
    }
