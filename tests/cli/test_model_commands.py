"""Talking to a model, running an agent, forking and attach-check, on a tiny random model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

from agent_memory import pocket
from agent_memory.cli.conversation import Conversation
from agent_memory.runtime import Runtime
from agent_memory.session import Session
from agent_memory.types import Sampling
from tests.cli.conftest import Result

Cli = Callable[..., Result]
LONG = "record " + " ".join(f"name-{number} has port {number}." for number in range(120))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


@pytest.fixture
def session(tiny_model: str) -> Iterator[Session]:
    with Runtime.load(tiny_model, store="memory") as runtime, runtime.session("talk") as opened:
        yield opened


def test_chat_answers_and_shows_what_was_recalled(cli: Cli, tiny_model: str, say: Callable[..., None]) -> None:
    say(LONG, "What port has name-3?", "/turns", "/quit", "never said")
    done = cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4")
    assert done.code == 0
    assert "recalled " in done.out and "tokens ago" in done.out and "of attention" in done.out and "name-0 has port" in done.out
    assert "; attention " in done.out and " sink, " in done.out
    roles = [turn["role"] for turn in cli("show", "talk", "--json").json["turns"]]
    assert roles == ["user", "assistant"] * 2
    assert cli("recall", "talk", "--json").json["replies"][0]["recall"]["turns"][0]["turn"] == 0


def test_chat_without_attention_shares(cli: Cli, tiny_model: str, say: Callable[..., None]) -> None:
    say(LONG, "What port has name-3?")
    recall = cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4", "--no-attention-shares", "--json").json["replies"][-1][
        "recall"
    ]
    assert recall["turns"] and {hit["score"] for hit in recall["turns"]} == {None} and recall["local_share"] is None
    say("What port has name-4?")
    recall = cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4", "--attention-shares", "--json").json["replies"][-1][
        "recall"
    ]
    assert all(hit["score"] is not None for hit in recall["turns"]) and recall["local_share"] > 0


def test_chat_goes_on_where_it_stopped(cli: Cli, tiny_model: str, say: Callable[..., None]) -> None:
    for question in ("one", "two"):
        say(question)
        answer = cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4", "--json").json
        assert [reply["question"] for reply in answer["replies"]] == [question]
    say()
    assert "4 turns are remembered" in cli("chat", "talk", "--model", tiny_model).out


def test_interrupting_an_answer_keeps_the_question_only(session: Session, say: Callable[..., None]) -> None:
    class Impatient(Console):
        pieces = 0

        def print(self, *_: object, **options: object) -> None:
            self.pieces += options.get("end") == ""
            if self.pieces == 1:
                self.pieces = 2
                raise KeyboardInterrupt

    say("first", "second")
    talk = Conversation(session, Impatient(file=io.StringIO()), 8, Sampling())
    talk.run()
    assert [reply["stopped"] for reply in talk.replies] == [True, False]
    assert [turn.role for turn in session.turns()] == ["user", "user", "assistant"]


SHELF = '''
def count(name: str) -> int:
    """Count.

    Args:
        name: what.
    """
    return 3
'''


def test_run_answers_and_lists_what_happened(cli: Cli, tiny_model: str, own_folder: Path) -> None:
    (own_folder / "shelf.py").write_text(SHELF)
    options = ("--tool", "shelf:count", "--model", tiny_model, "--max-new-tokens", "4", "--window", "1024", "--json")
    answer = cli("run", "job", "How many?", *options).json
    assert [event["event"] for event in answer["events"]] == ["Started", "Appended", "Answered"]
    assert isinstance(answer["answer"], str)


def test_fork_shares_the_beginning(cli: Cli, tiny_model: str, say: Callable[..., None]) -> None:
    say("one", "two")
    cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4")
    made = cli("fork", "talk", "what-if", "--at", "2", "--model", tiny_model, "--json").json
    assert (made["turns"], made["parent"]) == (2, "talk")
    assert [turn["text"] for turn in cli("show", "what-if", "--json").json["turns"]][:1] == ["one"]
    assert len(cli("show", "talk", "--json").json["turns"]) == 4


def test_repair_finds_nothing_to_do_in_a_sound_session(cli: Cli, tiny_model: str, say: Callable[..., None]) -> None:
    say("one")
    cli("chat", "talk", "--model", tiny_model, "--max-new-tokens", "4")
    assert cli("repair", "talk", "--model", tiny_model, "--json").json == {"session": "talk", "blocks": []}
    assert cli("repair", "nobody", "--model", tiny_model).code == 1


def test_attach_check_tells_every_layer(cli: Cli, tiny_model: str) -> None:
    done = cli("attach-check", tiny_model, "--json")
    assert done.code == 0 and done.json["ok"]
    assert [layer["verdict"] for layer in done.json["layers"]] == ["ok", "ok"]
    assert "can be attached" in cli("attach-check", tiny_model).out


def test_attach_check_refuses_with_the_reason(cli: Cli, tmp_path: Path) -> None:
    MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1)).save_pretrained(tmp_path / "mamba")
    AutoTokenizer.from_pretrained(str(pocket.path())).save_pretrained(tmp_path / "mamba")
    done = cli("attach-check", str(tmp_path / "mamba"), "--json")
    assert (done.code, done.json["ok"]) == (1, False)
    assert done.json["reason"]
    assert "cannot be attached" in cli("attach-check", str(tmp_path / "mamba")).out


def test_eval_needle_measures_and_draws(cli: Cli, tiny_model: str, tmp_path: Path) -> None:
    options = ("--methods", "recall", "--lengths", "500,1k", "--depths", "1", "--samples", "1", "--model", tiny_model)
    done = cli("eval", "needle", *options, "--plot", "needle.png", "--json")
    report = done.json
    assert set(report) == {"task", "model", "window", "in_window", "cells", "summary", "interval", "counters", "plot"}
    assert set(report["summary"]) == {"recall"} and set(report["summary"]["recall"]) == {"500", "1000"}
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG") and report["plot"] == "needle.png"


@pytest.mark.parametrize(("option", "value"), [("--methods", "recall,psychic"), ("--lengths", "many")])
def test_eval_names_what_it_cannot_measure(cli: Cli, option: str, value: str) -> None:
    done = cli("eval", "needle", option, value)
    assert done.code == 1 and value.split(",")[-1] in done.err and done.err.count("\n") == 1
