"""``recall``, our own: every key is scanned in 8 bits, and the best Blocks of each group stand at packed positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...types import BLOCK_TOKENS, GROUP_TOKENS
from ..selectors.recall import RecallRule, RecallSelector
from .base import Given, Method, bounded, derive_sizes


@dataclass(frozen=True)
class Recall:
    """Options are those of :class:`RecallRule`; None is its default.

    Attributes:
        group: queries that share a choice.
        blocks: Blocks recalled for each choice; by default as many as the window has room for.
        scan, clusters_from, probes, found, survivors, vote, scope, echo, heard, margin, pool, angle: see :class:`RecallRule`.
    """

    group: int = GROUP_TOKENS
    blocks: int | None = None
    scan: str | None = None
    clusters_from: int | None = None
    probes: int | None = None
    found: int | None = None
    survivors: int | None = None
    vote: str | None = None
    scope: str | None = None
    echo: float | None = None
    heard: int | None = None
    margin: float | None = None
    pool: bool | None = None
    angle: int | None = None

    def make(self, given: Given) -> Method:
        """Sizes derived from the window; only the layers a checkpoint names choose."""
        sizes = derive_sizes(given.window, given.head)
        bounded("recall: group", self.group, 1, sizes.local, f"local and group tokens of a window of {given.window}")
        sizes = replace(sizes, local=sizes.local + sizes.group - self.group, group=self.group)
        options = {name: value for name, value in vars(self).items() if value is not None and name != "group"}
        rule = replace(RecallRule(blocks=sizes.recalled // BLOCK_TOKENS), **options)
        rule.check(sizes.recalled // BLOCK_TOKENS)
        return Method("recall", sizes, RecallSelector(rule, given.ops), choosers=given.choosers)
