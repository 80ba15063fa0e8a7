"""The loop: events in order, errors handed to the model, and a killed run taken up where it stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory.agent import (
    INTERRUPTED,
    NO_OUTPUT,
    Agent,
    Answered,
    Appended,
    Event,
    Resumed,
    Started,
    StepLimit,
    TextPiece,
    Thought,
    ToolCalled,
    ToolReturned,
)
from agent_memory.errors import ConfigError, EmptyMessage, ToolError
from tests.agent.fake import KILLED_SCRIPT, FakeRuntime, FileSession, call, killed_tools


def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: a number.
        b: a number.
    """
    return a + b


def fail(x: int) -> None:
    """Fail.

    Args:
        x: a number.
    """
    raise RuntimeError(f"cannot do {x}")


def blank() -> str:
    """Say nothing."""
    return " \n"


def huge() -> str:
    """Say too much."""
    return "x" * 20_000


def talk(runtime: FakeRuntime, name: str = "s") -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in FileSession(runtime.folder / f"{name}.json", ()).turns()]


def kinds(events: list[Event]) -> list[str]:
    """Kinds of events; neighbouring pieces count once."""
    names = [type(event).__name__ for event in events]
    return [name for at, name in enumerate(names) if name != "TextPiece" or names[at - 1] != name]


def returned(events: list[Event]) -> list[tuple[str, bool, str]]:
    return [(event.call.name, event.ok, event.text) for event in events if isinstance(event, ToolReturned)]


def test_question_call_answer(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "Let me see. " + call("add", a=1, b=2), "It is 3.")
    events = list(Agent(runtime, [add], system="Be brief.", namespace="alice").run("s", "1 + 2?"))
    assert kinds(events) == ["Started", "Appended", "TextPiece", "ToolCalled", "ToolReturned", "Appended", "TextPiece", "Answered"]
    assert talk(runtime) == [("user", "1 + 2?"), ("assistant", "Let me see."), ("tool", "3"), ("assistant", "It is 3.")]
    assert events[0] == Started("s", 0) and events[1] == Appended(0, "user", 6)
    assert isinstance(events[-1], Answered) and events[-1].text == "It is 3." and events[-1].recall is not None
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "Let me see. It is 3."
    assert [(name, namespace) for name, namespace, _ in runtime.opened] == [("s", "alice")] and runtime.closed == 1
    tool_turn = FileSession(tmp_path / "s.json", ()).turns()[2]
    assert tool_turn.name == "add" and tool_turn.meta["tool_call_id"] == "call-1-0"


def test_events_are_plain_json(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, call("add", a=1, b=2), "3")
    events = [json.loads(json.dumps(event.to_dict())) for event in Agent(runtime, [add]).run("s", "1 + 2?")]
    assert events[2] == {"event": "ToolCalled", "call": {"id": "call-1-0", "name": "add", "arguments": {"a": 1, "b": 2}}}
    assert events[-1]["event"] == "Answered" and events[-1]["recall"]["exact"] is True


def test_parallel_calls_come_back_in_their_order(tmp_path: Path) -> None:
    second = threading.Event()

    def meet(first: bool) -> str:
        """Return, the first one only after the second.

        Args:
            first: is it the first.
        """
        if not first:
            second.set()
        return f"{first} {second.wait(10)}"

    runtime = FakeRuntime(tmp_path, call("meet", first=True) + call("meet", first=False), "Done.")
    events = list(Agent(runtime, [meet]).run("s", "Go."))
    assert kinds(events)[2:-2] == ["ToolCalled", "ToolCalled", "ToolReturned", "Appended", "ToolReturned", "Appended"]
    assert [text for role, text in talk(runtime) if role == "tool"] == ["True True", "False True"]


def test_what_goes_wrong_in_a_tool_is_told_to_the_model(tmp_path: Path) -> None:
    never = threading.Event()

    def hang() -> None:
        """Never return."""
        never.wait()

    calls = call("fail", x=1) + call("hang") + call("nothing") + call("add", a="1", b=2) + call("blank") + call("huge")
    runtime = FakeRuntime(tmp_path, calls, "Sorry.")
    events = list(Agent(runtime, [add, fail, hang, blank, huge], tool_timeout=0.1).run("s", "Go."))
    never.set()
    assert returned(events)[:5] == [
        ("fail", False, "error: RuntimeError: cannot do 1"),
        ("hang", False, "error: timed out after 0.1 s"),
        ("nothing", False, "error: there is no tool 'nothing'; the tools are: add, blank, fail, hang, huge"),
        ("add", False, "error: argument 'a' must be integer, not \"1\""),
        ("blank", True, NO_OUTPUT),
    ]
    name, ok, text = returned(events)[5]
    assert (name, ok) == ("huge", False) and "20000 characters is too large: over the limit" in text
    assert [text for role, text in talk(runtime) if role == "tool"] == [text for _, _, text in returned(events)]
    assert isinstance(events[-1], Answered)


def test_step_limit_stops_and_can_be_continued(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, *[call("add", a=1, b=2)] * 3, "3")
    agent = Agent(runtime, [add], max_steps=2)
    events = list(agent.run("s", "Go."))
    assert events[-1] == StepLimit(2) and [role for role, _ in talk(runtime)] == ["user"] + ["assistant", "tool"] * 2
    assert isinstance(list(agent.run("s"))[-1], Answered) and len(talk(runtime)) == 8


def test_thoughts_are_told_apart_as_they_come(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "<think>Hm, a < b.</think>Yes.")
    events = list(Agent(runtime).run("s", "Go."))
    assert "".join(event.text for event in events if isinstance(event, Thought)) == "Hm, a < b."
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "Yes."
    assert isinstance(events[-1], Answered) and events[-1].text == "Yes."


def test_two_runs_are_one_conversation(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "One.", "Two.")
    agent = Agent(runtime)
    list(agent.run("s", "First?"))
    events = list(agent.run("s", "Second?"))
    assert events[0] == Started("s", 2) and len(talk(runtime)) == 4
    assert not any(isinstance(event, Resumed) for event in events)


def test_a_finished_run_repeats_its_answer(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "One.")
    list(Agent(runtime).run("s", "First?"))
    assert [event.to_dict() for event in Agent(runtime).run("s")][-1]["text"] == "One." and len(talk(runtime)) == 2


def test_an_open_session_stays_open(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "One.")
    with runtime.session("s") as opened:
        events = list(Agent(runtime).run_in(opened, "First?"))
        assert runtime.closed == 0 and len(runtime.opened) == 1
    assert events[0] == Started("s", 0) and isinstance(events[-1], Answered)


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(EmptyMessage, match="'s' has nothing to go on with"):
        list(Agent(FakeRuntime(tmp_path)).run("s"))


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    for bad in ({"max_steps": 0}, {"tool_timeout": -1.0}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Agent(FakeRuntime(tmp_path), **bad)
    with pytest.raises(ToolError, match="<lambda>"):
        Agent(FakeRuntime(tmp_path), [lambda x: x])


def killed(folder: Path) -> None:
    """A run in a process of its own, killed while its slow tool works."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-m", "tests.agent.fake", str(folder)], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "Appended" and json.loads(line)["role"] == "tool":
            break  # the first call has returned, the second one is at work
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)


@pytest.mark.parametrize(("prompt", "rerun"), [(None, False), (None, True), ("Well?", False)])
def test_a_killed_run_is_taken_up_where_it_stopped(tmp_path: Path, prompt: str | None, rerun: bool) -> None:
    killed(tmp_path)
    runtime = FakeRuntime(tmp_path, *KILLED_SCRIPT)
    assert talk(runtime, "work")[-1] == ("tool", "1")
    ran: list[int] = []
    events = list(Agent(runtime, killed_tools(lambda: ran.append(1))).run("work", prompt, rerun=rerun))
    resumed = events[1]
    assert isinstance(resumed, Resumed) and (resumed.turn, resumed.rerun) == (2, rerun)
    assert [(item.id, item.name) for item in resumed.calls] == [("call-1-1", "slow"), ("call-1-2", "quick")]
    outputs = ["slow 2", "3"] if rerun else [INTERRUPTED] * 2
    expected = ["1", *outputs, *([prompt] if prompt else []), "One."]
    assert [text for _, text in talk(runtime, "work")][2:] == expected and ran == [1] * rerun
    assert [ok for _, ok, _ in returned(events)] == [rerun, rerun]
    assert any(isinstance(event, ToolCalled) for event in events) == rerun
    assert not any(isinstance(event, Resumed) for event in Agent(runtime, killed_tools(lambda: None)).run("work"))


def test_killed_before_the_reply_goes_on_with_it(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "Yes.")
    with runtime.session("s") as opened:
        opened.append("user", "Well?")
    events = list(Agent(runtime).run("s"))
    assert events[1] == Resumed(0, (), False) and isinstance(events[-1], Answered)
    assert talk(runtime) == [("user", "Well?"), ("assistant", "Yes.")]


def test_leaving_a_run_drops_the_partial_reply_and_closes_the_session(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "A long answer that nobody waits for.")
    events = Agent(runtime).run("s", "Well?")
    for event in events:
        if isinstance(event, TextPiece):
            break
    events.close()  # type: ignore[attr-defined]
    assert talk(runtime) == [("user", "Well?")] and runtime.opened[0][2].cancelled == runtime.closed == 1


def in_loop(work: Callable[[], AsyncIterator[Event]], stop: type[Event] | None = None) -> list[Event]:
    async def collect() -> list[Event]:
        found = []
        events = work()
        async for event in events:
            found.append(event)
            if stop and isinstance(event, stop):
                break
        await events.aclose()  # type: ignore[attr-defined]
        return found

    return asyncio.run(collect())


def test_async_run_is_the_same_run(tmp_path: Path) -> None:
    script = (call("add", a=1, b=2), "It is 3.")
    for name in "ab":
        (tmp_path / name).mkdir()
    plain = list(Agent(FakeRuntime(tmp_path / "a", *script), [add]).run("s", "1 + 2?"))
    assert in_loop(lambda: Agent(FakeRuntime(tmp_path / "b", *script), [add]).arun("s", "1 + 2?")) == plain


def test_async_run_stays_in_one_thread_off_the_loop(tmp_path: Path) -> None:
    seen: set[int] = set()

    class Watched(FakeRuntime):
        def session(self, name: str, namespace: str = "default") -> Any:
            seen.add(threading.get_ident())
            return super().session(name, namespace)

    class Script(list[str]):
        def __getitem__(self, at: Any) -> Any:
            seen.add(threading.get_ident())
            return super().__getitem__(at)

    runtime = Watched(tmp_path)
    runtime.script = Script([call("add", a=1, b=2), "3"])  # type: ignore[assignment]
    in_loop(lambda: Agent(runtime, [add]).arun("s", "Go."))
    assert len(seen) == 1 and threading.get_ident() not in seen


def test_async_run_can_be_left(tmp_path: Path) -> None:
    runtime = FakeRuntime(tmp_path, "A long answer that nobody waits for.")
    in_loop(lambda: Agent(runtime).arun("s", "Well?"), stop=TextPiece)
    assert talk(runtime) == [("user", "Well?")] and runtime.opened[0][2].cancelled == runtime.closed == 1
    assert runtime.closed_in.startswith("agent")


def test_async_run_hands_on_errors(tmp_path: Path) -> None:
    with pytest.raises(EmptyMessage):
        in_loop(lambda: Agent(FakeRuntime(tmp_path)).arun("s"))
