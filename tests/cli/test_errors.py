"""Every mistake is one clear line on standard error and a non-zero exit; nothing on standard output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent_memory.cli import app
from tests.cli.conftest import Result

Cli = Callable[..., Result]
MEASURES = {"bench", "demo", "eval"}
"""They use Stores of their own."""
COMMANDS = sorted(str(found.name) for found in app.registered_commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_shared_options_and_help(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert done.code == 0
    expected = {"--json", "--debug"} | ({"--store", "--namespace"} if name not in MEASURES else set())
    assert all(option in done.out for option in expected)


def test_overview_and_version(cli: Cli) -> None:
    assert all(name in cli().out for name in COMMANDS)
    assert cli("--version").out.startswith("agent-memory ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sessions"], 1, "there is no store at './memory'"),
        (["sessoins"], 2, "No such command 'sessoins'"),
        (["sessions", "--colour"], 2, "No such option: --colour"),
        (["show"], 2, "Missing argument"),
        (["import", "nothing.archive"], 1, "nothing.archive"),
        (["chat", "--model", "./nowhere"], 1, "no folder at './nowhere'"),
        (["chat", "--device", "huge"], 1, "device='huge'"),
        (["chat", "--method", "psychic"], 1, "psychic"),
        (["attach-check", "./nowhere"], 1, "no folder at './nowhere'"),
        (["demo", "--tokens", "lots"], 1, "'lots' is no number of tokens"),
        (["demo", "--device", "huge"], 1, "'huge' is not a size"),
        (["run", "s", "task", "--tool", "nowhere:tool"], 1, "--tool 'nowhere:tool' cannot be found"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_mistake_is_one_line(cli: Cli, words: list[str], code: int, message: str, as_json: bool) -> None:
    done = cli(*words, *(["--json"] if as_json else []))
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert message in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "beta"], "no session 'beta' in namespace 'default'"),
        (["show", "alpha", "-n", "bob"], "no session 'alpha' in namespace 'bob'"),
        (["delete", "beta", "--yes"], "no session 'beta'"),
        (["prune", "--older-than", "soon"], "'soon' is no duration"),
        (["fork", "beta", "gamma"], "beta"),
    ],
)
def test_what_is_not_there_is_named(cli: Cli, filled: Path, words: list[str], message: str) -> None:
    done = cli(*words)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1


def test_a_store_of_another_model_is_refused(cli: Cli, filled: Path, tiny_model: str) -> None:
    done = cli("chat", "alpha", "--model", tiny_model)
    assert done.code == 1 and "was made with" in done.err and done.err.count("\n") == 1


def test_a_corrupt_index_is_one_line(cli: Cli, filled: Path) -> None:
    index = next(path for path in filled.iterdir() if path.is_file() and path.read_bytes().startswith(b"SQLite"))
    index.write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    done = cli("sessions")
    assert done.code == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1


def test_debug_shows_where(cli: Cli, filled: Path) -> None:
    done = cli("show", "beta", "--debug")
    assert done.code == 1 and "Traceback" in done.err and done.err.splitlines()[-1].startswith("error: no session 'beta'")


def test_the_unexpected_is_one_line_too(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("agent_memory.store.store.Store.sessions", broken)
    done = cli("sessions")
    assert (done.code, done.err) == (1, "error: unexpected RuntimeError: two lines (--debug shows where)\n")


def test_settings_come_from_the_environment(cli: Cli, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.rename("elsewhere")
    monkeypatch.setenv("AGENT_MEMORY_STORE", "elsewhere")
    assert cli("sessions", "--json").json["store"] == "elsewhere"
