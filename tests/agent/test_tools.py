"""Functions become tools a model can call, and nothing a tool does escapes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pytest

from agent_memory.errors import ToolError
from agent_memory.tools import Tool, as_tools, check_arguments, describe, run, start, tool
from agent_memory.types import ToolCall


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", tags: list[str] | None = None, scale: float | None = None) -> str:
    """Tell the weather.

    Args:
        city: which city.
        days: how many days.
        unit: degrees.
        tags: what to look at.
        scale: factor.
    """
    return f"{city} {days} {unit} {tags} {scale}"


def outcome(function: Callable[..., Any], timeout: float = 10.0, **arguments: Any) -> tuple[bool, str]:
    made = Tool("it", {"function": {"parameters": {"properties": {name: {} for name in arguments}}}}, function)
    result = run({"it": made}, ToolCall("1", "it", arguments), timeout)
    return result.ok, result.text


def test_schema_comes_from_hints_and_docstring() -> None:
    made = describe(weather)
    function = made.schema["function"]
    assert (made.name, function["description"], function["parameters"]["required"]) == ("weather", "Tell the weather.", ["city"])
    assert function["parameters"]["properties"]["unit"] == {"type": "string", "enum": ["C", "F"], "description": "degrees."}
    json.dumps(made.schema)


def test_decorator_with_and_without_arguments() -> None:
    plain, named = tool(weather), tool(name="forecast", timeout=3)(weather)
    assert (plain.name, plain.timeout, plain("Oslo")) == ("weather", None, "Oslo 1 C None None")
    assert (named.name, named.timeout, named.schema["function"]["name"]) == ("forecast", 3, "forecast")
    assert list(as_tools([plain, named])) == ["weather", "forecast"]


def test_methods_and_coroutines_are_tools() -> None:
    class Shop:
        """A shop."""

        def price(self, item: str) -> int:
            """Tell a price.

            Args:
                item: which one.
            """
            return len(item)

    async def later(x: int) -> int:
        """Return later.

        Args:
            x: a number.
        """
        return x + 1

    tools = as_tools([Shop().price, later])
    assert run(tools, ToolCall("1", "price", {"item": "tea"}), 9).text == "3"
    assert run(tools, ToolCall("2", "later", {"x": 1}), 9).text == "2"


def test_what_cannot_be_described_is_named() -> None:
    def bare(x: int) -> int:
        return x

    def untyped(x) -> int:  # type: ignore[no-untyped-def]
        """Do it.

        Args:
            x: a number.
        """
        return int(x)

    def many(*xs: int) -> int:
        """Do it.

        Args:
            xs: numbers.
        """
        return sum(xs)

    for function in (bare, untyped, many):
        with pytest.raises(ToolError, match=f"'{function.__name__}' cannot be described"):
            describe(function)
    with pytest.raises(ToolError, match="cannot be described"):
        describe(7)  # type: ignore[arg-type]
    with pytest.raises(ToolError, match="two tools are called 'weather'"):
        as_tools([weather, weather])
    with pytest.raises(ToolError, match="more than 0 seconds"):
        describe(weather, timeout=0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "missing argument 'city'; weather takes: city, days, unit, tags, scale"),
        ({"city": "Oslo", "town": 1}, "unknown argument 'town'; weather takes"),
        ({"city": 5}, "argument 'city' must be string, not 5"),
        ({"city": "Oslo", "days": "2"}, "argument 'days' must be integer, not \"2\""),
        ({"city": "Oslo", "days": True}, "argument 'days' must be integer, not true"),
        ({"city": "Oslo", "unit": "K"}, 'argument \'unit\' must be one of ["C", "F"], not "K"'),
        ({"city": "Oslo", "tags": ["a", 1]}, "argument 'tags' must be array of string"),
        ({"city": "Oslo", "tags": "a" * 200}, "a..."),
        ({"city": "Oslo", "days": 2, "unit": "F", "tags": ["a"], "scale": 2}, None),
        ({"city": "Oslo", "tags": None, "scale": 0.5}, None),
    ],
)
def test_arguments_are_checked_in_words(arguments: dict[str, Any], problem: str | None) -> None:
    said = check_arguments(describe(weather), arguments)
    assert (said is None) if problem is None else (said is not None and problem in said)


def test_unions_are_checked() -> None:
    def pick(which: list[int] | str) -> str:
        """Pick.

        Args:
            which: some, or a name.
        """
        return str(which)

    made = describe(pick)
    assert check_arguments(made, {"which": [1]}) is None and check_arguments(made, {"which": "all"}) is None
    assert check_arguments(made, {"which": 1.5}) == "argument 'which' must be array of integer or string, not 1.5"


def test_unknown_tool_and_bad_arguments_are_results() -> None:
    tools = as_tools([weather])
    assert run(tools, ToolCall("1", "whether", {}), 9).text == "error: there is no tool 'whether'; the tools are: weather"
    assert run({}, ToolCall("1", "x", {}), 9).text == "error: there is no tool 'x'; the tools are: none"
    result = run(tools, ToolCall("1", "weather", {"town": "Oslo"}), 9)
    assert not result.ok and result.text.startswith("error: unknown argument 'town'")


def test_an_exception_is_one_line() -> None:
    def fail(error: BaseException) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    assert outcome(fail(ValueError("no\nsuch  thing"))) == (False, "error: ValueError: no such thing")
    assert outcome(fail(KeyError())) == (False, "error: KeyError")
    assert outcome(fail(SystemExit(2))) == (False, "error: SystemExit: 2")
    assert len(outcome(fail(ValueError("x" * 100_000)))[1]) < 3_000

    async def later() -> None:
        raise OSError("gone")

    assert outcome(later) == (False, "error: OSError: gone")


def test_a_tool_that_never_returns_times_out() -> None:
    never = threading.Event()
    assert outcome(lambda: never.wait(5), timeout=0.05) == (False, "error: timed out after 0.05 s")
    own = Tool("it", {"function": {}}, never.wait, timeout=0.03)
    assert run({"it": own}, ToolCall("1", "it", {}), 600.0).text == "error: timed out after 0.03 s"
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "tool it")
    never.set()


def test_a_tool_that_never_returns_does_not_keep_the_process(tmp_path: Any) -> None:
    import subprocess

    code = (
        "import time\nfrom agent_memory.tools import Tool, run\nfrom agent_memory.types import ToolCall\n"
        "print(run({'it': Tool('it', {'function': {}}, lambda: time.sleep(600))}, ToolCall('1', 'it', {}), 0.05).text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "error: timed out after 0.05 s"


def test_the_wait_counts_from_the_start() -> None:
    both = threading.Barrier(2)
    made = Tool("it", {"function": {}}, lambda: str(both.wait(timeout=10) in (0, 1)))
    waits = [start({"it": made}, ToolCall(str(i), "it", {}), 10.0) for i in range(2)]
    assert [wait().text for wait in waits] == ["True", "True"]  # they only pass the barrier together


def test_outputs_become_text() -> None:
    class Colour(Enum):
        RED = "red"

    @dataclass
    class Point:
        x: int

    for value, text in (
        ("é\n", "é\n"), (None, "null"), ({"é": [1, 2.5]}, '{"é": [1, 2.5]}'), (b"a\xff", "a�"), (Point(1), '{"x": 1}'), ({3, 1}, "[1, 3]"),
        (Colour.RED, '"Colour.RED"'),
    ):  # fmt: skip
        assert outcome(lambda value=value: value) == (True, text)
    loop: list[Any] = []
    loop.append(loop)
    ok, said = outcome(lambda: loop)
    assert not ok and said.startswith("error: ValueError: Circular")


def test_context_variables_reach_the_tool() -> None:
    import contextvars

    who = contextvars.ContextVar("who", default="nobody")
    who.set("alice")
    assert outcome(who.get) == (True, "alice")


class Unspeakable(Exception):
    """An error that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaving(Exception):
    """An error that leaves where it is told."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("kind", [Unspeakable, Leaving])
def test_an_error_that_cannot_be_told_is_reported_at_once_by_its_name(kind: type[Exception]) -> None:
    def fail() -> None:
        raise kind

    returned = threading.Event()

    def work() -> None:
        assert outcome(fail, timeout=20.0) == (False, f"error: {kind.__name__}")
        returned.set()

    threading.Thread(target=work, daemon=True).start()
    assert returned.wait(15.0), "it waits for the time-out"


def test_a_result_that_cannot_be_told_is_an_error() -> None:
    class Mute:
        def __str__(self) -> str:
            raise Unspeakable

    assert outcome(lambda: [Mute()]) == (False, "error: Unspeakable")


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "parameters",
    [
        True, [], {"properties": [1]}, {"properties": {"a": 3}}, {"properties": {"a": {"anyOf": 3}}}, {"properties": {"a": {"type": 3}}},
        {"properties": {"a": {"enum": 3}}}, {"properties": {}, "required": 3}, {"properties": {"a": nested(3000)}},
        {"properties": {"\ud800": {}}}, {"properties": {"a": {"description": "\ud800"}}},
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_is_refused_when_the_tool_is_made(parameters: Any) -> None:
    with pytest.raises(ToolError, match="tool 'it'"):
        Tool("it", {"type": "function", "function": {"name": "it", "parameters": parameters}}, len)


@pytest.mark.parametrize(
    ("name", "schema"), [("", {"function": {}}), ("a\ud800", {"function": {}}), ("it", {"function": 3}), ("it", {}), ("it", None)]
)
def test_a_tool_has_a_name_and_a_description(name: str, schema: Any) -> None:
    with pytest.raises(ToolError):
        Tool(name, schema, len)


def test_schemas_may_be_true_or_false() -> None:
    made = Tool("it", {"function": {"parameters": {"properties": {"any": True, "never": False, "list": {"items": True}}}}}, len)
    assert check_arguments(made, {"any": object(), "list": [1, "a"]}) is None
    assert check_arguments(made, {"never": 1}) == "argument 'never' must be left out, not 1"


def test_a_schema_that_refers_to_itself_is_taken() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}
    made = Tool("it", {"function": {"parameters": {"properties": {"tree": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}}}, len)
    assert check_arguments(made, {"tree": {"next": {"next": {}}}}) is None
