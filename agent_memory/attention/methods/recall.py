"""``recall``, our own: each KV head reads what holds most of its attention, at its true distance inside the trained window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import gcd
from typing import Any

from ...errors import ConfigError
from ...types import BLOCK_TOKENS, GROUP_TOKENS
from ..positions import PackedPositions, WindowPositions
from ..selectors import MassConfig, MassSelector, RecallSelector, Selector
from ..selectors.recall import RecallRule
from .base import Focus, Given, Method, Sizes, bounded, derive_sizes, rounded_head
from .spec import spec_of

ATTENDED_DEFAULT = 2048
"""Tokens attended by default, where the trained window has room for them."""

LOCAL_SHARE = 8
"""One part in this many of the attended set is local by default."""

BLOCKS_READ = 4
"""Blocks that recalled tokens are taken from by default, for each that they would fill."""

MASS_OPTIONS = frozenset({"estimate_unread", "reach", "probes", "probed_share", "most_probes", "cluster_tokens"})
"""Options of ``score=mass`` that its selector has, beside sizes."""

FOCUS_OPTIONS = frozenset({"focus", "focus_distance"})
"""What else is an option of ``score=mass``."""

GROUP_SHARE, LARGEST_GROUP = 32, 64
"""A group of the default rule is this part of the attended tokens, and at most so many. A choice of 64 queries costs little more than one
of 16: keys are read, gathered and turned once for all of them."""

REACH_SHARE, NEAREST_REACH = 4, 1024
"""Beyond the trained window, keys within a quarter of it stand at their true distance; of a small window so many tokens, up to half."""

POSITIONS = ("clipped", "true", "packed")
"""Where recalled keys may stand."""

PROBES, MOST_PROBES = 256, 2048
"""Clusters that a choice by mass looks into by default: of a short memory, and of a long one."""

FOCUS, FOCUS_SHARE, NEAREST_FOCUS = 1, 4, 512
"""Blocks that are brought near by default: to a quarter of ``reach``, and not nearer than so many tokens."""

MAX_OPTIONS = frozenset(field.name for field in fields(RecallRule)) - {"blocks"}
"""Options of ``score=max``, beside sizes."""


@dataclass(frozen=True)
class Recall:
    """Options of ``recall``; None is what a checkpoint names, or else the default.

    Attributes:
        score: what a Block is chosen by. ``mass``: the attention mass of its keys, each KV head for itself; ``max``: its best key, by
            votes that hear each other.
        attended: tokens of the attended set: sink, recalled, local and group.
        local: tokens before a group that are always attended.
        group: queries that share a choice; by default 16, and for ``mass`` a thirty-second of ``attended``, 16 to 64.
        blocks: Blocks read for each choice at most; by default four times as many as the recalled tokens would fill, and for ``max``, which
            recalls whole Blocks, as many.
        positions: where recalled Blocks stand: ``clipped`` and ``true`` at their distance, where ``reach`` has room for it; those further
            away at its end, ``clipped`` all at one distance, ``true`` in order; ``packed`` all one after another.
        estimate_unread: see :class:`MassConfig`.
        reach: tokens before a query, of a timeline that is longer than the trained window, that are scored and stand at their true
            distance. Models find what is far away badly: by default a quarter of the window, and 1,024 tokens of small ones; half of
            the window unless keys are ``clipped``.
        probes: clusters of like keys that are looked into; see :class:`MassConfig` and :class:`RecallRule`.
        focus: Blocks that a message points at (:mod:`..evidence`), which stand near while it is answered, each with the one after it. Only
            of ``clipped`` keys, and of timelines longer than the trained window; 0 brings none.
        focus_distance: how near; by default a quarter of ``reach``, but not nearer than 512 tokens or what is local.
        probed_share, most_probes, cluster_tokens: see :class:`MassConfig`.
        scan, clusters_from, found, survivors, vote, scope, echo, heard, margin, pool, angle: see :class:`RecallRule`.
    """

    score: str | None = None
    attended: int | None = None
    local: int | None = None
    group: int | None = None
    blocks: int | None = None
    positions: str | None = None
    estimate_unread: bool | None = None
    reach: int | None = None
    scan: str | None = None
    clusters_from: int | None = None
    probes: int | None = None
    probed_share: float | None = None
    most_probes: int | None = None
    cluster_tokens: int | None = None
    focus: int | None = None
    focus_distance: int | None = None
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
        chosen = self._with_settings(given.settings)
        score = chosen.score or "mass"
        if score not in ("mass", "max"):
            raise ConfigError(f"recall: score={score!r} cannot be used; choose one of mass, max")
        options = {name: value for name, value in vars(chosen).items() if value is not None}
        by_mass = MASS_OPTIONS | FOCUS_OPTIONS
        mine, others = (by_mass, MAX_OPTIONS) if score == "mass" else (MAX_OPTIONS, by_mass)
        foreign = sorted(options.keys() & others - mine)
        if foreign:
            raise ConfigError(f"recall: {foreign[0]} is an option of score={'max' if score == 'mass' else 'mass'}, and score is {score}")
        sizes = chosen._sizes(given, score)
        whole = BLOCK_TOKENS - gcd(sizes.group, BLOCK_TOKENS)
        bounded(
            "recall: local",
            sizes.local,
            whole,
            given.window,
            f"the Block before the local tokens of a group of {sizes.group} has to be whole",
        )
        most = sizes.recalled // BLOCK_TOKENS
        blocks = most * (1 if score == "max" else BLOCKS_READ) if chosen.blocks is None else chosen.blocks
        where = chosen._where(score)
        selector: Selector
        focus, near = None, None
        if score == "max":
            rule = RecallRule(blocks, **{name: options[name] for name in MAX_OPTIONS & options.keys()})
            rule.check(most)
            selector, named = RecallSelector(rule, given.ops), {name: getattr(rule, name) for name in sorted(MAX_OPTIONS)}
        else:
            reach = chosen._reach(given.window, sizes, where)
            own: dict[str, Any] = {"probes": PROBES, "most_probes": MOST_PROBES if chosen.probes is None else chosen.probes}
            own |= {name: options[name] for name in MASS_OPTIONS & options.keys()}
            config = MassConfig(sizes.recalled, blocks, given.window, **{**own, "reach": reach})
            config.check()
            focus, near = chosen._focus(given.window, sizes, where, reach)
            selector, named = MassSelector(config, given.ops), {name: getattr(config, name) for name in sorted(MASS_OPTIONS)}
            named |= {"focus": focus.blocks, "focus_distance": near}
        positions = PackedPositions() if where == "packed" else WindowPositions(given.window, named.get("reach"), where == "clipped", near)
        written = {"score": score, "attended": sizes.attended, "local": sizes.local, "group": sizes.group, "blocks": blocks}
        spec = spec_of("recall", {**written, "positions": where, **named})
        read = None if score == "max" else blocks
        return Method("recall", sizes, selector, positions, choosers=given.choosers, blocks_read=read, focus=focus, spec=spec)

    def _with_settings(self, settings: Mapping[str, Any]) -> Recall:
        """The options a checkpoint names fill what is not given; none of them where another way of scoring is asked for.

        Raises:
            ConfigError: the checkpoint names an option there is not.
        """
        unknown = sorted(settings.keys() - {field.name for field in fields(self)})
        if unknown:
            raise ConfigError(f"the model's config names options of recall that are unknown: {', '.join(unknown)}")
        if self.score is not None and self.score != settings.get("score", "mass"):
            return self
        given = {name: value for name, value in vars(self).items() if value is not None and name != "group"}
        return replace(self, **{**settings, **given})

    def _sizes(self, given: Given, score: str) -> Sizes:
        """A sink that covers the head, the local tokens, and recalled Blocks in between."""
        attended = min(ATTENDED_DEFAULT, given.window) if self.attended is None else self.attended
        group = self._group(attended, score)
        if score == "max" and self.attended is None and self.local is None:
            sizes = derive_sizes(given.window, given.head)
            bounded("recall: group", group, 1, sizes.local, f"local and group tokens of a window of {given.window}")
            return replace(sizes, local=sizes.local + sizes.group - group, group=group)
        sink = rounded_head(given.head)
        least = sink + 2 * BLOCK_TOKENS + group
        bounded("recall: attended", attended, least, given.window, f"sink, a Block, local tokens and a group; the window of {given.window}")
        local = max(attended // LOCAL_SHARE // BLOCK_TOKENS, 1) * BLOCK_TOKENS if self.local is None else self.local
        most = attended - sink - BLOCK_TOKENS
        bounded("recall: group", group, 1, most - 1, f"local and group tokens of attended={attended}")
        bounded("recall: local", local, 1, most - group, f"what attended={attended} leaves beside sink, a Block and a group")
        recalled = (attended - sink - local - group) // BLOCK_TOKENS * BLOCK_TOKENS
        return Sizes(sink, recalled, attended - sink - recalled - group, group)

    def _group(self, attended: int, score: str) -> int:
        if self.group is not None:
            return self.group
        shared = attended // GROUP_SHARE // GROUP_TOKENS * GROUP_TOKENS
        return GROUP_TOKENS if score == "max" else min(max(shared, GROUP_TOKENS), LARGEST_GROUP)

    def _where(self, score: str) -> str:
        where = self.positions or ("clipped" if score == "mass" else "packed")
        if where not in POSITIONS:
            raise ConfigError(f"recall: positions={where!r} cannot be used; choose one of {', '.join(POSITIONS)}")
        return where

    def _focus(self, window: int, sizes: Sizes, where: str, reach: int) -> tuple[Focus, int]:
        """What is brought near, and how near."""
        most = sizes.recalled // (2 * BLOCK_TOKENS)
        blocks = (min(FOCUS, most) if where == "clipped" else 0) if self.focus is None else self.focus
        if blocks and where != "clipped":
            raise ConfigError(f"recall: focus={blocks} cannot be used with positions={where}; only clipped keys can be brought near")
        bounded("recall: focus", blocks, 0, most, f"half of the {sizes.recalled} recalled tokens")
        least = sizes.local + sizes.group
        near = max(reach // FOCUS_SHARE, min(NEAREST_FOCUS, reach), least) if self.focus_distance is None else self.focus_distance
        bounded("recall: focus_distance", near, least, reach, "the local tokens and reach")
        return Focus(blocks, reach, window), near

    def _reach(self, window: int, sizes: Sizes, where: str) -> int:
        """Recalled keys that share a distance take no room in it; others need one that holds the whole attended set."""
        clipped = where == "clipped"
        least = sizes.attended - (sizes.recalled if clipped else 0)
        wanted = max(window // REACH_SHARE, min(NEAREST_REACH, window // 2)) if clipped else window // 2
        reach = max(wanted, least) if self.reach is None else self.reach
        bounded("recall: reach", reach, least, window, "what is attended at its own place and the trained window")
        return reach
