"""Holding a reply to a grammar: tokens that would break it are ruled out, and it is brought to its end before the tokens run out.

Knows llguidance and one tokenizer; nothing of tools, schemas or templates. It is a logits processor, so ``decode`` knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from agent_memory.errors import ConfigError, ModelError
from agent_memory.model.shortest_end import ShortestEnd

GRAMMARS_KEPT = 32
"""Compiled grammars that are kept for the next reply."""

NEAR = 64
"""Tokens before the end of a reply from which each choice is checked for whether the rest can still be written."""

EVERY = 8
"""Tokens between two looks, before that, at how far the end is: what nests deeply needs more than ``NEAR``."""

CANDIDATES = 4
"""The best tokens that are checked for it; where none of them can be afforded, the shortest end is written."""

Mask = NDArray[np.bool_]


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
        return None

    def problem(self, grammar: str) -> str | None:
        """Why a grammar cannot be used, in one line; None if it can."""
        from llguidance import LLMatcher

        wrong, said = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(grammar), self._tools()[0])
        if not wrong:
            return None
        line = " ".join(line.strip() for line in said[0].splitlines() if "|" not in line and line.strip(" ^"))
        return line.partition("failed to compile JSON schema: ")[2] or line

    def processor(self, grammar: str, max_new_tokens: int) -> LogitsProcessor:
        """What holds one reply of at most that many tokens to a grammar.

        Raises:
            ConfigError: a grammar that cannot be used, or whose shortest text takes more tokens.
        """
        if problem := self.problem(grammar):
            raise ConfigError(f"a reply cannot be held to this grammar: {problem}")
        matcher, least = self._compiled(grammar)
        if least > max_new_tokens:
            raise ConfigError(f"max_new_tokens={max_new_tokens} cannot hold the shortest such reply, which takes {least} tokens; raise it")
        return ConstrainedReply(matcher.deep_copy(), self._tools()[1], max_new_tokens, max(NEAR, 2 * least))

    def _compile(self, grammar: str) -> tuple[Any, int]:
        from llguidance import LLMatcher

        tokens, ends = self._tools()
        matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(grammar), log_level=0)
        shortest = ends.path(matcher)
        return matcher, 0 if shortest is None else len(shortest)

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
        near: tokens before its end from which the end is looked for.
    """

    def __init__(self, matcher: Any, ends: ShortestEnd, tokens: int, near: int) -> None:
        self._matcher, self._ends, self._left, self._near, self._begun = matcher, ends, tokens, near, False
        self._out: list[int] | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores ``[1, vocabulary]`` with what the grammar rules out at minus infinity."""
        if self._begun:
            self._consume(int(input_ids[0, -1]))
        self._begun = True
        mask = self._ends.mask(self._matcher)
        if self._matcher.is_error():
            raise ModelError(f"constrained decoding broke off: {self._matcher.get_error()}")
        if self._left > self._near and self._left % EVERY == 0:
            self._near = max(self._near, NEAR + len(self._ends.path(self._matcher) or ()))
        if int(scores[0].argmax()) in self._ends.ids and not self._matcher.is_accepting():
            mask = self._next_out(mask)
        elif self._left <= self._near:
            mask = self._affordable(mask, scores)
        self._left -= 1
        room = max(0, scores.shape[1] - len(mask))  # some models have more logits than their tokenizer has tokens
        allowed = torch.from_numpy(np.pad(mask, (0, room))[: scores.shape[1]]).to(scores.device)
        return torch.where(allowed, scores, -torch.inf)  # type: ignore[return-value]

    def _consume(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._out = self._out[1:] if self._out and self._out[0] == token else None

    def _way_out(self, limit: int) -> list[int] | None:
        """The rest of a way out that was begun, or a new one: beginning one anew at each token would not get through a mark."""
        if self._out is None:
            self._out = self._ends.path(self._matcher, limit)
        return self._out

    def _next_out(self, mask: Mask) -> Mask:
        """A model that wants to end, where it may not, has no more to say here: the next token of the shortest way out."""
        path = self._way_out(self._left)
        return np.arange(len(mask)) == path[0] if path else mask

    def _affordable(self, mask: Mask, scores: Tensor) -> Mask:
        """Of the tokens allowed those after which what is left suffices to come to an end; at least the one that begins the shortest."""
        path = self._way_out(self._left)
        if path is None:
            return mask
        kept = np.zeros_like(mask)
        if len(path) < self._left:
            allowed = torch.where(torch.from_numpy(mask[: scores.shape[1]]).to(scores.device), scores[0], -torch.inf)
            for token in allowed.topk(min(CANDIDATES, int(mask.sum()))).indices.tolist():
                kept[token] = self._ends.affords(self._matcher, token, self._left - 1)
        if not kept.any():
            kept[path[:1] or self._ends.ids] = True
        return kept
