"""What an answer loses when the Blocks of a turn are hidden, as damage hides them. Knows any Runtime's Sessions; chooses no questions."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from agent_memory.session import Session
from agent_memory.types import BLOCK_TOKENS, Recall


@dataclass(frozen=True)
class Question:
    """What is asked, and what the model is made to answer."""

    text: str
    answer: str


@dataclass
class Forced(LogitsProcessor):
    """Lets the model say ``ids`` only, and adds up their negative log-likelihood in nats."""

    ids: Sequence[int]
    nll: float = 0.0
    at: int = field(default=0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.ids[self.at]
        self.nll -= float(scores[0].float().log_softmax(-1)[token])
        self.at += 1
        forced = torch.full_like(scores, float("-inf"))
        forced[0, token] = 0.0
        return forced


def asked(session: Session, question: Question, name: str, hidden: Collection[int] = ()) -> tuple[float, Recall]:
    """Negative log-likelihood of the answer on a fork in which Blocks are hidden, and what that reply recalled."""
    ids = session.engine._tokenizer.encode(question.answer, add_special_tokens=False)
    with session.fork(name) as child:
        child.append("user", question.text, prefill=False)
        child.engine.kv.lost[list(hidden)] = True
        forced = Forced(ids)
        for _ in child.generate(max_new_tokens=len(ids), processors=LogitsProcessorList([forced])):
            pass
        assert child.last_recall is not None
        return forced.nll, child.last_recall


def blocks_of(session: Session, turn: int) -> set[int]:
    """The whole Blocks in memory that hold tokens of a turn."""
    found = session.timeline.turns(turn, turn + 1)[0]
    last = min(-(-found.stop // BLOCK_TOKENS), session.engine.kv.blocks)
    return set(range(found.start // BLOCK_TOKENS, last))


@dataclass(frozen=True)
class Hidden:
    """One question: the likelihood of its answer with everything there, and what hiding turns adds to it, in nats."""

    nll: float
    top: int
    top_adds: float
    others_add: float


def hide(session: Session, question: Question, name: str, rng: random.Random, others: int = 3) -> Hidden:
    """Ask with everything there, without the turn of the highest score, and without each of some other turns that were recalled."""
    nll, recall = asked(session, question, name)
    top, *rest = (hit.turn for hit in recall.turns)
    wanted = blocks_of(session, top)
    others_add = []
    for other in rng.sample(rest, min(others, len(rest))):
        without, _ = asked(session, question, f"{name} without {other}", blocks_of(session, other) - wanted)
        others_add.append(without - nll)
    without, _ = asked(session, question, f"{name} without {top}", wanted)
    return Hidden(nll, top, without - nll, float(np.mean(others_add)) if others_add else 0.0)
