"""What InfLLM has counted survives cuts into appends, replies, restarts, kills and forks: it is a function of the tokens alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from agent_memory.errors import ConfigError
from agent_memory.pocket import data
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story

QUESTION = data.question("foo-bar", "version")
TEXTS = story(3, 14)


def append(session: Session, texts: list[str], prefill: bool = False) -> None:
    for text in texts:
        session.append("tool", text, name="read", prefill=prefill)


def kept(session: Session) -> list[tuple[torch.Tensor, int]]:
    """Representatives of every layer, and how many tokens have been counted, once everything committed has been."""
    session.prefill()
    session.engine._back_to(session.engine.final)
    parts = [part.representatives for part in session.engine.kv.layers]
    assert all(part is not None and part.complete for part in parts)
    return [(part.rows(len(part)).clone(), part.counted) for part in parts if part is not None]


def same(one: list[tuple[torch.Tensor, int]], other: list[tuple[torch.Tensor, int]]) -> bool:
    return all(a.shape == b.shape and n == m and torch.allclose(a, b, atol=1e-3) for (a, n), (b, m) in zip(one, other, strict=True))


@pytest.fixture
def expected(make_runtime: MakeRuntime, tmp_path: Path) -> list[tuple[torch.Tensor, int]]:
    """What one long prefill counts."""
    with make_runtime(method="infllm", store=tmp_path / "whole").session("a") as session:
        append(session, TEXTS)
        found = kept(session)
    assert all(len(rows) > 20 for rows, _ in found)
    return found


def test_appended_bit_by_bit_with_a_reply_in_between_on_a_fork(make_runtime: MakeRuntime, expected: list[tuple[torch.Tensor, int]]) -> None:
    with make_runtime(method="infllm").session("a") as session:
        for text in TEXTS:
            append(session, [text], prefill=True)
        child = session.fork("b")
        child.reply(QUESTION, max_new_tokens=40)
        child.close(keep=False)
        assert same(kept(session), expected)


def test_closed_and_reopened_half_way(make_runtime: MakeRuntime, expected: list[tuple[torch.Tensor, int]]) -> None:
    for part in (TEXTS[:8], TEXTS[8:11], TEXTS[11:]):
        with make_runtime(method="infllm").session("a") as session:
            append(session, part)
            session.prefill()
    with make_runtime(method="infllm").session("a") as session:
        assert session.engine.counters.prefilled == 0  # keys and values were read back, ...
        assert same(kept(session), expected)  # ... and what is not in a block yet was counted again


def test_killed_half_way(make_runtime: MakeRuntime, expected: list[tuple[torch.Tensor, int]], tmp_path: Path) -> None:
    runtime = make_runtime(method="infllm")
    session = runtime.session("a")
    append(session, TEXTS)
    session.prefill()
    shutil.copytree(tmp_path / "store", tmp_path / "as it was")  # no clean close: no tail
    with make_runtime(method="infllm", store=tmp_path / "as it was").session("a") as again:
        assert same(kept(again), expected)
    session.close()


def test_a_fork_of_an_earlier_turn_has_what_that_turn_had(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    with make_runtime(method="infllm", store=tmp_path / "short").session("a") as session:
        append(session, TEXTS[:9])
        expected = kept(session)
    with make_runtime(method="infllm").session("a") as session:
        append(session, TEXTS)
        session.prefill()
        past = session.fork("past", at=9)
        assert same(kept(past), expected)
        past.close()


def test_a_session_of_another_method_is_taken_up(make_runtime: MakeRuntime) -> None:
    for writer in ("streaming", "infllm"):
        with make_runtime(method=writer).session(writer) as session:
            append(session, TEXTS)
            session.prefill()
        for reader in ("recall", "infllm", "reattention", "rerope"):
            with make_runtime(method=reader).session(writer, reinterpret=True) as session:
                answer = session.reply("Hello.", max_new_tokens=4)
                assert isinstance(answer, str)
                if reader == "infllm" and writer == "streaming":
                    assert session.last_recall is not None and not session.last_recall.exact  # nobody counted for it


def test_a_preset_that_the_model_cannot_hold_is_refused_by_name(make_runtime: MakeRuntime) -> None:
    for name, value in (("infllm-8k", "local=4096"), ("reattention-8k", "8192"), ("rerope:window=512", "window=512")):
        with pytest.raises(ConfigError, match=rf"{value}.*512"):
            make_runtime(method=name)
