"""A message of a long Session is read twice: what it looks at is near when it is read again and answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from agent_memory.attention.evidence import Evidence
from agent_memory.session import Session
from tests.session.conftest import MakeRuntime, story

METHOD = "recall:score=mass:attended=256"
TEXTS = story(7, 14)
QUESTIONS = (
    "What was read last, and by whom?",
    *(" ".join(f"Tell me about the tool number {number}." for number in range(count)) for count in (4, 5, 6, 9)),
)


class Seen(LogitsProcessor):
    """What stands near when the first token of a reply is chosen, and its logits."""

    def __init__(self, session: Session) -> None:
        self.session, self.brought, self.logits = session, list[int](), torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not len(self.logits):
            self.logits = scores[0].clone()
            brought = self.session.engine._brought
            self.brought = [] if brought is None else [block for block in brought.tolist() if block >= 0]
        return scores


def answered(session: Session) -> Seen:
    seen = Seen(session)
    for _ in session.generate(max_new_tokens=3, processors=LogitsProcessorList([seen])):
        pass
    return seen


@pytest.fixture
def session_of(make_runtime: MakeRuntime, tmp_path: Path) -> Callable[..., Session]:
    """A Session with the texts, in a Store of that name."""

    def make(store: str, method: str = METHOD) -> Session:
        session = make_runtime(method=method, window=512, border=None, store=tmp_path / store).session("a")
        for text in TEXTS if not session.turns() else []:
            session.append("tool", text, name="read", prefill=False)
        return session

    return make


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What messages looked at, one after another."""
    sums: list[Tensor] = []
    strongest = Evidence.strongest

    def noted(self: Evidence, count: int, far: int) -> Tensor | None:
        assert self._sums is not None
        sums.append(self._sums.clone())
        return strongest(self, count, far)

    monkeypatch.setattr(Evidence, "strongest", noted)
    return sums


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_reply_is_the_same_whether_its_message_was_read_before_or_not(
    session_of: Callable[..., Session], question: str, looked: list[Tensor]
) -> None:
    found = []
    with session_of("now") as session:
        session.prefill()
        session.append("user", question, prefill=False)
        found.append(answered(session))
    with session_of("before") as session:
        session.append("user", question, prefill=True)
        child = session.fork("b")
        found.append(answered(child))
        child.close(keep=False)
    with session_of("before") as session:  # reopened
        found.append(answered(session))
    assert len(found[0].brought) == 2
    assert all(one.brought == found[0].brought for one in found)
    for one, sums in zip(found[1:], looked[1:], strict=True):
        torch.testing.assert_close(one.logits, found[0].logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(sums, looked[0], atol=1e-3, rtol=1e-3)


def test_what_is_kept_does_not_depend_on_what_was_near(session_of: Callable[..., Session]) -> None:
    kept = []
    for method in (METHOD, f"{METHOD}:focus=0"):
        with session_of(method.replace(":", "_"), method) as session:
            session.append("user", QUESTIONS[0], prefill=False)
            seen = answered(session)
            assert bool(seen.brought) == (method == METHOD)
            child = session.fork("b", at=len(session.turns()) - 1)
            child.append("tool", TEXTS[0], name="read", prefill=True)
            kv = child.engine.kv
            kept.append(torch.stack([part.window.view(kv.length - 100, kv.length)[0] for part in kv.layers]).clone())
            child.close(keep=False)
    torch.testing.assert_close(kept[0], kept[1], atol=1e-4, rtol=1e-4)


def test_nothing_is_brought_inside_the_trained_window_or_without_a_message(
    session_of: Callable[..., Session], make_runtime: MakeRuntime
) -> None:
    with session_of("long") as session:
        session.append("assistant", "I have read all of it.", prefill=False)
        assert answered(session).brought == []
    with make_runtime(method=METHOD, window=512, border=None).session("short") as session:
        session.append("user", QUESTIONS[0], prefill=False)
        assert answered(session).brought == []
