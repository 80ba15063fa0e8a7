"""The named methods: a Selector, a PositionMap and the sizes of the attended set.

Knows the papers' parameters and the trained window; does not know models, Sessions or tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent_memory_kernels import Operations, operations

from ..errors import ConfigError
from ..types import BLOCK_TOKENS, GROUP_TOKENS
from .positions import PackedPositions, PositionMap, TruePositions
from .selectors import RecallSelector, Selector, TopKSelector, WindowSelector
from .selectors.recall import RecallRule

Choosers = frozenset[int] | None

LARGEST_DEFAULT = 8192
"""Tokens the attended set has at most by default, however wide the trained window."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the attended set: ``sink + recalled + local + group``; ``local`` counts tokens before the group.

    The parts add up to at most the trained window, so that packed positions never leave it.
    """

    sink: int
    recalled: int
    local: int
    group: int = GROUP_TOKENS

    @property
    def attended(self) -> int:
        """All of them."""
        return self.sink + self.recalled + self.local + self.group


@dataclass(frozen=True, slots=True)
class Method:
    """How memory takes part in attention.

    Attributes:
        name: as in ``--method``.
        sizes: the attended set; None attends to everything (``full``).
        selector: which tokens of memory.
        positions: where they stand.
        choosers: layers that choose; a layer after one of them takes its choice, one before them recalls nothing. None: every
            full-attention layer chooses for itself, as in the papers.
    """

    name: str
    sizes: Sizes | None
    selector: Selector
    positions: PositionMap = field(default_factory=PackedPositions)
    choosers: frozenset[int] | None = None

    def chooses(self, layer: int) -> bool:
        """Whether a layer makes a choice of its own."""
        return self.choosers is None or layer in self.choosers

    def reads(self, layer: int) -> bool:
        """Whether a layer reads recalled Blocks: its own choice, or that of a layer before it."""
        return self.recalls and (self.choosers is None or any(chooser <= layer for chooser in self.choosers))

    @property
    def recalls(self) -> bool:
        """Whether Blocks outside sink and window are ever read."""
        return self.sizes is not None and self.sizes.recalled > 0

    @property
    def attended(self) -> int | None:
        """A Session of at most this many tokens is attended whole, at true positions; None is any length."""
        return None if self.sizes is None else self.sizes.attended


def derive_sizes(window: int, head: int) -> Sizes:
    """Sizes for a trained window: a fixed sink that covers the head, seven sixteenths recalled, the rest local.

    Args:
        window: trained window in tokens (the attended set uses at most 8,192 by default).
        head: tokens of system prompt and tool schemas, always attended.

    Raises:
        ConfigError: the window is too small.
    """
    attended = min(window, LARGEST_DEFAULT) // BLOCK_TOKENS * BLOCK_TOKENS
    if attended < 8 * BLOCK_TOKENS:
        raise ConfigError(f"a window of {window} tokens is too small: memory needs at least {8 * BLOCK_TOKENS}")
    sink = -(-max(head, BLOCK_TOKENS) // BLOCK_TOKENS) * BLOCK_TOKENS
    recalled = attended * 7 // 16 // BLOCK_TOKENS * BLOCK_TOKENS - (sink - BLOCK_TOKENS)
    local = attended - sink - recalled - GROUP_TOKENS
    return Sizes(sink, max(recalled, BLOCK_TOKENS), local)


def _recall(window: int, head: int, ops: Operations, choosers: Choosers) -> Method:
    sizes = derive_sizes(window, head)
    return Method("recall", sizes, RecallSelector(RecallRule(blocks=sizes.recalled // BLOCK_TOKENS), ops), choosers=choosers)


def _reattention(window: int, head: int, ops: Operations, choosers: Choosers) -> Method:
    """methods.md 10.4: k 4, span 32, and as many named keys as the window has room for, as the paper's k' * s + L fills its own."""
    sizes = derive_sizes(window, head)
    return Method("reattention", sizes, TopKSelector(k=4, clip=sizes.recalled // 32, span=32, ops=ops))


def _streaming(window: int, head: int, ops: Operations, choosers: Choosers) -> Method:
    sizes = derive_sizes(window, head)
    return Method("streaming", Sizes(sizes.sink, 0, sizes.local + sizes.recalled), WindowSelector())


def _full(window: int, head: int, ops: Operations, choosers: Choosers) -> Method:
    return Method("full", None, WindowSelector(), TruePositions())


METHODS: dict[str, Callable[[int, int, Operations, Choosers], Method]] = {
    "full": _full,
    "reattention": _reattention,
    "recall": _recall,
    "streaming": _streaming,
}
"""Every method by name; each is made for a trained window and a head length."""


def make_method(name: str, window: int, head: int = 0, *, choosers: Choosers = None, backend: str = "auto") -> Method:
    """Make a method for a model's trained window.

    Args:
        name: of :data:`METHODS`.
        window: trained window in tokens.
        head: tokens of system prompt and tool schemas.
        choosers: layers that choose for ``recall``; None is all.
        backend: kernel implementation.

    Raises:
        ConfigError: no such method, or a window too small for it.
    """
    if name not in METHODS:
        raise ConfigError(f"no method named {name!r}; choose one of {', '.join(sorted(METHODS))}")
    return METHODS[name](window, head, operations(backend), choosers)
