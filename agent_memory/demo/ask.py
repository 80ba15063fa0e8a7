"""Asking about the inventory: with memory, and the same model without.

Knows Sessions, questions and the stock model; does not know how the Session was filled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..evaluate.haystack import Needle
from ..runtime import Runtime
from ..session import Session
from ..types import RecalledTurn
from .inventory import Question

ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, what was answered, and where that came from.

    ``tokens_ago`` counts from the end of the turn that held the record when the question was asked.
    """

    question: Question
    answer: str
    right: bool
    tokens_ago: int
    seconds: float
    recalled: tuple[RecalledTurn, ...]
    plain_answer: str
    plain_right: bool


def ask(runtime: Runtime, session: Session, question: Question, holder_stop: int) -> Asked:
    """Ask one question, with memory and without.

    Args:
        runtime: of the Session.
        session: the filled Session.
        question: what to ask.
        holder_stop: token index after the turn that holds the record.
    """
    plain = plain_answer(runtime, session, question.text)
    ago = session.tokens - holder_stop
    started = time.perf_counter()
    said = session.reply(question.text, max_new_tokens=ANSWER_TOKENS)
    seconds = time.perf_counter() - started
    recalled = session.last_recall.turns if session.last_recall is not None else ()
    return Asked(question, said, is_right(question, said), ago, seconds, recalled[:3], plain, is_right(question, plain))


def is_right(question: Question, said: str) -> bool:
    """Whether an answer equals what the machine says."""
    return Needle(question.package, question.field, question.value, 0.0).found_in(said)


def plain_answer(runtime: Runtime, session: Session, text: str) -> str:
    """What the same model says from as many of the last tokens as its window holds: ``generate`` of transformers, nothing of ours."""
    from ..types import Message

    recent = session.timeline.turns(max(0, session.timeline.turn_count - 1))
    previous = [Message(turn.role, turn.text or ".", turn.name) for turn in recent]
    asked = runtime.chat.append(Message("user", text), previous=previous) + runtime.chat.generation_prompt()
    room = runtime.window - ANSWER_TOKENS - len(asked)
    history = session.timeline.tokens(max(0, session.tokens - room), session.tokens).tolist()
    ids = torch.tensor([[*history, *asked]], device=runtime.attachment.device)
    with torch.no_grad():
        out = runtime.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=list(runtime.chat.end_ids)
        )
    return runtime.chat.parse(out[0, ids.shape[1] :].tolist()).content
