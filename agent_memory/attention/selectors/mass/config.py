"""How ``recall`` chooses by attention mass, and which distances keys are scored at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....errors import ConfigError
from ....memory.clusters import STEP_TOKENS
from ....types import BLOCK_TOKENS

CLUSTER_TOKENS = 32
"""Keys of a cluster at most: small ones tell more exactly what they hold, and 32 keys that lie together are still read in one run."""

PROBED_SHARE = 0.18
"""Of the clusters of a long memory, those that are looked into by default."""


@dataclass(frozen=True, slots=True)
class MassConfig:
    """How ``recall`` chooses.

    Attributes:
        tokens: recalled tokens of each choice of a KV head; a multiple of 32.
        blocks: Blocks they are taken from at most, those with the largest mass: so many have to be brought from a slower Tier.
        window: a timeline of so many tokens is scored at true distances throughout.
        reach: of a longer one, as many tokens before a query, its own with them.
        estimate_unread: attend to the mean values of parts that are scored at their true distance and not read, too.
        probes: clusters of like keys beyond ``reach`` that a KV head looks into at least; 0 scores every key.
        probed_share: of the clusters, the part that is looked into where that is more than ``probes``.
        most_probes: clusters that are looked into at most, however long the memory.
        cluster_tokens: keys of a cluster at most.
    """

    tokens: int
    blocks: int
    window: int
    reach: int
    estimate_unread: bool = True
    probes: int = 0
    probed_share: float = PROBED_SHARE
    most_probes: int = 0
    cluster_tokens: int = CLUSTER_TOKENS

    @property
    def period(self) -> int:
        """Rotated keys count their positions from multiples of this: a power of two of at least ``window`` tokens."""
        return 1 << max(self.window - 1, BLOCK_TOKENS).bit_length()

    @property
    def behind(self) -> int:
        """Newest tokens that are in no cluster: those within ``reach``, and so many more that how a text is cut into forwards makes no
        difference."""
        return -(-self.reach // STEP_TOKENS) * STEP_TOKENS

    def looked_into(self, clusters: int) -> int:
        """How many of so many clusters are looked into: of a longer memory more hold a share of the attention that counts."""
        return max(self.probes, min(int(self.probed_share * clusters), self.most_probes))

    def fewest(self, tokens: int) -> int:
        """Tokens in clusters from which on so many tokens that share a choice look keys up there. What a lookup reads here and there costs
        as much as twice as many keys that follow each other, and of a token alone, whose products cost little, four times as many."""
        return (4 if tokens == 1 else 2) * self.probes * self.cluster_tokens

    def first(self, last: Tensor) -> Tensor:
        """The first Block that is scored at its true distance from queries up to tokens ``last``."""
        first = (last - self.reach + 1 + BLOCK_TOKENS).clamp(min=0).masked_fill(last < self.window, 0)
        return first.div(BLOCK_TOKENS, rounding_mode="floor")

    def check(self) -> None:
        """Raise ``ConfigError`` for what cannot be."""
        if self.probes < 0:
            raise ConfigError(f"recall: probes={self.probes} cannot be used; it must be 0, which scores every key, or more")
        if not 0 <= self.probed_share <= 1:
            raise ConfigError(f"recall: probed_share={self.probed_share} cannot be used; it must be from 0 to 1")
        if self.most_probes < self.probes:
            raise ConfigError(
                f"recall: most_probes={self.most_probes} cannot be used; it must be at least {self.probes}, the probes of a short memory"
            )
        if self.cluster_tokens < 2:
            raise ConfigError(f"recall: cluster_tokens={self.cluster_tokens} cannot be used; it must be at least 2")
        if self.blocks * BLOCK_TOKENS < self.tokens:
            raise ConfigError(
                f"recall: blocks={self.blocks} cannot be used; it must be at least {self.tokens // BLOCK_TOKENS}, which hold the "
                f"{self.tokens} recalled tokens of the attended set"
            )
