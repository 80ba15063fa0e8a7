"""The shortest way out of a grammar: closing the string, the list and the object one is in, and ending.

Knows llguidance's matchers and the texts of tokens; nothing of logits. Not provably the shortest, but always a way out that is short.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 1024
"""Tokens after which a way out counts as none."""

PATIENCE = 2
"""Times that one first character is chosen in one place before others are: digits alone do not lead out of an e-mail address."""

TRIES = 256
"""Pieces of a way out that went round in circles of which each is left out once, to see whether it has to be there."""

LENGTH = 64
"""Tokens are ordered by how much deeper they lead, and then the longest first; longer ones than this count as this long."""

_DEEPER = {ord("{"): 6, ord("["): 6, ord("}"): -2, ord("]"): -2, ord(","): 4, ord("\n"): 50}
_NUMBER = dict.fromkeys(b"0123456789", 5) | dict.fromkeys(b"-.eE", 6)  # after a comma, which leads to more, but out of the number
_SAID, _FOREIGN, _AGAIN, _MARKUP, _NEVER = 10, 50, 20, 40, np.int32(2**30)
_QUOTE, _ESCAPE, _ENDS_STRING = ord('"'), ord("\\"), re.compile(rb'[^{}\[\],:\s"]*"')

Places = defaultdict[int, NDArray[np.int32]]
"""By a hash of what was allowed in a place: how often each first byte was chosen there, then control tokens, then the end of a thought."""


class ShortestEnd:
    """Ways out of the grammars of one tokenizer.

    Args:
        tokens: llguidance's tokenizer.
        ids: ids that end a reply.
    """

    def __init__(self, tokens: Any, ids: Sequence[int]) -> None:
        self._tokens, self.ids = tokens, list(ids)

    def mask(self, matcher: Any) -> NDArray[np.bool_]:
        """Tokens that may come next, bool ``[vocabulary]``."""
        return self._unpacked(matcher.compute_bitmask())

    def path(self, matcher: Any, limit: int = LONGEST) -> list[int] | None:
        """Tokens after which a reply may end, the end itself not counted; None if none was found of at most ``limit``."""
        walk, been, found = matcher.deep_copy(), Places(lambda: np.zeros(258, dtype=np.int32)), list[int]()
        while not walk.is_accepting():
            if len(found) >= LONGEST or walk.is_error():
                return None
            step = self._step(walk, been)
            walk.consume_tokens(step)
            found += step
        if any(chosen.max() > PATIENCE for chosen in been.values()):
            found = self._straightened(matcher, found)
        return found if len(found) <= limit else None

    def completes(self, matcher: Any, tokens: Sequence[int]) -> bool:
        """Whether a reply may end after ``tokens``."""
        after = matcher.deep_copy()
        return bool(after.try_consume_tokens(list(tokens)) == len(tokens) and after.is_accepting())

    def affords(self, matcher: Any, token: int, left: int) -> bool:
        """Whether ``left`` tokens suffice to come to an end after ``token``."""
        after = matcher.deep_copy()
        return bool(after.consume_token(token)) and self.path(after, left) is not None

    def _step(self, walk: Any, been: Places) -> list[int]:
        """The token that leads out, or, where that went on and on, what was tried less, and before all else the end of a thought."""
        bits = walk.compute_bitmask()
        mask, chosen = self._unpacked(bits), been[hash(bits)]
        order = np.where(mask, self._orders[self._place(mask)], _NEVER)
        best = int(order.argmin())
        if chosen[self._first[best]] >= PATIENCE:
            for mark in self._closes_thoughts if not chosen[-1] else ():
                chosen[-1] = PATIENCE + 1
                if walk.deep_copy().try_consume_tokens(mark) == len(mark):
                    return mark
            best = int((order + (chosen // PATIENCE * _AGAIN * LENGTH)[self._first]).argmin())
        chosen[self._first[best]] += 1
        return [best]

    def _place(self, mask: NDArray[np.bool_]) -> str:
        if mask[self._letter] and mask[self._quote]:  # almost anything may follow in a string, and the quote ends it
            return "inside"
        return "opening" if len(self._openings) == 2 and mask[self._openings].all() else "elsewhere"

    def _straightened(self, matcher: Any, path: list[int]) -> list[int]:
        """``path`` without pieces that do not have to be there, the long ones first."""
        size, start = len(path) // 2, 0
        for _ in range(TRIES):
            if start >= len(path):
                size, start = size // 2, 0
            if not size:
                break
            rest = path[:start] + path[start + size :]
            if self.completes(matcher, rest):
                path = rest
            else:
                start += size
        return path

    def _unpacked(self, bits: bytes) -> NDArray[np.bool_]:
        unpacked = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")
        return unpacked[: self._tokens.vocab_size].astype(np.bool_)

    @cached_property
    def _texts(self) -> list[bytes]:
        """What each token writes; nothing for a control token."""
        return [
            b"" if self._tokens.is_special_token(token) else self._tokens.decode_bytes([token]) for token in range(self._tokens.vocab_size)
        ]

    @cached_property
    def _closes_thoughts(self) -> list[list[int]]:
        """The end of a thought as a control token, if it is one, and letter by letter."""
        tokens = self._tokens
        return [tokens.tokenize_str("</think>", parse_special=True), [tokens.tokenize_str(letter)[0] for letter in "</think>"]]

    @cached_property
    def _letter(self) -> int:
        return self._texts.index(b"a")

    @cached_property
    def _quote(self) -> int:
        return self._texts.index(b'"')

    @cached_property
    def _openings(self) -> list[int]:
        """A token that ends a property's name, and one that ends a value: both are allowed only where any string may begin."""
        tokens = sorted(range(len(self._texts)), key=lambda token: len(self._texts[token]))
        found = (next((token for token in tokens if re.match(ends, self._texts[token])), None) for ends in (rb'":', rb'"[,}\]]'))
        return [token for token in found if token is not None]

    @cached_property
    def _first(self) -> NDArray[np.intp]:
        """The first byte of each token, intp ``[vocabulary]``; 256 for a control token."""
        return np.asarray([text[0] if text else 256 for text in self._texts], dtype=np.intp)

    @cached_property
    def _orders(self) -> dict[str, NDArray[np.int32]]:
        """By place: how much deeper each token leads, and then how short it is, int32 ``[vocabulary]``."""
        return {place: np.asarray(list(self._order(place)), dtype=np.int32) for place in ("inside", "opening", "elsewhere")}

    def _order(self, place: str) -> Iterator[int]:
        for token, text in enumerate(self._texts):
            if text:
                yield LENGTH * deeper(text, place) - min(len(text), LENGTH - 1)
            else:
                mark = self._tokens.decode_bytes([token])
                yield LENGTH * (-_MARKUP if b"/" in mark[:3] else _MARKUP + (mark == b"<think>"))


def deeper(text: bytes, place: str) -> int:
    """How much more there is to be closed after a token of JSON.

    Args:
        text: of the token.
        place: ``inside`` a string that may end here; ``opening``, where any string may begin; or ``elsewhere``.
    """
    inside = place == "inside" or (place == "elsewhere" and _ENDS_STRING.match(text) is not None)
    found, escaped, said = _FOREIGN if text[0] >= 128 else 0 if inside else _NUMBER.get(text[0], 0), False, False
    for byte in text:
        if escaped or (inside and byte == _ESCAPE):
            escaped, said = not escaped, True
        elif byte == _QUOTE:
            found, inside = found + (-1 if inside else 2), not inside
        elif inside:
            said = True
        else:
            found += _DEEPER.get(byte, 0)
    return found + _SAID * (said and place != "elsewhere")
