"""Replies of Sessions and agents that are held to a format: the pocket model's own valid replies stay as they are, others become valid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agent_memory.agent import Agent, Answered, ToolCalled, ToolReturned
from agent_memory.errors import ConfigError
from agent_memory.pocket import data, dialogues
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.structured import StructuredReplies
from agent_memory.types import ReplyFormat, Sampling
from tests.integrations.tiny import save_tiny_model
from tests.model.constrained import fits
from tests.session.test_session import kv_of

LOOKUP = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TALLY = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "kind": {"enum": ["red", "green"]},
        "deep": {"type": "array", "items": LOOKUP, "minItems": 1},
    },
    "required": ["count", "deep"],
}
SCHEMAS = {"lookup": LOOKUP, "tally": TALLY}
TOOLS = [{"type": "function", "function": {"name": name, "description": "Do.", "parameters": made}} for name, made in SCHEMAS.items()]
QUESTION = data.question("foo-bar", "version")


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Runtime]]:
    """The pocket model, and a random one that says nothing sensible."""
    folder = tmp_path_factory.mktemp("formats")
    opened = {
        "pocket": Runtime.load(store=folder / "pocket"),
        "random": Runtime.load(save_tiny_model(folder / "model"), store=folder / "random"),
    }
    yield opened
    for runtime in opened.values():
        runtime.close()


@pytest.fixture(params=["pocket", "random"])
def session(request: pytest.FixtureRequest, runtimes: dict[str, Runtime]) -> Iterator[Session]:
    with runtimes[request.param].session(request.node.name) as opened:
        opened.configure(system=None, tools=TOOLS)
        opened.append("user", QUESTION)
        yield opened


def calls_of(session: Session) -> list[tuple[str, dict[str, Any]]]:
    last = session.last_turn
    assert last is not None
    return [(call["name"], call["arguments"]) for call in last.meta.get("tool_calls", ())]


def say(session: Session, wanted: ReplyFormat | None = None, **options: Any) -> str:
    return "".join(session.generate(format=wanted, **{"max_new_tokens": 60, **options}))


def test_a_required_call_is_valid(session: Session) -> None:
    for wanted in (ReplyFormat("required"), ReplyFormat("tally"), ReplyFormat("required", parallel=False)):
        say(session, wanted)
        calls, last = calls_of(session), session.last_turn
        assert calls and all(fits(SCHEMAS[name], arguments) for name, arguments in calls)
        assert last is not None and not last.text and last.meta["generated"] <= 60
        if wanted.tool_choice in SCHEMAS:
            assert [name for name, _ in calls] == [wanted.tool_choice]
        session.append("tool", "404", name=calls[0][0])


def test_by_default_calls_are_valid_and_text_is_free(session: Session) -> None:
    for sampling in (None, Sampling(temperature=1.5, seed=1), Sampling(temperature=1.0, top_p=0.9, seed=2)):
        text = say(session, sampling=sampling, max_new_tokens=40)
        assert all(fits(SCHEMAS[name], arguments) for name, arguments in calls_of(session))
        last = session.last_turn
        assert last is not None and "<tool_call>" not in last.text and (calls_of(session) or last.text.strip() == text.strip())


def test_none_calls_nothing(session: Session) -> None:
    say(session, ReplyFormat("none"), sampling=Sampling(temperature=2.0, seed=3))
    assert not calls_of(session)


def test_a_schema_is_what_the_reply_is(session: Session) -> None:
    for budget in (26, 60):
        text = say(session, ReplyFormat("none", schema=TALLY), max_new_tokens=budget)
        last = session.last_turn
        assert last is not None and last.text == text and fits(TALLY, json.loads(text))


def test_what_cannot_be_is_said_before_anything_is_made(session: Session) -> None:
    turns, prefilled = session.timeline.turn_count, session.engine.counters.prefilled
    odd: dict[str, Any] = {"type": "array", "uniqueItems": True}
    for wanted, budget, message in (
        (ReplyFormat("sub"), 60, "its tools are: lookup, tally"),
        (ReplyFormat("required"), 3, "max_new_tokens=3 cannot hold"),
        (ReplyFormat(schema=odd), 60, "the schema of the reply cannot be enforced"),
    ):
        with pytest.raises(ConfigError, match=message):
            session.check_format(wanted, budget)
        with pytest.raises(ConfigError, match=message):
            say(session, wanted, max_new_tokens=budget)
    session.check_format(ReplyFormat("required"), 60)
    assert (session.timeline.turn_count, session.engine.counters.prefilled) == (turns, prefilled)
    assert say(session, max_new_tokens=4) is not None and session.timeline.turn_count == turns + 1


def test_other_processors_come_before(session: Session) -> None:
    seen = list[bool]()

    def watch(ids: Any, scores: torch.Tensor) -> torch.Tensor:
        seen.append(bool(torch.isfinite(scores).all()))
        return scores

    say(session, ReplyFormat("lookup"), processors=[watch], max_new_tokens=30)
    last = session.last_turn
    assert last is not None and len(seen) == last.meta["generated"] and all(seen) and fits(LOOKUP, calls_of(session)[0][1])


def tokens_and_keys(runtime: Runtime, name: str, ask: str, *, held: bool) -> tuple[list[int], list[torch.Tensor], str]:
    """Tokens of a Session in which the model answered, their keys and values, and the answer."""
    record = data.Record("quarn-vault", {"version": "2.14.0", "license": "MIT"})
    with pytest.MonkeyPatch.context() as patch, runtime.session(name) as session:
        session.configure(system=None, tools=[dialogues.tool_schema("lookup", "name", "Look up a record.")])
        session.append("tool", data.render(record, "json"), name="lookup")
        if not held:
            patch.setattr(StructuredReplies, "processor", lambda *asked: None)
        session.append("user", ask)
        said = say(session, max_new_tokens=40)
        session.append("user", "Thanks. " * 20)
        tokens = [int(token) for token in session.timeline.tokens(0, session.tokens)]
        return tokens, [kv_of(session.engine.kv, layer) for layer in range(runtime.layout.layers)], said


@pytest.mark.parametrize("call", [True, False])
def test_a_valid_reply_and_its_keys_are_the_same_with_and_without(call: bool, runtimes: dict[str, Runtime]) -> None:
    runtime = runtimes["pocket"]
    ask = data.lookup("quarn-vault") if call else data.question("quarn-vault", "version")
    free, free_keys, said = tokens_and_keys(runtime, f"free {call}", ask, held=False)
    held, held_keys, again = tokens_and_keys(runtime, f"held {call}", ask, held=True)
    assert said == again == ('<tool_call>{"name": "lookup", "arguments": {"name": "quarn-vault"}}</tool_call>' if call else said)
    assert call or said == "quarn-vault version: 2.14.0"
    assert free == held
    assert all(torch.equal(one, other) for one, other in zip(free_keys, held_keys, strict=True)) and len(free_keys[0]) > 0


def test_sessions_without_tools_are_not_held(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, processor = list[ReplyFormat](), StructuredReplies.processor

    def watch(self: StructuredReplies, wanted: ReplyFormat, tools: Any, tokens: int) -> None:
        asked.append(wanted)
        assert processor(self, wanted, tools, tokens) is None

    monkeypatch.setattr(StructuredReplies, "processor", watch)
    with runtimes["random"].session("plain") as session:
        session.append("user", QUESTION)
        say(session, max_new_tokens=8)
        session.append("user", QUESTION)
        say(session, ReplyFormat("none"), max_new_tokens=8)
    assert asked == [ReplyFormat(), ReplyFormat("none")]


def count(kind: str, times: int) -> str:
    """Count something.

    Args:
        kind: of what.
        times: how often.
    """
    return f"{kind}: {times}"


def test_an_agent_of_a_model_that_babbles_makes_valid_calls(runtimes: dict[str, Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(self: Session, **options: Any) -> Any:
        runtime = runtimes["random"]
        first = runtime.tokenizer.convert_tokens_to_ids("<tool_call>")

        def call_first(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[0, first] += 20.0
            return scores

        return generate(self, **options, processors=[call_first])

    generate = Session.generate
    monkeypatch.setattr(Session, "generate", eager)
    events = list(Agent(runtimes["random"], [count], max_steps=3, max_new_tokens=60).run("agent", "Count the foxes."))
    called = [event.call for event in events if isinstance(event, ToolCalled)]
    returned = [event for event in events if isinstance(event, ToolReturned)]
    assert called and all(call.name == "count" and isinstance(call.arguments["times"], int) for call in called)
    assert len(returned) == len(called) and all(event.ok for event in returned)


def test_an_agent_may_still_answer(runtimes: dict[str, Runtime]) -> None:
    events = list(Agent(runtimes["pocket"], [count], max_new_tokens=40).run("answer", "Hello."))
    assert isinstance(events[-1], Answered) and events[-1].text


def test_an_answer_may_be_of_a_schema(runtimes: dict[str, Runtime]) -> None:
    with runtimes["pocket"].session("a card") as session:
        said = session.reply(QUESTION, max_new_tokens=40, format=ReplyFormat(schema=LOOKUP))
        assert fits(LOOKUP, json.loads(said)) and session.last_turn is not None and session.last_turn.text == said
        with pytest.raises(TypeError, match="max_tokens"):
            session.reply(QUESTION, max_tokens=40)
