"""A forward that is broken off between two layers, by Ctrl-C or for want of memory, leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from agent_memory.attention.step import MemoryStep
from agent_memory.runtime import Runtime
from tests.session.test_session import QUESTION, fill, kv_of


class Breaks:
    """Breaks off the nth forward before its third layer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.left = -1
        attend = MemoryStep.attend

        def broken(step: MemoryStep, rule: Any, *args: Any, **kwargs: Any) -> Any:
            if rule.index == 2 and self.left >= 0:
                self.left -= 1
                if self.left < 0:
                    raise error
            return attend(step, rule, *args, **kwargs)

        monkeypatch.setattr(MemoryStep, "attend", broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("nth", [0, 1, 5])
def test_a_broken_reply_can_be_asked_again(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, error: BaseException, nth: int) -> None:
    with runtime.session("whole") as whole, runtime.session("broken") as session:
        for one in (whole, session):
            fill(one)
        expected = whole.reply(QUESTION)
        breaks = Breaks(monkeypatch, error)
        session.append("user", QUESTION, prefill=False)
        breaks.left = nth
        with pytest.raises(type(error)):
            session.reply()
        assert session.reply() == expected
        for layer in range(4):
            assert (kv_of(whole.engine.kv, layer) - kv_of(session.engine.kv, layer)).abs().max() < 1e-3


@pytest.mark.parametrize("nth", [0, 1, 3])
def test_a_broken_append_is_finished_by_the_next(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    text = "\n".join(f"package{i}-core version: 1.{i}" for i in range(90))
    with runtime.session("whole") as whole, runtime.session("broken") as session:
        for one in (whole, session):
            fill(one)
        whole.append("tool", text, name="read")
        breaks = Breaks(monkeypatch, KeyboardInterrupt())
        breaks.left = nth
        with pytest.raises(KeyboardInterrupt):
            session.append("tool", text, name="read")
        session.append("user", QUESTION, prefill=False)
        whole.append("user", QUESTION, prefill=False)
        assert session.reply() == whole.reply()
        for layer in range(4):
            assert (kv_of(whole.engine.kv, layer) - kv_of(session.engine.kv, layer)).abs().max() < 1e-3


def test_a_long_reply_may_be_forgotten_again(runtime: Runtime) -> None:
    """Its keys and values push older tokens out of the window, which must be there again for what follows."""
    with runtime.session("plain") as plain, runtime.session("long") as session:
        for one in (plain, session):
            fill(one)
            one.append("user", QUESTION, prefill=False)
        pieces = session.generate(max_new_tokens=1500, processors=LogitsProcessorList([NeverEnds(runtime.chat.end_ids)]))
        for _ in range(1200):
            next(pieces)
        pieces.close()  # cancelled: all of it is forgotten
        assert session.engine.counters.decoded >= 1100
        for one in (plain, session):
            one.append("tool", "glove-core version: 8.1", name="read")
        assert plain.reply(QUESTION) == session.reply(QUESTION)
        for layer in range(4):
            assert (kv_of(plain.engine.kv, layer) - kv_of(session.engine.kv, layer)).abs().max() < 1e-3


class NeverEnds(LogitsProcessor):  # type: ignore[misc]
    """Keeps a reply going."""

    def __init__(self, end_ids: tuple[int, ...]) -> None:
        self.end_ids = list(end_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.end_ids] = float("-inf")
        return scores
