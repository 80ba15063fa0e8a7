"""The model without memory: transformers' own ``generate`` over text that lies in its window, nothing of ours.

Knows the stock model; does not know Sessions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from ..runtime import Runtime
from ..types import Message


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an answer may get: tokens, and strings that end it."""

    tokens: int
    stop: tuple[str, ...] = ()


ANSWER = Limits(48)

ONE_LINE = Limits(32, ("\n",))
"""Of a model that was not taught when to stop: it says the next sentence, and the next."""

ROOM = 96
"""Tokens of the window that are left for a question and its answer."""


class WindowOnly:
    """Answers over the end of a history, which is read once.

    Args:
        runtime: of the model.
        history: token ids; of a longer one, as many of the last as the window holds.
        limits: of an answer.
    """

    def __init__(self, runtime: Runtime, history: Sequence[int], limits: Limits = ANSWER) -> None:
        self._runtime, self._limits = runtime, limits
        self._history = list(history)[-max(1, runtime.window - ROOM) :]
        self._cache: DynamicCache | None = None

    def answer(self, text: str) -> str:
        """What the model says when it is asked ``text`` next."""
        runtime, previous = self._runtime, [Message("tool", ".")]
        asked = runtime.chat.append(Message("user", text), previous=previous) + runtime.chat.generation_prompt()
        ids = torch.tensor([[*self._history, *asked]], device=runtime.attachment.device)
        with torch.no_grad():
            if self._cache is None:
                self._cache = runtime.model(ids[:, : len(self._history)], past_key_values=DynamicCache(config=runtime.model.config),
                                            logits_to_keep=1).past_key_values  # fmt: skip
            out = runtime.model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=copy.deepcopy(self._cache), do_sample=False,
                max_new_tokens=self._limits.tokens, stop_strings=list(self._limits.stop) or None, tokenizer=runtime.tokenizer,
                eos_token_id=list(runtime.chat.end_ids), pad_token_id=runtime.chat.end_ids[0]
            )  # fmt: skip
        return runtime.chat.parse(out[0, ids.shape[1] :].tolist()).content
