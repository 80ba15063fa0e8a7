"""From token ids to text, a token at a time: never half a character, never the beginning of a stop string.

Knows a tokenizer's ``decode``; nothing of models or of how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from agent_memory.chat.reply import silent_ids

_HALF_CHARACTER = "\ufffd"


class TextStream:
    """Turns a growing list of ids into text. All pieces together equal ``tokenizer.decode`` of all ids, silent ones (special tokens but
    those that mark thoughts and calls) skipped.

    Only the tokens since the last but one boundary are decoded, so a long reply costs no more per token than a short one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._silent = tokenizer, silent_ids(tokenizer)
        self._ids: list[int] = []
        self._told = 0
        self._told_text = ""

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty inside a character."""
        if token in self._silent:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        new = text[len(self._told_text) :]
        if not new or text.endswith(_HALF_CHARACTER):
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        self._told_text = self._decode(self._ids)
        return new

    def finish(self) -> str:
        """What was held back, with U+FFFD for bytes that never became a character."""
        return self._decode(self._ids)[len(self._told_text) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class StopGuard:
    """Lets text through until a stop string begins, and holds back what may become one.

    Args:
        stops: the strings that end a reply.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The part of the text so far that cannot belong to a stop string; sets ``hit`` when one is complete."""
        text = self._held + text
        starts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if starts:
            self.hit, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, once nothing more will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
