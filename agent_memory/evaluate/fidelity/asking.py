"""Asking on a fork: a gold answer forced token by token along the path of a real reply and the reply the model gives by itself, or how
a text goes on, scored token by token.

Knows Sessions and logits; does not know where memory is from or what the losses are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...conversation import HISTORY_SEEN
from ...runtime import Runtime
from ...session import Session
from ...types import Message
from ..forced import forced_reply
from ..fork import asked_on_a_fork
from .documents import Continuation, Document, Encode, Question


@dataclass(frozen=True, slots=True)
class Response:
    """What a method makes of one question.

    Attributes:
        nll: negative log-likelihood of each token of the gold answer, nats.
        log_probabilities: fp32 ``[tokens, vocabulary]`` on the CPU: of the tokens of the gold answer.
        greedy: whether each of these tokens is the most likely one.
        reply: what the model says by itself, decoded greedily; None where it was not asked to.
    """

    nll: tuple[float, ...]
    log_probabilities: Tensor
    greedy: bool
    reply: str | None


def ask(runtime: Runtime, session: Session, question: Question | Continuation, name: str, replies: bool = True) -> Response:
    """Ask one question, or score how a text goes on.

    Args:
        runtime: that opened the session.
        session: what is asked about; it stays as it is.
        question: what is asked.
        name: of the forks, which are dropped.
        replies: let the model reply by itself too.
    """
    if isinstance(question, Continuation):
        return _scored(runtime, session, question, name)
    return _answered(runtime, session, question, name, replies)


def encoder(runtime: Runtime) -> Encode:
    """Token ids of texts as the model counts them."""
    return lambda text: list(runtime.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _answered(runtime: Runtime, session: Session, question: Question, name: str, replies: bool) -> Response:
    """One question, once with the gold answer forced and, if wanted, once freely.

    The free reply need not be made where the forced one shows that it would be the gold answer, and nothing but ``expected`` judges it.
    """

    ids, counted = question.tokens(encoder(runtime))
    forced = forced_reply(runtime, session, question.text, ids, counted, name)
    rows = torch.stack(forced.rows)
    nll = tuple(-float(row[token]) for row, token in zip(rows.double(), ids[counted:], strict=True))
    greedy = all(forced.greedy[counted:])
    if all(forced.greedy) and question.metric is None or not replies:
        return Response(nll, rows, greedy, question.whole if all(forced.greedy) else None)
    with asked_on_a_fork(runtime, session, name) as child:
        child.append("user", question.text, prefill=False)
        return Response(nll, rows, greedy, _reply(child, question))


def prompt_ids(runtime: Runtime, document: Document, question: Question) -> list[int]:
    """Ids that follow a document when a question is asked and a reply wanted, as a Session commits and feeds them."""
    told = [Message(role, text) for role, text in document.messages][-HISTORY_SEEN:]
    asked = Message("user", question.text)
    ids = runtime.chat.append(asked, previous=told, system=document.system)
    return ids + runtime.chat.generation_prompt(previous=[*told, asked][-HISTORY_SEEN:], system=document.system)


def _reply(session: Session, question: Question) -> str:
    """The greedy reply; where it need only contain something, up to there."""
    said = ""
    for piece in (pieces := session.generate(max_new_tokens=question.max_new_tokens)):
        said += piece
        if question.metric is None and question.contained_in(said):
            pieces.close()
            break
    return said


def _scored(runtime: Runtime, session: Session, question: Continuation, name: str) -> Response:
    """Each token after all before it, choosing for itself, as those of a reply do; see ``Runtime.score``."""
    with asked_on_a_fork(runtime, session, name) as child:
        start = child.tokens
        child.append_ids(question.ids)
        stop = child.tokens
        with _seen_logits(runtime) as rows:
            nll = child.engine.losses(range(start + 1, stop), alone=start + 1)
        return Response(tuple(nll.double().tolist()), torch.cat(rows)[-len(nll) :], False, None)


@contextmanager
def _seen_logits(runtime: Runtime) -> Iterator[list[Tensor]]:
    """Log-probabilities fp32 ``[tokens, vocabulary]`` on the CPU of every forward of the model that makes logits, in order."""
    rows: list[Tensor] = []
    hook = runtime.model.register_forward_hook(lambda *seen: rows.append(torch.log_softmax(seen[-1].logits[0].float(), -1).cpu()))
    try:
        yield rows
    finally:
        hook.remove()


def divergence(full: Tensor, method: Tensor) -> Tensor:
    """KL(full || method) of each row, nats, fp64 ``[tokens]``.

    Args:
        full: log-probabilities ``[tokens, vocabulary]``; rounded ones are normalised again, so that it is never negative.
        method: log-probabilities of the same shape.
    """
    p, q = torch.log_softmax(full.double(), -1), torch.log_softmax(method.double(), -1)
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)
