"""Asking on a fork: the gold answer forced token by token along the path of a real reply, and the reply the model gives by itself.

Knows Sessions and transformers' logits processors; does not know where memory is from or what the losses are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ...runtime import Runtime
from ...session import Session
from ..fork import asked_on_a_fork
from .documents import Question


@dataclass(frozen=True, slots=True)
class Asked:
    """What a method makes of one question.

    Attributes:
        nll: negative log-likelihood of each token of the gold answer, nats.
        log_probabilities: fp32 ``[tokens, vocabulary]`` on the CPU: of the tokens of the gold answer.
        reply: what the model says by itself, decoded greedily.
    """

    nll: tuple[float, ...]
    log_probabilities: Tensor
    reply: str


class ForcedTokens(LogitsProcessor):
    """Makes a reply say given tokens, and remembers how likely each was.

    Args:
        ids: the tokens of the reply, in order.
        counted: from which of them on log-probabilities are kept.
    """

    def __init__(self, ids: Sequence[int], counted: int) -> None:
        self._ids, self._counted, self._at = list(ids), counted, 0
        self.rows: list[Tensor] = []
        self.greedy = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocabulary]`` that leave only the next of the tokens."""
        gold = self._ids[self._at]
        self.greedy = self.greedy and int(scores[0].argmax()) == gold
        if self._at >= self._counted:
            self.rows.append(torch.log_softmax(scores[0].float(), dim=-1).cpu())
        self._at += 1
        forced = torch.full_like(scores, float("-inf"))
        forced[0, gold] = 0.0
        return forced


def ask(runtime: Runtime, session: Session, question: Question, name: str) -> Asked:
    """Ask one question, once with the gold answer forced and once freely.

    The free reply is left out where the forced one shows that it would be the gold answer, and nothing but ``expected`` judges it.

    Args:
        runtime: that opened the session.
        session: what is asked about; it stays as it is.
        question: what is asked.
        name: of the forks, which are dropped.
    """

    def encode(text: str) -> list[int]:
        return list(runtime.tokenizer.encode(text, add_special_tokens=False))

    ids, counted = question.tokens(encode)
    forced = ForcedTokens(ids, counted)
    with asked_on_a_fork(runtime, session, name) as child:
        child.append("user", question.text, prefill=False)
        _exhaust(child, max_new_tokens=len(ids), processors=[forced])
    rows = torch.stack(forced.rows)
    nll = tuple(-float(row[token]) for row, token in zip(rows.double(), ids[counted:], strict=True))
    if forced.greedy and question.metric is None:
        return Asked(nll, rows, question.whole)
    with asked_on_a_fork(runtime, session, name) as child:
        child.append("user", question.text, prefill=False)
        return Asked(nll, rows, _reply(child, question))


def _exhaust(session: Session, **options: Any) -> None:
    for _ in session.generate(**options):
        pass


def _reply(session: Session, question: Question) -> str:
    """The greedy reply; where it need only contain something, up to there."""
    said = ""
    for piece in (pieces := session.generate(max_new_tokens=question.max_new_tokens)):
        said += piece
        if question.metric is None and question.contained_in(said):
            pieces.close()
            break
    return said


def divergence(full: Tensor, method: Tensor) -> Tensor:
    """KL(full || method) of each row, nats, fp64 ``[tokens]``.

    Args:
        full: log-probabilities ``[tokens, vocabulary]``; rounded ones are normalised again, so that it is never negative.
        method: log-probabilities of the same shape.
    """
    p, q = torch.log_softmax(full.double(), -1), torch.log_softmax(method.double(), -1)
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)
