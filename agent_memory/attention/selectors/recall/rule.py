"""How ``recall`` chooses: the parameters, and which of them cannot be.

Knows names and bounds; does not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....errors import ConfigError
from ....memory.clusters import STEP_TOKENS


@dataclass(frozen=True, slots=True)
class RecallRule:
    """How ``recall`` chooses.

    Attributes:
        blocks: Blocks recalled for each choice.
        scan: ``clusters`` looks up keys in clusters of like keys and scans what it finds, and all that is recent, in 8 bits (as
            ``keys`` does while the memory is short); ``keys`` scans every key in 8 bits; ``means`` prefilters by mean keys and scores
            the keys of ``survivors`` in 8 bits with an error bound; ``certified`` scans every key in 8 bits and reads true keys until
            it is proven that fp32 would choose the same; ``exact`` scores every key in fp32, and keeps them all in memory.
        clusters_from: tokens of memory from which on clusters are used, a multiple of 2,048.
        probes: clusters each query opens.
        found: keys each query takes from them for each KV head, whose Blocks are scanned whole.
        survivors: Blocks the ``means`` prefilter leaves; 0 decides by mean keys alone.
        vote: ``softmax`` (normalised per query) or ``max`` (raw).
        scope: who shares a choice: each ``kv_head`` its own, or the whole ``layer``.
        echo: how loud the queries just before are in a query's vote, in ``keys`` scans; 0 lets each speak for itself.
        heard: queries that are heard, the asking one with them.
        margin: a Block is left out for a query whose best Block has that much more of its vote: it would only distract.
        pool: score the mean of the query heads that share a KV head instead of each of them.
        angle: rotate queries to this position before scoring them against keys that are not rotated, as InfLLM does; None does not.
    """

    blocks: int
    scan: Literal["clusters", "keys", "certified", "means", "exact"] = "clusters"
    clusters_from: int = 65_536
    probes: int = 4
    found: int = 14
    survivors: int = 64
    vote: Literal["softmax", "max"] = "softmax"
    scope: Literal["kv_head", "layer"] = "layer"
    echo: float = 4.0
    heard: int = 12
    margin: float = 2.0
    pool: bool = True
    angle: int | None = None

    def check(self, most: int) -> None:
        """Raise ``ConfigError`` for what cannot be; ``most`` Blocks fit the trained window."""
        words = {"scan": ("clusters", "keys", "certified", "means", "exact"), "vote": ("softmax", "max"), "scope": ("layer", "kv_head")}
        for name, choices in words.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"recall: {name}={getattr(self, name)!r} cannot be used; choose one of {', '.join(choices)}")
        if self.clusters_from < STEP_TOKENS or self.clusters_from % STEP_TOKENS:
            raise ConfigError(f"recall: clusters_from={self.clusters_from} cannot be used; it must be a multiple of {STEP_TOKENS}")
        least_of = {"blocks": 1, "survivors": 0, "heard": 1, "echo": 0, "margin": 0, "probes": 1, "found": 1}
        for name, least in least_of.items():
            limit = most if name == "blocks" else None
            value = getattr(self, name)
            if value < least or (limit is not None and value > limit):
                bound = f"at least {least}" if limit is None else f"between {least} and {limit}, what the trained window holds"
                raise ConfigError(f"recall: {name}={value} cannot be used; it must be {bound}")

    @property
    def echoes(self) -> bool:
        """Whether queries hear those before them."""
        return self.scan in ("clusters", "keys", "certified") and self.vote == "softmax" and self.pool and self.echo > 0
