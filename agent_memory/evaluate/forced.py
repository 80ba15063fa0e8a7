"""A reply that is forced token by token, so that it is known how likely each was.

Knows Sessions and transformers' logits processors; does not know why a reply should be said.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ..runtime import Runtime
from ..session import Session
from .fork import asked_on_a_fork


class ForcedTokens(LogitsProcessor):
    """Makes a reply say given tokens, and remembers how likely each was.

    Args:
        ids: the tokens of the reply, in order.
        counted: from which of them on log-probabilities are kept.
    """

    def __init__(self, ids: Sequence[int], counted: int) -> None:
        self._ids, self._counted, self._at = list(ids), counted, 0
        self.rows: list[Tensor] = []
        self.greedy: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[1, vocabulary]`` that leave only the next of the tokens."""
        gold = self._ids[self._at]
        self.greedy.append(int(scores[0].argmax()) == gold)
        if self._at >= self._counted:
            self.rows.append(torch.log_softmax(scores[0].float(), dim=-1).cpu())
        self._at += 1
        forced = torch.full_like(scores, float("-inf"))
        forced[0, gold] = 0.0
        return forced


def forced_reply(runtime: Runtime, session: Session, question: str, ids: Sequence[int], counted: int, name: str) -> ForcedTokens:
    """A reply of the tokens ``ids`` to a question, asked on a fork that is dropped.

    Args:
        runtime: that opened the session.
        session: what is asked about; it stays as it is.
        question: the user message.
        ids, counted: see :class:`ForcedTokens`.
        name: of the fork.
    """
    forced = ForcedTokens(ids, counted)
    with asked_on_a_fork(runtime, session, name) as child:
        child.append("user", question, prefill=False)
        for _ in child.generate(max_new_tokens=len(ids), processors=LogitsProcessorList([forced])):
            pass
    return forced


def answer_loss(runtime: Runtime, session: Session, question: str, answer: str, name: str) -> float:
    """Negative log-likelihood of a reply that says nothing but ``answer``, nats, summed over its tokens; see :func:`forced_reply`."""
    ids = list(runtime.tokenizer(answer, add_special_tokens=False, verbose=False).input_ids)
    if not ids:
        return 0.0
    forced = forced_reply(runtime, session, question, ids, 0, name)
    return -sum(float(row[token]) for row, token in zip(forced.rows, ids, strict=True))
