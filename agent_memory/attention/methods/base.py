"""What a named method is: a Selector, a PositionMap and the sizes of the attended set; and what a recipe for one is given.

Knows the trained window and how it is shared out; does not know models, Sessions or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from agent_memory_kernels import Operations

from ...errors import ConfigError
from ...types import BLOCK_TOKENS, GROUP_TOKENS
from ..positions import PackedPositions, PositionMap
from ..selectors import Selector

LARGEST_DEFAULT = 8192
"""Tokens the attended set has at most by default, however wide the trained window."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the attended set: ``sink + recalled + local + group``; ``local`` counts tokens before the group."""

    sink: int
    recalled: int
    local: int
    group: int = GROUP_TOKENS

    @property
    def attended(self) -> int:
        """All of them."""
        return self.sink + self.recalled + self.local + self.group


@dataclass(frozen=True, slots=True)
class Focus:
    """What a message is about stands near while it is answered: see :mod:`..evidence`.

    Attributes:
        blocks: Blocks that are brought near, each with the one after it.
        reach: tokens before a query that are looked at at their true distance.
        beyond: only of timelines of more than so many tokens.
    """

    blocks: int
    reach: int
    beyond: int


@dataclass(frozen=True, slots=True)
class Method:
    """How memory takes part in attention.

    Attributes:
        name: as in ``--method``.
        sizes: the attended set; None attends to everything, at the positions of the map.
        selector: which tokens of memory.
        positions: where they stand.
        choosers: layers that choose; a layer after one of them takes its choice, one before them recalls nothing. None: every
            full-attention layer chooses for itself, as in the papers.
        border: a Session of at most this many tokens is attended whole, at true positions; by default the attended set.
        blocks_read: Blocks a choice of one KV head reads at most; None: those its tokens fill, and as many for what they cut.
        focus: what is brought near while a message is answered; None for nothing.
        spec: the line that makes this method again, with every option written out, whatever defaults are by then; None where there is
            none.
    """

    name: str
    sizes: Sizes | None
    selector: Selector
    positions: PositionMap = field(default_factory=PackedPositions)
    choosers: frozenset[int] | None = None
    border: int | None = None
    blocks_read: int | None = None
    focus: Focus | None = None
    spec: str | None = None

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
        """A Session of at most this many tokens is attended whole, at true positions; None: at any length, through the map."""
        return None if self.sizes is None else self.border or self.sizes.attended


@dataclass(frozen=True, slots=True)
class Given:
    """What a recipe makes its method for.

    Attributes:
        window: trained window in tokens.
        head: tokens of system prompt and tool schemas, which are always attended.
        ops: kernel implementation.
        choosers: layers a checkpoint names as those that find things; None where it names none.
        settings: options of ``recall`` that a checkpoint names.
    """

    window: int
    head: int
    ops: Operations
    choosers: frozenset[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """A frozen dataclass of a method's published parameters; None derives one from the trained window."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def make(self, given: Given) -> Method:
        """The method for a model.

        Raises:
            ConfigError: a parameter the trained window does not allow; the message names both.
        """
        ...


def bounded(name: str, value: int, least: int, most: int, bound: str) -> int:
    """``value`` if it lies in ``[least, most]``.

    Raises:
        ConfigError: it does not; ``bound`` says what the bounds come from.
    """
    if not least <= value <= most:
        raise ConfigError(f"{name}={value} cannot be used: it must be between {least} and {most} ({bound})")
    return value


def rounded_head(head: int) -> int:
    """Whole Blocks that cover a head; at least one."""
    return -(-max(head, BLOCK_TOKENS) // BLOCK_TOKENS) * BLOCK_TOKENS


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
    sink = rounded_head(head)
    recalled = attended * 7 // 16 // BLOCK_TOKENS * BLOCK_TOKENS - (sink - BLOCK_TOKENS)
    local = attended - sink - recalled - GROUP_TOKENS
    return Sizes(sink, max(recalled, BLOCK_TOKENS), local)
