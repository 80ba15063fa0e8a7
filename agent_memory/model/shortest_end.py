"""The shortest way out of a grammar: closing the string, the list and the object one is in, and ending.

Knows llguidance's matchers and the texts of tokens; nothing of logits. Not provably the shortest, but always a way out that is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 1024
"""Tokens after which a way out counts as none."""

TRIES = 8
"""Ways out that are tried where the plain one does not end, as with an optional property that holds its own kind."""

_OUTSIDE_STRINGS, _INSIDE_STRINGS = '}]",: 0123456789', '"'
_OPENS_THOUGHTS, _CLOSES_THOUGHTS = "<think>", "</think>"

RANK = 64
"""Tokens are ordered by how soon their first character leads out, and then the longest first; longer ones than this count as this long."""


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
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._tokens.vocab_size].astype(np.bool_)

    def path(self, matcher: Any, limit: int = LONGEST) -> list[int] | None:
        """Tokens after which a reply may end, the end itself not counted; None if none was found of at most ``limit``."""
        thought = self._after_thought(matcher, limit)
        plain = self._walk(matcher.deep_copy(), limit if thought is None else len(thought), None)
        if plain is not None or thought is not None:
            return thought if plain is None else plain
        walks = (self._walk(matcher.deep_copy(), min(limit, LONGEST // TRIES), np.random.default_rng(seed)) for seed in range(TRIES))
        return min((walk for walk in walks if walk is not None), key=len, default=None)

    def _after_thought(self, matcher: Any, limit: int) -> list[int] | None:
        """The way out if what is being written is a thought, which only its mark ends; in a string of JSON it is a detour."""
        after = matcher.deep_copy()
        if after.try_consume_tokens(self._closes_thoughts) < len(self._closes_thoughts):
            return None
        rest = self._walk(after, limit - len(self._closes_thoughts), None)
        return None if rest is None else [*self._closes_thoughts, *rest]

    def _walk(self, matcher: Any, limit: int, chance: np.random.Generator | None) -> list[int] | None:
        found: list[int] = []
        while not matcher.is_accepting():
            if len(found) >= limit or matcher.is_error():
                return None
            found.append(self._next(matcher, chance))
            matcher.consume_token(found[-1])
        return found

    def affords(self, matcher: Any, token: int, left: int) -> bool:
        """Whether ``left`` tokens suffice to come to an end after ``token``."""
        if token in self.ids:
            return True
        after = matcher.deep_copy()
        return bool(after.consume_token(token)) and self.path(after, left) is not None

    def _next(self, matcher: Any, chance: np.random.Generator | None) -> int:
        mask = self.mask(matcher)
        inside = mask[self._letter] and mask[self._quote]  # almost anything may follow in a string, and the quote ends it
        order = np.where(mask, self._orders[int(inside)], np.iinfo(np.int32).max)
        best = int(order.argmin())
        if chance is None:
            return best
        rank = _rank(order[best])
        return int(chance.choice(np.flatnonzero(_rank(order) == rank)))

    @cached_property
    def _texts(self) -> list[bytes]:
        return [
            b"" if self._tokens.is_special_token(token) else self._tokens.decode_bytes([token]) for token in range(self._tokens.vocab_size)
        ]

    @cached_property
    def _closes_thoughts(self) -> list[int]:
        return list(self._tokens.tokenize_str(_CLOSES_THOUGHTS, parse_special=True))

    @cached_property
    def _letter(self) -> int:
        return self._texts.index(b"a")

    @cached_property
    def _quote(self) -> int:
        return self._texts.index(b'"')

    @cached_property
    def _orders(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """How soon each token leads out, outside and inside strings, int32 ``[vocabulary]``; control tokens lead out first."""
        return self._order(_OUTSIDE_STRINGS), self._order(_INSIDE_STRINGS)

    def _order(self, first: str) -> NDArray[np.int32]:
        ranks = {character: rank for rank, character in enumerate(first.encode(), 1)}
        made = [RANK * ranks.get(text[0], len(first) + 1) - min(len(text), RANK - 1) if text else 0 for text in self._texts]
        opening = self._tokens.tokenize_str(_OPENS_THOUGHTS, parse_special=True)
        if len(opening) == 1:
            made[opening[0]] = RANK * (len(first) + 2)
        return np.asarray(made, dtype=np.int32)


def _rank(order: Any) -> Any:
    """Rank by first character: the order without the length."""
    return -(-order // RANK)
