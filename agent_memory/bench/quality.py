"""What speed costs: on the pocket model's real keys, how much attention the fast choice recalls of what the exact one does.

Knows Selectors and real Sessions; times nothing. Mass is the share of softmax attention, unrotated and over every key, that the chosen
Blocks hold, averaged over query heads; both choices have the same budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent_memory_kernels import operations

from ..attention.methods import Method, derive_sizes
from ..attention.selectors import Ask, RecallSelector, Selection
from ..attention.selectors.base import by_kv_head
from ..attention.selectors.recall import RecallRule
from ..evaluate.fork import asked_on_a_fork
from ..memory.layer_kv import LayerKV
from ..runtime import Runtime
from ..types import BLOCK_TOKENS, Budget
from .compare import Progress, Ratio
from .layer import ALONE
from .session import DEVICE, filled, haystack

QUESTIONS = 8


@dataclass
class Tally:
    """Sums over choices."""

    choices: int = 0
    mass: float = 0.0
    exact_mass: float = 0.0
    same: int = 0
    proven: int = 0
    rescored: int = 0
    blocks: int = 0


@dataclass
class Watched:
    """A Selector that chooses as another does, and compares pairs of rules on what it is asked while ``on``."""

    inner: RecallSelector
    pairs: dict[str, tuple[RecallRule, RecallRule]]
    on: bool = False
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keeps = self.inner.keeps

    def select(self, asks: Sequence[Ask], scaling: float, layer: LayerKV) -> list[Selection]:
        """As ``inner``."""
        for ask in asks if self.on else ():
            kind = "decode" if ask.asking == 1 else "question"
            share = attention(ask, scaling, layer)
            for name, pair in self.pairs.items():
                fast, exact = (RecallSelector(rule, operations()).select([ask], scaling, layer)[0] for rule in pair)
                self._count(self.tallies.setdefault((name, kind), Tally()), fast, exact, share, len(share[0]))
        return self.inner.select(asks, scaling, layer)

    @staticmethod
    def _count(tally: Tally, fast: Selection, exact: Selection, share: Tensor, blocks: int) -> None:
        for group, (mine, best) in enumerate(zip(fast.tokens[:, 0], exact.tokens[:, 0], strict=True)):
            tally.choices += 1
            tally.mass += _held(share[group], mine)
            tally.exact_mass += _held(share[group], best)
            tally.same += int(torch.equal(mine, best))
            tally.proven += int(exact.exact)
        tally.rescored += exact.keys_rescored // BLOCK_TOKENS
        tally.blocks += blocks * len(fast.tokens)


def attention(ask: Ask, scaling: float, layer: LayerKV) -> Tensor:
    """Share of attention of each Block ``[G, blocks]``, over every key a group may choose from, averaged over the heads that ask."""
    candidates = ask.bounds.candidates
    keys = torch.cat([layer.read_keys(part)[0] for part in torch.arange(candidates.shape[1]).split(512)]).transpose(0, 1).flatten(1, 2)
    rows = by_kv_head(ask.queries[:, :, -ask.asking :], keys.shape[0])
    scores = torch.einsum("ghmd,hnd->ghmn", rows, keys) * scaling
    scores.masked_fill_(~candidates[:, None, None].repeat_interleave(BLOCK_TOKENS, -1), float("-inf"))
    share: Tensor = scores.softmax(-1).unflatten(-1, (-1, BLOCK_TOKENS)).sum(-1).mean((1, 2))
    return share


def _held(share: Tensor, tokens: Tensor) -> float:
    blocks = tokens[tokens >= 0].div(BLOCK_TOKENS, rounding_mode="floor").unique()
    return float(share[blocks].sum())


def recalled_mass(store: Path, tokens: int, progress: Progress) -> Iterator[Ratio]:
    """R14: attention the looked-up Blocks hold against that of the proven choice, by rule; and how often the proof needed what."""
    sizes = derive_sizes(512, 0)
    default = RecallRule(blocks=sizes.recalled // BLOCK_TOKENS)
    pairs = {
        f"default, {default.blocks} Blocks": (default, replace(default, scan="certified")),
        f"each query alone, {ALONE.blocks} Blocks": (ALONE, replace(ALONE, scan="certified")),
    }
    watched = Watched(RecallSelector(default, operations()), pairs)
    with Runtime.load(store=store, budget=Budget(device=DEVICE)) as plain, filled(plain, tokens, progress):
        choosers = plain.method(0).choosers
    with Runtime.load(method=Method("watched", sizes, watched, choosers=choosers), store=store, budget=Budget(device=DEVICE)) as runtime:
        progress("R14: recalled attention")
        needles = haystack(runtime, tokens, needles=QUESTIONS).needles
        with filled(runtime, tokens, progress) as session:
            for needle in needles:
                with asked_on_a_fork(runtime, session, f"ask {needle.name}") as child:
                    watched.on = True
                    child.reply(needle.question, max_new_tokens=24)
                    watched.on = False
    for (rule, kind), tally in watched.tallies.items():
        yield _ratio(f"R14 recalled mass, {rule}, {kind}", tally, tokens)


def _ratio(name: str, tally: Tally, tokens: int) -> Ratio:
    count = max(1, tally.choices)
    detail: dict[str, Any] = {
        "tokens": tokens,
        "choices": tally.choices,
        "same_blocks": round(tally.same / count, 3),
        "proven": round(tally.proven / count, 3),
        "share_of_blocks_rescored_to_prove": round(tally.rescored / max(1, tally.blocks), 3),
    }
    mine, best = tally.mass / count, tally.exact_mass / count
    return Ratio(name, mine, best, mine / max(best, 1e-12), target="at least 0.99", unit="share", growth=True, detail=detail)
