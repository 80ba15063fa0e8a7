"""Holding a reply to a grammar: tokens that would break it are ruled out, and it is brought to its end before the tokens run out.

Knows llguidance and one tokenizer; nothing of tools, schemas or templates. It is a logits processor, so ``decode`` knows nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from agent_memory.errors import ConfigError, ModelError
from agent_memory.model.shortest_end import LONGEST, ShortestEnd

GRAMMARS_KEPT = 256
"""Compiled grammars that are kept for the next reply, each about a tenth of a megabyte."""

LIKELY, SURE = 64, 0.99
"""So many of the best tokens, or as many as hold that much of the probability, are checked for whether the rest can still be written."""

FREE = 128
"""With more tokens left than these, text that may end at any time keeps even its least likely tokens, which are not checked."""

WALKS = 4
"""Tokens of these after which a new way out is looked for, where the known one is closed to them."""


class Grammars:
    """Compiled grammars of one tokenizer; the tokenizer is taken apart at the first use.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary: number of logits.
        end_ids: ids that end a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, end_ids: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._end_ids = tokenizer, max(vocabulary, len(tokenizer)), list(end_ids)
        self._parts: tuple[Any, ShortestEnd] | None = None
        self._compiled = lru_cache(GRAMMARS_KEPT)(self._compile)

    @property
    def missing(self) -> str | None:
        """Why nothing can be constrained here, and what to do; None if it can."""
        if find_spec("llguidance") is None:
            return "constrained decoding needs llguidance: pip install 'agent-kv-memory[structured]'"
        if not getattr(self._tokenizer, "is_fast", False):
            return f"constrained decoding needs a fast tokenizer, and {type(self._tokenizer).__name__} is not one"
        if not self._end_ids:
            return "constrained decoding needs a token that ends a reply, and this tokenizer has none; set tokenizer.eos_token"
        return None

    def problem(self, grammar: str) -> str | None:
        """Why a grammar cannot be used, in one line; None if it can."""
        return self._compiled(grammar)[2]

    def processor(self, grammar: str, max_new_tokens: int) -> LogitsProcessor:
        """What holds one reply of at most that many tokens to a grammar.

        Raises:
            ConfigError: a grammar that cannot be used, or whose shortest text takes more tokens.
        """
        matcher, least, problem = self._compiled(grammar)
        if problem:
            raise ConfigError(f"a reply cannot be held to this grammar: {problem}")
        if least > max_new_tokens:
            raise ConfigError(f"max_new_tokens={max_new_tokens} cannot hold the shortest such reply, which takes {least} tokens; raise it")
        return ConstrainedReply(matcher.deep_copy(), self._tools()[1], max_new_tokens)

    def _compile(self, grammar: str) -> tuple[Any, int, str | None]:
        """(matcher at the beginning, tokens of the shortest text, what is wrong with the grammar)."""
        from llguidance import LLMatcher

        tokens, ends = self._tools()
        lark = LLMatcher.grammar_from_lark(grammar)
        wrong, said = LLMatcher.validate_grammar_with_warnings(lark, tokens)
        if wrong:
            line = " ".join(line.strip() for line in said[0].splitlines() if not re.match(r"\s*(\d+ \||\^|$)", line))
            return None, 0, line.partition("failed to compile JSON schema: ")[2] or line
        matcher = LLMatcher(tokens, lark, log_level=0)
        shortest = ends.path(matcher)
        return matcher, len(shortest or ()), None if shortest is not None else f"no text of at most {LONGEST} tokens was found that fits it"

    def _tools(self) -> tuple[Any, ShortestEnd]:
        if self._parts is None:
            from llguidance.hf import from_tokenizer

            tokens: Any = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_ids)  # type: ignore[arg-type]
            self._parts = tokens, ShortestEnd(tokens, self._end_ids)
        return self._parts


class ConstrainedReply(LogitsProcessor):
    """Holds one reply to a grammar; made by :meth:`Grammars.processor`.

    Args:
        matcher: llguidance's, at the beginning of the grammar.
        ends: finds the shortest end.
        tokens: the reply may have.
    """

    def __init__(self, matcher: Any, ends: ShortestEnd, tokens: int) -> None:
        self._matcher, self._ends, self._left, self._begun = matcher, ends, tokens, False
        self._out: list[int] | None = None
        self._detour = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``[1, vocabulary]`` with what the grammar rules out at minus infinity."""
        if self._begun:
            self._consume(int(input_ids[0, -1]))
        self._begun = True
        mask = self._mask(scores)
        if self._matcher.is_error():
            raise ModelError(f"constrained decoding broke off: {self._matcher.get_error()}")
        if int(scores[0].argmax()) in self._ends.ids and not self._matcher.is_accepting():
            mask = self._next_out(mask)
        elif self._left <= LONGEST:
            mask = self._affordable(mask, scores)
        self._left -= 1
        held = torch.where(mask, scores, -torch.inf)
        if bool((held == -torch.inf).all()):
            raise ModelError("constrained decoding broke off: another processor rules out every token that the grammar allows here")
        return held  # type: ignore[return-value]

    def _mask(self, scores: Tensor) -> Tensor:
        mask = self._ends.mask(self._matcher)
        room = max(0, scores.shape[1] - len(mask))  # some models have more logits than their tokenizer has tokens
        return torch.from_numpy(np.pad(mask, (0, room))[: scores.shape[1]]).to(scores.device)

    def _consume(self, token: int) -> None:
        self._matcher.consume_token(token)
        if self._out and self._out[0] == token:
            self._out = self._out[1:]
        elif self._out is not None:
            self._detour = True
            self._out = self._out if self._ends.completes(self._matcher, self._out) else None

    def _way_out(self, *, shortest: bool) -> list[int] | None:
        """A way out: the rest of the one that was begun, or one from before a detour as long as it is open and need not be the shortest."""
        if self._out is None or (shortest and self._detour):
            found = self._ends.path(self._matcher, self._left)
            if found is not None and (self._out is None or len(found) < len(self._out)):
                self._out = found
            self._detour = False
        return self._out

    def _next_out(self, mask: Tensor) -> Tensor:
        """A model that wants to end, where it may not, has no more to say here: the next token of the shortest way out."""
        path = self._way_out(shortest=True)
        return _only(mask, path[:1]) if path else mask

    def _affordable(self, mask: Tensor, scores: Tensor) -> Tensor:
        """Of the tokens allowed those after which what is left suffices to come to an end; at least the one that begins the shortest."""
        path = self._way_out(shortest=False)
        if path is not None and len(path) > self._left:
            path = self._way_out(shortest=True)
        if path is None or len(path) > self._left:
            return mask
        checked = self._checked(mask, scores, path)
        if self._left > FREE and not path:
            return mask & ~_only(mask, [token for token, ends in checked.items() if not ends])
        return _only(mask, [token for token, ends in checked.items() if ends] or path[:1] or self._ends.ids)

    def _checked(self, mask: Tensor, scores: Tensor, path: list[int]) -> dict[int, bool]:
        """Whether the rest can still be written after each of the likely tokens; False also of what was not looked into."""
        chances = torch.where(mask, scores[0], -torch.inf).softmax(-1)
        likely = chances.topk(min(LIKELY, len(chances)))
        checked, seen, walks = dict[int, bool](), 0.0, WALKS
        for token, chance in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
            if not chance > 0 or (seen >= SURE and any(checked.values())):
                break
            seen += chance
            open_still = len(path) < self._left and self._ends.completes(self._matcher, [token, *path])
            checked[token] = token in self._ends.ids or open_still
            if not checked[token] and walks:
                walks -= 1
                checked[token] = self._ends.affords(self._matcher, token, self._left - 1)
        return checked


def _only(mask: Tensor, tokens: Sequence[int]) -> Tensor:
    only = torch.zeros_like(mask)
    only[list(tokens)] = True
    return only
