"""The model without memory: transformers' own ``generate`` over text that lies in its window, nothing of ours.

Knows the stock model; does not know Sessions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import DynamicCache

from ..runtime import Runtime
from ..types import Message

ANSWER_TOKENS = 48

BRIEF_TOKENS = 32
"""Longest answer in a sentence."""

LINE_END = ("\n",)
"""What ends a brief answer: a model that was not taught when to stop says the next sentence, and the next."""

ROOM = 2 * ANSWER_TOKENS
"""Tokens of the window that are left for a question and its answer."""


class WindowOnly:
    """Answers over the end of a history, which is read once.

    Args:
        runtime: of the model.
        history: token ids; of a longer one, as many of the last as the window holds.
        brief: answers are one line.
    """

    def __init__(self, runtime: Runtime, history: Sequence[int], brief: bool = False) -> None:
        self._runtime = runtime
        self._limits = {"max_new_tokens": ANSWER_TOKENS} if not brief else {
            "max_new_tokens": BRIEF_TOKENS, "stop_strings": list(LINE_END), "tokenizer": runtime.tokenizer
        }  # fmt: skip
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
                eos_token_id=list(runtime.chat.end_ids), pad_token_id=runtime.chat.end_ids[0], **self._limits
            )  # fmt: skip
        return runtime.chat.parse(out[0, ids.shape[1] :].tolist()).content
