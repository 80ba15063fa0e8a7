"""What people do with a conversation that is longer than the model's window: ways to answer in it, and what each fed to the model.

Knows memory, trimming, summaries and retrieval; nothing of what is asked, nor of how times and answers are judged.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from langchain_core.messages import BaseMessage, HumanMessage, trim_messages

from benchmarks.agents_talk import ANSWER_TOKENS, WINDOW, Meter, Plain, PlainChat, Recorded, Rendering, Talk
from langchain_agent_memory import ChatAgentMemory

ROOM = WINDOW - ANSWER_TOKENS
"""What may stand before an answer for both to fit the window."""

CONTEXT = 400
"""Tokens before a question that is asked directly behind its fact."""

SUMMARY_TOKENS = 64
SUMMARY_PROMPT = "Summarise this conversation. Keep every fact.\n{messages}"
"""LangChain's own prompt is longer than the window."""

TRIGGER, KEEP, SUMMARISED = 400, 240, 300
"""Tokens that make a summary due, that stay as they are, and that one summary is made of at most."""

WORDS, NAMES = r"(?u)\b\w\w+\b", r"(?u)[\w.\-]+\w|\w"
"""What BM25 may take for a word: letters and digits, which is what bm25s does itself, or names whole, with the marks inside them."""

ALIKE = 9
"""Lines among which a fact stands: itself and those most like what is asked."""

SESSION = "talk"


class Way(Protocol):
    """One way to answer questions in a long conversation."""

    @property
    def meter(self) -> Meter:
        """What was fed to the model so far, and made by it."""

    def read(self, talk: Talk) -> None:
        """What has to be done once with the conversation so far."""

    def ask(self, question: str) -> str:
        """The answer in the conversation's next turn."""

    def kept(self) -> int:
        """Bytes kept from one turn to the next. Nothing can be asked afterwards."""


@dataclass
class Memory:
    """Ours: the whole conversation is sent each turn, and the Session takes what is new."""

    folder: Path
    meter: Meter = field(default_factory=Meter)
    counted_by: str = ""
    messages: list[BaseMessage] = field(default_factory=list)

    def read(self, talk: Talk) -> None:
        """Everything but the last reply, which is made here: without one nothing is read."""
        self._chat = ChatAgentMemory(store=str(self.folder), max_tokens=ANSWER_TOKENS)
        self.messages = talk.messages[:-1]
        self._reply()

    def ask(self, question: str) -> str:
        """Whole conversation in, answer out."""
        self.messages.append(HumanMessage(question))
        return self._reply()

    def kept(self) -> int:
        """Everything in the Store's folder, once the Session is closed."""
        self._chat.close()
        return folder_bytes(self.folder)

    def _reply(self) -> str:
        said = self._chat.invoke(self.messages, session_id=SESSION)
        usage = said.usage_metadata or {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        counters = said.response_metadata["agent_memory"]
        self.counted_by = "engine" if "prefilled" in counters else "appended"
        appended = usage.get("input_token_details", {}).get("cache_creation", 0)
        self.meter.prefilled += counters.get("prefilled", appended)
        self.meter.generated += usage["output_tokens"]
        self.messages.append(said)
        return said.text


Shown = Callable[[list[BaseMessage]], list[BaseMessage]]


@dataclass
class Prefill:
    """Everything that is shown to the model is read again each turn.

    Attributes:
        chat: plain transformers.
        shown: what the model sees of a conversation; all of it by default.
    """

    chat: PlainChat
    shown: Shown = list
    messages: list[BaseMessage] = field(default_factory=list)

    @property
    def meter(self) -> Meter:
        """The chat model's."""
        return self.chat.meter  # type: ignore[no-any-return]

    def read(self, talk: Talk) -> None:
        """Nothing is read before it is asked about."""
        self.messages = talk.messages

    def ask(self, question: str) -> str:
        """What is shown in, answer out."""
        self.messages.append(HumanMessage(question))
        said = self.chat.invoke(self.shown(self.messages))
        self.messages.append(said)
        return said.text

    def kept(self) -> int:
        """The text."""
        return sum(len(message.text.encode()) for message in self.messages)


def trimmed(rendering: Rendering) -> Shown:
    """The latest messages that fit, beginning with one of the user's, as LangChain's documentation has it."""

    def shown(messages: list[BaseMessage]) -> list[BaseMessage]:
        return trim_messages(messages, max_tokens=ROOM, token_counter=rendering.count, strategy="last", start_on="human")

    return shown


class Inside(Prefill):
    """No method: each question stands directly behind its fact, so that this is the best the model can do."""

    def read(self, talk: Talk) -> None:
        """Up to ``CONTEXT`` tokens of the conversation before each question, and the line with its fact as the last of them."""
        self._context: dict[str, list[BaseMessage]] = {}
        count = self.chat.rendering.count
        for number, needle in enumerate(talk.needles):
            told = talk.until_told(number)
            context = trim_messages(told, max_tokens=CONTEXT, token_counter=count, strategy="last", allow_partial=True)
            self._context[needle.question] = context

    def ask(self, question: str) -> str:
        """A conversation of its own."""
        return self.chat.invoke([*self._context[question], HumanMessage(question)]).text


@dataclass
class Retrieval(Prefill):
    """Text RAG: of the history's documents those that BM25 ranks highest, as many as fit, stand before the question in their order.

    Attributes:
        lines: of one document; None: a whole message is one.
        word: what counts as a word.
    """

    lines: int | None = None
    word: str = NAMES

    def read(self, talk: Talk) -> None:
        """The index."""
        super().read(talk)
        self.shown = self._found
        self._bm25: Any = importlib.import_module("bm25s")
        self._documents = [part for message in self.messages if message.text for part in self._parts(message)]
        self._index = self._bm25.BM25()
        self._index.index(self._words([document.text for document in self._documents]), show_progress=False)

    def kept(self) -> int:
        """The text and the index."""
        with tempfile.TemporaryDirectory() as folder:
            self._index.save(folder)
            return super().kept() + folder_bytes(Path(folder))

    def _parts(self, message: BaseMessage) -> list[BaseMessage]:
        lines = message.text.split("\n")
        size = self.lines or len(lines)
        return [message.model_copy(update={"content": "\n".join(lines[at : at + size])}) for at in range(0, len(lines), size)]

    def _words(self, texts: list[str]) -> Any:
        return self._bm25.tokenize(texts, token_pattern=self.word, stopwords="en", show_progress=False)

    def _found(self, messages: list[BaseMessage]) -> list[BaseMessage]:
        question = messages[-1]
        chosen: list[int] = []
        for document in self._ranked(question.text):
            more = sorted([*chosen, document])
            fits = self._fits(more, question)
            if chosen and not fits:
                break
            chosen = more if fits else chosen
        return [*(self._documents[document] for document in chosen), question]

    def _ranked(self, question: str) -> list[int]:
        ranked, scores = self._index.retrieve(self._words([question]), k=len(self._documents), show_progress=False)
        return [document for document, score in zip(ranked[0].tolist(), scores[0].tolist(), strict=True) if score > 0]

    def _fits(self, chosen: list[int], question: BaseMessage) -> bool:
        return self.chat.rendering.count([*(self._documents[document] for document in chosen), question]) <= ROOM


@dataclass
class Among(Retrieval):
    """No method: each question stands behind its fact and the lines of the history most like what is asked, all inside the window."""

    lines: int | None = 1

    def read(self, talk: Talk) -> None:
        """The index, and where each fact is."""
        super().read(talk)
        numbers = {str(document.text): number for number, document in enumerate(self._documents)}
        self._facts = {needle.question: numbers[line] for needle, (_, line) in zip(talk.needles, talk.told, strict=True)}

    def ask(self, question: str) -> str:
        """A conversation of its own."""
        return self.chat.invoke(self._found([HumanMessage(question)])).text

    def _ranked(self, question: str) -> list[int]:
        fact = self._facts[question]
        return [fact, *(document for document in super()._ranked(question) if document != fact)][:ALIKE]


@dataclass
class Cached(Prefill):
    """Keys and values are kept in the process from turn to turn, as servers do, and every token attends to all of them."""

    def read(self, talk: Talk) -> None:
        """The whole history, once."""
        super().read(talk)
        self.chat.keep_kv()
        self.chat.invoke(self.messages[:-1])

    def kept(self) -> int:
        """Keys and values, in memory."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.chat.kv.layers)


class Summaries:
    """LangChain's agent with its middleware that puts a summary in the place of older messages.

    Args:
        plain: model for answers and for summaries.
    """

    def __init__(self, plain: Plain) -> None:
        from langchain.agents import create_agent
        from langchain.agents.middleware import SummarizationMiddleware
        from langgraph.checkpoint.memory import InMemorySaver

        self.meter = Meter()
        self._config: Any = {"configurable": {"thread_id": SESSION}}
        self._chat = Recorded(then=plain.chat(self.meter), replies=[])
        middleware: Any = SummarizationMiddleware(
            plain.chat(self.meter, SUMMARY_TOKENS), trigger=("tokens", TRIGGER), keep=("tokens", KEEP), summary_prompt=SUMMARY_PROMPT,
            token_counter=plain.rendering.count, trim_tokens_to_summarize=SUMMARISED,
        )  # fmt: skip
        self._agent: Any = create_agent(self._chat, middleware=[middleware], checkpointer=InMemorySaver())

    def read(self, talk: Talk) -> None:
        """The conversation goes through the agent as it came about, turn by turn, with the replies it had."""
        for group in talk.groups:
            self._chat.replies.append(group[-1])
            self._turn(list(group[:-1]))

    def ask(self, question: str) -> str:
        """One turn of the agent."""
        return self._turn([HumanMessage(question)])[-1].text

    def kept(self) -> int:
        """The text of the agent's state: the summary, and the messages behind it."""
        messages: list[BaseMessage] = self._agent.get_state(self._config).values["messages"]
        return sum(len(message.text.encode()) for message in messages)

    def _turn(self, messages: list[BaseMessage]) -> list[BaseMessage]:
        return self._agent.invoke({"messages": messages}, self._config)["messages"]  # type: ignore[no-any-return]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
